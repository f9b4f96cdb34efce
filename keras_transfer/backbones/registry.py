"""The registry of backbones, by name."""

import difflib
from itertools import chain

from keras_transfer.backbones import applications, efficientnet_lite
from keras_transfer.backbones.record import Backbone
from keras_transfer.errors import SpecError

__all__ = ["BACKBONES", "Backbone", "get_backbone", "list_backbones"]

BACKBONES: dict[str, Backbone] = {
    row.name: row for row in chain(applications.rows(), efficientnet_lite.rows())
}


def list_backbones() -> list[str]:
    """The names that `model.backbone` may have."""
    return list(BACKBONES)


def get_backbone(name: str) -> Backbone:
    """The backbone with that name.

    Raises SpecError with the nearest names if there is none.
    """
    if name in BACKBONES:
        return BACKBONES[name]
    nearest = difflib.get_close_matches(name, BACKBONES, n=3, cutoff=0.5)
    raise SpecError(
        "model.backbone is not a known backbone",
        expected=f"one of {', '.join(BACKBONES)}",
        received=repr(name),
        fix=f"did you mean {' or '.join(nearest)}?" if nearest else "choose one of those names",
    )
