"""Rankings: features once and never of the test split, honest advice, errors before any work."""

import dataclasses
import json

import keras
import numpy as np
import pytest
from PIL import Image

from keras_transfer.config import override
from keras_transfer.devices.timing import take_turns
from keras_transfer.errors import DataError, SpecError, WeightsError
from keras_transfer.experiments.rank.advice import advise
from keras_transfer.experiments.rank.candidates import build_candidates, make_candidates
from keras_transfer.experiments.rank.finals import Finalist, agreement
from keras_transfer.experiments.rank.plot import Dot, draw_ranking, find_front
from keras_transfer.experiments.rank.ranking import Ranking, rank
from keras_transfer.experiments.rank.report import describe
from keras_transfer.experiments.rank.scoring import Score, find_unreliable, interval_over_halves
from keras_transfer.experiments.session import open_session
from keras_transfer.features.phase_inputs import Pool
from keras_transfer.fields import build
from keras_transfer.reporting.reporter import SilentReporter
from keras_transfer.specs import (
    CacheSpec,
    CandidateSpec,
    DataSpec,
    ModelSpec,
    PhaseSpec,
    RankSpec,
    RunSpec,
    TrainingSpec,
    ViewSpec,
)
from keras_transfer.tasks.single_label import SingleLabel
from pipelines import rank as verb
from pipelines.arguments import USER_ERROR

TASK = SingleLabel(("a", "b"))
BACKBONES = (
    CandidateSpec(backbone="vgg16", last_stage="stage3", weights="embedded"),
    CandidateSpec(backbone="small", last_stage="stage1"),
)
PHASES = (
    PhaseSpec(name="frozen", epochs=3, learning_rate=1e-2),
    PhaseSpec(name="fine-tune", epochs=1, unfreeze="last", warmup_epochs=0),
)


def make_spec(folder, cache, **changes) -> RunSpec:
    spec = RunSpec(
        name="small",
        data=DataSpec(path=str(folder), image_size=32, resize="squash"),
        views=ViewSpec(count=1),
        model=ModelSpec(backbone="vgg16", last_stage="stage1", weights="none"),
        phases=PHASES,
        training=TrainingSpec(rollback=False, refit=False, label_smoothing=0.0),
        cache=CacheSpec(folder=str(cache), precision="float32"),
    )
    return override(spec, changes)


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def ranked(digits_folder, cache) -> Ranking:
    return rank(
        make_spec(digits_folder, cache), RankSpec(backbones=BACKBONES), reporter=SilentReporter()
    )


def test_trained_features_come_first_and_noise_last(ranked):
    assert [entry.name for entry in ranked.entries] == [
        "vgg16 to stage3",
        "small to stage1, random",
    ]
    best, other = ranked.entries
    for metric, value in ranked.control.items():
        assert value < best.scores[metric].value
    assert best.scores["probe"].value > other.scores["probe"].value + 0.05
    for entry in ranked.entries:
        for metric, score in entry.scores.items():
            low, high = score.interval
            assert low < score.value <= high, metric
        assert entry.scores["probe"].value == entry.hits["probe"].mean()
        assert entry.latency_ms > 0
    assert best.size_mb == pytest.approx(1_735_488 * 4 / 1e6)
    assert best.latency_ms > other.latency_ms


def test_each_image_is_computed_once_and_those_of_the_test_split_never(
    ranked, digits_folder, cache
):
    assert ranked.num_images + ranked.num_left_out == 300
    assert ranked.num_left_out > 30
    for entry in ranked.entries:
        assert (entry.stats.num_computed, entry.stats.num_found) == (ranked.num_images, 0)
        assert len(entry.hits["probe"]) == ranked.num_images
    again = rank(ranked.spec, ranked.ranking, reporter=SilentReporter())
    for one, two in zip(ranked.entries, again.entries, strict=True):
        assert (two.stats.num_computed, two.stats.num_found) == (0, ranked.num_images)
        assert one.name == two.name
        assert one.scores == two.scores
    assert again.control == ranked.control


def test_a_later_training_finds_what_the_ranking_computed(ranked):
    spec = override(ranked.entries[0].spec, {"phases": [dataclasses.asdict(PHASES[0])]})
    with open_session(spec, reporter=SilentReporter()) as session:
        data, phase_inputs = session.data, session.phase_inputs()
        phase_inputs.for_phase(session.build_classifier(), 0)
    (stats,) = phase_inputs.extraction_stats
    # One view of each image; those of the test split alone are new.
    assert len(Pool.of(data.splits).pairs(1)) == 300
    assert (stats.num_found, stats.num_computed) == (ranked.num_images, ranked.num_left_out)


def with_speeds(ranking: Ranking, latencies, **limits) -> Ranking:
    entries = tuple(
        dataclasses.replace(entry, latency_ms=ms)
        for entry, ms in zip(ranking.entries, latencies, strict=True)
    )
    limits = dataclasses.replace(ranking.ranking, **limits)
    return dataclasses.replace(ranking, entries=entries, ranking=limits)


def test_the_best_within_the_limits_is_recommended(ranked):
    best, other = (entry.name for entry in ranked.entries)
    free = advise(with_speeds(ranked, [20.0, 2.0]))
    assert free.recommended == best
    assert "ahead of all others by more than noise" in free.sentence
    difference, (low, high) = free.behind[other]
    accuracies = [entry.scores["probe"].value for entry in ranked.entries]
    assert difference == pytest.approx(accuracies[0] - accuracies[1])
    assert 0 < low < difference < high
    for limits in ({"max_latency_ms": 10.0}, {"max_size_mb": 1.0}):
        limited = advise(with_speeds(ranked, [20.0, 2.0], **limits))
        assert limited.recommended == other
        assert f"Without the limits {best} would lead" in limited.sentence
    refused = advise(with_speeds(ranked, [20.0, 2.0], max_latency_ms=1.0, max_size_mb=0.001))
    assert refused.recommended is None
    assert "No candidate is within max_latency_ms=1 and max_size_mb=0.001" in refused.sentence
    assert f"the fastest is {other} with 2 ms" in refused.sentence


def test_the_fastest_of_those_that_cannot_be_told_apart_is_recommended(ranked):
    best, other = ranked.entries
    hits = best.hits["probe"].copy()
    hits[np.flatnonzero(hits)[:2]] = False
    level = dataclasses.replace(other, hits={**other.hits, "probe": hits})
    tied = dataclasses.replace(ranked, entries=(best, level))
    faster = advise(with_speeds(tied, [20.0, 2.0]))
    assert faster.recommended == other.name
    assert "which is within noise, and slower" in faster.sentence
    slower = advise(with_speeds(tied, [2.0, 20.0]))
    assert slower.recommended == best.name
    assert f"{other.name} is not significantly worse" in slower.sentence


def test_a_metric_that_prefers_noise_is_told_and_a_worthless_candidate_is_not_its_fault(ranked):
    scores = {entry.name: entry.scores for entry in ranked.entries}
    best = ranked.entries[0].name
    lucky = {**ranked.control, "h_score": scores[best]["h_score"].value + 1}
    unreliable, worthless = find_unreliable(lucky, scores)
    assert best in unreliable["h_score"]
    assert set(unreliable) == {"h_score"}
    assert worthless == []
    warned = advise(dataclasses.replace(ranked, unreliable=unreliable))
    assert any("H-score is unreliable here" in text for text in warned.warnings)
    dead = {name: Score(value - 0.01) for name, value in ranked.control.items()}
    assert find_unreliable(ranked.control, {**scores, "dead": dead}) == ({}, ["dead"])
    warned = advise(dataclasses.replace(ranked, worthless=["dead"]))
    assert any(text.startswith("dead is no better") for text in warned.warnings)


def test_halves_scatter_as_samples_of_all_images_do():
    generator = np.random.default_rng(0)
    features, labels = generator.normal(size=(400, 1)), np.arange(400) % 2

    def mean(x: np.ndarray, _: np.ndarray) -> float:
        return float(x.mean())

    widths = [interval_over_halves(mean, features, labels, seed=seed) for seed in range(40)]
    # Student's factor for eight halves times the standard error of a mean of 400.
    assert np.mean(widths) == pytest.approx(2.365 / 20, rel=0.2)


def test_calls_take_turns_until_they_have_had_enough():
    order: list[str] = []
    seconds = take_turns([lambda: order.append("a"), lambda: order.append("b")])
    assert order[:4] == ["a", "b", "a", "b"]
    assert len(seconds[0]) == len(seconds[1]) == len(order) // 2 - 1


@pytest.fixture(scope="module")
def source_file(tmp_path_factory):
    """A MobileNet of random weights with its top, and the same without it."""
    folder = tmp_path_factory.mktemp("source")
    keras.utils.set_random_seed(3)
    whole = keras.applications.MobileNet(alpha=0.25, weights=None)
    part = keras.applications.MobileNet(alpha=0.25, weights=None, include_top=False)
    for layer in part.layers:
        layer.set_weights(whole.get_layer(layer.name).get_weights() if layer.weights else [])
    whole.save_weights(folder / "whole.weights.h5")
    part.save_weights(folder / "part.weights.h5")
    return folder


def make_sourced(source_file, **changes) -> CandidateSpec:
    spec = CandidateSpec(
        backbone="mobilenet_0.25",
        last_stage="",
        weights=str(source_file / "part.weights.h5"),
        source_weights=str(source_file / "whole.weights.h5"),
    )
    return dataclasses.replace(spec, **changes)


def test_source_answers_are_those_of_the_whole_network(shared_weights):
    files = [shared_weights / f"mobilenet_2_5_224_tf{end}.h5" for end in ("_no_top", "")]
    sourced = CandidateSpec(
        backbone="mobilenet_0.25",
        last_stage="",
        weights=str(files[0]),
        source_weights=str(files[1]),
    )
    ranking = RankSpec(backbones=(sourced, "vgg16"))
    candidate = make_candidates(RunSpec(), ranking)[0]
    (built,) = build_candidates([candidate], TASK, race=False)
    pixels = np.random.default_rng(0).integers(0, 256, (3, 224, 224, 3)).astype(np.float32)
    pixels[0] = np.linspace(0, 255, 224)[:, None, None]
    features = keras.Model(built.cut.model.input, built.cut.tensor)(pixels)
    whole = keras.applications.MobileNet(alpha=0.25, weights=str(files[1]))
    expected = np.asarray(whole(pixels / 127.5 - 1))
    assert np.ptp(expected, axis=0).max() > 0.01
    np.testing.assert_allclose(built.source.predict(np.asarray(features)), expected, atol=1e-6)


def test_leep_and_nce_are_told_for_candidates_with_a_source(
    source_file, digits_folder, cache, ranked
):
    ranking = RankSpec(backbones=(make_sourced(source_file), BACKBONES[1]))
    result = rank(make_spec(digits_folder, cache), ranking, reporter=SilentReporter())
    by_name = {entry.name: entry.scores for entry in result.entries}
    assert {"leep", "nce"} <= set(by_name["mobilenet_0.25"])
    assert not {"leep", "nce"} & set(by_name["small to stage1, random"])
    assert {"leep", "nce"} <= set(result.control)
    table = describe(result, advise(result)).table
    assert table.header[-2:] == ["LEEP", "NCE"]
    assert sum(row[-1] == "–" for row in table.rows) == 1


@pytest.mark.parametrize(
    ("changes", "error", "part"),
    [
        ({"last_stage": "stage4"}, SpecError, "last_stage=stage4"),
        ({"source_weights": "nowhere.h5"}, WeightsError, "no such file"),
        ({"weights": "none"}, WeightsError, "was not trained with the weights"),
    ],
)
def test_a_source_that_cannot_be_asked_is_refused(changes, error, part, source_file):
    ranking = RankSpec(backbones=(make_sourced(source_file, **changes), "vgg16"))
    candidate = make_candidates(RunSpec(), ranking)[0]
    with pytest.raises(error, match=part):
        build_candidates([candidate], TASK, race=False)


def test_a_top_without_a_global_mean_is_refused(source_file):
    table = CandidateSpec(backbone="vgg16", weights="none", source_weights="x.h5")
    candidate = make_candidates(RunSpec(), RankSpec(backbones=(table, "vgg19")))[0]
    with pytest.raises(SpecError, match="does not start with a global mean"):
        build_candidates([candidate], TASK, race=False)


@pytest.mark.parametrize(
    ("backbones", "part"),
    [
        (("vgg16",), "several backbones"),
        (("vgg16", "resnet5"), "backbones.1 is not in the table"),
        (("vgg16", "vgg16"), "'vgg16 to stage1, random' twice"),
    ],
)
def test_wrong_candidates_are_refused_before_anything_is_read(backbones, part):
    spec = make_spec("no such folder", "")
    with pytest.raises(SpecError, match=part):
        rank(spec, RankSpec(backbones=backbones), reporter=SilentReporter())


def test_missing_weights_are_told_before_any_image_is_decoded(digits_folder, tmp_path):
    ranking = RankSpec(backbones=("vgg16", CandidateSpec(backbone="vgg19", weights="no.h5")))
    with pytest.raises(WeightsError, match="no such file"):
        rank(make_spec(digits_folder, tmp_path / "cache"), ranking, reporter=SilentReporter())
    assert not (tmp_path / "cache").exists()


def test_too_few_images_for_the_folds_are_told(digits_folder, cache):
    ranking = RankSpec(backbones=BACKBONES, folds=40)
    with pytest.raises(DataError, match="too few files for 40 folds"):
        rank(make_spec(digits_folder, cache), ranking, reporter=SilentReporter())


def test_names_tell_weights_only_where_they_must():
    table = CandidateSpec(backbone="vgg16", weights="imagenet")
    other = CandidateSpec(backbone="vgg16", weights="mine.h5")
    random = CandidateSpec(backbone="vgg16", weights="none")

    def names(*backbones) -> list[str]:
        ranking = RankSpec(backbones=backbones)
        return [one.name for one in make_candidates(RunSpec(), ranking)]

    assert names(table, random) == ["vgg16", "vgg16, random"]
    assert names(table, other) == ["vgg16, imagenet", "vgg16, mine.h5"]


def test_front_holds_those_that_nothing_beats_in_both():
    dots = [
        Dot(name, ms, accuracy, (accuracy - 0.05, accuracy + 0.05), name == "b")
        for name, ms, accuracy in [("a", 1, 0.5), ("b", 2, 0.7), ("c", 3, 0.6), ("d", 2, 0.4)]
    ]
    assert [dot.name for dot in find_front(dots)] == ["a", "b"]


def test_image_is_drawn_for_dots_in_one_heap(tmp_path):
    dots = [Dot(f"name {n}", 5 + n / 100, 0.8, (0.8, 0.8), n == 0) for n in range(6)]
    files = [tmp_path / "one.png", tmp_path / "two.png"]
    for file in files:
        draw_ranking(dots, file, control=0.1, headline="One.", max_latency_ms=50.0)
    assert files[0].read_bytes() == files[1].read_bytes()
    with Image.open(files[0]) as image:
        assert len(image.convert("RGB").getcolors(100_000)) > 20


def test_agreement_puts_early_leavers_behind():
    interval = (0.0, 1.0)
    finals = [
        Finalist("a", 3, 8, 0.7, interval, 1.0),
        Finalist("b", 2, 4, 0.9, interval, 1.0),
        Finalist("c", 1, 2, 0.95, interval, 1.0),
    ]
    values = {
        "right": {"a": 3.0, "b": 2.0, "c": 1.0},
        "wrong": {"a": 1.0, "b": 2.0, "c": 3.0},
        "same": dict.fromkeys("abc", 1.0),
        "partial": {"a": 1.0},
    }
    assert agreement(finals, values) == {
        "right": pytest.approx(1.0),
        "wrong": pytest.approx(-1.0),
        "same": None,
    }


@pytest.mark.slow
def test_verb_races_the_finalists_and_writes_everything(digits_folder, tmp_path, capsys):
    words = [f"data.path={digits_folder}", "data.image_size=32", "data.resize=squash"]
    words += ["model.weights=none", "model.last_stage=stage1", "data.train_size=60"]
    words += ["views.count=1", "phases.0.epochs=3", "phases.1.epochs=1"]
    words += ["phases.0.method=supervised", "phases.1.min_images=0"]
    words += ["phases.1.warmup_epochs=0", 'backbones=["vgg16", "small"]', "folds=3"]
    words += ["race=true", "--output", str(tmp_path / "rank")]
    assert verb.main(words) == 0
    files = {file.name for file in (tmp_path / "rank").iterdir()}
    assert files == {"rank.json", "rank.md", "rank.png", "environment.json", "run.log"}
    figures = json.loads((tmp_path / "rank" / "rank.json").read_text())
    assert [(one["rung"], one["num_epochs"]) for one in figures["finals"]] == [(3, 4), (1, 1)]
    assert set(figures["agreement"]) == {"probe", "knn", "log_me", "h_score"}
    assert set(figures["seconds"]) == {
        *("setup", "reading", "extraction", "timing", "metrics", "race", "report")
    }
    assert figures["ranking"]["folds"] == 3
    assert figures["spec"]["folds"] == 1
    shown = capsys.readouterr().out
    for part in ("the control", "probe", "over 2 finalists", "test images were left out"):
        assert part in shown
    assert verb.main(words) == USER_ERROR


def test_words_belong_to_the_ranking_or_to_the_run():
    words = ["quickstart", 'backbones=["resnet50", {backbone="vgg16", last_stage="stage2"}]']
    spec, ranking = verb.read_words([*words, "folds=3", "seed=4", "max_size_mb=none"])
    assert (spec.name, spec.seed, spec.folds) == ("quickstart", 4, 1)
    assert ranking.backbones == ("resnet50", CandidateSpec(backbone="vgg16", last_stage="stage2"))
    assert (ranking.folds, ranking.max_size_mb) == (3, None)
    assert verb.read_words(["seed=1"])[0].name == "resnet50"


@pytest.mark.parametrize(
    ("word", "part"),
    [
        ("max_latency_ms=fast", "a number"),
        ("max_latency=5", "did you mean 'max_latency_ms'?"),
        ("backbones=vgg16", "a list"),
        ('backbones=["vgg16", {bakbone="x"}]', "bakbone"),
        ("folds=1", "2 or more"),
        ('backbones=["vgg16"]', "several backbones"),
    ],
)
def test_wrong_words_end_with_status_2_and_leave_no_folder(word, part, capsys, tmp_path):
    words = ["quickstart", word, "--output", str(tmp_path / "rank")]
    assert verb.main(words) == USER_ERROR
    assert part in capsys.readouterr().err
    assert not (tmp_path / "rank").exists()


def test_help_lists_the_fields_of_the_ranking(capsys):
    with pytest.raises(SystemExit):
        verb.main(["--help"])
    shown = capsys.readouterr().out
    for part in ("max_latency_ms=none", "neighbours=5", "phases.N.learning_rate"):
        assert part in shown


def test_a_table_in_a_union_is_built_and_checked():
    values = {"backbones": ["vgg16", {"backbone": "vgg19", "weights": "none"}]}
    ranking = build(RankSpec, values, "", "the ranking")
    assert ranking.backbones[1] == CandidateSpec(backbone="vgg19", weights="none")
    with pytest.raises(SpecError, match=r"backbones\.0\.last_stage in the ranking is not a text"):
        build(RankSpec, {"backbones": [{"last_stage": 3}]}, "", "the ranking")
