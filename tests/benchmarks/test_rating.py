"""Rates are measured and told; what cannot be measured is refused in words."""

import dataclasses

import pytest
from small_backbone import SMALL

from keras_transfer.backbones.registry import BACKBONES
from keras_transfer.errors import SpecError
from pipelines.benchmarks.rates import measure_rates
from pipelines.rates import main


def test_smaller_images_are_faster():
    small, large = (measure_rates("small", image_size=size, batch_size=4) for size in (32, 320))
    for way in ("keras", "folded", "half"):
        assert getattr(small, way) > getattr(large, way) > 0


def test_an_unknown_backbone_is_refused():
    with pytest.raises(SpecError, match="resnet50"):
        measure_rates("resnet5", image_size=32, batch_size=4)


def test_the_verb_prints_a_row_for_each_backbone(capsys, monkeypatch):
    monkeypatch.setitem(BACKBONES, "other", dataclasses.replace(SMALL, name="other"))
    assert main(["other", "small", "--image-size", "32", "--batch-size", "2"]) == 0
    printed = capsys.readouterr().out
    assert "folded float32" in printed
    assert [line.split()[0] for line in printed.splitlines() if "other" in line] == ["other"]
    assert "small" in printed
