"""Writes search.json, search.html and TensorBoard's logs, and shows a search as a table."""

import shlex
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import mean
from typing import Any

from keras_transfer.config import spec_to_dict
from keras_transfer.data.records import counted
from keras_transfer.experiments.summary import describe_proof, show_next
from keras_transfer.experiments.tune.best import (
    BEST_SPEC,
    WINNER,
    Comparison,
    Winner,
    format_range,
)
from keras_transfer.experiments.tune.page import write_page
from keras_transfer.experiments.tune.progress_table import describe_values, progress_table
from keras_transfer.experiments.tune.record import Search, describe_rule, higher_is_better
from keras_transfer.experiments.tune.record import shown as shown_value
from keras_transfer.experiments.tune.search import SearchResult
from keras_transfer.experiments.tune.space import choices, scales
from keras_transfer.experiments.tune.tensorboard import write_logs
from keras_transfer.reporting.numbers import percent
from keras_transfer.reporting.reporter import TerminalReporter
from keras_transfer.reporting.tables import Table
from keras_transfer.specs import RunSpec
from keras_transfer.storage.model_files import title
from keras_transfer.storage.run_folder import RunFolder
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
    sentences = [*describe_winner(found), f"Recommendation: {recommend(found).sentence}"]
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
        ("without effect", ", ".join(found.plan.left_out) or "–"),
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
        "space": spec_to_dict(search)["space"],
        "without_effect": dict(found.plan.left_out),
        "num_compared": found.plan.num_compared,
        "seconds": {
            "search": found.search_seconds,
            "total": found.seconds,
            "trials": sum(trial.seconds for trial in found.trials),
        },
        "num_trials_before_resume": found.num_before,
        "is_better_than_default": winner.is_better_than_default,
        "recommendation": asdict(recommend(found)),
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
        "trials": _ranked_rows(found),
    }
    if winner.comparison:
        content["refits"] = {
            **asdict(winner.comparison),
            "exceeds_noise": winner.comparison.exceeds_noise,
        }
    if against_plain:
        content["against_plain"] = {**against_plain, **_ratios(found, against_plain)}
    return content


def _ranked_rows(found: SearchResult) -> list[dict[str, Any]]:
    """All trials, the best first and those without a score last, with `rank` None."""
    best = found.ranked
    others = [trial for trial in found.trials if not trial.is_scored]
    rows = [{"rank": rank, **asdict(trial)} for rank, trial in enumerate(best, start=1)]
    return [*rows, *({"rank": None, **asdict(trial)} for trial in others)]


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
    """Print the best trials, the comparison with the original spec, and what to do next."""
    search, monitor, best = found.spec.search, found.task.monitor, found.ranked
    shown = best[:_NUM_SHOWN]
    caption = f"Best first, by {describe_rule(search.objective, monitor)}."
    if len(shown) < len(found.trials):
        failed = len(found.trials) - len(best)
        caption += f" {len(shown)} of {len(found.trials)} trials; {failed} failed."
    title = f"Search {found.run.path}"
    table = progress_table(title, list(search.space), shown, monitor=monitor, caption=caption)
    terminal.show(_with_original(table, found))
    for sentence in describe_winner(found):
        terminal.info(sentence)
    if found.winner.result.proof:
        terminal.info(describe_proof(found.winner.result.proof))
    terminal.info(
        f"In {found.run.path}: {WINNER}/ (the run of the best trial), {BEST_SPEC} (its spec), "
        "spec.json (the original spec), search.html (all trials as a page), search.json."
    )
    advice = recommend(found)
    terminal.info(f"Recommendation: {advice.sentence}")
    terminal.info(f"Next: {advice.command}")
    terminal.info(f"The run of the best trial, {WINNER}/, can be used as it is:")
    show_next(found.run.path / WINNER, terminal)


def _with_original(table: Table, found: SearchResult) -> Table:
    """The table of trials with a last column for the original spec."""
    original, monitor = found.winner.default, found.task.monitor
    cells = [
        *(_value_of(found.spec, name) for name in found.spec.search.space),
        monitor.format_number(original.val_score),
        f"{original.val_loss:.3f}",
        f"{original.epochs}",
        f"{original.seconds:.1f}",
    ]
    rows = [[*row, cell] for row, cell in zip(table.rows, cells, strict=True)]
    return replace(table, header=[*table.header, "original"], rows=rows)


def _value_of(spec: RunSpec, dotted: str) -> str:
    """A field's value; '' for an option of a method that was not set."""
    value: Any = spec_to_dict(spec)
    for part in dotted.split("."):
        value = value[int(part)] if isinstance(value, list) else value.get(part, "")
    return shown_value(value)


def describe_winner(found: SearchResult) -> list[str]:
    """The best trial, whether its gain exceeds noise, and the cost, in sentences."""
    winner = found.winner
    monitor, test = found.task.monitor, winner.result.test.headline
    name, show = monitor.metric.replace("_", " "), monitor.format
    low, high = map(show, test.interval)
    default, training = winner.default, winner.training
    sentences = [
        f"The best trial is {winner.trial.name} ({describe_values(winner.trial)}): validation "
        f"{name} {show(training.val_score)}, loss {training.val_loss:.3f}. The original spec: "
        f"{show(default.val_score)}, loss {default.val_loss:.3f}.",
        _describe_gain(winner, monitor),
    ]
    if winner.trial.share < 1:
        sentences.append(
            f"The search ended before any trial completed its training; the training of the best, "
            f"at {winner.trial.score:.3g} after "
            f"{counted(winner.trial.epochs, 'epoch', 'epochs')}, was then completed."
        )
    sentences.append(
        f"On the test split, which no trial used, the {name} of the best trial's run is "
        f"{show(test.value)} (95% interval {low} to {high})."
    )
    if not winner.keeps_weights:
        sentences.append(
            "Its model was trained again on a single split, because folds give several models."
        )
    return [*sentences, _describe_cost(found)]


def _describe_cost(found: SearchResult) -> str:
    """Seconds, and memory after the first trials and at the end, which shows memory leaks."""
    trials = found.trials
    text = (
        f"All took {found.seconds:.0f} s: {found.search_seconds:.0f} s until the last of "
        f"{counted(len(trials), 'trial', 'trials')} had ended"
        + (f", without {found.num_before} trials that had ended before" if found.num_before else "")
        + ", the rest for the comparison and the run of the best"
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


def _describe_gain(winner: Winner, monitor: Monitor) -> str:
    """The gain of the best trial over the original spec with its interval, or why there is none."""
    comparison = winner.comparison
    if winner.is_default:
        return "The best trial trains the same as the original spec."
    if comparison is None:
        return "Its gain was not compared with noise (search.refits=0)."
    on = f"on the {comparison.num_images:,} images that trials are compared on"
    gain, low, high = (
        percent(value, signed=True) if monitor.is_share else f"{value:+.3g}"
        for value in (comparison.difference, *comparison.interval)
    )
    unit = " points" if monitor.is_share else " in the mean score of an image"
    text = f"Gain over the original spec {on}: {gain}{unit} (95% interval {low} to {high})"
    if not any((comparison.difference, *comparison.interval)):
        text = f"Gain over the original spec {on}: none, both have the same score for every image"
    return f"{text}; {_describe_seeds(comparison, monitor)}."


def _describe_seeds(comparison: Comparison, monitor: Monitor) -> str:
    """With which seeds both were trained, and their scores."""
    if len(comparison.solved) > 1:
        return "neither depends on the seed, so each was trained only once"
    text = f"trained with {counted(len(comparison.seeds), 'other seed', 'other seeds')}"
    scores = {"winner": comparison.winner, "default": comparison.default}
    names = {"winner": "it", "default": "the original spec"}
    parts = [
        f"{names[side]} has {monitor.format(values[0])}, solved exactly, the same with every seed"
        if side in comparison.solved
        else f"{names[side]} reaches {format_range(values, monitor)}"
        for side, values in scores.items()
    ]
    return f"{text} {', '.join(parts)}"


@dataclass(frozen=True)
class Recommendation:
    """What to take after a search: "winner" or "default", why, and the command for it."""

    take: str
    sentence: str
    command: str


def recommend(found: SearchResult) -> Recommendation:
    """The best trial if its gain exceeds noise, or, where that was not measured, if it has one."""
    winner, path = found.winner, found.run.path
    objective, monitor = found.spec.search.objective, found.task.monitor
    better = winner.is_better_than_default
    name = "loss" if objective == "val_loss" else monitor.metric.replace("_", " ")
    if better is None:
        gain = winner.training.figures[objective] - winner.default.figures[objective]
        takes = gain > 0 if higher_is_better(objective, monitor) else gain < 0
        why = f"its {name} is {'' if takes else 'not '}better; whether that is more than noise "
        why += "was not measured (search.refits=3 does)"
        worse = gain < 0 if higher_is_better(objective, monitor) else gain > 0
        if worse:
            size = f"{abs(gain):.3g}"
            if objective == "val_score":
                size = monitor.format_difference(abs(gain))
            return _keep(found, f"is worse than it by {size} in {name}.")
    elif winner.is_default:
        takes, why = False, "it trains the same"
    elif winner.comparison and not any(winner.comparison.interval):
        takes, why = False, "both have the same score for every image"
    else:
        takes = better
        why = f"the interval of its gain is {'' if takes else 'not '}entirely above 0"
    if takes:
        sentence = f"take the best trial: {why}. It is trained and exported already."
        command = f"python -m pipelines.predict {shlex.quote(str(path / WINNER))} PHOTO.jpg"
        return Recommendation("winner", sentence, command)
    return _keep(found, f"is not clearly better: {why}.")


def _keep(found: SearchResult, why: str) -> Recommendation:
    """The recommendation of the original spec, with its finished run where there is one."""
    sentence = f"keep the original spec. The best trial {why}"
    original = _run_of_original(found.run)
    if original:
        sentence += f" The original spec is trained already, in {original}."
        command = f"python -m pipelines.predict {shlex.quote(str(original))} PHOTO.jpg"
    else:
        command = f"python -m pipelines.train {shlex.quote(str(found.run.path / 'spec.json'))}"
    return Recommendation("default", sentence, command)


def _run_of_original(search: RunFolder) -> Path | None:
    """A finished run next to a search that has its spec, whatever its name and search are."""
    own = _trained_fields(search)
    for path in sorted(search.path.parent.glob("*/metrics.json")):
        run = RunFolder(path.parent)
        if run.spec_file.is_file() and _trained_fields(run) == own:
            return run.path
    return None


def _trained_fields(run: RunFolder) -> dict[str, Any]:
    values = run.read_json(run.spec_file.name)
    return {name: value for name, value in values.items() if name not in ("name", "search")}
