"""Rates: the schedule's closed form, and one exact rate for every stage."""

import math

import keras
import numpy as np
import pytest
from small_models import make_classifier

from keras_transfer.specs import PhaseSpec
from keras_transfer.training.optimizers import make_optimizer, make_schedule, stage_rates
from keras_transfer.training.phases import apply_phase


def test_schedule_is_a_line_and_then_half_a_cosine():
    phase = PhaseSpec(epochs=5, warmup_epochs=1, learning_rate=0.1)
    schedule = make_schedule(0.1, phase, steps_per_epoch=10)
    assert float(schedule(0)) == pytest.approx(0.01)
    assert float(schedule(10)) == pytest.approx(0.1)
    for step in (10, 20, 30, 49, 50):
        expected = 0.1 * (1 + math.cos(math.pi * (step - 10) / 40)) / 2
        assert float(schedule(step)) == pytest.approx(expected, abs=1e-8)


def test_constant_schedule_stays_at_the_peak():
    phase = PhaseSpec(epochs=5, warmup_epochs=1, schedule="constant")
    schedule = make_schedule(0.1, phase, steps_per_epoch=10)
    assert [float(schedule(step)) for step in (10, 30, 50)] == pytest.approx([0.1] * 3)


def test_warmup_of_nothing_starts_at_the_peak():
    schedule = make_schedule(0.1, PhaseSpec(warmup_epochs=0), steps_per_epoch=10)
    assert float(schedule(0)) == pytest.approx(0.1)


def test_rates_fall_by_the_decay_from_the_head_down():
    phase = PhaseSpec(unfreeze="stem", learning_rate=1.0, layer_decay=0.5)
    rates = stage_rates(phase, make_classifier("mobilenet_0.25"))
    assert rates == {"stem": 0.125, "stage1": 0.25, "stage2": 0.5, "head": 1.0}


def test_step_over_gradient_is_the_rate_of_the_stage_for_every_variable_under_sgd():
    classifier = make_classifier("mobilenet_0.25", dropout=0.0)
    phase = PhaseSpec(
        unfreeze="stem",
        learning_rate=0.1,
        layer_decay=0.5,
        optimizer="sgd",
        weight_decay=0,
        warmup_epochs=0,
        schedule="constant",
    )
    apply_phase(classifier, phase)
    optimizer = make_optimizer(phase, classifier, steps_per_epoch=10)
    variables = classifier.model.trainable_variables
    before = {v.path: np.array(v) for v in variables}
    gradients = [keras.ops.ones(v.shape) for v in variables]
    optimizer.apply(gradients, variables)
    rates = stage_rates(phase, classifier)
    checked = 0
    for stage, layers in classifier.stages.items():
        for variable in (v for layer in layers for v in layer.trainable_variables):
            step = before[variable.path] - np.array(variable)
            np.testing.assert_allclose(step, rates[stage], rtol=1e-4)
            checked += 1
    assert checked == len(variables) == 9


def test_weight_decay_spares_offsets_and_shrinks_kernels():
    classifier = make_classifier(dropout=0.0)
    phase = PhaseSpec(learning_rate=0.1, weight_decay=0.5, warmup_epochs=0, schedule="constant")
    apply_phase(classifier, phase)
    kernel, bias = classifier.stages["head"][-1].trainable_variables
    bias.assign(np.ones(10))
    before = np.array(kernel)
    optimizer = make_optimizer(phase, classifier, steps_per_epoch=1)
    optimizer.apply([keras.ops.zeros(v.shape) for v in (kernel, bias)], [kernel, bias])
    np.testing.assert_array_equal(np.array(bias), np.ones(10))
    np.testing.assert_allclose(np.array(kernel), before * 0.95, rtol=1e-5)
