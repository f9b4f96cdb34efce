"""The losses of distillation against their closed forms."""

import importlib
import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from jax_processes import JAX
from scipy import special

from keras_transfer.errors import SpecError
from keras_transfer.experiments.distill.settings import ANY_FEATURES
from keras_transfer.fields import build
from keras_transfer.methods.distill import Distill, DistillOptions
from keras_transfer.methods.distillation.attention import AttentionMap
from keras_transfer.methods.distillation.decoupled import decoupled_divergences
from keras_transfer.methods.distillation.dynamic import Dynamic, DynamicOptions
from keras_transfer.methods.distillation.feature import similarities
from keras_transfer.methods.distillation.kind import Batch, divergences
from keras_transfer.methods.distillation.registry import KINDS, make_kind
from keras_transfer.methods.distillation.relational import angles, distances
from keras_transfer.methods.distillation.student import DistillationLoss, make_student
from keras_transfer.models.cuts import Cut
from keras_transfer.specs import PhaseSpec, TrainingSpec
from keras_transfer.tasks.multi_label import MultiLabel
from keras_transfer.tasks.multi_task import MultiTask, MultiTaskOptions, Target
from keras_transfer.tasks.regression import Regression
from keras_transfer.tasks.single_label import SingleLabel

TASK = SingleLabel(("a", "b", "c", "d"))
GENERATOR = np.random.default_rng(0)
TARGETS = np.eye(4, dtype=np.float32)[[0, 3, 1, 2, 2, 0]]
TEACHER, STUDENT = 3 * GENERATOR.normal(size=(2, 6, 4)).astype(np.float32)
FEATURES = GENERATOR.normal(size=(6, 5)).astype(np.float32)
OTHERS = GENERATOR.normal(size=(6, 5)).astype(np.float32)
ROOT = Path(__file__).parents[2]
ATTACKING = """
import numpy as np
from keras import ops
from keras_transfer.methods.distillation.kind import Batch
from keras_transfer.methods.distillation.registry import make_kind
network = lambda images: ops.reshape(images, (1, 3)) @ np.float32([[1, 0], [1, 0], [0, 1]])
batch = Batch(np.float32([[0, 1]]), None, None, 1.0)
kind = make_kind("adversarial", {"target": "labels", "epsilon": 5.0, "step": 5.0, "steps": 2})
found = kind.attacked(network, np.uint8([[[[100, 253, 100]]]]), batch)
np.testing.assert_array_equal(found, [[[[105, 255, 95]]]])
"""


def batch(student=STUDENT, teacher=TEACHER, temperature=3.0, features=FEATURES, theirs=FEATURES):
    return Batch(TARGETS, teacher, tf.convert_to_tensor(student), temperature, theirs, features)


def gradient(kind, variable, **given):
    """By the student's logits or, for 'features', by its features."""
    value = tf.Variable(given.pop(variable))
    with tf.GradientTape() as tape:
        total = tf.reduce_sum(kind.losses(batch(**given, **{variable: value})))
    return tape.gradient(total, value)


def test_every_row_names_a_class_that_carries_the_row_s_name():
    for name, place in KINDS.items():
        module, _, attribute = place.partition(":")
        assert getattr(importlib.import_module(module), attribute).name == name


def test_the_verb_knows_the_kinds_that_also_serve_where_a_linear_head_trains_alone():
    kinds = {name: make_kind(name, {}) for name in KINDS}
    serving = {x for x, kind in kinds.items() if not (kind.reads_features or kind.needs_images)}
    assert set(ANY_FEATURES) == serving  # Their own table imports no Keras.


@pytest.mark.parametrize("name", KINDS)
def test_a_student_that_equals_its_teacher_up_to_a_constant_has_no_loss_and_no_gradient(name):
    shifted = TEACHER + np.float32([[5], [-3], [0], [100], [1], [2]])
    kind = make_kind(name, {})
    both = {"features": shifted} if kind.needs_images else {}
    np.testing.assert_allclose(kind.losses(batch(shifted, **both)), 0, atol=1e-5)
    np.testing.assert_allclose(gradient(kind, "student", student=shifted, **both), 0, atol=1e-4)
    assert float(np.sum(kind.losses(batch(**both)))) > 0.1


def test_the_gradient_of_soft_labels_is_t_times_the_difference_of_probabilities():
    found = gradient(make_kind("logits", {}), "student", student=STUDENT)
    expected = 3 * (special.softmax(STUDENT / 3, axis=1) - special.softmax(TEACHER / 3, axis=1))
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_soft_labels_have_the_limits_of_cold_and_hot_temperatures():
    one = special.softmax(TEACHER, axis=1)
    cross_entropy = -(one * special.log_softmax(STUDENT, axis=1)).sum(axis=1)
    entropy = special.entr(one).sum(axis=1)
    np.testing.assert_allclose(
        divergences(batch(temperature=1.0)), cross_entropy - entropy, rtol=1e-4
    )
    centred = [x - x.mean(axis=1, keepdims=True) for x in (TEACHER, STUDENT)]
    expected = np.square(centred[0] - centred[1]).sum(axis=1) / 8
    hot = Batch(TARGETS, np.float64(TEACHER), tf.constant(np.float64(STUDENT)), 1000.0)
    np.testing.assert_allclose(divergences(hot), expected, rtol=1e-2)
    large = divergences(batch(1e4 * np.sign(STUDENT), -1e4 * np.sign(STUDENT), 1.0))
    assert np.isfinite(large).all()


def of_task(task, student=STUDENT, teacher=TEACHER, temperature=3.0):
    """Losses and gradient of kind 'logits' for another task."""
    value = tf.Variable(student)
    with tf.GradientTape() as tape:
        given = Batch(TARGETS, teacher, value, temperature, soft_losses=task.soft_losses)
        losses = make_kind("logits", {}).losses(given)
    return losses, tape.gradient(losses, value)


def test_soft_labels_of_several_labels_are_binary_divergences():
    task = MultiLabel(("a", "b", "c", "d"))
    losses, found = of_task(task)
    ours, theirs = (special.expit(one / 3) for one in (STUDENT, TEACHER))
    by_label = special.rel_entr(theirs, ours) + special.rel_entr(1 - theirs, 1 - ours)
    np.testing.assert_allclose(losses, 9 * by_label.mean(axis=1), rtol=1e-3)
    np.testing.assert_allclose(found, 3 * (ours - theirs) / 4, atol=1e-6)
    losses, found = of_task(task, student=TEACHER)
    np.testing.assert_allclose(losses, 0, atol=1e-5)
    np.testing.assert_allclose(found, 0, atol=1e-6)
    losses, found = of_task(task, 1e4 * np.sign(STUDENT), -1e4 * np.sign(STUDENT), 1.0)
    assert np.isfinite(losses).all()
    assert np.isfinite(found).all()


def test_a_student_of_numbers_follows_its_teacher_s_in_standard_deviations():
    deviations = np.float32([1, 2, 5, 10])
    task = Regression(("a", "b", "c", "d"), deviations=tuple(deviations.tolist()))
    for temperature in (1.0, 3.0):
        losses, found = of_task(task, temperature=temperature)
        errors = (STUDENT - TEACHER) / deviations
        np.testing.assert_allclose(losses, np.square(errors).mean(axis=1) / 2, rtol=1e-4)
        np.testing.assert_allclose(found, errors / deviations / 4, rtol=1e-4)
    losses, found = of_task(task, student=TEACHER)
    np.testing.assert_array_equal(losses, 0)
    np.testing.assert_array_equal(found, 0)


def test_decoupled_parts_add_up_to_the_divergence():
    of_target, of_others = decoupled_divergences(batch())
    target = (special.softmax(TEACHER / 3, axis=1) * TARGETS).sum(axis=1)
    np.testing.assert_allclose(
        9 * (of_target + (1 - target) * of_others), divergences(batch()), rtol=1e-4
    )
    only_target = make_kind("decoupled", {"alpha": 1.0, "beta": 0.0}).losses(batch())
    np.testing.assert_allclose(only_target, 9 * of_target, rtol=1e-6)


def test_dynamic_weights_are_one_for_certain_teachers_and_zero_for_those_that_know_nothing():
    certain, ignorant = np.eye(4)[[0]], np.full((1, 4), 0.25)
    both = np.stack([certain, ignorant])
    np.testing.assert_allclose(Dynamic().weights(both)[:, 0], [2, 0], atol=1e-6)
    unsure = Dynamic(DynamicOptions(prefer_unsure=True))
    np.testing.assert_allclose(unsure.weights(both)[:, 0], [0, 2], atol=1e-6)
    np.testing.assert_array_equal(Dynamic().weights(both[:1]), [[1]])
    np.testing.assert_array_equal(Dynamic().weights(both[1:]), [[1]])


def test_labels_take_over_from_a_teacher_that_fades():
    options = {"teacher": "x", "kind": "dynamic", "kind_options": {"fade": 0.5}}
    method = Distill(build(DistillOptions, options, "", "a test"))
    assert not method.kind.is_convex
    assert Dynamic().is_convex
    transform = method._transform(PhaseSpec(epochs=5), 4)
    weights = np.float32([[1, 0.1, 0.9], [0, 0, 0.9]])
    encoded = np.concatenate([TARGETS[:2], weights, TEACHER[:2]], axis=1)
    for epoch, factor in ((0, 1.0), (2, 0.75), (4, 0.5)):
        _, changed, _ = transform(FEATURES, encoded, np.ones(2), (0, epoch, 0))
        expected = [[1, 1 - 0.9 * factor, 0.9 * factor], [0, 0, 0.9 * factor]]
        np.testing.assert_allclose(changed[:, 4:7], expected, rtol=1e-5)
        np.testing.assert_array_equal(
            np.delete(changed, [4, 5, 6], 1), np.delete(encoded, [4, 5, 6], 1)
        )


def test_features_count_relative_to_the_teacher_s_and_follow_them():
    kind = make_kind("feature", {"weight": 2.0})
    more = kind.losses(batch(TEACHER, features=OTHERS))
    expected = 2 * np.square(OTHERS - FEATURES).mean(axis=1) / np.square(FEATURES).mean()
    np.testing.assert_allclose(more, expected, rtol=1e-4)
    found = gradient(kind, "features", features=OTHERS)
    expected = 4 * (OTHERS - FEATURES) / 5 / np.square(FEATURES).mean()
    np.testing.assert_allclose(found, expected, rtol=1e-4)


def test_attacked_and_clean_images_count_by_their_shares():
    kind = make_kind("adversarial", {"clean": 0.25})
    attacked = GENERATOR.normal(size=(6, 4)).astype(np.float32)
    expected = 0.25 * divergences(batch()) + 0.75 * divergences(batch(attacked))
    np.testing.assert_allclose(kind.losses(batch(features=attacked)), expected, rtol=1e-5)


@pytest.mark.parametrize("target", ["teacher", "labels"])
def test_attacks_stay_in_their_bounds_and_are_the_worst_ones_of_a_linear_network(target):
    kernel = GENERATOR.normal(size=(12, 2)).astype(np.float32)
    images = GENERATOR.uniform(0, 255, size=(6, 2, 2, 3)).astype(np.float32)
    images[0], images[1] = 0, 255
    targets = np.eye(2, dtype=np.float32)[[0, 1, 0, 1, 0, 1]]

    def network(some):
        return tf.reshape(tf.cast(some, tf.float32), (-1, 12)) @ kernel / 500

    # The teacher is as sure of the labels as no student of these images, which attacks start from.
    given = Batch(targets, 200 * targets, network(images), 1.0)
    options = {"target": target, "epsilon": 8.0, "step": 3.0, "steps": 4}
    found = make_kind("adversarial", options).attacked(network, tf.constant(images), given)
    away = (kernel[:, 1] - kernel[:, 0]) * np.where(targets[:, :1] == 1, 1, -1)
    expected = np.clip(images + 8 * np.sign(away).reshape(images.shape), 0, 255)
    np.testing.assert_allclose(found, expected, atol=1e-4)
    none = make_kind("adversarial", options | {"epsilon": 0.0})
    np.testing.assert_array_equal(none.attacked(network, tf.constant(images), given), images)
    kind, batches = make_kind("adversarial", options), (np.uint8(images), np.floor(images))
    found, expected = (kind.attacked(network, tf.constant(one), given) for one in batches)
    np.testing.assert_array_equal(found, expected)


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("jax") is None, reason="JAX is not installed")
def test_attacks_of_bytes_on_jax():
    environment = {**os.environ, **JAX}
    subprocess.run([sys.executable, "-c", ATTACKING], cwd=ROOT, env=environment, check=True)


def test_attention_is_where_maps_are_strong_whatever_their_scale_and_channels():
    maps = GENERATOR.normal(size=(2, 2, 3, 4)).astype(np.float32)
    found = AttentionMap((2, 3))(maps)
    energy = np.square(maps).mean(axis=-1).reshape(2, 6)
    np.testing.assert_allclose(
        found, energy / np.linalg.norm(energy, axis=1, keepdims=True), rtol=1e-5
    )
    np.testing.assert_allclose(AttentionMap((2, 3))(-7 * maps[..., ::-1]), found, rtol=1e-5)
    even = AttentionMap((4, 4))(np.ones((1, 2, 2, 5), np.float32))
    np.testing.assert_allclose(even, np.full((1, 16), 0.25), rtol=1e-6)
    ours, theirs = np.abs(FEATURES), np.abs(OTHERS)
    ours, theirs = (one / np.linalg.norm(one, axis=1, keepdims=True) for one in (ours, theirs))
    kind = make_kind("attention", {"weight": 3.0})
    losses = kind.losses(batch(TEACHER, features=ours, theirs=theirs))
    np.testing.assert_allclose(losses, 3 * (2 - 2 * (ours * theirs).sum(axis=1)), rtol=1e-4)
    dark = tf.Variable(np.zeros((1, 2, 2, 3), np.float32))
    with tf.GradientTape() as tape:
        total = tf.reduce_sum(AttentionMap((2, 2))(dark))
    np.testing.assert_array_equal(tape.gradient(total, dark), 0)


def test_attention_compares_the_last_maps_of_each_size_in_the_size_of_the_teacher_s():
    def network(size):
        image = keras.Input((size, size, 3))
        low = keras.layers.Conv2D(4, 3, padding="same")(image)
        high = keras.layers.Conv2D(5, 3, padding="same")(keras.layers.MaxPooling2D()(low))
        below = keras.layers.GlobalAveragePooling2D(keepdims=True)(high)
        logits = keras.layers.Dense(4)(keras.layers.Flatten()(below))
        return keras.Model(image, logits), low, high

    (teacher, low, high), (student, *_) = network(8), network(12)
    below = Cut(teacher, teacher.layers[-1].input, "features of teacher")
    for number, expected in ((1, [(high, 4)]), (2, [(high, 4), (low, 8)])):
        kind = make_kind("attention", {"maps": number})
        cut = kind.teacher_cut(below)
        assert (cut.name, cut.num_values) == ("attention in teacher", 16 + 64 * (number - 1))
        pixels = GENERATOR.random((2, 8, 8, 3)).astype(np.float32)
        maps = keras.Model(teacher.input, [tensor for tensor, _ in expected])(pixels)
        maps = maps if isinstance(maps, list) else [maps]
        parts = [
            AttentionMap((size, size))(one) for one, (_, size) in zip(maps, expected, strict=True)
        ]
        found = keras.Model(teacher.input, cut.tensor)(pixels)
        np.testing.assert_allclose(found, np.concatenate(parts, axis=1), rtol=1e-5)
        loss = DistillationLoss(TASK.loss(TrainingSpec()), kind, TASK, 1.0)
        assert make_student(student, loss, cut).output_shape == (None, 4 + cut.num_values)
    with pytest.raises(SpecError, match="of which the teacher has too few"):
        make_kind("attention", {"maps": 3}).teacher_cut(below)
    top = keras.Model(student.layers[-2].output, student.output)
    with pytest.raises(SpecError, match="of which the part of the student that trains has too few"):
        make_student(top, loss, cut)


def test_similarities_and_relations_do_not_change_when_features_are_rotated_or_scaled():
    rotation = np.linalg.qr(GENERATOR.normal(size=(5, 5)))[0].astype(np.float32)
    turned = 7 * FEATURES @ rotation
    for name in ("similarity", "relational"):
        kind = make_kind(name, {})
        np.testing.assert_allclose(kind.losses(batch(TEACHER, features=turned)), 0, atol=1e-5)
        assert float(np.sum(kind.losses(batch(TEACHER, features=OTHERS)))) > 0.05
        assert np.isfinite(gradient(kind, "features", features=FEATURES)).all()
    products = FEATURES @ FEATURES.T
    expected = products / np.linalg.norm(products, axis=1, keepdims=True)
    np.testing.assert_allclose(similarities(FEATURES), expected, rtol=1e-4)


def test_distances_are_multiples_of_their_mean_and_angles_are_cosines():
    corner = np.float32([[0, 0], [3, 0], [0, 4]])
    expected = np.array([[0, 3, 4], [3, 0, 5], [4, 5, 0]]) / 4
    np.testing.assert_allclose(distances(corner), expected, rtol=1e-5)
    found = np.array(angles(corner))
    assert found[0, 1, 2] == pytest.approx(0, abs=1e-6)
    assert found[1, 0, 2] == pytest.approx(3 / 5, rel=1e-5)
    assert found[2, 0, 1] == pytest.approx(4 / 5, rel=1e-5)


def test_a_student_shares_the_layers_of_its_part_and_has_an_adapter_of_its_own():
    task, image = TASK, keras.Input((8,))
    hidden = keras.layers.Dense(5, activation="relu")(image)
    classifier = keras.Model(image, keras.layers.Dense(4, name="logits")(hidden))
    classifier.compile(loss="mse", weighted_metrics=task.metrics())  # As by an earlier phase.
    teacher = Cut(classifier, keras.layers.Dense(7)(image), "seven features")
    feature, similarity = (
        DistillationLoss(task.loss(TrainingSpec()), make_kind(name, {}), task, 1.0)
        for name in ("feature", "similarity")
    )
    for part in (classifier, keras.Model(hidden, classifier.output)):
        student = make_student(part, feature, teacher)
        assert student.output_shape == (None, 4 + 7)
        values = np.ones((3, part.input_shape[-1]), np.float32)
        np.testing.assert_allclose(student(values)[:, :4], part(values), rtol=1e-6)
        own = {id(variable) for variable in classifier.variables}
        added = [v.path for v in student.trainable_variables if id(v) not in own]
        assert added == ["adapter/kernel", "adapter/bias"]
    assert make_student(part, similarity, teacher).output_shape[1] == 9


def test_the_loss_weighs_labels_teacher_and_examples():
    hard = TASK.loss(TrainingSpec(label_smoothing=0.1))
    loss = DistillationLoss(hard, make_kind("logits", {}), TASK, 3.0)
    weights = np.float32([[1, 0.3, 0.7]] * 4 + [[0, 0, 0.7]] * 2)
    columns = np.concatenate([TARGETS, weights, TEACHER], axis=1)
    by_label, soft = hard.call(TARGETS, STUDENT), divergences(batch())
    expected = weights[:, 1] * by_label + 0.7 * np.array(soft)
    np.testing.assert_allclose(loss.call(columns, STUDENT), expected, rtol=1e-5)
    examples = np.float32([1, 1, 0, 2, 1, 0])
    assert float(loss(columns, STUDENT, sample_weight=examples)) == pytest.approx(
        float(np.mean(examples * expected)), rel=1e-5
    )
    assert float(loss(columns, STUDENT, sample_weight=0 * examples)) == 0
    np.testing.assert_allclose(loss.call(TARGETS, STUDENT), by_label)
    assert isinstance(loss, keras.losses.Loss)


SEVERAL = MultiTask(
    ("kind=a", "kind=b", "kind=c", "size"),
    MultiTaskOptions(targets={"kind": "single_label", "size": "regression"}),
    (
        Target("kind", SingleLabel(("a", "b", "c"))),
        Target("size", Regression(("size",), means=(1.0,), deviations=(2.0,))),
    ),
)


def test_each_head_of_several_targets_has_its_temperature_and_weight():
    kind = make_kind("multi_task", {"temperatures": {"kind": 4.0}, "weights": {"size": 3}})
    kind.check(SEVERAL)
    loss = DistillationLoss(keras.losses.MeanSquaredError(), kind, SEVERAL, 2.0)
    weights = np.float32([[1, 0.25, 0.75]] * 6)
    targets = np.concatenate([TARGETS, weights, TEACHER], axis=1)
    given = loss.batch(tf.constant(targets), tf.constant(STUDENT))
    theirs, ours = (special.log_softmax(x[:, :3] / 4, axis=1) for x in (TEACHER, STUDENT))
    of_kind = 16 * (np.exp(theirs) * (theirs - ours)).sum(axis=1)
    of_size = 0.5 * ((TEACHER[:, 3] - STUDENT[:, 3]) / 2) ** 2
    np.testing.assert_allclose(kind.losses(given), of_kind + 3 * of_size, rtol=1e-4)
    plain = make_kind("multi_task", {}).losses(given)
    np.testing.assert_allclose(plain, SEVERAL.soft_losses(TEACHER, STUDENT, 2.0), rtol=1e-5)
    hard = np.square(TARGETS - STUDENT).mean(axis=1)
    expected = 0.25 * hard + 0.75 * (of_kind + 3 * of_size)
    np.testing.assert_allclose(loss.call(targets, STUDENT), expected, rtol=1e-4)


@pytest.mark.parametrize(
    ("options", "task", "complaint"),
    [
        ({}, TASK, "is for tasks with several targets"),
        ({"weights": {"sise": 1.0}}, SEVERAL, "'sise' that the task does not have"),
        ({"temperatures": {"kind": 0.0}}, SEVERAL, r"temperatures\.kind is out of range"),
        ({"weights": {"kind": -1.0}}, SEVERAL, r"weights\.kind is out of range"),
    ],
)
def test_options_of_heads_that_do_not_fit_are_refused(options, task, complaint):
    with pytest.raises(SpecError, match=complaint):
        make_kind("multi_task", options).check(task)
