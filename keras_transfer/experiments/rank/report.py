"""Writes rank.json, rank.md and rank.png, and makes the tables for the terminal."""

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from keras_transfer.config import spec_to_dict
from keras_transfer.devices.processors import num_processors
from keras_transfer.experiments.rank.advice import Advice, advise, keeps_limits
from keras_transfer.experiments.rank.finals import agreement
from keras_transfer.experiments.rank.plot import Dot, draw_ranking
from keras_transfer.experiments.rank.ranking import RankedCandidate, Ranking
from keras_transfer.experiments.rank.scoring import METRICS, SHARES, Score
from keras_transfer.reporting.numbers import fixed, percent, percent_range, three_digits
from keras_transfer.reporting.reporter import TerminalReporter
from keras_transfer.reporting.tables import Table
from keras_transfer.storage.run_folder import RunFolder, describe_environment

TITLE = "Trunks for these images, before any fine-tuning"
_CAPTION = "accuracies in % and 95 % intervals"
_LEGEND = (
    "Linear probe and k-NN: cross-validated accuracy in %, with 95 % intervals; LogME, H-score, "
    "LEEP and NCE: higher is better, comparable within a column only. ms: one image through the "
    "frozen layers, images/s: batches of images, measured before features were computed. MB: the "
    "backbone's weights in float32. The control is noise, which should be last in every column."
)


@dataclass(frozen=True)
class RankReport:
    """A ranking as sentences and tables; `finals` is None where nothing was fine-tuned."""

    sentences: list[str]
    table: Table
    finals: Table | None


def write_ranking(ranking: Ranking, folder: RunFolder) -> RankReport:
    """Write all files, rank.json last, and return what the terminal shows.

    Raises:
        RunError: the disk is full, or the folder cannot be written.
    """
    started = time.perf_counter()
    advice = advise(ranking)
    report = describe(ranking, advice)
    folder.write_json("environment.json", describe_environment())
    with folder.replacing("rank.png") as path:
        draw_ranking(
            [_dot(entry, advice) for entry in ranking.entries],
            path,
            control=ranking.control["probe"],
            headline=advice.sentence,
            max_latency_ms=ranking.ranking.max_latency_ms,
        )
    folder.write_text("rank.md", _markdown(ranking, report))
    seconds = {**ranking.seconds, "report": time.perf_counter() - started}
    folder.write_json("rank.json", _figures(ranking, advice, seconds))
    return report


def show_ranking(
    ranking: Ranking, report: RankReport, folder: RunFolder, terminal: TerminalReporter
) -> None:
    """Print the tables, the advice and the paths of the files."""
    terminal.show(narrow(report.table))
    if report.finals:
        terminal.show(report.finals)
        terminal.info(describe_agreement(ranking))
    for sentence in report.sentences:
        terminal.info(sentence)
    terminal.info(f"Written to {folder.path}: rank.json, rank.md and rank.png")


def narrow(table: Table) -> Table:
    """The table for a terminal of 80 columns.

    Without throughput, and with rounded intervals, of accuracies only, below their values.
    """

    def broken(name: str) -> str:
        return name.replace(" to ", "\n  to ").replace(", ", ",\n  ")

    def cell(text: str) -> str:
        value, _, interval = text.rstrip(")").partition(" (")
        ends = [f"{float(end):.0f}" for end in interval.split("–") if "…" not in interval and end]
        return "\n".join([value, "–".join(ends)]) if ends else value

    left_out = table.header.index("images/s")
    header = [title.removeprefix("linear ").removesuffix("-score") for title in table.header]
    rows = [[broken(row[0]), *map(cell, row[1:])] for row in table.rows]
    for cells in (header, *rows):
        del cells[left_out]
    return replace(table, header=header, rows=rows)


def describe(ranking: Ranking, advice: Advice) -> RankReport:
    """A ranking and its advice as sentences and tables."""
    metrics = [metric for metric in METRICS if metric in ranking.control]
    header = ["", "ms", "images/s", "MB", *(METRICS[metric] for metric in metrics)]
    rows = [_row(entry, metrics) for entry in ranking.entries]
    control = {metric: Score(value) for metric, value in ranking.control.items()}
    rows.append(["noise, the control", "", "", "", *_cells(control, metrics)])
    computed = sum(entry.stats.num_computed for entry in ranking.entries)
    found = sum(entry.stats.num_found for entry in ranking.entries)
    images = (
        f"Frozen layers ran on {computed:,} images; the features of {found:,} were in the cache. "
        f"The {ranking.num_left_out:,} test images were left out."
    )
    sentences = [advice.sentence, *advice.warnings, images]
    table = Table(TITLE, header, rows, _CAPTION)
    return RankReport(sentences, table, _tabulate_finals(ranking) if ranking.finals else None)


def _row(entry: RankedCandidate, metrics: Sequence[str]) -> list[str]:
    return [
        entry.name,
        three_digits(entry.latency_ms),
        three_digits(entry.images_per_second),
        three_digits(entry.size_mb),
        *_cells(entry.scores, metrics),
    ]


def _cells(scores: dict[str, Score], metrics: Sequence[str]) -> list[str]:
    cells = []
    for metric in metrics:
        if metric not in scores:
            cells.append("–")
            continue
        value, interval = scores[metric].value, scores[metric].interval
        if metric in SHARES:
            text = percent(value) + (f" ({percent_range(*interval)})" if interval else "")
        else:
            text = fixed(value, 2)
            text += f" ({fixed(interval[0], 2)}…{fixed(interval[1], 2)})" if interval else ""
        cells.append(text)
    return cells


def _tabulate_finals(ranking: Ranking) -> Table:
    header = ["finalist", "rung", "epochs", "seconds", "validation accuracy"]
    rows = []
    for one in ranking.finals:
        accuracy = f"{percent(one.val_accuracy)} ({percent_range(*one.val_interval)})"
        rows.append([one.name, f"{one.rung}", f"{one.num_epochs}", f"{one.seconds:.0f}", accuracy])
    return Table("The finals", header, rows, "validation accuracy in %")


def describe_agreement(ranking: Ranking) -> str:
    """The agreement of each metric's order with that of the finals."""
    values = [
        f"{METRICS[metric]} {'none' if tau is None else fixed(tau, 2)}"
        for metric, tau in _agreement(ranking).items()
    ]
    return (
        f"Weighted Kendall tau with the finals, over {len(ranking.finals)} finalists: "
        f"{', '.join(values)}. With so few finalists this may be chance."
    )


def _agreement(ranking: Ranking) -> dict[str, float | None]:
    values = {
        metric: {
            entry.name: entry.scores[metric].value
            for entry in ranking.entries
            if metric in entry.scores
        }
        for metric in ranking.control
    }
    return agreement(ranking.finals, values)


def _dot(entry: RankedCandidate, advice: Advice) -> Dot:
    probe = entry.scores["probe"]
    interval = probe.interval or (probe.value, probe.value)
    recommended = entry.name == advice.recommended
    return Dot(entry.name, entry.latency_ms, probe.value, interval, recommended)


def _figures(ranking: Ranking, advice: Advice, seconds: dict[str, float]) -> dict[str, Any]:
    return {
        "recommended": advice.recommended,
        "sentence": advice.sentence,
        "warnings": list(advice.warnings),
        "candidates": [_figures_of(entry, ranking, advice) for entry in ranking.entries],
        "control": ranking.control,
        "unreliable": ranking.unreliable,
        "worthless": ranking.worthless,
        "finals": [asdict(one) for one in ranking.finals],
        "agreement": _agreement(ranking) if ranking.finals else {},
        "num_images": ranking.num_images,
        "num_left_out": ranking.num_left_out,
        "num_classes": ranking.num_classes,
        "seconds": seconds,
        "ranking": spec_to_dict(ranking.ranking),
        "spec": spec_to_dict(ranking.spec),
    }


def _figures_of(entry: RankedCandidate, ranking: Ranking, advice: Advice) -> dict[str, Any]:
    model = entry.spec.model
    difference, interval = advice.behind.get(entry.name, (None, None))
    return {
        "name": entry.name,
        "backbone": model.backbone,
        "last_stage": model.last_stage,
        "weights": model.weights,
        "within_limits": keeps_limits(entry, ranking),
        "num_features": entry.num_features,
        "num_parameters": entry.num_parameters,
        "size_mb": entry.size_mb,
        "latency_ms": entry.latency_ms,
        "images_per_second": entry.images_per_second,
        "precision": entry.stats.choice.precision,
        "scores": {metric: asdict(score) for metric, score in entry.scores.items()},
        "behind_best": difference,
        "behind_best_interval": interval,
        "views_computed": entry.stats.num_computed,
        "views_found": entry.stats.num_found,
    }


def _markdown(ranking: Ranking, report: RankReport) -> str:
    spec = ranking.spec
    what = (
        f"Ranked on {ranking.num_images:,} training and validation images of "
        f"{ranking.num_classes} classes at {spec.data.image_size} px, {ranking.ranking.folds} "
        f"folds, {ranking.ranking.neighbours} neighbours, seed {spec.seed}; {num_processors()} "
        "processors."
    )
    lines = [f"# {TITLE}", report.sentences[0], report.table.markdown(), _LEGEND]
    lines += [*report.sentences[1:], what, "![accuracy against latency](rank.png)"]
    if report.finals:
        lines += [f"## {report.finals.title}", report.finals.markdown()]
        lines.append(describe_agreement(ranking))
    return "\n\n".join(lines) + "\n"
