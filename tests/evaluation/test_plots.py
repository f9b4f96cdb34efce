"""Figures of runs and studies: what can be measured in their pixels."""

import functools
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from keras_transfer.evaluation import plots
from keras_transfer.evaluation.plots import (
    Mistake,
    SizePoint,
    draw_confusion,
    draw_learning_curves,
    draw_mistakes,
    draw_score_by_size,
    draw_views,
)
from keras_transfer.reporting.figures import SHADE, TRAIN, VALIDATION

RED, GREEN = "#c81e28", "#14a03c"
ODD_NAMES = ["$100 and $x_{", "caf\udce9", "百合", "a very, very long name of a class indeed"]

SEVERAL = [
    SizePoint(
        size, accuracy, (accuracy - 0.05, accuracy + 0.02), (accuracy - 0.05, accuracy + 0.02)
    )
    for size, accuracy in ((1234, 0.97), (617, 0.9), (308, 0.8), (154, 0.5))
]
PERFECT = [SizePoint(100, 1.0, (1.0, 1.0), (1.0,))]


def read(file: Path) -> np.ndarray:
    with Image.open(file) as image:
        assert image.format == "PNG"
        return np.asarray(image.convert("RGB"))


def count(pixels: np.ndarray, color: str) -> int:
    return int((pixels == rgb(color)).all(axis=-1).sum())


def rgb(color: str) -> list[int]:
    return [int(color[start : start + 2], 16) for start in (1, 3, 5)]


def flat(color: str, size: int = 16) -> np.ndarray:
    return np.full((size, size, 3), rgb(color), np.float32)


def history(*phases: tuple[str, int]) -> list[dict]:
    names = [name for name, epochs in phases for _ in range(epochs)]
    return [
        {
            "phase": name,
            "epoch": epoch,
            "loss": 1 / epoch,
            "accuracy": 1 - 0.5 / epoch,
            "val_loss": 1.2 / epoch,
            "val_accuracy": 1 - 0.6 / epoch,
            "learning_rate": 1e-3,
            "seconds": 1.0,
            "is_best": epoch == len(names),
        }
        for epoch, name in enumerate(names, 1)
    ]


draw_curves = functools.partial(draw_learning_curves, metric="accuracy", is_share=True)


def test_learning_curves_shade_phases_by_their_length(tmp_path):
    shaded = []
    for epochs in (3, 9):
        draw_curves(history(("frozen", epochs), ("tune", 12 - epochs)), tmp_path / "c.png")
        pixels = read(tmp_path / "c.png")
        assert count(pixels, TRAIN) > 100
        assert count(pixels, VALIDATION) > 100
        shaded.append(count(pixels, SHADE))
    assert shaded[1] / shaded[0] == pytest.approx(3, rel=0.15)


@pytest.mark.parametrize(
    "phases", [[("frozen", 1)], [("a long name", 1), ("another name", 1), ("$x_", 30), ("y", 1)]]
)
def test_learning_curves_are_drawn_when_phases_are_short_or_many(tmp_path, phases):
    draw_curves(history(*phases), tmp_path / "curves.png")
    assert read(tmp_path / "curves.png").std() > 5


def test_a_single_epoch_has_bars_as_long_as_its_values(tmp_path):
    rows = history(("frozen", 1))
    rows[0] |= {"loss": 0.1, "val_loss": 0.3, "accuracy": 0.9, "val_accuracy": 0.45}
    draw_curves(rows, tmp_path / "bars.png")
    pixels = read(tmp_path / "bars.png")
    halves = np.split(pixels, [pixels.shape[1] // 2], axis=1)
    for half, ratio in zip(halves, (1 / 3, 2), strict=True):
        assert count(half, TRAIN) / count(half, VALIDATION) == pytest.approx(ratio, rel=0.05)


def test_learning_curves_leave_out_what_is_not_finite(tmp_path):
    rows = history(("frozen", 4))
    rows[2]["loss"] = rows[2]["val_loss"] = float("nan")
    draw_curves(rows, tmp_path / "curves.png")
    assert count(read(tmp_path / "curves.png"), TRAIN) > 100


@pytest.mark.parametrize("num_classes", [2, 4, 26, 62, 150])
def test_confusion_fits_a_page_whatever_the_number_of_classes(tmp_path, num_classes):
    names = (ODD_NAMES * num_classes)[:num_classes]
    confusion = np.random.default_rng(0).poisson(2, (num_classes, num_classes))
    confusion[0] = 0  # a class without examples
    draw_confusion(confusion, names, tmp_path / "confusion.png")
    height, width, _ = read(tmp_path / "confusion.png").shape
    assert 300 < height < 1700
    assert 300 < width < 1700


def test_confusion_colours_shares_and_writes_counts_up_to_25_classes(tmp_path):
    for num_classes, counts_are_written in ((25, True), (26, False)):
        bodies = []
        for scale in (1, 3):
            matrix = scale * (np.eye(num_classes, dtype=int) + 1)
            draw_confusion(matrix, [f"class {n}" for n in range(num_classes)], tmp_path / "c.png")
            pixels = read(tmp_path / "c.png")
            bodies.append(pixels[pixels.shape[0] // 8 :])  # below the title, which has counts
        assert (bodies[0] != bodies[1]).any() == counts_are_written


def test_the_worst_pairs_are_named_with_their_share():
    confusion = np.array([[8, 2, 0], [0, 10, 0], [4, 1, 5]])
    assert plots._worst_pairs(confusion, ["ant", "bee", "cat"]) == [
        "cat taken for ant: 40 %",
        "ant taken for bee: 20 %",
        "cat taken for bee: 10 %",
    ]
    assert plots._worst_pairs(np.eye(3, dtype=int), ["ant", "bee", "cat"]) == []


def test_confusion_repeats_byte_for_byte(tmp_path):
    for name in ("a.png", "b.png"):
        draw_confusion(np.array([[5, 1], [0, 4]]), ["ant", "bee"], tmp_path / name)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_views_are_shown_row_by_row(tmp_path):
    views = np.array([[flat(RED), flat(RED), flat(GREEN)], [flat(GREEN)] * 3])
    draw_views(views, ["ant", "a bee with a very long name, $x_"], tmp_path / "views.png")
    pixels = read(tmp_path / "views.png")
    assert count(pixels, GREEN) / count(pixels, RED) == pytest.approx(2, rel=0.02)
    upper, _, lower = np.array_split(pixels, 3)
    assert count(upper, RED) > 10_000
    assert count(lower, RED) == 0


def test_views_are_clipped_to_what_a_screen_can_show(tmp_path):
    views = np.array([[np.full((16, 16, 3), (300, -20, 0), np.float32), flat(RED)]])
    draw_views(views, ["ant"], tmp_path / "views.png")
    pixels = read(tmp_path / "views.png")
    assert count(pixels, "#ff0000") == pytest.approx(count(pixels, RED), rel=0.02)


@pytest.mark.parametrize("num_mistakes", [1, 7, 24])
def test_mistakes_show_every_thumbnail(tmp_path, num_mistakes):
    mistakes = [
        Mistake(flat(RED, 80), "ant", "a wasp of $x_ and more", 0.99, "1.png")
    ] * num_mistakes
    file = tmp_path / "mistakes.png"
    draw_mistakes(mistakes, file, num_wrong=30, num_examples=1000)
    assert count(read(file), RED) > 20_000 * num_mistakes


def test_mistakes_say_so_when_there_are_none(tmp_path):
    draw_mistakes([], tmp_path / "none.png", num_wrong=0, num_examples=153)
    pixels = read(tmp_path / "none.png")
    written = np.argwhere(pixels.min(axis=-1) < 128)
    assert len(written) > 500
    np.testing.assert_allclose(written.mean(axis=0) / pixels.shape[:2], 0.5, atol=0.05)


@pytest.mark.parametrize("points", [SEVERAL, PERFECT], ids=["several", "one, without spread"])
def test_curve_is_drawn_and_repeats(points, tmp_path):
    files = [tmp_path / "one.png", tmp_path / "two.png"]
    for order, file in ((points, files[0]), (points[::-1], files[1])):
        draw_score_by_size(order, file, metric="accuracy", is_share=True, caption="over 2 seeds")
    assert files[0].read_bytes() == files[1].read_bytes()
    with Image.open(files[0]) as image:
        assert min(image.size) > 400
        assert len(image.convert("RGB").getcolors(100_000)) > 20
