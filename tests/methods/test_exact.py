"""An exact head is set without an optimizer, and where more trains, training starts from it."""

import dataclasses

import keras
import numpy as np
import pytest
from feature_sources import make_source, make_splits
from listener import Listener
from small_models import CLASS_NAMES

from keras_transfer.config import override
from keras_transfer.errors import SpecError
from keras_transfer.features.phase_inputs import PhaseInputs
from keras_transfer.methods.registry import make_methods
from keras_transfer.models.classifier import build_classifier
from keras_transfer.specs import CacheSpec, ModelSpec, PhaseSpec, RunSpec, TrainingSpec, ViewSpec
from keras_transfer.storage.cache import Cache
from keras_transfer.storage.run_folder import RunFolder
from keras_transfer.tasks.single_label import SingleLabel
from keras_transfer.training.fitting import fit_phases
from keras_transfer.training.refitting import initial_weights, refit

SPEC = RunSpec(
    views=ViewSpec(count=2),
    model=ModelSpec(backbone="small", last_stage="stage2", weights="none"),
    phases=(
        PhaseSpec(method="exact"),
        PhaseSpec(name="fine-tune", epochs=2, unfreeze="last", learning_rate=1e-2),
    ),
    training=TrainingSpec(label_smoothing=0.0),
    cache=CacheSpec(dtype="float32", precision="float32"),
)
HEAD_ONLY = [{"name": "frozen", "method": "exact"}]


class Training:
    """A classifier and the inputs of its phases; `fit` trains them."""

    def __init__(self, tmp_path, changes=None, splits=None):
        keras.utils.clear_session()
        self.spec = override(SPEC, changes or {})
        self.reporter = Listener()
        self.inputs = PhaseInputs(
            self.spec,
            make_source(views=self.spec.views),
            splits or make_splits(),
            methods=make_methods(self.spec),
            cache=Cache(tmp_path / "cache"),
            reporter=self.reporter,
        )
        task = SingleLabel(CLASS_NAMES)
        self.classifier = build_classifier(self.spec.model, image_size=32, task=task, seed=0)
        self.initial = initial_weights(self.classifier, self.inputs)

    def fit(self, run=None):
        self.outcomes = fit_phases(self.classifier, self.inputs, reporter=self.reporter, run=run)
        return self

    def refit(self, run=None):
        return refit(
            self.classifier,
            self.inputs,
            self.outcomes,
            initial=self.initial,
            reporter=self.reporter,
            run=run,
        )

    @property
    def weights(self):
        return {variable.path: np.array(variable) for variable in self.classifier.model.variables}


def assert_equal(one, other):
    for path, value in one.items():
        np.testing.assert_array_equal(value, other[path], err_msg=path)


def gradient_of_the_objective(training, strength):
    """The gradient by the logits' kernel of what the head minimises, from Keras's own outputs."""
    source, rows = training.inputs.source, training.inputs.splits.train
    data, _ = training.inputs.for_phase(training.classifier, 0)
    logits = training.classifier.stages["head"][-1]
    kernel, bias = np.array(logits.kernel, np.float64), np.array(logits.bias, np.float64)
    read = data.head_features(logits).read
    views = [np.float64(read(np.arange(len(rows)), view)) for view in range(2)]
    mean, deviation = views[0].mean(axis=0), views[0].std(axis=0)
    typical = deviation.mean()
    scale = np.sqrt((deviation + 0.1 * typical) * typical)
    target = np.eye(len(CLASS_NAMES))[source.examples.targets.values[rows]]
    gradient = kernel * scale[:, None]
    for features in views:
        scores = features @ kernel + bias
        scores -= scores.max(axis=1, keepdims=True)
        probabilities = np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)
        gradient += strength / 2 * ((features - mean) / scale).T @ (probabilities - target)
    return gradient


def test_head_is_at_the_optimum_of_all_views_and_phase_two_starts_there(tmp_path):
    options = {"phases.0.method_options": {"strength": 0.3}}
    head = [{**HEAD_ONLY[0], "method_options": {"strength": 0.3}}]
    training = Training(tmp_path, {"phases": head}).fit()
    (outcome,) = training.outcomes
    assert outcome.epochs == outcome.best_epoch == 1
    assert outcome.history[0]["learning_rate"] == 0
    assert outcome.history[0]["val_loss"] == pytest.approx(outcome.val_loss)
    assert outcome.history[0]["val_accuracy"] == pytest.approx(outcome.val_score)
    assert np.abs(gradient_of_the_objective(training, 0.3)).max() < 1e-3
    tuned = Training(tmp_path, {**options, "phases.1.learning_rate": 0.0}).fit()
    assert tuned.outcomes[1].history[0]["val_loss"] == pytest.approx(outcome.val_loss, rel=1e-5)


@pytest.mark.parametrize("mode", ["auto", "off"])
def test_features_and_images_have_the_same_solution(mode, tmp_path):
    training = Training(tmp_path, {"phases": HEAD_ONLY, "cache.mode": mode}).fit()
    assert any("solved exactly on" in sentence for sentence in training.reporter.said)
    assert training.outcomes[0].val_loss == pytest.approx(
        Training(tmp_path, {"phases": HEAD_ONLY}).fit().outcomes[0].val_loss, rel=1e-4
    )


@pytest.mark.slow
def test_dropout_is_trained_from_the_solution_and_a_hidden_layer_without(tmp_path):
    changes = {"phases": [{**HEAD_ONLY[0], "epochs": 2, "learning_rate": 1e-4}]}
    solved = Training(tmp_path, changes).fit()
    dropout = Training(tmp_path, {**changes, "model.dropout": 0.2}).fit()
    assert dropout.outcomes[0].epochs == 2
    assert dropout.outcomes[0].val_loss == pytest.approx(solved.outcomes[0].val_loss, rel=0.05)
    hidden = Training(tmp_path, {**changes, "model.head": "mlp"}).fit()
    assert hidden.outcomes[0].epochs == 2
    assert any("has no exact solution" in sentence for sentence in hidden.reporter.said)


def test_every_view_counts_however_few_the_epochs(tmp_path):
    one = Training(tmp_path, {"phases": [{**HEAD_ONLY[0], "epochs": 1}]}).fit()
    many = Training(tmp_path, {"phases": [{**HEAD_ONLY[0], "epochs": 9}]}).fit()
    plain = Training(tmp_path, {"phases": HEAD_ONLY, "views.count": 1}).fit()
    assert_equal(one.weights, many.weights)
    assert one.outcomes[0].val_loss != plain.outcomes[0].val_loss


def test_classes_drawn_equally_often_weigh_equally_in_the_solution(tmp_path):
    weights = [
        Training(tmp_path, {"phases": HEAD_ONLY, **changes}).fit().weights
        for changes in ({"training.sampling": "balanced"}, {"training.class_weights": "balanced"})
    ]
    for path, value in weights[0].items():
        np.testing.assert_allclose(value, weights[1][path], atol=1e-4, err_msg=path)


def test_strength_is_given_or_chosen_but_not_both():
    options = {"strength": 0.1, "cross_validate": True}
    with pytest.raises(SpecError, match="both given and to be chosen"):
        make_methods(override(SPEC, {"phases.0.method_options": options}))
    chosen = override(SPEC, {"phases.0.method_options": {"cross_validate": True}})
    assert make_methods(chosen)[0].options.cross_validate


@pytest.mark.slow
def test_refit_is_the_training_on_both_splits_and_survives_a_kill(tmp_path):
    run = RunFolder.create(tmp_path / "run")
    run.checkpoint_folder.mkdir()
    training = Training(tmp_path).fit(run)
    before = training.weights
    refitted = training.refit(run)
    splits = training.inputs.splits
    assert refitted.num_images == len(splits.train) + len(splits.val)
    assert refitted.test_loss != training.outcomes[-1].test_loss
    again = Training(tmp_path).fit(run)
    assert_equal(again.weights, before)
    assert again.refit(run).test_loss == refitted.test_loss
    assert_equal(again.weights, training.weights)


def test_refit_of_a_head_is_the_solution_on_both_splits(tmp_path):
    head = Training(tmp_path, {"phases": HEAD_ONLY}).fit()
    head.refit()
    splits = head.inputs.splits
    both = dataclasses.replace(splits, train=np.union1d(splits.train, splits.val), val=splits.test)
    assert_equal(head.weights, Training(tmp_path, {"phases": HEAD_ONLY}, both).fit().weights)


def test_phase_with_too_few_images_is_left_out_and_never_the_last(tmp_path):
    few = {"phases.1.min_images": 97, "phases.1.weight_decay": 0.5}
    training = Training(tmp_path, few).fit()
    assert [outcome.name for outcome in training.outcomes] == ["frozen"]
    (said,) = [text for text in training.reporter.said if "is left out" in text]
    assert "phases.1.weight_decay" in said
    assert "have no effect, because phase 'fine-tune' is left out: there are 96 training" in said
    assert "Add phases.1.min_images=0" in said
    assert training.refit().num_images > 97  # Which phases train is not chosen anew.
    with pytest.raises(SpecError, match="every phase needs more"):
        Training(tmp_path, {"phases.0.min_images": 97, "phases.1.min_images": 97})
