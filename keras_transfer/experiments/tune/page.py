"""The page of a search: one sentence, four figures and all trials in one file, for any browser."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from jinja2 import Environment, PackageLoader, StrictUndefined, Template

from keras_transfer.experiments.tune.axes import number, score_axis
from keras_transfer.experiments.tune.figures import draw_panels, draw_parallel
from keras_transfer.experiments.tune.importance import draw_importance, measure_importance
from keras_transfer.experiments.tune.record import CHOICE, Search, SearchTrial
from keras_transfer.experiments.tune.timeline import draw_timeline
from keras_transfer.reporting import figures as drawing
from keras_transfer.storage.run_folder import RunFolder

PAGE = "search.html"


@dataclass(frozen=True)
class _Figure:
    """A drawing with its caption; where nothing is worth drawing, a sentence in its place."""

    title: str
    caption: str
    svg: str | None
    verdict: str = ""


@dataclass(frozen=True)
class _Column:
    """A column of the table. `field` is an attribute of a trial, or None for a parameter."""

    name: str
    is_number: bool
    field: str | None = None
    digits: str = ""


@dataclass(frozen=True)
class _Cell:
    """`value` is what the column is sorted by, empty if there is none."""

    text: str
    value: str
    kind: str


def write_page(
    folder: RunFolder,
    search: Search,
    *,
    title: str,
    sentences: Sequence[str],
    facts: Sequence[tuple[str, str]],
) -> None:
    """Write search.html, which needs no network: styles, figures and a few lines of script inside.

    Args:
        sentences: what came of the search, the most important first.
        facts: labels with short texts, shown below them.

    Raises:
        ValueError: no trial has a score, or none has the winner's name.
        RunError: the page cannot be written.
    """
    named = {trial.name: trial for trial in search.scored}
    winner = search.winner
    if winner not in named:
        raise ValueError(f"the winner {winner!r} is none of the scored trials: {sorted(named)}")
    columns = _columns(search)
    page = _template().render(
        title=title,
        sentences=sentences,
        facts=facts,
        winner=winner,
        winner_values=_values(search, named[winner]),
        figures=_figures(search),
        columns=columns,
        rows=[
            {
                "is_winner": trial.name == winner,
                "is_failed": not trial.is_scored,
                "cells": [_cell(column, trial) for column in columns],
            }
            for trial in [*search.scored, *search.unscored]
        ],
        preview=vars(drawing),
    )
    folder.write_text(PAGE, page)


def _template() -> Template:
    environment = Environment(
        loader=PackageLoader("keras_transfer.experiments.tune"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(PAGE)


def _values(search: Search, trial: SearchTrial) -> list[tuple[str, str]]:
    score = (search.objective, score_axis(search).text(trial.result))
    return [score, *((name, number(trial.values.get(name))) for name in search.scales)]


def _figures(search: Search) -> list[_Figure]:
    importance = measure_importance(search)
    bars = draw_importance(importance) if importance.is_meaningful else None
    explained = (
        f"{importance.verdict} Bars: how much of R² is lost once a parameter is shuffled, with "
        "standard deviations; pale ones lie within two of none."
    )
    return [
        _Figure(
            "Every trial",
            "A line a trial, darker the better; orange: the winner; dashed: failed. Scores far "
            "below the others lie at the foot of the last axis.",
            draw_parallel(search),
        ),
        _Figure(
            "Score by parameter",
            "Better is up. Smaller, paler dots trained for fewer epochs; orange: the winner; "
            "crosses: failed.",
            draw_panels(search),
        ),
        _Figure("What mattered", explained if bars else "", svg=bars, verdict=importance.verdict),
        _Figure(
            "When, and on which worker",
            "Above, the best score so far; below, a bar a trial, darker the better; orange: the "
            "winner; hatched: failed.",
            draw_timeline(search),
        ),
    ]


def _columns(search: Search) -> list[_Column]:
    metrics = [_Column("val_accuracy", True, "val_accuracy"), _Column("val_loss", True, "val_loss")]
    return [
        _Column("trial", False, "name"),
        _Column("status", False, "status"),
        *sorted(metrics, key=lambda column: column.name != search.objective),
        *(_Column(name, _is_number(search, name)) for name in search.scales),
        _Column("epochs", True, "epochs"),
        _Column("seconds", True, "seconds", ".0f"),
        _Column("worker", False, "worker"),
        _Column("cause", False, "cause"),
    ]


def _is_number(search: Search, name: str) -> bool:
    values = search.choices[name] if search.scales[name] == CHOICE else [0.0]
    return all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)


def _cell(column: _Column, trial: SearchTrial) -> _Cell:
    value = getattr(trial, column.field) if column.field else trial.values.get(column.name)
    kind = "number" if column.is_number else column.field or ""
    if value is None:
        return _Cell("–", "", kind)
    if isinstance(value, float) and not math.isfinite(value):
        return _Cell(str(value), "", kind)
    if column.name == "val_accuracy":
        return _Cell(f"{100 * value:.2f} %", f"{value!r}", kind)
    if column.digits:
        return _Cell(f"{value:{column.digits}}", f"{value!r}", kind)
    return _Cell(number(value), f"{value}", kind)
