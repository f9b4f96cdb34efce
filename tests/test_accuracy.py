"""What is transferred: the same run with embedded and with random weights, over seeds."""

import numpy as np
import pytest

from keras_transfer.config import load_spec, override
from keras_transfer.experiments.session import open_session
from keras_transfer.reporting.reporter import SilentReporter
from keras_transfer.specs import RunSpec
from keras_transfer.training.fitting import fit_phases

FEW_LABELS = {
    "data.train_size": 100,
    "data.val_fraction": 0.05,
    "data.test_fraction": 0.1,
    "views.count": 1,
    "model.backbone": "vgg16",
    "model.last_stage": "stage2",
    "training.batch_size": 20,
    "phases": [{"name": "frozen", "epochs": 8, "learning_rate": 1e-2}],
}


def _test_accuracy(spec: RunSpec) -> float:
    reporter = SilentReporter()
    with open_session(spec, reporter=reporter) as session:
        classifier = session.build_classifier()
        outcomes = fit_phases(classifier, session.phase_inputs(), reporter=reporter)
    return [outcome.test_score for outcome in outcomes if outcome.kept][-1]


@pytest.mark.slow
def test_embedded_weights_beat_random_ones_on_100_labels_by_three_deviations():
    few = override(load_spec("quickstart"), FEW_LABELS)
    differences = []
    for seed in range(3):
        embedded = override(few, {"seed": seed})
        random = override(embedded, {"model.weights": "none"})
        accuracy = [_test_accuracy(spec) for spec in (embedded, random)]
        differences.append(accuracy[0] - accuracy[1])
    assert np.mean(differences) > 3 * np.std(differences, ddof=1)
    assert np.mean(differences) > 0.02
