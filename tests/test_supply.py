"""Training on stored features is training on images: the same weights, and fewer views."""

import keras
import numpy as np
import pytest
from feature_sources import make_source, make_splits
from listener import Listener
from small_models import make_classifier, weights_by_stage

from keras_transfer.config import override
from keras_transfer.data.splits import Splits
from keras_transfer.features.phase_inputs import PhaseInputs, Pool, find_cuts, make_plans
from keras_transfer.methods.registry import make_methods
from keras_transfer.models.classifier import Classifier
from keras_transfer.specs import CacheSpec, PhaseSpec, RunSpec, TrainingSpec, ViewSpec
from keras_transfer.storage.cache import Cache
from keras_transfer.training.fitting import Outcome, fit_phases

# Not Adam: it divides by the size of gradients, so that weights whose gradients are rounding
# errors would wander by the learning rate, on features and on images each in its own way.
HEAD = PhaseSpec(name="frozen", epochs=4, unfreeze="head", learning_rate=1e-2, optimizer="sgd")
TAIL = PhaseSpec(name="fine-tune", epochs=7, unfreeze="stage2", learning_rate=3e-4, optimizer="sgd")
SPEC = RunSpec(
    views=ViewSpec(count=1),
    phases=(HEAD,),
    training=TrainingSpec(batch_size=32, rollback=False, refit=False, label_smoothing=0.0),
    cache=CacheSpec(mode="on", dtype="float32", precision="float32"),
)


@pytest.fixture(autouse=True)
def _fresh_names():
    keras.utils.clear_session()


def train(
    spec: RunSpec, folder, backbone: str = "small", limit_bytes: int | None = None
) -> tuple[Classifier, list[Outcome], PhaseInputs, list[str]]:
    reporter = Listener()
    cache = Cache(folder, limit_bytes=limit_bytes)
    source = make_source(views=spec.views)
    phase_inputs = PhaseInputs(
        spec,
        source,
        make_splits(),
        methods=make_methods(spec),
        cache=cache,
        reporter=reporter,
    )
    classifier = make_classifier(backbone, seed=spec.seed)
    return (
        classifier,
        fit_phases(classifier, phase_inputs, reporter=reporter),
        phase_inputs,
        reporter.said,
    )


def differences(one: Classifier, other: Classifier) -> dict[str, float]:
    """The largest difference of a weight in each stage."""
    pairs = zip(weights_by_stage(one).items(), weights_by_stage(other).values(), strict=True)
    return {
        stage: max(float(np.abs(a - b).max()) for a, b in zip(ours, theirs, strict=True))
        for (stage, ours), theirs in pairs
    }


@pytest.mark.parametrize("backbone", ["mobilenet_0.25", "vgg16"])
def test_a_head_trained_on_features_is_the_head_trained_on_images(backbone, tmp_path):
    on_features, outcomes, phase_inputs, _ = train(SPEC, tmp_path, backbone)
    off = override(SPEC, {"cache.mode": "off"})
    on_images, expected, nothing, _ = train(off, tmp_path, backbone)
    assert phase_inputs.extraction_stats[0].num_computed == 160
    assert nothing.extraction_stats == []
    assert max(differences(on_features, on_images).values()) < 1e-5
    assert outcomes[0].history[-1]["loss"] == pytest.approx(expected[0].history[-1]["loss"], 1e-4)


@pytest.mark.slow
def test_a_tail_trained_on_features_is_the_tail_trained_on_images(tmp_path):
    spec = override(SPEC, {"views.count": 3})
    spec = RunSpec(**{**vars(spec), "phases": (HEAD, TAIL)})
    on_features, outcomes, phase_inputs, _ = train(spec, tmp_path, "resnet50")
    on_images, _, _, _ = train(override(spec, {"cache.mode": "off"}), tmp_path, "resnet50")
    start = make_classifier("resnet50")
    assert outcomes[1].epochs * 3 >= 20, "optimizer steps in phase 2"
    assert [stats.num_computed for stats in phase_inputs.extraction_stats] == [96 * 3 + 64]
    assert max(differences(on_features, on_images).values()) < 1e-4
    moved = differences(on_features, start)
    assert moved["stage2"] > 1e-3
    assert moved["stem"] == 0


def test_predictions_from_the_float16_store_differ_by_less_than_two_hundredths(tmp_path):
    spec = RunSpec(**{**vars(SPEC), "phases": (HEAD, TAIL)})
    rounded = override(spec, {"cache.dtype": "float16"})
    exact, _, phase_inputs, _ = train(spec, tmp_path)
    coarse, _, _, _ = train(rounded, tmp_path)
    rows = phase_inputs.splits.test
    expected, found = (phase_inputs.predict(classifier, rows) for classifier in (exact, coarse))
    assert np.abs(found - expected).max() < 0.02
    assert np.abs(found - expected).max() > 0


def test_another_head_dropout_or_rate_computes_no_feature(tmp_path):
    spec = RunSpec(**{**vars(SPEC), "phases": (HEAD, TAIL)})
    train(spec, tmp_path)
    changes = {"phases.0.learning_rate": 1e-3, "phases.1.epochs": 2}
    _, _, phase_inputs, _ = train(override(spec, changes), tmp_path)
    assert [stats.num_computed for stats in phase_inputs.extraction_stats] == [0]


def test_gradual_unfreezing_is_served_by_one_pass(tmp_path):
    phases = (HEAD, TAIL, PhaseSpec(name="deeper", epochs=1, unfreeze="stage1"))
    classifier, outcomes, phase_inputs, _ = train(
        RunSpec(**{**vars(SPEC), "phases": phases}), tmp_path
    )
    assert len(phase_inputs.extraction_stats) == 1
    assert [outcome.name for outcome in outcomes] == ["frozen", "fine-tune", "deeper"]
    assert differences(classifier, make_classifier())["stage1"] > 0


def test_a_phase_below_which_an_earlier_one_trained_gets_features_of_its_own(tmp_path):
    again = PhaseSpec(name="head again", epochs=1, unfreeze="head", learning_rate=1e-2)
    spec = RunSpec(**{**vars(SPEC), "phases": (TAIL, again)})
    on_features, _, phase_inputs, _ = train(spec, tmp_path)
    on_images, _, _, _ = train(override(spec, {"cache.mode": "off"}), tmp_path)
    assert [stats.num_computed for stats in phase_inputs.extraction_stats] == [160, 160]
    assert max(differences(on_features, on_images).values()) < 1e-4


def test_plans_take_fewer_views_and_then_images_where_features_do_not_fit():
    cuts = find_cuts(make_classifier("mobilenet_0.25"), (HEAD, TAIL), 0)
    # Below stage2 a view takes 16 · 16 · 16 numbers of 4 bytes, pooled features 32 of them.
    pooled, boundary = 4 * 32 * (96 * 4 + 64), 4 * 16 * 16 * 16
    for fitting, expected in ((4, 4), (3, 3), (2, 2), (1, None)):
        plans, told = make_plans(
            cuts,
            (HEAD, TAIL),
            num_views={0: 4, 1: 4},
            num_train=96,
            num_plain=64,
            item_size=4,
            room=pooled + boundary * (96 * fitting + 64),
        )
        assert plans[0].num_views == 4
        assert (plans[1].num_views if 1 in plans else None) == expected
        if expected is None:
            assert "Phase 'fine-tune' trains on images" in told[0]
        elif expected < 4:
            assert f"shows {expected} views of each image instead of 4" in told[0]
        else:
            assert told == []
        assert sum(plan.num_bytes for plan in plans.values()) <= pooled + boundary * 448


def test_a_pool_has_what_any_of_its_splits_trains_on_or_judges_and_nothing_else():
    def splits(train: list[int], val: list[int], test: list[int]) -> Splits:
        rows = (np.asarray(part, np.int64) for part in (train, val, test))
        parts = dict(zip(("train", "val", "test"), rows, strict=True))
        return Splits(**parts, seed=0, val_fraction=0.2, test_fraction=0.2)

    # Row 5 is left over by data.train_size; row 1 is trained on in the second only.
    pool = Pool.of(splits([0, 3], [1], [6]), splits([0, 1], [2], [6]))
    assert pool.train.tolist() == [0, 1, 3]
    assert pool.plain.tolist() == [2, 6]
    expected = [[0, 0], [0, 1], [1, 0], [1, 1], [2, 0], [3, 0], [3, 1], [6, 0]]
    assert pool.pairs(2).tolist() == expected


def test_auto_trains_on_what_fits_and_says_so(tmp_path):
    spec = override(SPEC, {"views.count": 4, "cache.mode": "auto"})
    spec = RunSpec(**{**vars(spec), "phases": (HEAD, TAIL)})
    # Pooled features are 8 numbers, and the map below stage2 16 · 16 · 4 of them.
    limit = 4 * 8 * (96 * 4 + 64) + 4 * 16 * 16 * 4 * (96 * 2 + 64) + 100_000
    _, outcomes, phase_inputs, said = train(spec, tmp_path, limit_bytes=limit)
    assert [stats.num_computed for stats in phase_inputs.extraction_stats] == [96 * 4 + 64]
    assert any("shows 2 views of each image instead of 4" in text for text in said)
    assert sum(path.stat().st_size for path in tmp_path.rglob("*.bin")) <= limit
    assert len(outcomes) == 2


def test_new_views_in_every_epoch_train_on_images(tmp_path):
    _, outcomes, phase_inputs, _ = train(
        override(SPEC, {"views.count": None, "cache.mode": "auto"}), tmp_path
    )
    assert phase_inputs.extraction_stats == []
    assert len(outcomes) == 1
