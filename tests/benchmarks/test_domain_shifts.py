"""The benchmark of adaptation on shifted images."""

import numpy as np
import pytest

from keras_transfer.adaptation.registry import CHAINS
from pipelines.arguments import USER_ERROR
from pipelines.benchmarks.shifts import SHIFTS, shifted
from pipelines.domain_shifts import main

FIELDS = ("model.backbone=small", "model.weights=none", "data.image_size=16")


@pytest.mark.parametrize("name", SHIFTS)
def test_a_shift_changes_pixels_alike_each_time(name):
    pixels = np.random.default_rng(0).integers(0, 256, (3, 16, 16, 3)).astype(np.uint8)
    found = shifted(pixels, name, seed=1)
    assert found.dtype == np.uint8
    assert found.shape == pixels.shape
    assert not np.array_equal(found, pixels)
    np.testing.assert_array_equal(found, shifted(pixels, name, seed=1))


def test_the_verb_shows_all_kinds_and_counts_wrong_choices(digits_folder, capsys):
    short = ("phases.1.epochs=1", "views.count=1", "--seeds", "1", "--aligned", "mmd")
    assert main([str(digits_folder), *FIELDS, *short, "--shifts", "contrast"]) == 0
    said = capsys.readouterr().out
    assert all(f"{name} " in said for name in (*CHAINS, "auto", "fine-tuned", "align mmd"))
    assert "of 1" in said


def test_unknown_shifts_are_told_and_rendered_digits_need_digits(digits_folder, capsys):
    for shift, named in (("contrasts", "a shift is unknown"), ("rendered", "one of digits")):
        assert main([str(digits_folder), *FIELDS, "--shifts", shift]) == USER_ERROR
        assert named in capsys.readouterr().err
