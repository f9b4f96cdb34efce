"""Mixup and CutMix: closed forms, weights, purity, and whole phases that go on after a stop."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from fitting_small import fit_small
from listener import Listener
from small_models import weights_by_stage

from keras_transfer.config import override
from keras_transfer.errors import SpecError
from keras_transfer.methods.mixup import _STREAM, Mixup, MixupOptions, draw_box
from keras_transfer.methods.registry import make_methods
from keras_transfer.specs import CacheSpec, PhaseSpec, RunSpec, TrainingSpec, ViewSpec
from keras_transfer.storage.run_folder import RunFolder
from keras_transfer.tasks.single_label import SingleLabel

KEY = (7, 2, 5)
MIXUP = Mixup(MixupOptions(alpha=1.0))
CUTMIX = Mixup(MixupOptions(alpha=0.0, cutmix_alpha=1.0))


def make_batch(size: int = 6) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Images, each of one grey of its own; one-hot targets; unequal weights."""
    greys = np.arange(1, size + 1, dtype=np.float32).reshape(size, 1, 1, 1)
    images = np.broadcast_to(greys, (size, 16, 12, 3)).copy()
    encoded = np.eye(3, dtype=np.float32)[np.arange(size) % 3]
    return images, encoded, np.linspace(0.5, 1.5, size, dtype=np.float32)


def draws(size: int = 6, key: tuple[int, int, int] = KEY) -> tuple[np.ndarray, np.float32]:
    """Partners and λ of mixup with alpha = 1."""
    generator = np.random.default_rng([*key, _STREAM])
    generator.random()
    partners = generator.permutation(np.arange(size))
    return partners, np.float32(generator.beta(1.0, 1.0))


def test_mixup_is_the_weighted_mean_of_a_batch_and_a_permutation_of_it():
    images, encoded, weights = make_batch()
    partners, share = draws()
    assert 0.05 < share < 0.95
    mixed, targets, mixed_weights = MIXUP.mix(images, encoded, weights, KEY)
    np.testing.assert_allclose(mixed, share * images + (1 - share) * images[partners], rtol=1e-6)
    expected = share * weights + (1 - share) * weights[partners]
    np.testing.assert_allclose(mixed_weights, expected, rtol=1e-6)
    assert mixed_weights.sum() == pytest.approx(weights.sum(), rel=1e-6)
    sums = share * weights[:, None] * encoded + (1 - share) * (weights[:, None] * encoded)[partners]
    np.testing.assert_allclose(targets, sums / expected[:, None], rtol=1e-6)
    np.testing.assert_allclose(targets.sum(axis=1), 1, rtol=1e-6)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_gradients_are_those_of_both_weighted_losses(smoothing):
    inputs = np.random.default_rng(0).normal(size=(6, 4)).astype(np.float32)
    _, encoded, weights = make_batch()
    partners, share = draws()
    mixed, targets, mixed_weights = MIXUP.mix(inputs, encoded, weights, KEY)
    layer = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
    loss = SingleLabel(("a", "b", "c")).loss(TrainingSpec(label_smoothing=smoothing))

    def gradients(*terms):
        with tf.GradientTape() as tape:
            logits = layer(mixed)
            total = sum(part * loss(y, logits, sample_weight=w) for part, y, w in terms)
        return tape.gradient(total, [v.value for v in layer.trainable_variables])

    found = gradients((1.0, targets, mixed_weights))
    both = (share, encoded, weights), (1 - share, encoded[partners], weights[partners])
    for one, other in zip(found, gradients(*both), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)


def test_cutmix_pastes_one_box_and_weighs_targets_by_the_area_left():
    images, encoded, _ = make_batch()
    weights, shares = np.ones(6, np.float32), []
    for step in range(40):
        mixed, targets, _ = CUTMIX.mix(images, encoded, weights, (7, 0, step))
        own = mixed == images
        for image, before, target in zip(mixed, images, targets, strict=True):
            pasted = (image != before).any(axis=2)
            if not pasted.any():
                continue
            rows, columns = np.flatnonzero(pasted.any(axis=1)), np.flatnonzero(pasted.any(axis=0))
            assert pasted.sum() == (np.ptp(rows) + 1) * (np.ptp(columns) + 1)
            label = encoded[int(before[0, 0, 0]) - 1].argmax()
            other = encoded[int(image[rows[0], columns[0], 0]) - 1].argmax()
            if label != other:
                assert target[label] == pytest.approx(1 - pasted.mean(), abs=1e-6)
                assert target[other] == pytest.approx(pasted.mean(), abs=1e-6)
        shares.append(own.mean())
    assert len({round(float(share), 3) for share in shares}) > 10


def test_boxes_stay_within_the_image_and_reach_its_corners():
    generator = np.random.default_rng(0)
    boxes = [draw_box(0.75, 16, 12, generator) for _ in range(400)]
    for rows, columns in boxes:
        assert 0 <= rows.start < rows.stop <= 16
        assert 0 <= columns.start < columns.stop <= 12
        assert rows.stop - rows.start <= 8
        assert columns.stop - columns.start <= 6
    assert any(
        (rows.stop - rows.start) * (columns.stop - columns.start) == 48 for rows, columns in boxes
    )
    assert any(rows.start == 0 and columns.stop == 12 for rows, columns in boxes)
    rows, columns = draw_box(1.0, 16, 12, generator)
    assert (rows.stop - rows.start) * (columns.stop - columns.start) == 0


@pytest.mark.parametrize("method", [MIXUP, CUTMIX])
def test_copies_that_fill_a_batch_are_neither_mixed_nor_mixed_in(method):
    images, encoded, weights = make_batch()
    images[4:], weights[4:] = 1000, 0
    for step in range(20):
        mixed, targets, mixed_weights = method.mix(images, encoded, weights, (7, 0, step))
        assert mixed[:4].max() <= 4
        np.testing.assert_array_equal(mixed[4:], images[4:])
        np.testing.assert_array_equal(targets[4:], encoded[4:])
        np.testing.assert_array_equal(mixed_weights[4:], 0)
        assert mixed_weights.sum() == pytest.approx(weights.sum(), rel=1e-6)


def test_a_value_that_is_missing_in_either_target_stays_missing():
    images, _, weights = make_batch()
    encoded = np.float32([[0, 1], [1, np.nan], [1, 1], [np.nan, 0], [0, 0], [1, 0]])
    partners, _ = draws()
    _, targets, _ = MIXUP.mix(images, encoded, weights, KEY)
    np.testing.assert_array_equal(
        np.isnan(targets), np.isnan(encoded) | np.isnan(encoded[partners])
    )
    present = targets[~np.isnan(targets)]
    assert present.min() >= 0
    assert present.max() <= 1


def test_probability_is_the_share_of_batches_that_are_mixed():
    batch, rare = make_batch(), Mixup(MixupOptions(alpha=1.0, probability=0.3))
    mixed = [rare.mix(*batch, (7, 0, step))[0] is not batch[0] for step in range(300)]
    assert 0.2 < np.mean(mixed) < 0.4


def test_batches_take_mixup_and_cutmix_where_both_are_on():
    batch, both = make_batch(), Mixup(MixupOptions(alpha=1.0, cutmix_alpha=1.0))
    whole = [
        np.ptp(both.mix(*batch, (7, 0, step))[0], axis=(1, 2)).max() == 0 for step in range(60)
    ]
    assert 0.25 < np.mean(whole) < 0.8


@pytest.mark.parametrize(
    ("options", "part"),
    [
        ({"alpha": 0}, "would mix nothing"),
        ({"probability": 0}, "would mix nothing"),
        ({"alpha": -1}, "phases.0.method_options.alpha is out of range"),
        ({"probability": 2}, "phases.0.method_options.probability is out of range"),
        ({"alpah": 1}, "unknown field 'phases.0.method_options.alpah'"),
        ({"cutmix_alpha": 1}, "needs images"),
    ],
)
def test_options_that_cannot_work_are_refused(options, part):
    changes = {"phases.0.method": "mixup", "phases.0.method_options": options}
    with pytest.raises(SpecError, match=part):
        make_methods(override(RunSpec(), {**changes, "cache.mode": "on"}))


SPEC = RunSpec(
    views=ViewSpec(count=2),
    phases=(
        PhaseSpec(epochs=2, learning_rate=1e-2, method="mixup"),
        PhaseSpec(
            name="fine-tune",
            epochs=2,
            unfreeze="last",
            method="mixup",
            method_options={"cutmix_alpha": 1.0},
        ),
    ),
    training=TrainingSpec(
        rollback=False, refit=False, label_smoothing=0.0, class_weights="balanced"
    ),
    cache=CacheSpec(precision="float32"),
)


def train(tmp_path, spec=SPEC, run=None, num_epochs=None):
    reporter = Listener()
    classifier, outcomes = fit_small(spec, tmp_path, reporter, run=run, num_epochs=num_epochs)
    return weights_by_stage(classifier), outcomes, reporter.said


@pytest.mark.slow
def test_phases_mix_features_or_images_and_a_resumed_run_has_the_same_bits(tmp_path):
    expected, outcomes, said = train(tmp_path)
    assert "Phase 'frozen' trains on mixtures of stored features (manifold mixup)." in said
    assert "Phase 'fine-tune' trains on images: mixup needs them here." in said
    assert "Phase 'fine-tune' trains on mixtures of images." in said
    for outcome in outcomes:  # Validation is not mixed.
        best = outcome.history[outcome.best_epoch - 1]
        assert best["val_loss"] == pytest.approx(outcome.val_loss, rel=1e-4)
    run = RunFolder.create(tmp_path / "run")
    run.checkpoint_folder.mkdir()
    for num_epochs in (3, None):
        resumed, _, _ = train(tmp_path, run=run, num_epochs=num_epochs)
    for stage, values in expected.items():
        for one, other in zip(values, resumed[stage], strict=True):
            np.testing.assert_array_equal(one, other)
    frozen = {"phases.0.method": "supervised", "phases.0.method_options": {}}
    _, (plain,), _ = train(tmp_path, override(SPEC, frozen), num_epochs=1)
    assert plain.history[0]["loss"] != outcomes[0].history[0]["loss"]
