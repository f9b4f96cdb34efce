"""Figures are looked at by people; what can be measured in their pixels is measured here."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from keras_transfer.evaluation.plots import draw_confusion, draw_learning_curves
from keras_transfer.reporting.figures import SHADE, TRAIN, VALIDATION

ODD_NAMES = ["$100 and $x_{", "caf\udce9", "百合", "a very, very long name of a class indeed"]


def read(file: Path) -> np.ndarray:
    with Image.open(file) as image:
        assert image.format == "PNG"
        return np.asarray(image.convert("RGB"))


def count(pixels: np.ndarray, color: str) -> int:
    rgb = [int(color[start : start + 2], 16) for start in (1, 3, 5)]
    return int((pixels == rgb).all(axis=-1).sum())


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
        }
        for epoch, name in enumerate(names, 1)
    ]


def test_learning_curves_shade_phases_by_their_length(tmp_path):
    shaded = []
    for epochs in (3, 9):
        draw_learning_curves(history(("frozen", epochs), ("tune", 12 - epochs)), tmp_path / "c.png")
        pixels = read(tmp_path / "c.png")
        assert count(pixels, TRAIN) > 100
        assert count(pixels, VALIDATION) > 100
        shaded.append(count(pixels, SHADE))
    assert shaded[1] / shaded[0] == pytest.approx(3, rel=0.15)


@pytest.mark.parametrize(
    "phases", [[("frozen", 1)], [("a long name", 1), ("another name", 1), ("$x_", 30), ("y", 1)]]
)
def test_learning_curves_are_drawn_when_phases_are_short_or_many(tmp_path, phases):
    draw_learning_curves(history(*phases), tmp_path / "curves.png")
    assert read(tmp_path / "curves.png").std() > 5


def test_learning_curves_leave_out_what_is_not_finite(tmp_path):
    rows = history(("frozen", 4))
    rows[2]["loss"] = rows[2]["val_loss"] = float("nan")
    draw_learning_curves(rows, tmp_path / "curves.png")
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


def test_confusion_repeats_byte_for_byte(tmp_path):
    for name in ("a.png", "b.png"):
        draw_confusion(np.array([[5, 1], [0, 4]]), ["ant", "bee"], tmp_path / name)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
