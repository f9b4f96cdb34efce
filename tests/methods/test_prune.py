"""Magnitude pruning: exact counts, zeros that stay, resumed phases, and whole runs."""

import json

import keras
import numpy as np
import pytest
from feature_sources import make_source, make_splits
from fitting_small import fit_small
from listener import Listener
from small_models import make_classifier, weights_by_stage

import keras_transfer as kt
from keras_transfer.config import override
from keras_transfer.errors import SpecError
from keras_transfer.methods.prune import Prune, PruneOptions, Pruning, largest, prunable_kernels
from keras_transfer.methods.registry import make_methods
from keras_transfer.reporting.reporter import SilentReporter
from keras_transfer.specs import CacheSpec, PhaseSpec, RunSpec, TrainingSpec
from keras_transfer.storage.run_folder import RunFolder

NUM_STEPS = 3  # Of 96 training images in batches of 32.
PRUNED = PhaseSpec(
    name="prune",
    epochs=4,
    unfreeze="stage2",
    learning_rate=1e-2,
    weight_decay=0.1,
    method="prune",
    method_options={"sparsity": 0.8, "every_steps": 2},
)
SPEC = RunSpec(
    phases=(PhaseSpec(epochs=1), PRUNED),
    training=TrainingSpec(refit=False),
    cache=CacheSpec(precision="float32"),
)


class Counts(keras.callbacks.Callback):
    """The weights that are not zero after each step, of all kernels together."""

    def __init__(self):
        super().__init__()
        self.counts = []

    def on_train_batch_end(self, batch, logs=None):
        kernels = [np.array(kernel) for kernel in prunable_kernels(self.model)]
        self.counts.append(sum(np.count_nonzero(kernel) for kernel in kernels))


class Shown(Listener):
    """A reporter that watches the steps of each phase."""

    def __init__(self):
        super().__init__()
        self.phases = []

    def training_progress(self, name, epochs, steps):
        from contextlib import nullcontext

        self.phases.append(Counts())
        return nullcontext([self.phases[-1]])


def train(tmp_path, spec=SPEC, run=None, num_epochs=None):
    reporter = Shown()
    classifier, outcomes = fit_small(spec, tmp_path, reporter, run=run, num_epochs=num_epochs)
    return classifier, outcomes, reporter


def kernel_of(classifier):
    return np.array(classifier.model.get_layer("small2_conv").kernel)


def test_the_share_of_zeros_rises_by_the_formula_and_never_falls():
    rising = Pruning(PruneOptions(sparsity=0.8, begin=0.2, end=0.6), 10)
    shares = [rising.target(position) for position in np.linspace(0, 1, 101)]
    assert shares[0] == shares[20] == 0
    assert shares[40] == pytest.approx(0.8 * (1 - 0.5**3))
    assert shares[60] == shares[100] == 0.8
    assert (np.diff(shares) >= 0).all()
    assert Pruning(PruneOptions(sparsity=0.3, begin=0.5, end=0.5), 10).target(0.5) == 0.3


@pytest.mark.parametrize("sparsity", [0.0, 0.333, 0.9])
def test_the_largest_are_those_of_a_sort(sparsity):
    sizes = np.random.default_rng(0).random((3, 3, 5, 7), np.float32)
    count = round(sizes.size * (1 - sparsity))
    expected = np.zeros(sizes.size, bool)
    expected[np.argsort(-sizes.ravel())[:count]] = True
    np.testing.assert_array_equal(largest(sizes, sparsity), expected.reshape(sizes.shape))
    sizes[0] = 0
    assert not largest(sizes, sparsity)[0].any()


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw"])
def test_counts_are_exact_after_every_step_of_any_optimizer(optimizer, tmp_path):
    spec = override(SPEC, {"phases.1.optimizer": optimizer})
    classifier, (_, outcome), reporter = train(tmp_path, spec)
    size, method = 9 * 4 * 8, Pruning(PruneOptions(**PRUNED.method_options), PRUNED.epochs)
    expected, share = [], 0.0
    for step in range(1, PRUNED.epochs * NUM_STEPS + 1):
        within = (step - 1) % NUM_STEPS + 1
        if within == NUM_STEPS or within % 2 == 0:
            share = method.target(step / (PRUNED.epochs * NUM_STEPS))
        expected.append(round(size * (1 - share)))
    assert reporter.phases[1].counts == expected
    assert expected[-1] == np.count_nonzero(kernel_of(classifier)) == round(0.2 * size)
    assert outcome.best_epoch >= 2  # The last zeros come after half of the four epochs.
    assert outcome.share == 1
    assert any("'prune': validation" in text for text in reporter.said)


def test_layers_below_the_phase_keep_the_weights_that_its_features_come_from(tmp_path):
    classifier, outcomes, _ = train(tmp_path)
    before = weights_by_stage(make_classifier("small", seed=SPEC.seed))
    for one, other in zip(weights_by_stage(classifier)["stage1"], before["stage1"], strict=True):
        np.testing.assert_array_equal(one, other)
    source, rows = make_source(), make_splits().val
    logits = classifier.model.predict(np.float32(source.examples.pixels[rows]), verbose=0)
    correct = (logits.argmax(1) == source.examples.targets.values[rows]).mean()
    assert correct == pytest.approx(outcomes[1].val_score)


def test_no_zeros_are_the_bits_of_supervised_training(tmp_path):
    none = {"phases.1.method_options": {"sparsity": 0.0}, "training.rollback": False}
    plain = {"phases.1.method_options": {}, "phases.1.method": "supervised"}
    weights = [
        weights_by_stage(train(tmp_path, override(SPEC, changes))[0])
        for changes in (none, {**plain, "training.rollback": False})
    ]
    for stage, values in weights[0].items():
        for one, other in zip(values, weights[1][stage], strict=True):
            np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("num_epochs", [2, 4])
def test_a_resumed_run_has_the_same_bits(num_epochs, tmp_path):
    expected = weights_by_stage(train(tmp_path)[0])
    run = RunFolder.create(tmp_path / "run")
    run.checkpoint_folder.mkdir()
    train(tmp_path, run=run, num_epochs=num_epochs)
    resumed = weights_by_stage(train(tmp_path, run=run)[0])
    for stage, values in expected.items():
        for one, other in zip(values, resumed[stage], strict=True):
            np.testing.assert_array_equal(one, other)


def test_global_pruning_compares_the_weights_of_all_layers():
    image = keras.Input((8, 8, 3))
    x = keras.layers.Conv2D(4, 3, name="first")(image)
    x = keras.layers.DepthwiseConv2D(3, name="depthwise")(x)
    x = keras.layers.Conv2D(8, 1, name="small")(x)
    x = keras.layers.Conv2D(8, 1, name="large")(x)
    x = keras.layers.GlobalAveragePooling2D()(x)
    model = keras.Model(image, keras.layers.Dense(3, name="logits")(x))
    kernels = prunable_kernels(model)
    assert [kernel.path for kernel in kernels] == ["small/kernel", "large/kernel"]
    kernels[0].assign(np.linspace(0.1, 0.2, 32, dtype=np.float32).reshape(1, 1, 4, 8))
    kernels[1].assign(-np.linspace(1.0, 2.0, 64, dtype=np.float32).reshape(1, 1, 8, 8))
    model.compile(loss="mse", optimizer=keras.optimizers.SGD(0.0))
    pruning = Pruning(PruneOptions(sparsity=0.25, scope="global", end=0.0), 1)
    data = np.zeros((4, 8, 8, 3), np.float32), np.zeros((4, 3), np.float32)
    model.fit(*data, verbose=0, callbacks=[pruning])
    assert [np.count_nonzero(np.array(kernel)) for kernel in kernels] == [8, 64]
    assert np.array(kernels[0]).min(initial=1, where=np.array(kernels[0]) > 0) > 0.17


@pytest.mark.parametrize("parts", [1, 2])
def test_shares_follow_the_steps_of_the_optimizer_and_not_the_parts_of_a_batch(parts):
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(32), keras.layers.Dense(2)])
    whole = keras.optimizers.SGD(0.1, gradient_accumulation_steps=parts if parts > 1 else None)
    model.compile(loss="mse", optimizer=whole)
    shown = Counts()
    data = np.ones((16, 4), np.float32), np.ones((16, 2), np.float32)
    pruning = Pruning(PruneOptions(sparsity=0.5, end=1.0, every_steps=2), 1)
    model.fit(*data, batch_size=4 // parts, verbose=0, callbacks=[pruning, shown])
    rising = [round(128 * (1 - pruning.target(step / 4))) for step in (2, 4)]
    assert shown.counts[parts - 1 :: parts] == [128, rising[0], rising[0], rising[1]]


def test_pruning_that_cannot_work_is_refused(tmp_path):
    with pytest.raises(SpecError, match="end before it begins"):
        PruneOptions(begin=0.9)
    with pytest.raises(SpecError, match="nothing to prune"):
        train(tmp_path, override(SPEC, {"phases.1.unfreeze": "head"}))
    undone = {"phases.2.method": "supervised", "phases.2.method_options": {}}
    for fields in (
        {"phases.2.unfreeze": "last"},
        {"model.head": "mlp", "phases.2.unfreeze": "head"},
    ):
        # The methods of all phases are made before the first image is read.
        with pytest.raises(SpecError, match="a later phase trains again"):
            make_methods(override(SPEC, {**undone, **fields}))
    make_methods(override(SPEC, {**undone, "phases.2.unfreeze": "head"}))
    make_methods(override(SPEC, {"phases.2.unfreeze": "last"}))
    assert Prune().options.sparsity == 0.5


@pytest.mark.slow
def test_a_run_counts_its_weights_and_keeps_its_zeros_through_the_refit(digits_folder, tmp_path):
    run = kt.fine_tune(
        digits_folder,
        output=tmp_path / "run",
        reporter=SilentReporter(),
        **{
            "model.backbone": "small",
            "model.weights": "none",
            "data.image_size": 32,
            "views.count": 1,
            "phases": [
                {"name": "frozen", "method": "exact"},
                {
                    "name": "prune",
                    "method": "prune",
                    "unfreeze": "stage2",
                    "epochs": 6,
                    "learning_rate": 1e-2,
                    "method_options": {"sparsity": 0.75, "every_steps": 2},
                },
            ],
        },
    )
    metrics = json.loads((run.path / "metrics.json").read_text())
    assert metrics["refit"] is not None
    found = metrics["sparsity"]
    for name, size in (("small2_conv", 9 * 4 * 8), ("small3_conv", 9 * 8 * 16)):
        kernel = np.array(run.model.get_layer(name).kernel)
        assert found["layers"][f"{name}/kernel"] == [np.count_nonzero(kernel), size]
        assert np.count_nonzero(kernel) == size / 4
    assert found["num_nonzero"] == sum(count for count, _ in found["layers"].values())
    assert found["num_bytes"] == (run.path / "model.keras").stat().st_size
    assert found["num_packed_bytes"] < found["num_bytes"]
    assert run.evaluation.accuracy > 0.25
