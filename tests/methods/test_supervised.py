"""The default method is the task's own loss on batches as they are."""

import keras
import numpy as np
import pytest

from keras_transfer.config import override
from keras_transfer.methods.registry import make_methods
from keras_transfer.reporting.reporter import SilentReporter
from keras_transfer.specs import RunSpec
from keras_transfer.tasks.single_label import SingleLabel
from keras_transfer.training.objective import PhaseContext


def test_supervised_training_is_the_task_s_loss_with_the_spec_s_smoothing():
    spec, task = override(RunSpec(), {"training.label_smoothing": 0.3}), SingleLabel(("a", "b"))
    part = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
    (method, _) = make_methods(spec)
    objective = method.prepare(
        PhaseContext(spec, task, True, SilentReporter(), None), spec.phases[0], part
    )
    assert objective.model is part
    assert objective.batch_transform is None
    encoded, logits = np.eye(2, dtype=np.float32), np.float32([[1, 2], [0, 3]])
    expected = task.loss(spec.training)(encoded, logits)
    assert float(objective.loss(encoded, logits)) == pytest.approx(float(expected))
