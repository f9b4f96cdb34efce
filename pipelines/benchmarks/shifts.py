"""Shifts: changes of images that leave their classes as they are, as another camera makes them."""

from collections.abc import Callable
from typing import Final

import cv2
import numpy as np

Shift = Callable[[np.ndarray, np.random.Generator], np.ndarray]


def contrast(images: np.ndarray, random: np.random.Generator) -> np.ndarray:  # noqa: ARG001
    """A fifth of the contrast, between the grey levels 140 and 191."""
    return 0.2 * images + 140


def noise(images: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Normal noise of a deviation of 0.3 of the range."""
    return images + random.normal(0, 0.3 * 255, images.shape)


def blur(images: np.ndarray, random: np.random.Generator) -> np.ndarray:  # noqa: ARG001
    """A Gaussian of a deviation of a sixteenth of the side."""
    return _each(images, lambda one: cv2.GaussianBlur(one, (0, 0), one.shape[0] / 16))


def edges(images: np.ndarray, random: np.random.Generator) -> np.ndarray:  # noqa: ARG001
    """Sketches: dark lines where the brightness changes, on white."""
    return _each(images, _sketch)


def colours(images: np.ndarray, random: np.random.Generator) -> np.ndarray:  # noqa: ARG001
    """A red light: half of the green, a quarter of the blue."""
    return images * np.array([1.0, 0.5, 0.25])


def low_resolution(images: np.ndarray, random: np.random.Generator) -> np.ndarray:  # noqa: ARG001
    """Reduced to an eighth of the side and enlarged again."""
    return _each(images, _coarse)


SHIFTS: Final[dict[str, Shift]] = {
    shift.__name__: shift for shift in (contrast, noise, blur, edges, colours, low_resolution)
}


def shifted(pixels: np.ndarray, name: str, *, seed: int) -> np.ndarray:
    """Images uint8 [N, S, S, 3] with a shift of the table."""
    changed = SHIFTS[name](pixels.astype(np.float32), np.random.default_rng(seed))
    return np.clip(np.round(changed), 0, 255).astype(np.uint8)


def _each(images: np.ndarray, change: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    return np.stack([change(one) for one in images])


def _sketch(image: np.ndarray) -> np.ndarray:
    grey = cv2.GaussianBlur(image.mean(axis=-1), (0, 0), 1)
    slope = np.hypot(cv2.Sobel(grey, cv2.CV_32F, 1, 0), cv2.Sobel(grey, cv2.CV_32F, 0, 1))
    return np.repeat(255 - np.minimum(slope, 255)[..., None], 3, axis=-1)


def _coarse(image: np.ndarray) -> np.ndarray:
    side = image.shape[0]
    small = cv2.resize(image, (side // 8, side // 8), interpolation=cv2.INTER_AREA)
    return cv2.resize(small, (side, side), interpolation=cv2.INTER_LINEAR)
