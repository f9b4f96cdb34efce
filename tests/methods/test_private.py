"""Heads with differential privacy: bounds, noise, plain SGD as a limit, refusals, whole runs."""

import dataclasses
import json
from functools import partial

import numpy as np
import pytest
from feature_sources import make_splits
from fitting_small import fit_small
from listener import Listener
from scipy.special import softmax
from sklearn.datasets import load_digits
from small_models import weights_by_stage

import keras_transfer as kt
from keras_transfer.config import load_spec, make_spec, override
from keras_transfer.errors import SpecError
from keras_transfer.experiments.session import open_session
from keras_transfer.experiments.trial_runner import TrialRunner
from keras_transfer.methods import private
from keras_transfer.methods.accountant import divergences, epsilon_of
from keras_transfer.methods.private import (
    Noise,
    PrivateOptions,
    clipped_sum,
    descend,
    noisy_mean,
    train_head,
)
from keras_transfer.methods.registry import make_methods
from keras_transfer.reporting.reporter import SilentReporter
from keras_transfer.specs import CacheSpec, PhaseSpec, RunSpec, TrainingSpec, ViewSpec
from keras_transfer.storage.run_folder import RunFolder
from keras_transfer.training import fitting
from keras_transfer.training.progress import Checkpoint

SPEC = RunSpec(
    views=ViewSpec(count=2),
    phases=(PhaseSpec(name="head", method="private"),),
    training=TrainingSpec(refit=False),
    cache=CacheSpec(dtype="float32", precision="float32"),
)
LOOSE = 1e3
"""A clipping norm that no gradient reaches."""


def make_data(num_examples=200, num_columns=12, num_classes=3, seed=0):
    generator = np.random.default_rng(seed)
    features = 2 * generator.random((num_examples, num_columns), np.float32)
    labels = np.eye(num_classes, dtype=np.float32)[np.argmax(features[:, :num_classes], axis=1)]
    return features, labels


def silent(steps=0.0, learning_rate=1.0):
    return Noise(steps=steps, mean=0.0, learning_rate=learning_rate, epsilon=np.inf)


def test_one_example_changes_the_sum_of_gradients_by_the_clipping_norm_at_most():
    features, labels = make_data()
    residuals = softmax(5 * features[:, :3], axis=1) - labels
    gradients = features[:, :, None] * residuals[:, None]
    norms = np.sqrt(np.square(gradients).sum(axis=(1, 2)))
    clip_norm = float(np.median(norms))
    whole = clipped_sum(features, residuals, clip_norm)
    for row in range(len(features)):
        others = np.arange(len(features)) != row
        change = whole - clipped_sum(features[others], residuals[others], clip_norm)
        size = np.linalg.norm(change)
        assert size == pytest.approx(min(norms[row], clip_norm), rel=1e-3)
    np.testing.assert_allclose(
        clipped_sum(features, residuals, LOOSE), gradients.sum(axis=0), rtol=1e-4
    )


def test_one_example_changes_the_sum_of_the_mean_by_its_bound_at_most():
    features, _ = make_data()
    generator = np.random.default_rng(0)
    bound = float(np.median(np.linalg.norm(features, axis=1)))
    long, short = np.copy(features), np.copy(features)
    long[0], short[0] = 1e4, 0
    one, other = (noisy_mean(each, bound, 0.0, generator) for each in (long, short))
    assert len(features) * np.linalg.norm(one - other) == pytest.approx(bound, rel=1e-3)
    unbounded = noisy_mean(features, 1e4, 0.0, generator)
    np.testing.assert_allclose(unbounded, features.mean(axis=0), rtol=1e-5)


def test_noise_has_the_promised_deviation():
    features, labels = make_data(num_columns=400)
    generator = np.random.default_rng(1)
    mean = noisy_mean(features, 5.0, 3.0, generator) - noisy_mean(features, 5.0, 0.0, generator)
    assert len(features) * mean.std() == pytest.approx(3.0 * 5.0, rel=0.1)
    options = PrivateOptions(steps=1, clip_norm=0.5)
    noisy, plain = (
        descend(features, labels, options, silent(noise), generator=generator) for noise in (7.0, 0)
    )
    # A step is divided by the number of images and by the clipping norm.
    assert len(features) * (noisy - plain).std() == pytest.approx(7.0, rel=0.1)


def test_without_noise_and_clipping_it_is_gradient_descent():
    features, labels = make_data()
    options = PrivateOptions(steps=40, clip_norm=LOOSE)
    noise = silent(learning_rate=0.3 * LOOSE)
    found = descend(features, labels, options, noise, generator=np.random.default_rng())
    inputs = np.hstack([features, np.ones((len(features), 1))]).astype(np.float64)
    weights = np.zeros((inputs.shape[1], labels.shape[1]))
    for _ in range(40):
        weights -= 0.3 / len(inputs) * inputs.T @ (softmax(inputs @ weights, axis=1) - labels)
    np.testing.assert_allclose(found, weights, rtol=1e-3, atol=1e-4)


def test_samples_are_poisson_and_divided_by_their_expected_size():
    features, labels = make_data(num_examples=2000)
    options = PrivateOptions(steps=1, clip_norm=LOOSE, sampling_rate=0.25)
    steps = [
        descend(features, labels, options, silent(), generator=np.random.default_rng(seed))
        for seed in range(60)
    ]
    whole = descend(
        features,
        labels,
        dataclasses.replace(options, sampling_rate=1.0),
        silent(),
        generator=np.random.default_rng(),
    )
    np.testing.assert_allclose(np.mean(steps, axis=0), whole, atol=0.05 * np.abs(whole).max())
    # Sizes of samples vary, and with them the length of the step.
    lengths = [float((step * whole).sum() / (whole * whole).sum()) for step in steps]
    assert np.std(lengths) == pytest.approx(np.sqrt(3 / 2000), rel=0.4)


def test_the_head_is_that_of_features_as_they_are_and_the_budget_is_spent():
    scans = load_digits()
    features, labels = np.float32(scans.data) + 3, np.eye(10)[scans.target]
    options = PrivateOptions(epsilon=3.0)
    noise = Noise.of(options, len(features))
    assert noise.epsilon == pytest.approx(3, abs=1e-6)
    total = options.steps * divergences(1, noise.steps) + divergences(1, noise.mean)
    assert epsilon_of(total, 1e-5) == noise.epsilon <= 3
    head = train_head(
        features[:1500], labels[:1500], options, noise, generator=np.random.default_rng(0)
    )
    right = np.argmax(features[1500:] @ head.kernel + head.bias, axis=1) == scans.target[1500:]
    assert right.mean() > 0.8


@pytest.mark.parametrize(
    ("fields", "received"),
    [
        ({"phases.1.name": "more", "phases.1.method": "supervised"}, "2 phases"),
        ({"phases.0.unfreeze": "last"}, "unfreeze=last"),
        ({"model.head": "mlp", "task": "regression"}, "model.head=mlp, task=regression"),
        ({"task": "multi_label"}, "task=multi_label"),
        ({"training.class_weights": "balanced"}, "class weights by the labels"),
        ({"training.sampling": "balanced"}, "sampling by the labels"),
        ({"training.refit": True, "seeds": 3}, "3 trainings, a second training of the refit"),
    ],
)
def test_a_spec_in_which_something_else_learns_is_refused_with_all_culprits(fields, received):
    options = {"phases.1.method_options": {}} if "phases.1.method" in fields else {}
    with pytest.raises(SpecError, match="needs another spec") as raised:
        make_methods(override(SPEC, fields | options))
    assert raised.value.received == received
    assert raised.value.fix.startswith("set ")


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"epsilon": 0}, r"epsilon is out of range"),
        ({"epsilon": -1}, r"epsilon is out of range"),
        ({"delta": 0}, r"delta is out of range"),
        ({"delta": 1}, r"delta is out of range"),
        ({"sampling_rate": 0}, r"sampling_rate is out of range"),
    ],
)
def test_budgets_that_mean_nothing_are_refused(options, match):
    with pytest.raises(SpecError, match=match):
        make_methods(override(SPEC, {"phases.0.method_options": options}))


def test_delta_stays_below_one_over_the_number_of_images(tmp_path):
    spec = override(SPEC, {"phases.0.method_options": {"delta": 0.02}})
    with pytest.raises(SpecError, match="publish one of the images") as raised:
        fit_small(spec, tmp_path, SilentReporter())
    assert "1/96" in raised.value.expected


def test_the_preset_is_a_spec_of_this_method():
    assert make_methods(load_spec("private"))[0].name == "private"


def test_an_interrupted_run_goes_on_with_the_same_head(tmp_path, monkeypatch):
    run = RunFolder.create(tmp_path / "run")
    run.checkpoint_folder.mkdir()

    def fail(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(fitting, "_conclude", fail)
        with pytest.raises(KeyboardInterrupt):
            fit_small(SPEC, tmp_path, SilentReporter(), run=run)
    kept = Checkpoint(run, "phase-0", print).load()
    resumed = Listener()
    with monkeypatch.context() as patched:
        patched.setattr(private, "train_head", fail)
        classifier, (outcome,) = fit_small(SPEC, tmp_path, resumed, run=run)
    kernel = weights_by_stage(classifier)["head"][0]
    np.testing.assert_array_equal(kernel, np.float32(kept.arrays["head"]["kernel"]))
    assert outcome.privacy["epsilon"] == pytest.approx(2, abs=1e-6)
    again, _ = fit_small(SPEC, tmp_path, SilentReporter())
    assert not np.array_equal(weights_by_stage(again)["head"][0], kernel)


def test_features_and_images_give_the_same_head_for_the_same_noise(tmp_path, monkeypatch):
    monkeypatch.setattr(private.os, "urandom", lambda size: bytes(size))
    kernels = [
        weights_by_stage(fit_small(spec, tmp_path, SilentReporter())[0])["head"][0]
        for spec in (SPEC, override(SPEC, {"cache.mode": "off"}))
    ]
    np.testing.assert_allclose(*kernels, rtol=1e-3, atol=1e-4)


RUN = {
    "model.backbone": "small",
    "model.weights": "none",
    "data.image_size": 32,
    "views.count": 1,
    "phases": [{"name": "head", "method": "private", "method_options": {"epsilon": 4}}],
    "training.refit": False,
}


def test_repeated_trainings_are_refused(digits_folder):
    exact = make_spec(digits_folder, **RUN | {"phases": [{"name": "head", "method": "exact"}]})
    spec = make_spec(digits_folder, **RUN)
    refused = partial(pytest.raises, SpecError, match="would each spend the privacy budget")
    with open_session(spec, reporter=SilentReporter()) as session, refused():
        TrialRunner(session, [])
    with open_session(exact, reporter=SilentReporter()) as session:
        runner = TrialRunner(session, [make_splits()])
        with refused():
            runner.train(spec)


@pytest.mark.slow
def test_a_run_reports_its_budget_and_what_the_attack_finds(digits_folder, tmp_path):
    reporter = Listener()
    run = kt.fine_tune(digits_folder, output=tmp_path / "run", reporter=reporter, **RUN)
    metrics = json.loads((run.path / "metrics.json").read_text())
    privacy = metrics["privacy"]
    assert privacy["epsilon"] == pytest.approx(4, abs=1e-6)
    assert (privacy["delta"], privacy["sampling_rate"], privacy["steps"]) == (1e-5, 1, 30)
    assert any("membership" in sentence for sentence in privacy["does_not_cover"])
    heads = privacy["membership"]
    assert heads["private"]["test_score"] == metrics["test"]["accuracy"]
    assert heads["exact"]["num_members"] == heads["private"]["num_members"] == 210
    # The exact head knows its training images; the model that is kept is the private one.
    assert heads["exact"]["auc"] > heads["private"]["auc"]
    assert run.evaluation.accuracy == heads["private"]["test_score"]
    for again in (partial(run.extend, digits_folder), partial(run.compress, channels=0.5)):
        with pytest.raises(SpecError, match="would each spend the privacy budget"):
            again(reporter=SilentReporter())
    card = json.loads((run.path / "export" / "1" / "card.json").read_text())
    assert any(limit.startswith("Differential privacy: ε = 4") for limit in card["limits"])
