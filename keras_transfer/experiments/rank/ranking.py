"""A ranking: which pretrained trunk suits these images, before any of them is fine-tuned.

    candidates → weights → images → features, each once → scores, speeds → order, advice

The test split takes no part. Features are those that a later training of the head reads, in the
same store: a second ranking computes none, and `train` finds the plain views of the chosen trunk.
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
from keras_transfer.devices import set_up
from keras_transfer.experiments.rank.candidates import Entrant, make_candidates, prepare
from keras_transfer.experiments.rank.finals import Final, run_finals
from keras_transfer.experiments.rank.latency import latencies_ms
from keras_transfer.experiments.rank.scoring import Judged, Score, doubt, score, score_control
from keras_transfer.experiments.run import Data, load_data
from keras_transfer.experiments.session import resolve_cache_mode
from keras_transfer.experiments.study.trials import ONE_RUN
from keras_transfer.features.extraction import ExtractionStats, extract
from keras_transfer.features.source import Request
from keras_transfer.reporting.reporter import Reporter
from keras_transfer.specs import RankSpec, RunSpec
from keras_transfer.storage.cache import Cache, open_cache
from keras_transfer.tasks.registry import read_task


@dataclass(frozen=True, eq=False)
class Ranked:
    """One candidate: what it is, what it costs and how its features score.

    `latency_ms` is what one image takes through the frozen layers, as features are computed.
    `hits` tells by metric which of the ranked images were named right, bool [N].
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
        """Through the frozen layers in batches, as it was measured before they were used."""
        return self.stats.choice.rate

    @property
    def size_mb(self) -> float:
        """Of the trunk's weights in float32, 10^6 bytes."""
        return self.num_parameters * 4 / 1e6


@dataclass(frozen=True, eq=False)
class Ranking:
    """All candidates, the best first, and the control beside them.

    `control` has the values of features that know nothing, `unreliable` the metrics that put it
    level with candidates or above, with their names; `worthless` are candidates that know no more
    than noise. `seconds` are by part.
    """

    spec: RunSpec
    ranking: RankSpec
    entries: tuple[Ranked, ...]
    control: dict[str, float]
    unreliable: dict[str, list[str]]
    worthless: list[str]
    num_images: int
    num_left_out: int
    num_classes: int
    seconds: dict[str, float]
    finals: tuple[Final, ...] = ()


def rank(spec: RunSpec, ranking: RankSpec, *, reporter: Reporter) -> Ranking:
    """Rank the candidates on the training and validation images of `spec`.

    The order is that of the linear probe's accuracy on held-out images. No metric is right
    everywhere (see `transferability`), so two honest baselines come first: probe and neighbours
    are judged on images they have not seen, are in a unit that everybody reads, and pair image
    by image, so that a difference has an interval. Of the two the probe goes first because it is
    what the head phase of a run trains, a linear layer on these very features, while neighbours
    depend on how features are scaled. All other metrics are shown beside it.

    Raises:
        SpecError, WeightsError: a candidate cannot be had, told before any image is decoded.
        DataError: the images cannot be used, or a class has fewer than there are folds.
        RunError: features cannot be stored, or a final's training diverged.
    """
    seconds: dict[str, float] = {}
    spec = _single(spec, reporter)
    set_up(spec.devices, seed=spec.seed)
    with _timed(seconds, "setup"):
        candidates = make_candidates(spec, ranking)
        task, records = read_task(spec)
        entrants = prepare(candidates, task, race=ranking.race)
    settled = resolve_cache_mode(spec, len(records.items), reporter=reporter)
    with open_cache(settled, reporter=reporter) as cache:
        with _timed(seconds, "reading"):
            data = load_data(settled, records, cache=cache, reporter=reporter)
            rows = np.union1d(data.splits.train, data.splits.val)
            folds = draw_folds(data.records, rows, ranking.folds, seed=spec.seed)
        with _timed(seconds, "extraction"):
            features, extraction_stats = _extract(entrants, data, rows, settled, cache, reporter)
        with _timed(seconds, "timing"):
            precisions = [stats.choice.precision for stats in extraction_stats]
            latencies = latencies_ms([entrant.cut for entrant in entrants], precisions)
        judged = Judged(data.examples.labels[rows], folds, ranking.neighbours, spec.seed)
        with _timed(seconds, "metrics"):
            entries, control = _judge(entrants, features, extraction_stats, latencies, judged)
        finals: tuple[Final, ...] = ()
        if ranking.race:
            with _timed(seconds, "race"):
                chosen = _with_cache(entries[: ranking.finalists], settled)
                finals = run_finals(chosen, data, cache=cache, reporter=reporter)
    unreliable, worthless = doubt(control, {entry.name: entry.scores for entry in entries})
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


def _with_cache(entries: Sequence[Ranked], settled: RunSpec) -> list[tuple[str, RunSpec]]:
    """Names and specs of finalists, which store features only if the ranking does."""
    cache = {"cache.mode": settled.cache.mode}
    return [(entry.name, override(entry.spec, cache)) for entry in entries]


@contextlib.contextmanager
def _timed(seconds: dict[str, float], part: str) -> Iterator[None]:
    started = time.perf_counter()
    yield
    seconds[part] = time.perf_counter() - started


def _single(spec: RunSpec, reporter: Reporter) -> RunSpec:
    if spec.num_trials > 1:
        reporter.info(
            "A ranking is no study: the spec's own folds, seeds and halvings play no part."
        )
    return override(spec, ONE_RUN)


def _extract(
    entrants: Sequence[Entrant],
    data: Data,
    rows: np.ndarray,
    spec: RunSpec,
    cache: Cache,
    reporter: Reporter,
) -> tuple[list[np.ndarray], list[ExtractionStats]]:
    """Pooled features float32 [N, D] of the plain images, by one pass for each candidate."""
    wanted = np.stack([rows, np.zeros_like(rows)], axis=1)
    found, extraction_stats = [], []
    for entrant in entrants:
        (features,), stats = extract(
            [Request(entrant.cut, wanted)],
            data.source,
            cache_spec=spec.cache,
            cache=cache,
            reporter=reporter,
        )
        reporter.info(f"{entrant.candidate.name}: {stats.describe()}")
        pooled = features.read(rows, np.zeros_like(rows))
        found.append(np.asarray(pooled, np.float32).reshape(len(rows), -1))
        extraction_stats.append(stats)
    return found, extraction_stats


def _judge(
    entrants: Sequence[Entrant],
    features: Sequence[np.ndarray],
    extraction_stats: Sequence[ExtractionStats],
    latencies: Sequence[float],
    judged: Judged,
) -> tuple[list[Ranked], dict[str, float]]:
    """All candidates, best first, and the control's values."""
    answers = [
        entrant.source.answers(own) if entrant.source else None
        for entrant, own in zip(entrants, features, strict=True)
    ]
    width = max(own.shape[1] for own in features)
    given = [one for one in answers if one is not None]
    # Matrices are small: several threads of NumPy's algebra wait for each other, on cores that are
    # shared a hundred times longer than one works. So each candidate has one.
    with threadpool_limits(1), ThreadPoolExecutor() as pool:
        control = pool.submit(score_control, width, judged, answers=given)
        scored = pool.map(lambda own, one: score(own, judged, answers=one), features, answers)
        entries = [
            Ranked(
                name=entrant.candidate.name,
                spec=entrant.candidate.spec,
                num_features=own.shape[1],
                num_parameters=entrant.num_parameters,
                latency_ms=latency_ms,
                scores=scores,
                hits=hits,
                stats=stats,
            )
            for entrant, own, stats, latency_ms, (scores, hits) in zip(
                entrants, features, extraction_stats, latencies, scored, strict=True
            )
        ]
    # Of equals the faster one goes first.
    entries.sort(key=lambda entry: (-entry.scores["probe"].value, entry.latency_ms))
    return entries, control.result()
