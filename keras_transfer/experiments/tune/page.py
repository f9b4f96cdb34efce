"""The page of a search: its result, four figures and all trials in one HTML file."""

import math
from collections.abc import Sequence
from typing import Any

from keras_transfer.experiments.tune.axes import score_axis
from keras_transfer.experiments.tune.importance import measure_importance
from keras_transfer.experiments.tune.plots import (
    draw_importance,
    draw_panels,
    draw_parallel,
    draw_timeline,
)
from keras_transfer.experiments.tune.record import Search, SearchTrial
from keras_transfer.reporting.html import Section, facts, figure, note, render_page
from keras_transfer.reporting.numbers import short
from keras_transfer.reporting.tables import Table
from keras_transfer.storage.run_folder import RunFolder

PAGE = "search.html"


def write_page(
    folder: RunFolder,
    search: Search,
    *,
    title: str,
    sentences: Sequence[str],
    run_facts: Sequence[tuple[str, str]],
) -> None:
    """Write search.html, which needs no network access.

    Args:
        sentences: the results, the most important first.
        run_facts: labels with short texts, shown below them.

    Raises:
        ValueError: no trial has a score, or no scored trial has the name `search.winner`.
        RunError: the page cannot be written.
    """
    scored = {trial.name: trial for trial in search.scored}
    if search.winner not in scored:
        raise ValueError(f"the best trial {search.winner!r} has no score: {sorted(scored)} have")
    winner = scored[search.winner]
    values = [(search.names[search.objective], score_axis(search).text(winner.result))]
    values += [(name, short(winner.values.get(name))) for name in search.scales]
    sections = [
        Section("", facts(run_facts)),
        Section(f"The best trial: {winner.name}", facts(values), is_highlighted=True),
        *_figures(search),
        _trials(search),
    ]
    folder.write_text(PAGE, render_page(title, sentences, sections))


def _figures(search: Search) -> list[Section]:
    importance = measure_importance(search)
    of_importance = Section("Importance of parameters", note(importance.explanation))
    if importance.is_meaningful:
        caption = (
            f"{importance.explanation} Bars: R² lost when a parameter is shuffled, with standard "
            "deviations; pale bars are within two of zero."
        )
        of_importance = Section(
            "Importance of parameters", figure(draw_importance(importance)), caption
        )
    return [
        Section(
            "Every trial",
            figure(draw_parallel(search)),
            "One line per trial, darker is better; thick and orange: the best; dashed: failed. "
            "Scores far below the others are drawn at the bottom of the last axis.",
        ),
        Section(
            "Score by parameter",
            figure(draw_panels(search)),
            "Upwards is better. Smaller, paler dots trained for fewer epochs; large and orange: "
            "the best; crosses: failed.",
        ),
        of_importance,
        Section(
            "Trials over time, by worker",
            figure(draw_timeline(search)),
            "Above, the best score so far; below, one bar per trial, darker is better; framed in "
            "orange: the best; hatched: failed.",
        ),
    ]


def _trials(search: Search) -> Section:
    header = [
        "trial",
        "status",
        *search.names.values(),
        *search.scales,
        "epochs",
        "seconds",
        "worker",
        "cause",
    ]
    trials = [*search.scored, *search.unscored]
    rows = [[_cell(name, trial, search) for name in header] for trial in trials]
    classes = [
        "best" if trial.name == search.winner else "" if trial.is_scored else "failed"
        for trial in trials
    ]
    title = f"All {len(rows)} trials" if len(rows) > 1 else "The only trial"
    body = figure(Table(title, header, rows).html(row_classes=classes))
    return Section(title, body, "Click a heading to sort; the best come first.")


def _cell(column: str, trial: SearchTrial, search: Search) -> str:
    value: Any = trial.values.get(column)
    if column not in trial.values:
        names = {name: key for key, name in search.names.items()} | {"trial": "name"}
        value = getattr(trial, names.get(column, column), None)
    if value is None:
        return "–"
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if column == search.monitor.log_name and search.monitor.is_share:
        return f"{100 * value:.2f} %"
    return f"{value:.0f}" if column == "seconds" else short(value)
