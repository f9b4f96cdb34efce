"""Sheets show the images they were given, in their colours."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from keras_transfer.evaluation.plots import Mistake, draw_mistakes, draw_views

RED, GREEN = (200, 30, 40), (20, 160, 60)


def read(file: Path) -> np.ndarray:
    with Image.open(file) as image:
        assert image.format == "PNG"
        return np.asarray(image.convert("RGB"))


def count(pixels: np.ndarray, color: tuple[int, int, int]) -> int:
    return int((pixels == color).all(axis=-1).sum())


def flat(color: tuple[int, int, int], size: int = 16) -> np.ndarray:
    return np.full((size, size, 3), color, np.float32)


def test_views_are_shown_row_by_row(tmp_path):
    views = np.array([[flat(RED), flat(RED), flat(GREEN)], [flat(GREEN)] * 3])
    draw_views(views, ["ant", "a bee with a very long name, $x_"], tmp_path / "views.png")
    pixels = read(tmp_path / "views.png")
    assert count(pixels, GREEN) / count(pixels, RED) == pytest.approx(2, rel=0.02)
    upper, _, lower = np.array_split(pixels, 3)
    assert count(upper, RED) > 10_000
    assert count(lower, RED) == 0


def test_views_are_clipped_to_what_a_screen_can_show(tmp_path):
    views = np.array([[flat((300, -20, 0)), flat(RED)]])
    draw_views(views, ["ant"], tmp_path / "views.png")
    pixels = read(tmp_path / "views.png")
    assert count(pixels, (255, 0, 0)) == pytest.approx(count(pixels, RED), rel=0.02)


@pytest.mark.parametrize("num_mistakes", [1, 7, 24])
def test_mistakes_show_every_thumbnail(tmp_path, num_mistakes):
    mistakes = [Mistake(flat(RED, 80), "ant", "a wasp of $x_ and more", 0.99)] * num_mistakes
    file = tmp_path / "mistakes.png"
    draw_mistakes(mistakes, file, num_wrong=30, num_examples=1000)
    assert count(read(file), RED) > 20_000 * num_mistakes


def test_mistakes_say_so_when_there_are_none(tmp_path):
    draw_mistakes([], tmp_path / "none.png", num_wrong=0, num_examples=153)
    pixels = read(tmp_path / "none.png")
    written = np.argwhere(pixels.min(axis=-1) < 128)
    assert len(written) > 500
    np.testing.assert_allclose(written.mean(axis=0) / pixels.shape[:2], 0.5, atol=0.05)
