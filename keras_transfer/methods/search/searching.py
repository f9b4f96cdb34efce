"""A search: many trainings of one spec with other values, on features that are stored once.

    spec and its space → bench (pictures, splits, store) → trials by KerasTuner → winner → report

The same call is a whole search, or, where KerasTuner's variables say so, one of many workers or
their chief (`KERASTUNER_TUNER_ID`, `KERASTUNER_ORACLE_IP`, `KERASTUNER_ORACLE_PORT`).
"""

import contextlib
import os
import re
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from keras_transfer.config import override
from keras_transfer.data.records import Records
from keras_transfer.data.sources import read_records
from keras_transfer.data.splits import manifest
from keras_transfer.delivery.runs import RunFolder
from keras_transfer.delivery.starting import start_run, vacated_on_refusal
from keras_transfer.devices import set_up
from keras_transfer.errors import RunError, SpecError
from keras_transfer.fitting import prepare_classifier
from keras_transfer.methods.search.bench import Bench
from keras_transfer.methods.search.board import TrialNarrator, watching_book
from keras_transfer.methods.search.book import Book
from keras_transfer.methods.search.record import SearchTrial
from keras_transfer.methods.search.space import check_space
from keras_transfer.methods.search.tuner import SearchTuner, make_oracle, run_tuner
from keras_transfer.methods.search.winner import Winner, crown
from keras_transfer.methods.search.workers import run_workers
from keras_transfer.models.rebuilding import Rebuilder
from keras_transfer.narration import describe_model
from keras_transfer.shelf import open_store, settle
from keras_transfer.specs import RunSpec
from keras_transfer.terminal import Narrator, Terminal
from keras_transfer.transfer import load_data

SUFFIX: Final = "-search"
_STATES: Final = "checkpoint"
_UNITS: Final = {"s": 1.0, "m": 60.0, "h": 3600.0}


@dataclass(frozen=True, eq=False)
class SearchResult:
    """A finished search. Seconds are wall time: of all trials together, and from start to end."""

    spec: RunSpec
    run: RunFolder
    records: Records
    trials: tuple[SearchTrial, ...]
    winner: Winner
    search_seconds: float
    seconds: float


def check_search(spec: RunSpec) -> None:
    """Raise SpecError, before anything is read, if the spec cannot be searched."""
    check_space(spec)
    parse_duration(spec.search.time_budget)
    if spec.seeds > 1 or spec.halvings:
        raise SpecError(
            "a search trains every proposal with one seed on all pictures",
            expected="seeds=1 and halvings=0; folds=… cross-validates",
            received=f"seeds={spec.seeds}, halvings={spec.halvings}",
            fix="leave these fields out; search.refits repeats the winner with other seeds",
        )


def parse_duration(text: str) -> float:
    """Seconds of '90s', '20m' or '1.5h'; '' is infinitely long.

    Raises:
        SpecError: it is none of these.
    """
    if not text:
        return float("inf")
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smh])", text)
    if not match or not float(match[1]):
        raise SpecError(
            "search.time_budget is no duration",
            expected="a number and its unit s, m or h, such as 20m",
            received=repr(text),
            fix="write search.time_budget=20m",
        )
    return float(match[1]) * _UNITS[match[2]]


def is_worker() -> bool:
    """Whether this process only runs trials that a chief hands out."""
    return "KERASTUNER_ORACLE_IP" in os.environ and "chief" not in os.environ.get(
        "KERASTUNER_TUNER_ID", ""
    )


def run_search(
    spec: RunSpec,
    run: RunFolder | None = None,
    *,
    num_workers: int = 1,
    narrator: Narrator | None = None,
) -> SearchResult:
    """Search, choose, compare and deliver, into a search's folder.

    Args:
        run: from `start_run`, new or to be resumed; by default a new one under saved_models/.
        num_workers: processes that train trials side by side; 1 trains in this one.
        narrator: who is told of decisions and progress; by default the terminal.

    Raises:
        SpecError: the space or another field cannot be searched.
        DataError, WeightsError: the input cannot be used as it is.
        RunError: every trial failed, or the folder cannot be written.
        Exception: whatever ended a trial and was not its own fault.
    """
    check_search(spec)
    started = time.perf_counter()
    narrator = narrator or Terminal()
    run = run or start_run(spec, suffix=SUFFIX)
    with vacated_on_refusal(run), open_bench(spec, run, narrator=narrator) as bench:
        book = Book(run)
        with watching_book(book, spec, narrator):
            if num_workers > 1:
                run_workers(run, num_workers, narrator=narrator)
            else:
                run_trials(bench, book)
        trials = book.ended()
        _check_some_scored(trials)
        search_seconds = time.perf_counter() - started
        winner = crown(trials, bench, run, narrator=narrator)
    shutil.rmtree(run.checkpoint_folder)
    seconds = time.perf_counter() - started
    records = bench.data.records
    return SearchResult(spec, run, records, tuple(trials), winner, search_seconds, seconds)


def take_part(spec: RunSpec, run: RunFolder, *, narrator: Narrator) -> None:
    """As a worker or as the chief of a search, run trials or hand them out until all are done."""
    with open_bench(spec, run, narrator=narrator) as bench:
        run_trials(bench, Book(run))


@contextlib.contextmanager
def open_bench(spec: RunSpec, run: RunFolder, *, narrator: Narrator) -> Iterator[Bench]:
    """Read and split the pictures of a search and check all its models before."""
    set_up(spec.devices, seed=spec.seed)
    narrator.say(f"Search folder: {run.path}")
    records = read_records(spec.data)
    _check_models(spec, records, narrator)
    run.checkpoint_folder.mkdir(exist_ok=True)
    settled = settle(spec, len(records.items), narrator=narrator)
    with open_store(settled, narrator=narrator, scratch=run.checkpoint_folder) as store:
        begun = run if (run.path / "splits.json").is_file() else None
        data = load_data(settled, records, store=store, narrator=narrator, run=begun)
        states = RunFolder(run.checkpoint_folder)
        bench = Bench(settled, data, store=store, states=states, narrator=narrator)
        if begun is None:
            # Only now: a search of too many folds is refused without leaving anything.
            run.write_json("splits.json", manifest(data.splits, data.records))
            run.write_class_names(data.records.class_names)
        yield bench


def _check_models(spec: RunSpec, records: Records, narrator: Narrator) -> None:
    """Tell missing weights and wrong stages of any proposal before any picture is decoded."""
    classifier = prepare_classifier(spec, records.class_names)
    narrator.say(describe_model(spec, classifier))
    rebuild = Rebuilder()
    for field in ("model.backbone", "model.last_stage", "model.weights"):
        for value in _values(spec, field):
            prepare_classifier(override(spec, {field: value}), records.class_names, build=rebuild)
    if any(_values(spec, field) for field in ("model.backbone", "model.last_stage")):
        return  # Which stages there are depends on the trial.
    for number in range(len(spec.phases)):
        name = f"phases.{number}.unfreeze"
        for value in _values(spec, name):
            classifier.from_stage(value, field=f"search.space of {name}")


def _values(spec: RunSpec, field: str) -> Sequence[str]:
    parameter = spec.search.space.get(field)
    return (parameter.values or ()) if parameter else ()


def run_trials(bench: Bench, book: Book) -> None:
    """Let KerasTuner search at the bench, in the role that its variables give this process."""
    search = bench.original.search
    oracle = make_oracle(bench.original, num_epochs=bench.num_epochs)
    tuner = SearchTuner(oracle, bench, book, watch=lambda begun: TrialNarrator(book, begun))
    run_tuner(tuner, oracle, seconds=parse_duration(search.time_budget))


def _check_some_scored(trials: Sequence[SearchTrial]) -> None:
    if not any(trial.is_scored for trial in trials):
        causes = [trial.cause for trial in trials if trial.cause]
        raise RunError(
            f"all {len(trials)} trials of the search failed",
            expected="at least one trial with a finite score",
            received=causes[0] if causes else "no trial",
            fix="mend what the first failure names, and search anew",
        )
