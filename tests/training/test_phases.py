"""Phases change exactly what they say, for a family with BatchNormalization and one without."""

import keras
import numpy as np
import pytest
from small_models import make_classifier, weights_by_stage

from keras_transfer.errors import RunError, SpecError
from keras_transfer.specs import PhaseSpec, RunSpec, TrainingSpec
from keras_transfer.training.phases import apply_phase, compile_phase, train_phase

TINY = "small"
"""With BatchNormalization, and fast to build and to train."""

FROZEN = PhaseSpec(name="frozen", epochs=1, unfreeze="head", learning_rate=1e-2)
TUNED = PhaseSpec(
    name="fine-tune", epochs=1, unfreeze="stage2", learning_rate=1e-3, layer_decay=0.5
)
SPEC = RunSpec(phases=(FROZEN, TUNED), training=TrainingSpec(batch_size=32))


def _same(before: list[np.ndarray], after: list[np.ndarray]) -> list[bool]:
    return [np.array_equal(old, new) for old, new in zip(before, after, strict=True)]


@pytest.mark.parametrize("backbone", [TINY, "vgg16"])
def test_two_phases_change_exactly_their_stages(backbone, split_data):
    classifier, data = make_classifier(backbone), split_data(SPEC)
    start = weights_by_stage(classifier)
    train_phase(classifier, FROZEN, data)
    frozen = weights_by_stage(classifier)
    for stage in classifier.stages:
        assert all(_same(start[stage], frozen[stage])) is (stage != "head")
    last_loss = classifier.model.evaluate(data.validation(), verbose=0)[0]
    apply_phase(classifier, TUNED)
    loss = classifier.task.loss(SPEC.training)
    compile_phase(classifier, TUNED, steps_per_epoch=data.steps_per_epoch, loss=loss)
    first_loss = classifier.model.evaluate(data.validation(), verbose=0)[0]
    assert first_loss == pytest.approx(last_loss, abs=1e-6)
    train_phase(classifier, TUNED, data)
    tuned = weights_by_stage(classifier)
    *lower, _, _ = classifier.stages
    assert all(all(_same(frozen[stage], tuned[stage])) for stage in lower)
    for stage in ("stage2", "head"):
        names = [v.path for v in classifier.variables_of(stage) if "int" not in v.dtype]
        for name, same in zip(names, _same(frozen[stage], tuned[stage]), strict=True):
            assert same is ("_bn/" in name), name


def test_batchnorm_learns_where_the_phase_says_so(split_data):
    classifier, data = make_classifier(TINY), split_data(SPEC)
    phase = PhaseSpec(epochs=1, unfreeze="stage2", train_batchnorm=True)
    before = weights_by_stage(classifier)
    train_phase(classifier, phase, data)
    after = weights_by_stage(classifier)
    assert not any(_same(before["stage2"], after["stage2"]))
    assert all(_same(before["stage1"], after["stage1"]))


def test_number_of_trainable_parameters_equals_the_table():
    # Head: 256 · 10 + 10. Stage 2 of ResNet50 without its BatchNormalization, block by block:
    # 1×1 64→64, 3×3 64→64, 1×1 64→256 with offsets, and the first block's shortcut 64→256.
    head = 256 * 10 + 10
    middle = 3 * 3 * 64 * 64 + 64
    first = (64 * 64 + 64) + middle + (64 * 256 + 256) + (64 * 256 + 256)
    other = (256 * 64 + 64) + middle + (64 * 256 + 256)
    classifier = make_classifier("resnet50")
    assert apply_phase(classifier, FROZEN) == head
    assert apply_phase(classifier, TUNED) == head + first + 2 * other


def test_gradual_unfreezing_only_ever_adds_stages():
    classifier = make_classifier(TINY)
    seen: set[str] = set()
    for unfreeze in ("head", "stage2", "stage1"):
        apply_phase(classifier, PhaseSpec(unfreeze=unfreeze))
        now = {variable.path for variable in classifier.model.trainable_variables}
        assert seen < now
        seen = now
    offsets = [v for v in classifier.model.variables if "_bn/" in v.path]
    assert len(seen) == len(classifier.model.variables) - len(offsets) - 1  # dropout's seed


def test_unknown_stage_is_refused_with_the_nearest():
    with pytest.raises(SpecError, match="did you mean 'stage2'"):
        apply_phase(make_classifier(TINY), PhaseSpec(unfreeze="stage22"))


class _Record(keras.callbacks.Callback):
    def __init__(self):
        super().__init__()
        self.kernels: list[np.ndarray] = []

    def on_epoch_end(self, epoch, logs=None):
        self.kernels.append(np.array(self.model.get_layer("logits").kernel))


def test_phase_ends_on_its_best_epoch(split_data):
    classifier, record = make_classifier(TINY), _Record()
    phase = PhaseSpec(epochs=4, learning_rate=0.5, schedule="constant", warmup_epochs=0)
    result = train_phase(classifier, phase, split_data(SPEC), callbacks=[record])
    scores = [(row["val_accuracy"], -row["val_loss"]) for row in result.history]
    assert result.best_epoch == 1 + scores.index(max(scores))
    kernel = np.array(classifier.model.get_layer("logits").kernel)
    np.testing.assert_array_equal(kernel, record.kernels[result.best_epoch - 1])


def test_patience_ends_a_phase_early(split_data):
    phase = PhaseSpec(
        epochs=50, learning_rate=0.0, patience_epochs=2, warmup_epochs=0, weight_decay=0
    )
    result = train_phase(make_classifier(TINY), phase, split_data(SPEC))
    assert (result.epochs, result.best_epoch) == (3, 1)


def test_divergence_is_an_error_that_names_phase_and_rate(split_data):
    phase = PhaseSpec(
        name="wild", epochs=2, learning_rate=1e38, optimizer="sgd", warmup_epochs=0, weight_decay=0
    )
    with pytest.raises(RunError, match="learning_rate"):
        train_phase(make_classifier(TINY), phase, split_data(SPEC))
