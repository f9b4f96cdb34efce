"""What is transferred: the same run with embedded and with random weights, over seeds."""

from pathlib import Path

import numpy as np
import pytest

from keras_transfer.config import load_spec, override
from keras_transfer.data.sources import read_records
from keras_transfer.fitting import SplitData, fit_phases
from keras_transfer.models.classifier import build_classifier
from keras_transfer.specs import RunSpec
from keras_transfer.terminal import Silent
from keras_transfer.transfer import load_data

PRESETS = Path(__file__).parents[1] / "pipelines" / "presets"
FEW_LABELS = {
    "data.train_size": 100,
    "data.val_fraction": 0.05,
    "training.batch_size": 20,
    "phases": [{"name": "frozen", "epochs": 8, "learning_rate": 1e-2}],
}


def _test_accuracy(spec: RunSpec, pixels_file: Path) -> float:
    records = read_records(spec.data)
    names = records.class_names
    size = spec.data.image_size
    classifier = build_classifier(spec.model, image_size=size, class_names=names, seed=spec.seed)
    data = load_data(spec, records, pixels_file, narrator=Silent())
    split_data = SplitData(spec, data.examples, data.splits)
    outcomes = fit_phases(classifier, split_data, narrator=Silent())
    return [outcome.test_accuracy for outcome in outcomes if outcome.kept][-1]


@pytest.mark.slow
def test_embedded_weights_beat_random_ones_on_100_labels_by_three_deviations(tmp_path):
    few = override(load_spec("quickstart", presets=PRESETS), FEW_LABELS)
    differences = []
    for seed in range(3):
        embedded = override(few, {"seed": seed})
        random = override(embedded, {"model.weights": "none"})
        accuracy = [_test_accuracy(spec, tmp_path / "pixels") for spec in (embedded, random)]
        differences.append(accuracy[0] - accuracy[1])
    assert np.mean(differences) > 3 * np.std(differences, ddof=1)
    assert np.mean(differences) > 0.02
