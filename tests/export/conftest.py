"""Photographs and a small classifier of them."""

from photo_classifier import (
    class_names,
    classifier,
    finished,
    make_classifier,
    odd_photos,
    photos,
    run,
)

__all__ = [
    "class_names",
    "classifier",
    "finished",
    "make_classifier",
    "odd_photos",
    "photos",
    "run",
]
