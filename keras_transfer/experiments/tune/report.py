"""Writes search.json, search.html and TensorBoard's logs, and shows a search as a table."""

from dataclasses import asdict
from statistics import mean
from typing import Any

from keras_transfer.data.records import counted
from keras_transfer.experiments.summary import describe_proof
from keras_transfer.experiments.tune.best import BEST_SPEC, WINNER, Comparison, format_range
from keras_transfer.experiments.tune.page import write_page
from keras_transfer.experiments.tune.progress_table import describe_values, progress_table
from keras_transfer.experiments.tune.record import Search, higher_is_better, ranked
from keras_transfer.experiments.tune.search import SearchResult
from keras_transfer.experiments.tune.space import choices, scales
from keras_transfer.experiments.tune.tensorboard import write_logs
from keras_transfer.reporting.numbers import percent
from keras_transfer.reporting.reporter import TerminalReporter
from keras_transfer.storage.model_files import title
from keras_transfer.tasks.task import Monitor

_NUM_SHOWN = 5
_WARM = 10
"""Trials after which the memory of a process should no longer grow."""


def write_search(found: SearchResult, *, against_plain: dict[str, Any] | None = None) -> None:
    """Write all files, search.json last: it marks the search as complete.

    Args:
        against_plain: `run_seconds` of a plain training of the spec, and `trial_seconds` of each
            trial of a plain search, where these were measured.
    """
    spec = found.spec
    search = Search(
        trials=found.trials,
        scales=scales(spec),
        choices=choices(spec),
        objective=spec.search.objective,
        monitor=found.task.monitor,
        winner=found.winner.trial.name,
    )
    sentences = describe_winner(found)
    write_page(
        found.run, search, title=f"Search {spec.name}", sentences=sentences, run_facts=_facts(found)
    )
    write_logs(found.run, search)
    found.run.write_json("search.json", describe_search(found, against_plain))


def _facts(found: SearchResult) -> list[tuple[str, str]]:
    spec, splits = found.spec, found.run.read_json("splits.json")["rows"]
    sizes = ", ".join(f"{len(rows):,} {name}" for name, rows in splits.items() if rows)
    return [
        ("images", sizes),
        ("outputs", f"{len(found.task.names)}"),
        ("backbone", f"{title(spec.model.backbone)} at {spec.data.image_size} px"),
        ("tuner", spec.search.tuner),
        ("trials", f"{len(found.trials)}"),
        ("evaluated on", f"{spec.folds} folds" if spec.folds > 1 else "the validation split"),
    ]


def describe_search(found: SearchResult, against_plain: dict[str, Any] | None) -> dict[str, Any]:
    """The content of search.json: trials, cost, best trial, comparison. Seconds are wall time."""
    winner, search = found.winner, found.spec.search
    test, monitor = winner.result.test.headline, found.task.monitor
    content: dict[str, Any] = {
        "tuner": search.tuner,
        "objective": search.objective,
        "metric": monitor.metric,
        "folds": found.spec.folds,
        "seconds": {
            "search": found.search_seconds,
            "total": found.seconds,
            "trials": sum(trial.seconds for trial in found.trials),
        },
        "num_trials_before_resume": found.num_before,
        "is_better_than_default": winner.is_better_than_default,
        "num_failed": sum(not trial.is_scored for trial in found.trials),
        "winner": {
            "name": winner.trial.name,
            "values": winner.trial.values,
            "score": winner.training.figures[search.objective],
            "trial_score": winner.trial.score,
            **winner.training.figures,
            "keeps_weights": winner.keeps_weights,
            "test": {"score": test.value, "interval": list(test.interval)},
        },
        "default": winner.default.figures,
        "refits": None,
        "trials": [asdict(trial) for trial in found.trials],
    }
    if winner.comparison:
        content["refits"] = {
            **asdict(winner.comparison),
            "exceeds_noise": winner.comparison.exceeds_noise,
        }
    if against_plain:
        content["against_plain"] = {**against_plain, **_ratios(found, against_plain)}
    return content


def _ratios(found: SearchResult, plain: dict[str, Any]) -> dict[str, float]:
    """Costs of the trials, the whole search and a plain search, divided by one plain training."""
    plain_search = mean(plain["trial_seconds"]) * len(found.trials)
    return {
        "ratio": found.search_seconds / plain["run_seconds"],
        "total_ratio": found.seconds / plain["run_seconds"],
        "plain_search_ratio": plain_search / plain["run_seconds"],
    }


def describe_against_plain(found: SearchResult, plain: dict[str, Any]) -> str:
    """The cost of the search relative to one plain training, in one sentence."""
    ratios = _ratios(found, plain)
    return (
        f"One plain training of the spec takes {plain['run_seconds']:.0f} s. The "
        f"{len(found.trials)} trials of this search took {ratios['ratio']:.2g} times as long, the "
        f"whole search {ratios['total_ratio']:.2g} times; a plain search of as many trials would "
        f"take {ratios['plain_search_ratio']:.2g} times as long ({len(plain['trial_seconds'])} of "
        f"them took {mean(plain['trial_seconds']):.0f} s each)."
    )


def show_search(found: SearchResult, terminal: TerminalReporter) -> None:
    """Print the best trials, the comparison of the best with the original spec, and all paths."""
    monitor = found.task.monitor
    is_upwards = higher_is_better(found.spec.search.objective, monitor)
    best = ranked(found.trials, higher_is_better=is_upwards)
    num_trials, num_failed = len(found.trials), len(found.trials) - len(best)
    caption = f"the best of {num_trials} trials, {num_failed} of which failed"
    names = list(found.spec.search.space)
    title = f"Search {found.run.path}"
    terminal.show(progress_table(title, names, best[:_NUM_SHOWN], monitor=monitor, caption=caption))
    for sentence in describe_winner(found):
        terminal.info(sentence)
    if found.winner.result.proof:
        terminal.info(describe_proof(found.winner.result.proof))
    path = found.run.path
    terminal.info(
        f"Run of the best trial {path / WINNER}; train it again with python -m pipelines.train "
        f"{path / BEST_SPEC}"
    )
    terminal.info(f"Page {path / 'search.html'}, all figures {path / 'search.json'}")


def describe_winner(found: SearchResult) -> list[str]:
    """The best trial, whether its gain exceeds noise, and the cost, in sentences."""
    winner = found.winner
    monitor, test = found.task.monitor, winner.result.test.headline
    name, show = monitor.metric.replace("_", " "), monitor.format
    low, high = map(show, test.interval)
    sentences = [
        f"The best trial is {winner.trial.name} ({describe_values(winner.trial)}): validation "
        f"{name} {show(winner.training.val_score)}, with the original spec "
        f"{show(winner.default.val_score)}.",
        f"On the test split, which no trial used, its {name} is {show(test.value)} "
        f"({low} to {high}).",
    ]
    if winner.comparison:
        sentences.insert(1, _describe_comparison(winner.comparison, monitor))
    if winner.trial.share < 1:
        sentences.append(
            f"The search ended before any trial completed its training; the training of the best, "
            f"at {winner.trial.score:.3g} after "
            f"{counted(winner.trial.epochs, 'epoch', 'epochs')}, was then completed."
        )
    if not winner.is_better_than_default:
        sentences.insert(1, "No trial is better than the original spec: keep the original spec.")
    if not winner.keeps_weights:
        sentences.append(
            "Its model was trained again on a single split, because folds give several models."
        )
    return [*sentences, _describe_cost(found)]


def _describe_cost(found: SearchResult) -> str:
    """Seconds, and memory after the first trials and at the end, which shows memory leaks."""
    trials = found.trials
    text = (
        f"{len(trials)} trials took {found.search_seconds:.0f} s, {found.seconds:.0f} s with the "
        f"comparison and the run of the best"
        + (f", without {found.num_before} trials that had ended before" if found.num_before else "")
    )
    for worker in sorted({trial.worker for trial in trials}):
        megabytes = [
            trial.resident_mb
            for trial in sorted(trials, key=lambda trial: trial.started)
            if trial.worker == worker
        ]
        if len(megabytes) > _WARM:
            text += (
                f"; {worker} used {megabytes[_WARM - 1]:,.0f} MB of memory after {_WARM} trials, "
                f"{megabytes[-1]:,.0f} MB after {len(megabytes)}"
            )
    return f"{text}."


def _describe_comparison(comparison: Comparison, monitor: Monitor) -> str:
    gain, low, high = (
        percent(value, signed=True) if monitor.is_share else f"{value:+.3g}"
        for value in (comparison.difference, *comparison.interval)
    )
    what = "points" if monitor.is_share else "mean score of an image"
    verdict = "more than noise" if comparison.exceeds_noise else "within noise"
    return (
        f"Trained with {len(comparison.seeds)} other seeds it reaches "
        f"{format_range(comparison.winner, monitor)}, the original spec "
        f"{format_range(comparison.default, monitor)}: {gain} {what} ({low} to {high}), {verdict}."
    )
