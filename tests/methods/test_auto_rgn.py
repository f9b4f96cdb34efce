"""Auto-RGN: closed form of the relative norms, their invariance, and whole phases."""

import keras
import numpy as np
import pytest
from fitting_small import fit_small
from listener import Listener
from small_models import weights_by_stage

from keras_transfer.config import override
from keras_transfer.errors import SpecError
from keras_transfer.methods.auto_rgn import relative_gradients
from keras_transfer.specs import CacheSpec, PhaseSpec, RunSpec, TrainingSpec
from keras_transfer.storage.run_folder import RunFolder

RATED = PhaseSpec(name="rated", epochs=2, unfreeze="stage1", learning_rate=1e-2, method="auto_rgn")
SPEC = RunSpec(
    phases=(PhaseSpec(epochs=1), RATED),
    training=TrainingSpec(refit=False, rollback=False),
    cache=CacheSpec(precision="float32"),
)


def train(tmp_path, changes=None, **arguments):
    reporter = Listener()
    result = fit_small(override(SPEC, changes or {}), tmp_path, reporter, **arguments)
    return *result, reporter


def two_layers(scale=1.0):
    """A linear network x → a x → b (a x) with a [2, 2] and b [2, 1], its stages and its batches."""
    image = keras.Input((2,))
    lower, upper = (keras.layers.Dense(units, use_bias=False) for units in (2, 1))
    model = keras.Model(image, upper(lower(image)))
    a, b = np.float32([[1, 2], [0, 1]]), np.float32([[3], [-1]])
    lower.kernel.assign(a * scale)
    upper.kernel.assign(b)
    generator = np.random.default_rng(0)
    batches = [
        (generator.normal(size=(4, 2)).astype(np.float32), np.ones((4, 1), np.float32), np.ones(4))
        for _ in range(6)
    ]
    return model, {"stage1": [lower], "head": [upper]}, batches, a, b


def test_shares_are_the_relative_norms_of_the_formula():
    model, stages, batches, a, b = two_layers()
    ratios = {"stage1": [], "head": []}
    for inputs, targets, _ in batches[:5]:
        # Of the mean over examples of (y - x a b)², the gradients by a and b.
        errors = 2 / 4 * (inputs @ a @ b - targets)
        ratios["stage1"].append(np.linalg.norm(inputs.T @ errors @ b.T) / np.linalg.norm(a))
        ratios["head"].append(np.linalg.norm((inputs @ a).T @ errors) / np.linalg.norm(b))
    means = {name: np.mean(own) for name, own in ratios.items()}
    found = relative_gradients(stages, keras.losses.MeanSquaredError(), model, batches)
    assert list(found) == ["stage1", "head"]
    largest = max(means.values())
    assert found == pytest.approx({n: own / largest for n, own in means.items()}, rel=1e-4)
    assert max(found.values()) == 1.0
    assert min(found.values()) < 0.9


def test_frozen_stages_have_no_share():
    model, stages, batches, *_ = two_layers()
    stages["stage1"][0].trainable = False
    found = relative_gradients(stages, keras.losses.MeanSquaredError(), model, batches)
    assert found == {"head": 1.0}


def test_shares_are_those_of_the_phase_and_a_resumed_phase_has_the_same(tmp_path):
    classifier, _, reporter = train(tmp_path)
    (sentence,) = [text for text in reporter.said if "Learning rates of phase" in text]
    assert "1.0e-02" in sentence
    assert all(name in sentence for name in ("stage1", "stage2", "head"))
    expected = weights_by_stage(classifier)
    run = RunFolder.create(tmp_path / "run")
    run.checkpoint_folder.mkdir()
    train(tmp_path, run=run, num_epochs=2)
    resumed, _, again = train(tmp_path, run=run)
    assert sentence in again.said
    for stage, values in expected.items():
        for one, other in zip(values, weights_by_stage(resumed)[stage], strict=True):
            np.testing.assert_array_equal(one, other)


def test_a_phase_of_the_head_alone_is_refused(tmp_path):
    with pytest.raises(SpecError, match="nothing to be compared"):
        train(tmp_path, {"phases.1.unfreeze": "head"})
