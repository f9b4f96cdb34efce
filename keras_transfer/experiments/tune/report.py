"""What a search leaves: search.json, a page to look at, TensorBoard's logs, and a closing table."""

from dataclasses import asdict
from statistics import mean
from typing import Any

from keras_transfer.experiments.summary import describe_proof
from keras_transfer.experiments.tune.best import BEST_SPEC, WINNER, Comparison, format_range
from keras_transfer.experiments.tune.page import write_page
from keras_transfer.experiments.tune.progress_table import describe_values, progress_table
from keras_transfer.experiments.tune.record import Search, ranked
from keras_transfer.experiments.tune.search import SearchResult
from keras_transfer.experiments.tune.space import choices, scales
from keras_transfer.experiments.tune.tensorboard import write_logs
from keras_transfer.reporting.reporter import TerminalReporter

_NUM_SHOWN = 5
_WARM = 10
"""Trials after which a process has all that it will need."""


def write_search(found: SearchResult, *, against_plain: dict[str, Any] | None = None) -> None:
    """Write search.html, the logs, and in the end search.json, which says that all is complete.

    `against_plain` is what `plain.measure_plain` returns.
    """
    spec = found.spec
    search = Search(
        trials=found.trials,
        scales=scales(spec),
        choices=choices(spec),
        objective=spec.search.objective,
        higher_is_better=spec.search.higher_is_better,
        winner=found.winner.trial.name,
    )
    sentences = describe_winner(found)
    write_page(
        found.run, search, title=f"Search {spec.name}", sentences=sentences, facts=_facts(found)
    )
    write_logs(found.run, search)
    found.run.write_json("search.json", describe_search(found, against_plain))


def _facts(found: SearchResult) -> list[tuple[str, str]]:
    spec, splits = found.spec, found.run.read_json("splits.json")["rows"]
    sizes = ", ".join(f"{len(rows):,} {name}" for name, rows in splits.items() if rows)
    return [
        ("images", sizes),
        ("classes", f"{len(found.records.class_names)}"),
        ("backbone", f"{spec.model.backbone} at {spec.data.image_size} px"),
        ("tuner", spec.search.tuner),
        ("trials", f"{len(found.trials)}"),
        ("judged on", f"{spec.folds} folds" if spec.folds > 1 else "the validation split"),
    ]


def describe_search(found: SearchResult, against_plain: dict[str, Any] | None) -> dict[str, Any]:
    """The content of search.json: trials, cost, winner, comparison. Seconds are wall time."""
    winner, search = found.winner, found.spec.search
    test = winner.result.test
    content: dict[str, Any] = {
        "tuner": search.tuner,
        "objective": search.objective,
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
            "test": {"accuracy": test.accuracy, "interval": list(test.intervals["accuracy"])},
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
    """In plain trainings: our trials, all that we did, and a plain search of as many trials."""
    plain_search = mean(plain["trial_seconds"]) * len(found.trials)
    return {
        "ratio": found.search_seconds / plain["run_seconds"],
        "total_ratio": found.seconds / plain["run_seconds"],
        "plain_search_ratio": plain_search / plain["run_seconds"],
    }


def describe_against_plain(found: SearchResult, plain: dict[str, Any]) -> str:
    """What the search cost, in plain trainings, in one sentence."""
    ratios = _ratios(found, plain)
    return (
        f"One plain training of the spec takes {plain['run_seconds']:.0f} s. The "
        f"{len(found.trials)} trials of this search took {ratios['ratio']:.2g} times as long, all "
        f"in all {ratios['total_ratio']:.2g} times; a plain search of as many would take "
        f"{ratios['plain_search_ratio']:.2g} times as long (by {len(plain['trial_seconds'])} of "
        f"them, {mean(plain['trial_seconds']):.0f} s each)."
    )


def show_search(found: SearchResult, terminal: TerminalReporter) -> None:
    """Print the best trials, the winner beside the spec as it was, and where everything is."""
    best = ranked(found.trials, higher_is_better=found.spec.search.higher_is_better)
    num_trials, num_failed = len(found.trials), len(found.trials) - len(best)
    sheet = progress_table(
        f"Search {found.run.path}",
        list(found.spec.search.space),
        best[:_NUM_SHOWN],
        caption=f"the best of {num_trials} trials, {num_failed} of which failed",
    )
    terminal.table(sheet.title, sheet.header, sheet.rows, caption=sheet.caption)
    for sentence in describe_winner(found):
        terminal.info(sentence)
    if found.winner.result.proof:
        terminal.info(describe_proof(found.winner.result.proof))
    path = found.run.path
    terminal.info(
        f"Winner {path / WINNER}, again with python -m pipelines.train {path / BEST_SPEC}"
    )
    terminal.info(f"Page {path / 'search.html'}, all figures {path / 'search.json'}")


def describe_winner(found: SearchResult) -> list[str]:
    """What the search found, whether it is more than noise, and what it cost, in sentences."""
    winner = found.winner
    test = winner.result.test
    low, high = test.intervals["accuracy"]
    sentences = [
        f"The winner is trial {winner.trial.name} ({describe_values(winner.trial)}): validation "
        f"accuracy {winner.training.val_accuracy:.1%}, where the spec as it was has "
        f"{winner.default.val_accuracy:.1%}.",
        f"On the test split, which no trial has seen, it names {test.accuracy:.1%} right "
        f"({low:.1%} to {high:.1%}).",
    ]
    if winner.comparison:
        sentences.insert(1, _describe_comparison(winner.comparison))
    if winner.trial.share < 1:
        sentences.append(
            f"The search ended before any trial had trained to its end; this one, at "
            f"{winner.trial.score:.3g} after {winner.trial.epochs} epochs, was trained on."
        )
    if not winner.is_better_than_default:
        sentences.insert(1, "No trial did better than the spec as it was: keep that.")
    if not winner.keeps_weights:
        sentences.append("Its model was trained anew on the run's own split: folds have many.")
    return [*sentences, _describe_cost(found)]


def _describe_cost(found: SearchResult) -> str:
    """Seconds, and whether memory grew; what grows for ever shows after the first few trials."""
    trials = found.trials
    text = (
        f"{len(trials)} trials took {found.search_seconds:.0f} s, with winner and comparison "
        f"{found.seconds:.0f} s"
        + (f", {found.num_before} that ended before left out" if found.num_before else "")
    )
    for worker in sorted({trial.worker for trial in trials}):
        held = [
            trial.resident_mb
            for trial in sorted(trials, key=lambda trial: trial.started)
            if trial.worker == worker
        ]
        if len(held) > _WARM:
            text += (
                f"; {worker} held {held[_WARM - 1]:,.0f} MB of memory after {_WARM} trials, "
                f"{held[-1]:,.0f} MB after {len(held)}"
            )
    return f"{text}."


def _describe_comparison(comparison: Comparison) -> str:
    low, high = (f"{100 * end:+.1f}".replace("-", "−") for end in comparison.interval)
    gain = f"{100 * comparison.difference:+.1f}".replace("-", "−")
    verdict = "more than noise" if comparison.exceeds_noise else "within noise"
    return (
        f"Trained with {len(comparison.seeds)} other seeds it reaches "
        f"{format_range(comparison.winner)}, the spec as it was "
        f"{format_range(comparison.default)}: {gain} points ({low} to {high}), {verdict}."
    )
