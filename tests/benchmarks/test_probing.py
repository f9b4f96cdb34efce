"""Probes tell good features from none."""

import pytest

from keras_transfer.reporting.reporter import SilentReporter
from keras_transfer.specs import DataSpec, ModelSpec, RunSpec
from pipelines.benchmarks.probe import probe


@pytest.mark.slow
def test_more_labels_help_and_embedded_beats_random(digits_folder):
    spec = RunSpec(
        data=DataSpec(path=str(digits_folder), image_size=32, resize="squash"),
        model=ModelSpec(backbone="vgg16", last_stage="stage2", weights="embedded"),
    )
    probes = probe(spec, [30, 150], num_seeds=2, reporter=SilentReporter())
    accuracy = {(p.features, p.num_labels): sum(p.accuracies) / 2 for p in probes}
    assert {features for features, _ in accuracy} == {
        "embedded weights",
        "random weights",
        "raw pixels",
    }
    assert accuracy["embedded weights", 150] > accuracy["embedded weights", 30]
    assert accuracy["embedded weights", 30] > accuracy["random weights", 30]


def test_fewer_labels_than_classes_are_refused(digits_folder):
    spec = RunSpec(
        data=DataSpec(path=str(digits_folder), image_size=32),
        model=ModelSpec(backbone="small", last_stage="stage2", weights="none"),
    )
    with pytest.raises(ValueError, match="classes"):
        probe(spec, [5], num_seeds=1, reporter=SilentReporter())
