"""Overlays: lighter where it is hotter, and captions that fit whatever they say."""

import numpy as np
import pytest

from keras_transfer.inference.explanation import Explanation
from keras_transfer.inference.explanation_files import (
    SIDE,
    blend,
    draw_overlay,
    printable,
)
from keras_transfer.tasks.single_label import SingleLabel

LUMA = [0.299, 0.587, 0.114]


def explanation(*, label: str = "daisy", path: str = "a.jpg", size: int = 64, **changes):
    fields = {
        "path": path,
        "task": SingleLabel((label, "tulips")),
        "outputs": np.float32([0.75, 0.25]),
        "class_index": 0,
        "heat": np.float32([[0, 0.5], [0.25, 1]]),
        "pixels": np.random.default_rng(0).integers(0, 256, (size, size, 3), np.uint8),
    }
    return Explanation(**{**fields, **changes})


@pytest.mark.parametrize("grey", [0, 128, 255])
def test_blend_is_lighter_where_it_is_hotter(grey):
    ramp = np.tile(np.linspace(0, 1, 64, dtype=np.float32), (64, 1))
    lightness = blend(np.full((64, 64, 3), grey, np.uint8), ramp)[SIDE // 2] @ LUMA
    dip = np.maximum.accumulate(lightness) - lightness
    assert dip.max() <= 2  # of 255: too little to be seen
    assert lightness[-1] - lightness[0] > 100


def test_blend_has_no_colour_where_no_place_speaks_for_the_class():
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    blended = blend(pixels, np.zeros((7, 7), np.float32)).astype(int)
    assert np.ptp(blended, axis=2).max() <= 2
    # Some of the image is left to see.
    assert blended.std() > 10


def test_blend_puts_the_heat_where_its_cell_is():
    heat = np.zeros((8, 8), np.float32)
    heat[2, 5] = 1
    blended = blend(np.full((32, 32, 3), 60, np.uint8), heat, side=160) @ LUMA
    top, left = np.unravel_index(blended.argmax(), blended.shape)
    assert abs(top - 2.5 * 20) <= 2
    assert abs(left - 5.5 * 20) <= 2


def test_overlay_shows_the_square_left_and_its_heat_right():
    drawn = np.asarray(draw_overlay(explanation(size=32)))
    assert drawn.shape[1] == 2 * SIDE + 52
    top = 44
    left = drawn[top : top + SIDE, 20 : 20 + SIDE]
    np.testing.assert_array_equal(left[6::12, 6::12], explanation(size=32).pixels)
    right = drawn[top : top + SIDE, 32 + SIDE : 32 + 2 * SIDE]
    np.testing.assert_array_equal(
        right, blend(explanation(size=32).pixels, explanation(size=32).heat)
    )


@pytest.mark.parametrize(
    "name", ["x" * 5000, "a\nb\udcff\x00", "", "日本語 العربية", "W" * 300, "[b]$x_1$ <i>&"]
)
def test_overlay_keeps_captions_within_their_panels(name):
    plain = np.asarray(draw_overlay(explanation()))
    drawn = np.asarray(draw_overlay(explanation(label=name, path=f"photos/{name}.jpg")))
    assert drawn.shape == plain.shape
    margins = [drawn[:, :18], drawn[:, 22 + SIDE : 30 + SIDE], drawn[:, -18:]]
    assert all((margin == 255).all() for margin in margins)


def test_percent_never_rounds_to_certainty():
    shown = [
        SingleLabel(("a", "b")).format_output(value)
        for value in (0.0, 0.0001, 0.5, 0.98149, 0.99949, 0.9996, 1.0)
    ]
    assert shown == ["0.0 %", "< 0.1 %", "50.0 %", "98.1 %", "99.9 %", "> 99.9 %", "100.0 %"]


def test_printable_replaces_what_no_file_can_hold():
    assert printable("naïve 日本\nx\udcff") == "naïve 日本�x?"
