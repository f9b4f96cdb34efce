"""Figures of a training: how it went, and which classes are taken for which."""

from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.ticker import MaxNLocator

from keras_transfer.evaluation.drawing import (
    FAINT,
    GRID,
    INK,
    SHADE,
    TRAIN,
    VALIDATION,
    new_figure,
    percent_axis,
    save,
    shown,
)

_PANEL_INCHES = 4.6
_CHARACTER_INCHES = 0.08
_MATRIX_INCHES = 9
_MOST_CLASSES_WITH_COUNTS = 25
_MOST_NAMES = 100


def draw_learning_curves(history: Sequence[Mapping[str, Any]], file: Path) -> None:
    """Loss and accuracy in training and validation over all epochs, the phases named.

    Args:
        history: rows with `phase`, `epoch` (from 1 over all phases), `loss`, `accuracy`,
            `val_loss` and `val_accuracy`.
        file: PNG to write.
    """
    figure = new_figure(11, 4.4)
    panels = figure.subplots(1, 2)
    phases = _phases(history)
    inches = _PANEL_INCHES / len(history)
    crowded = any(
        len(name) * _CHARACTER_INCHES > (end - start) * inches for name, start, end in phases
    )
    for axes, name in zip(panels, ("loss", "accuracy"), strict=True):
        _draw_curves(axes, history, name)
        _shade_phases(axes, phases, numbered=crowded)
        axes.set_title(
            name.capitalize(), loc="left", color=INK, fontsize=12, fontweight="bold", pad=24
        )
    panels[1].yaxis.set_major_formatter(percent_axis())
    panels[0].legend(frameon=False, labelcolor=INK)
    if crowded:
        names = ", ".join(f"{number} {name}" for number, (name, _, _) in enumerate(phases, 1))
        figure.supxlabel(f"phases: {names}", color=FAINT, fontsize=9)
    save(figure, file)


def _phases(history: Sequence[Mapping[str, Any]]) -> list[tuple[str, float, float]]:
    """Name, left and right edge of every phase on the axis of epochs."""
    phases = []
    for name, rows in groupby(history, key=lambda row: row["phase"]):
        epochs = [row["epoch"] for row in rows]
        phases.append((shown(name), min(epochs) - 0.5, max(epochs) + 0.5))
    return phases


def _draw_curves(axes: Axes, history: Sequence[Mapping[str, Any]], name: str) -> None:
    epochs = [row["epoch"] for row in history]
    for column, color, text in (
        (name, TRAIN, "training"),
        (f"val_{name}", VALIDATION, "validation"),
    ):
        values = [row[column] for row in history]
        axes.plot(epochs, values, color=color, label=text, marker="o", markersize=3.5, zorder=3)
    axes.set_xlim(min(epochs) - 0.5, max(epochs) + 0.5)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.set_xlabel("epoch", color=INK)
    axes.tick_params(colors=INK)
    axes.grid(axis="y", color=GRID, linewidth=0.7)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(FAINT)


def _shade_phases(
    axes: Axes, phases: Sequence[tuple[str, float, float]], *, numbered: bool
) -> None:
    """Every other phase on a shaded ground, its name or its number above it."""
    for number, (name, start, end) in enumerate(phases, 1):
        if number % 2:
            axes.axvspan(start, end, color=SHADE, zorder=0, linewidth=0)
        axes.text(
            (start + end) / 2,
            1.02,
            str(number) if numbered else name,
            transform=axes.get_xaxis_transform(),
            color=FAINT,
            fontsize=9,
            va="bottom",
            ha="center",
        )


def draw_confusion(confusion: np.ndarray, class_names: Sequence[str], file: Path) -> None:
    """The confusion matrix: counts, and in colour the share of the true class.

    Up to 25 classes show their counts; beyond that the colours speak.

    Args:
        confusion: counts [C, C], rows by true class.
        class_names: C names.
        file: PNG to write.
    """
    num_classes = len(class_names)
    cell = max(2.8 / num_classes, min(0.62, _MATRIX_INCHES / num_classes))
    names_inches = min(24, max(len(name) for name in class_names)) * _CHARACTER_INCHES
    side = num_classes * cell + names_inches + 0.6
    figure = new_figure(side + 1.2, side + 0.4)
    axes = figure.subplots()
    shares = confusion / np.maximum(confusion.sum(axis=1, keepdims=True), 1)
    picture = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1, interpolation="nearest")
    _name_classes(axes, class_names, cell)
    if num_classes <= _MOST_CLASSES_WITH_COUNTS:
        _write_counts(axes, confusion, shares, cell)
    right, total = int(np.trace(confusion)), int(confusion.sum())
    title = f"Confusion: {right:,} of {total:,} right, {100 * right / total:.1f} %"
    axes.set_title(title, color=INK, fontsize=12, fontweight="bold", pad=10)
    _add_scale(figure, picture)
    save(figure, file)


def _name_classes(axes: Axes, class_names: Sequence[str], cell: float) -> None:
    """Name rows and columns, as many as can be read, in type that fits the cells."""
    step = -(-len(class_names) // _MOST_NAMES)
    places = range(0, len(class_names), step)
    names = [shown(class_names[place]) for place in places]
    size = min(9, 72 * cell * step * 0.8)
    upright = max(map(len, names)) * _CHARACTER_INCHES > cell
    axes.set_xticks(
        places,
        names,
        fontsize=size,
        rotation=(90 if cell < 0.3 else 45) if upright else 0,
        ha="center" if not upright or cell < 0.3 else "right",
        rotation_mode="anchor" if upright and cell >= 0.3 else "default",
    )
    axes.set_yticks(places, names, fontsize=size)
    axes.tick_params(colors=INK, length=0)
    axes.set_xlabel("predicted class", color=INK, labelpad=8)
    axes.set_ylabel("true class", color=INK, labelpad=8)
    axes.spines[:].set_color(GRID)
    if step == 1:
        edges = np.arange(len(class_names) - 1) + 0.5
        axes.hlines(edges, *axes.get_xlim(), color="white", linewidth=min(1.5, 6 * cell))
        axes.vlines(edges, *axes.get_ylim(), color="white", linewidth=min(1.5, 6 * cell))


def _write_counts(axes: Axes, confusion: np.ndarray, shares: np.ndarray, cell: float) -> None:
    digits = len(f"{confusion.max():,}")
    size = min(11, 72 * cell * 0.9 / (0.7 * digits))
    for row, column in np.argwhere(confusion):
        axes.text(
            column,
            row,
            f"{confusion[row, column]:,}",
            color="white" if shares[row, column] > 0.5 else INK,
            fontsize=size,
            ha="center",
            va="center",
        )


def _add_scale(figure: Figure, picture: AxesImage) -> None:
    bar = figure.colorbar(picture, ax=picture.axes, shrink=0.6, aspect=24, pad=0.02)
    bar.ax.yaxis.set_major_formatter(percent_axis())
    bar.ax.tick_params(colors=INK, length=0)
    bar.set_label("share of the true class", color=INK)
    bar.outline.set_visible(False)
