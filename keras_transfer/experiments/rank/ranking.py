"""A ranking of pretrained trunks for given images, without fine-tuning.

    candidates → weights → images → features → scores and latencies → order, advice

The test split is not used. Features are in the same cache as those of a training of the head: a
second ranking computes none, and `train` reuses the plain views of the chosen trunk.
"""

import contextlib
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from threadpoolctl import threadpool_limits

from keras_transfer.config import override
from keras_transfer.data.splits import draw_folds
from keras_transfer.errors import SpecError
from keras_transfer.experiments.rank.candidates import (
    BuiltCandidate,
    build_candidates,
    make_candidates,
)
from keras_transfer.experiments.rank.finals import Finalist, run_finals
from keras_transfer.experiments.rank.latency import latencies_ms
from keras_transfer.experiments.rank.scoring import (
    CrossValidation,
    Score,
    find_unreliable,
    score,
    score_control,
)
from keras_transfer.experiments.session import Session, open_session
from keras_transfer.experiments.trial_runner import SINGLE
from keras_transfer.features.extraction import ExtractionStats, extract
from keras_transfer.features.source import Request
from keras_transfer.reporting.reporter import Reporter
from keras_transfer.specs import RankSpec, RunSpec


@dataclass(frozen=True, eq=False)
class RankedCandidate:
    """One candidate with its size, its speed and the scores of its features.

    `latency_ms` is the time of one image through the frozen layers, as features are computed.
    `hits`: by metric, whether each image was classified correctly while held out, bool [N].
    """

    name: str
    spec: RunSpec
    num_features: int
    num_parameters: int
    latency_ms: float
    scores: dict[str, Score]
    hits: dict[str, np.ndarray]
    stats: ExtractionStats

    @property
    def images_per_second(self) -> float:
        """Through the frozen layers in batches, measured before features were computed."""
        return self.stats.choice.rate

    @property
    def size_mb(self) -> float:
        """Of the trunk's weights in float32, 10^6 bytes."""
        return self.num_parameters * 4 / 1e6


@dataclass(frozen=True, eq=False)
class Ranking:
    """All candidates, the best first, and the control.

    `control` has the scores of noise. `unreliable` has the metrics that rank it at or above
    candidates, with their names; `worthless` are candidates that are no better than noise.
    `seconds` are by part.
    """

    spec: RunSpec
    ranking: RankSpec
    entries: tuple[RankedCandidate, ...]
    control: dict[str, float]
    unreliable: dict[str, list[str]]
    worthless: list[str]
    num_images: int
    num_left_out: int
    num_classes: int
    seconds: dict[str, float]
    finals: tuple[Finalist, ...] = ()


def rank(spec: RunSpec, ranking: RankSpec, *, reporter: Reporter) -> Ranking:
    """Rank the candidates on the training and validation images of `spec`.

    The order is that of the linear probe's accuracy on held-out images. No metric is best on all
    data (see `transferability`), so two simple baselines are shown first, probe and k-NN: they
    give accuracies on held-out images and are compared image by image, so that a difference has an
    interval. The probe decides because the head phase of a run trains the same, a linear layer on
    the same features, while k-NN depends on how features are scaled. The other metrics are only
    shown.

    Raises:
        SpecError: the task is not single_label; raised before images are listed.
        SpecError, WeightsError: a candidate cannot be built; raised before images are decoded.
        DataError: the images cannot be used, or a class has fewer than there are folds.
        RunError: features cannot be stored, or training of a finalist diverged.
    """
    _check_task(spec)
    seconds: dict[str, float] = {}
    if spec.num_trials > 1:
        reporter.info("A ranking ignores the spec's own folds, seeds and halvings.")
    spec = override(spec, SINGLE)
    with contextlib.ExitStack() as held:
        with _timed(seconds, "setup"):
            candidates = make_candidates(spec, ranking)
            session = held.enter_context(open_session(spec, reporter=reporter))
            built = build_candidates(candidates, session.task, race=ranking.race)
            for note in (note for one in built for note in one.classifier.trunk.backbone.notes):
                reporter.info(note)
        with _timed(seconds, "reading"):
            data = session.data
            rows = np.union1d(data.splits.train, data.splits.val)
            folds = draw_folds(data.records, rows, ranking.folds, seed=spec.seed)
        setting = CrossValidation(
            data.examples.targets.values[rows], folds, ranking.neighbours, spec.seed
        )
        entries, control = _score_all(built, rows, setting, session, seconds)
        finals: tuple[Finalist, ...] = ()
        if ranking.race:
            with _timed(seconds, "race"):
                finals = run_finals(_with_cache(entries[: ranking.finalists], session), session)
    unreliable, worthless = find_unreliable(
        control, {entry.name: entry.scores for entry in entries}
    )
    return Ranking(
        spec=spec,
        ranking=ranking,
        entries=tuple(entries),
        control=control,
        unreliable=unreliable,
        worthless=worthless,
        num_images=len(rows),
        num_left_out=len(data.splits.test),
        num_classes=len(data.records.class_names),
        seconds=seconds,
        finals=finals,
    )


def _check_task(spec: RunSpec) -> None:
    if spec.task != "single_label":
        raise SpecError(
            "a ranking compares backbones for single-label classification",
            expected="task=single_label: the linear probe and the other metrics need classes",
            received=f"task={spec.task}",
            fix="search over model.backbone with `python -m pipelines.tune` instead",
        )


def _with_cache(entries: Sequence[RankedCandidate], session: Session) -> list[tuple[str, RunSpec]]:
    """Names and specs of the finalists, with the cache mode of the session."""
    cache = {"cache.mode": session.spec.cache.mode}
    return [(entry.name, override(entry.spec, cache)) for entry in entries]


@contextlib.contextmanager
def _timed(seconds: dict[str, float], part: str) -> Iterator[None]:
    started = time.perf_counter()
    yield
    seconds[part] = time.perf_counter() - started


def _score_all(
    built: Sequence[BuiltCandidate],
    rows: np.ndarray,
    setting: CrossValidation,
    session: Session,
    seconds: dict[str, float],
) -> tuple[list[RankedCandidate], dict[str, float]]:
    """All candidates, best first, and the scores of the control."""
    with _timed(seconds, "extraction"):
        features, extraction_stats = _extract(built, rows, session)
    with _timed(seconds, "timing"):
        precisions = [stats.choice.precision for stats in extraction_stats]
        latencies = latencies_ms([candidate.cut for candidate in built], precisions)
    with _timed(seconds, "metrics"):
        scored, control = _score(built, features, setting)
    entries = [
        RankedCandidate(
            name=one.candidate.name,
            spec=one.candidate.spec,
            num_features=own.shape[1],
            num_parameters=one.num_parameters,
            latency_ms=latency_ms,
            scores=scores,
            hits=hits,
            stats=stats,
        )
        for one, own, stats, latency_ms, (scores, hits) in zip(
            built, features, extraction_stats, latencies, scored, strict=True
        )
    ]
    # At equal accuracy the faster one comes first.
    entries.sort(key=lambda entry: (-entry.scores["probe"].value, entry.latency_ms))
    return entries, control


def _extract(
    built: Sequence[BuiltCandidate], rows: np.ndarray, session: Session
) -> tuple[list[np.ndarray], list[ExtractionStats]]:
    """Pooled features float32 [N, D] of the plain images, by one pass for each candidate."""
    plain = np.zeros_like(rows)
    found, extraction_stats = [], []
    for one in built:
        (features,), stats = extract(
            [Request(one.cut, np.stack([rows, plain], axis=1))],
            session.data.source,
            cache_spec=session.spec.cache,
            cache=session.cache,
            reporter=session.reporter,
        )
        session.reporter.info(f"{one.candidate.name}: {stats.describe()}")
        pooled = features.read(rows, plain)
        found.append(np.asarray(pooled, np.float32).reshape(len(rows), -1))
        extraction_stats.append(stats)
    return found, extraction_stats


def _score(
    built: Sequence[BuiltCandidate], features: Sequence[np.ndarray], setting: CrossValidation
) -> tuple[list[tuple[dict[str, Score], dict[str, np.ndarray]]], dict[str, float]]:
    """Scores and hits of each candidate, and the scores of the control."""
    predictions = [
        one.source.predict(own) if one.source else None
        for one, own in zip(built, features, strict=True)
    ]
    width = max(own.shape[1] for own in features)
    given = [one for one in predictions if one is not None]
    # Matrices are small: several BLAS threads would wait for each other, on shared cores a hundred
    # times longer than a single one computes. So each candidate has one thread.
    with threadpool_limits(1), ThreadPoolExecutor() as pool:
        control = pool.submit(score_control, width, setting, sources=given)
        scored = pool.map(lambda own, one: score(own, setting, source=one), features, predictions)
        return list(scored), control.result()
