"""Alignment: closed forms of its distances, its batches, and whole phases."""

import dataclasses
import json
import math

import keras
import numpy as np
import pytest
import tensorflow as tf
from feature_sources import make_source, make_splits
from listener import Listener
from small_models import make_classifier, weights_by_stage

import keras_transfer as kt
from keras_transfer.adaptation.distances import covariance_distance, mean_discrepancy
from keras_transfer.config import override
from keras_transfer.data.datasets import Batching, partner_order, training_dataset
from keras_transfer.errors import SpecError
from keras_transfer.features.phase_inputs import PhaseInputs
from keras_transfer.methods.align import AlignedModel, Discriminator, Ramp, ramp, reverse_gradient
from keras_transfer.methods.registry import make_methods
from keras_transfer.reporting.reporter import SilentReporter
from keras_transfer.specs import CacheSpec, DataSpec, PhaseSpec, RunSpec, TrainingSpec, ViewSpec
from keras_transfer.storage.cache import Cache
from keras_transfer.storage.run_folder import RunFolder
from keras_transfer.tasks.single_label import SingleLabel
from keras_transfer.training.fitting import fit_phases

ALIGNED = PhaseSpec(name="aligned", epochs=3, unfreeze="stage2", learning_rate=1e-2, method="align")
SPEC = RunSpec(
    data=DataSpec(unlabelled="target"),
    views=ViewSpec(count=2),
    phases=(PhaseSpec(epochs=1), ALIGNED),
    training=TrainingSpec(refit=False, rollback=False),
    cache=CacheSpec(dtype="float32", precision="float32"),
)
NUM_TARGET = 40
CONTRAST = slice(160, 160 + NUM_TARGET)
"""Rows of the target: digits with a fifth of the contrast."""


def shifted_source(labels=None):
    """160 labelled scans and 40 others with less contrast."""
    source = make_source(160 + NUM_TARGET, views=SPEC.views)
    examples = source.examples
    pixels = examples.pixels.copy()
    pixels[CONTRAST] = 0.2 * pixels[CONTRAST] + 140
    values = examples.targets.values.copy()
    values[CONTRAST] = 0 if labels is None else labels
    targets = dataclasses.replace(examples.targets, values=values)
    examples = dataclasses.replace(examples, pixels=pixels, targets=targets)
    return dataclasses.replace(source, examples=examples)


def fit(tmp_path, changes=None, *, source=None, dropout=0.0, **arguments):
    """The trained classifier."""
    keras.utils.clear_session()
    spec = override(SPEC, changes or {})
    inputs = PhaseInputs(
        spec,
        source or shifted_source(),
        make_splits(),
        methods=make_methods(spec),
        cache=Cache(tmp_path / "cache"),
        reporter=Listener(),
        unlabelled=np.arange(CONTRAST.start, CONTRAST.stop),
    )
    classifier = make_classifier("small", seed=spec.seed, dropout=dropout)
    fit_phases(classifier, inputs, reporter=SilentReporter(), **arguments)
    return classifier


def by(distance, weight):
    return {"phases.1.method_options": {"distance": distance, "weight": weight}}


def assert_same(one, other):
    for stage, values in weights_by_stage(one).items():
        for own, others in zip(values, weights_by_stage(other)[stage], strict=True):
            np.testing.assert_array_equal(own, others)


def batches(seed=0):
    generator = np.random.default_rng(seed)
    first = generator.normal(size=(12, 5)).astype(np.float32)
    return first, (generator.normal(size=(12, 5)) * 2 + 1).astype(np.float32)


def test_the_distance_of_covariances_is_that_of_the_formula():
    source, target = batches()
    difference = np.cov(source, rowvar=False) - np.cov(target, rowvar=False)
    expected = np.square(difference).sum() / (4 * 5**2)
    assert float(covariance_distance(source, target)) == pytest.approx(expected, rel=1e-5)
    assert float(covariance_distance(source, source[::-1] + 3.0)) == pytest.approx(0, abs=1e-8)


def test_the_discrepancy_is_a_metric_of_batches_and_that_of_a_double_loop():
    source, target = batches()
    joined = np.concatenate([source, target]).astype(np.float64)
    median = np.median([[np.sum((a - b) ** 2) for a in joined] for b in joined])

    def kernel(one, other):
        distance = np.sum((one - other) ** 2)
        return np.mean([np.exp(-distance / (w * median)) for w in (0.25, 0.5, 1, 2, 4)])

    def mean(ones, others):
        return np.mean([[kernel(one, other) for other in others] for one in ones])

    own, other = source.astype(np.float64), target.astype(np.float64)
    expected = mean(own, own) + mean(other, other) - 2 * mean(own, other)
    assert expected > 0.05
    assert float(mean_discrepancy(source, target)) == pytest.approx(expected, rel=1e-4)
    assert float(mean_discrepancy(target, source)) == pytest.approx(expected, rel=1e-4)
    assert float(mean_discrepancy(source, source)) == pytest.approx(0, abs=1e-6)
    constant = np.ones((4, 3), np.float32)
    assert float(mean_discrepancy(constant, constant)) == pytest.approx(0, abs=1e-6)


def test_the_gradient_is_reversed_for_features_and_not_for_the_discriminator():
    source, target = (tf.constant(batch) for batch in batches())
    layer = Discriminator(seed=0)
    layer.build((None, 5))
    found = {}
    for strength in (-1.0, 0.7):  # -1 is a discriminator without reversal.
        layer.strength.assign(strength)
        with tf.GradientTape() as tape:
            tape.watch(source)
            loss = layer(source, target)
        weights = [variable.value for variable in layer.trainable_variables]
        found[strength] = loss, *tape.gradient(loss, [source, *weights])
    plain, reversed_ = found[-1.0], found[0.7]
    np.testing.assert_allclose(plain[0], reversed_[0], rtol=1e-6)
    np.testing.assert_allclose(reversed_[1], -0.7 * plain[1], rtol=1e-5, atol=1e-8)
    for one, other in zip(plain[2:], reversed_[2:], strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-8)
    np.testing.assert_allclose(reverse_gradient(source, 0.7), source, rtol=1e-6)


def test_the_reversal_grows_from_nothing_to_the_weight():
    assert ramp(0) == 0
    assert ramp(0.5) == pytest.approx(2 / (1 + math.exp(-5)) - 1)
    assert 0.9999 < ramp(1) < 1
    layer = Discriminator(seed=0)
    layer.build((None, 5))
    Ramp(layer, 3.0, 4).on_epoch_begin(1)
    assert float(layer.strength) == pytest.approx(3 * ramp(1.5 / 4))


def test_partners_all_have_their_turn_and_are_the_same_again():
    places, views = partner_order(7, 17, 2, seed=1, num_views=3)
    assert [sorted(places[start : start + 7]) for start in (0, 7)] == [list(range(7))] * 2
    assert len(set(places[14:])) == 3
    np.testing.assert_array_equal(views, [2] * 7 + [0] * 7 + [1] * 3)
    again, _ = partner_order(7, 17, 2, seed=1, num_views=3)
    other, endless = partner_order(7, 17, 3, seed=1, num_views=None)
    np.testing.assert_array_equal(places, again)
    assert list(places) != list(other)
    assert len(set(zip(other.tolist(), endless.tolist(), strict=True))) == 17


@pytest.mark.parametrize("num_parts", [1, 2])
def test_an_example_and_a_partner_take_turns(num_parts):
    class Rows:
        shape, dtype = (1,), np.dtype(np.float32)

        def read(self, rows, views):
            return np.stack([rows], axis=-1).astype(np.float32)

    source = make_source(40)
    found = training_dataset(
        source.examples,
        np.arange(10),
        Rows(),
        num_views=2,
        batching=Batching(size=4, num_parts=num_parts),
        seed=0,
        epochs=range(1),
        encode=SingleLabel(tuple("0123456789")).encode,
        partners=np.arange(20, 40),
    )
    inputs, encoded, weights = map(np.concatenate, zip(*found.as_numpy_iterator(), strict=True))
    assert inputs.shape == (24, 1)
    own, other = inputs[0::2, 0], inputs[1::2, 0]
    assert sorted(own[:10]) == list(range(10))
    np.testing.assert_array_equal(own[10:], own[:2])
    assert set(own) == set(range(10))
    assert len(set(other)) == 12
    assert set(other) <= set(range(20, 40))
    np.testing.assert_array_equal(weights[1::2], np.zeros(12))
    np.testing.assert_array_equal(weights[0::2], [1] * 8 + [2, 2, 0, 0])
    np.testing.assert_array_equal(
        encoded[0::2].argmax(axis=1), source.examples.targets.values[own.astype(int)]
    )


def test_source_and_target_pass_separately_through_batch_normalization():
    pixels = keras.Input((3,))
    hidden = keras.layers.BatchNormalization()(pixels)
    logits = keras.layers.Dense(2)
    part = keras.Model(pixels, logits(hidden))
    model = AlignedModel(part.input, part.output)
    model.both = keras.Model(part.input, [part.output, hidden])
    source, target = (batch[:, :3] for batch in batches())
    inputs = np.stack([source, target], axis=1).reshape(-1, 3)
    _, *features = model(inputs, training=True)
    for found, batch in zip(features, (source, target), strict=True):
        expected = (batch - batch.mean(axis=0)) / np.sqrt(batch.var(axis=0) + 1e-3)
        np.testing.assert_allclose(found, expected, atol=1e-4)


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """Trained on the source alone."""
    changes = {"data.unlabelled": "", "phases.1.method": "supervised"}
    return fit(tmp_path_factory.mktemp("plain"), changes)


@pytest.mark.parametrize("distance", ["mmd", "adversarial"])
def test_without_weight_it_is_supervised_training(distance, plain, tmp_path):
    assert_same(plain, fit(tmp_path, by(distance, 0.0)))


def test_training_makes_the_distance_small_and_reads_no_labels_of_the_target(plain, tmp_path):
    def distance(classifier):
        below = keras.Model(classifier.model.input, classifier.last_dense.input)
        pixels = shifted_source().examples.pixels
        source, target = (below(pixels[rows]) for rows in (slice(96), CONTRAST))
        return float(covariance_distance(source, target))

    aligned = fit(tmp_path, by("coral", 1e5))
    assert distance(aligned) < distance(plain) / 2
    labels = np.random.default_rng(0).integers(0, 10, NUM_TARGET)
    assert_same(aligned, fit(tmp_path, by("coral", 1e5), source=shifted_source(labels)))
    on_images = fit(tmp_path, {**by("coral", 1e5), "cache.mode": "off"})
    assert distance(on_images) == pytest.approx(distance(aligned), rel=0.05)


def test_an_interrupted_phase_continues_with_the_same_discriminator(tmp_path):
    changes = by("adversarial", 1.0)
    expected = fit(tmp_path, changes, dropout=0.3)
    run = RunFolder.create(tmp_path / "run")
    run.checkpoint_folder.mkdir()
    fit(tmp_path, changes, dropout=0.3, run=run, num_epochs=3)
    assert_same(expected, fit(tmp_path, changes, dropout=0.3, run=run))


def test_specs_without_a_target_or_without_features_that_train_are_refused():
    with pytest.raises(SpecError, match="no images to align with"):
        make_methods(override(SPEC, {"data.unlabelled": ""}))
    with pytest.raises(SpecError, match="no features that could be aligned"):
        make_methods(override(SPEC, {"phases.1.unfreeze": "head"}))
    make_methods(override(SPEC, {"phases.1.unfreeze": "head", "model.head": "mlp"}))


def test_a_run_says_what_validation_is_of_and_delivers_no_discriminator(digits_folder, tmp_path):
    listener = Listener()
    phases = {"phases.0.method": "exact", "phases.1.unfreeze": "last", "phases.1.epochs": 2}
    spec = override(
        SPEC,
        {
            **phases,
            **by("adversarial", 1.0),
            "data.path": str(digits_folder),
            "data.unlabelled": str(digits_folder / "digit_3"),
            "data.image_size": 16,
            "model.backbone": "small",
            "model.weights": "none",
            "training.refit": True,
        },
    )
    run = kt.fine_tune(spec, output=tmp_path / "run", reporter=listener)
    said = " ".join(listener.said)
    assert "Validation images are of the source" in said
    assert not [v.path for v in run.model.variables if "discriminator" in v.path]
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert [phase["name"] for phase in metrics["phases"]] == ["frozen", "aligned"]
