"""Writes race.json, race.md and race.png, and makes the table for the terminal."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from keras_transfer.devices.processors import num_processors
from keras_transfer.reporting.numbers import percent, percent_range
from keras_transfer.reporting.tables import Table
from keras_transfer.specs import PhaseSpec
from keras_transfer.storage.model_files import title
from keras_transfer.storage.run_folder import RunFolder, describe_environment
from pipelines.benchmarks.race.contestants import HEAD_EPOCHS
from pipelines.benchmarks.race.plot import draw_race
from pipelines.benchmarks.race.race import Race
from pipelines.benchmarks.race.timings import (
    EXTRACTION,
    OURS,
    PLAIN,
    READING,
    STAGES,
    TOTAL,
    Timing,
    compare,
    estimate,
    median_of,
    names_of,
    of,
    stage_seconds,
    stages_of,
    total_seconds,
)

TITLE = "The plain Keras recipe and this package, side by side"
_COUNTS = (
    "Seconds are wall time without imports, medians over the seeds; accuracy is in %, on the test "
    "split, with Student's 95 % interval over the seeds; peak memory is all resident memory of the "
    "process, with TensorFlow and mapped files."
)


@dataclass(frozen=True)
class RaceReport:
    """The comparison as a sentence and a table, whose caption has the limits of the machine."""

    headline: str
    table: Table


def write_race(race: Race, folder: RunFolder) -> RaceReport:
    """Write race.json, race.md and race.png, and return what the terminal shows.

    Raises:
        RunError: the disk is full, or the folder cannot be written.
    """
    figures = compare(race.timings, race.limits)
    report = describe(race.timings, figures)
    folder.write_json("environment.json", describe_environment())
    folder.write_json("race.json", figures)
    folder.write_text("race.md", _markdown(race, report))
    with folder.replacing("race.png") as path:
        draw_race(race.timings, report.headline, path)
    return report


def describe(timings: Sequence[Timing], figures: dict[str, Any]) -> RaceReport:
    """Timings and their comparison (of `timings.compare`) as a sentence and a table."""
    names = names_of(timings)
    header = ["", *names, f"{PLAIN} / {OURS}"]
    rows = [*_seconds_rows(timings, names, figures["ratio"]), *_other_rows(timings, names)]
    if figures["others"]:
        rows += _comparison_rows(figures, names)
    table = Table(TITLE, header, rows, _limits(figures["limits"]))
    return RaceReport(_headline(timings, figures), table)


def _headline(timings: Sequence[Timing], figures: dict[str, Any]) -> str:
    plain, ours, ratio = of(timings, PLAIN), of(timings, OURS), dict(figures["ratio"])
    total = ratio.pop(TOTAL)
    phases = [f"{stage} {_times(ratio[stage])}" for stage in ratio if stage not in STAGES]
    once = sum(stage_seconds(ours, stage) for stage in (READING, EXTRACTION))
    speed = f"{_times(total)} faster" if total >= 1 else f"{_times(1 / total)} slower"
    means = [estimate([timing.accuracy for timing in side]).mean for side in (ours, plain)]
    accuracies = " against ".join(f"{percent(mean)} %" for mean in means)
    return (
        f"This package took {_seconds(total_seconds(ours))} s where the plain recipe took "
        f"{_seconds(total_seconds(plain))} s: {speed} ({', '.join(phases)}, once "
        f"{_seconds(once)} s were spent on reading and extraction); test accuracy {accuracies}, "
        f"difference {_difference(figures['accuracy_difference'])}. "
        f"{_time_to_accuracy(figures['time_to_accuracy'])}"
    )


def _time_to_accuracy(value: dict[str, Any]) -> str:
    if value["ratio"] is None:
        return "It never reached the plain recipe's accuracy."
    seeds = (
        ""
        if value["num_reached"] == value["num_seeds"]
        else (f" in {value['num_reached']} of {value['num_seeds']} seeds")
    )
    return f"It reached the plain recipe's accuracy {_times(value['ratio'])} sooner{seeds}."


def _difference(value: dict[str, Any]) -> str:
    text = f"{percent(value['mean'], signed=True)} points"
    if value["interval"] is None:
        return f"{text} (one seed, so no interval)"
    low, high = (percent(end, signed=True) for end in value["interval"])
    return f"{text} ({low} to {high})"


def _limits(limits: dict[str, Any]) -> str:
    text = (
        f"Limits of this machine: decoding and resizing alone "
        f"{limits['decode_and_resize_per_second']:,.0f} images/s, the frozen layers alone "
        f"{limits['forward_per_second']:,.0f} images/s"
    )
    if limits["extraction_per_second"] is None:
        return f"{text}."
    return (
        f"{text}; extraction reached {limits['extraction_per_second']:,.0f} views/s, "
        f"{100 * limits['share_of_slower']:.0f} % of the slower one."
    )


def _seconds_rows(
    timings: Sequence[Timing], names: Sequence[str], ratio: dict[str, float]
) -> list[list[str]]:
    rows = []
    for stage in stages_of(timings):
        cells = [
            _seconds(stage_seconds(of(timings, name), stage))
            if stage in of(timings, name)[0].stages
            else "–"
            for name in names
        ]
        rows.append([f"{stage}, s", *cells, _times(ratio[stage]) if stage in ratio else ""])
    totals = []
    for name in names:
        seconds = [timing.seconds for timing in of(timings, name)]
        spread = f" ({_seconds(min(seconds))}–{_seconds(max(seconds))})" if seconds[1:] else ""
        totals.append(_seconds(total_seconds(of(timings, name))) + spread)
    return [*rows, [f"{TOTAL}, s", *totals, _times(ratio[TOTAL])]]


def _other_rows(timings: Sequence[Timing], names: Sequence[str]) -> list[list[str]]:
    columns = []
    for name in names:
        side = of(timings, name)
        accuracy = estimate([timing.accuracy for timing in side])
        text = percent(accuracy.mean)
        if accuracy.interval:
            low, high = accuracy.interval
            text += f" ({percent_range(max(0.0, low), min(1.0, high))})"
        peak, stored = (
            median_of([getattr(timing, field) for timing in side])
            for field in ("peak_mb", "stored_mb")
        )
        columns.append([text, f"{peak:,.0f}", "–" if stored is None else f"{stored:,.1f}"])
    labels = ("test accuracy, %", "peak memory, MB", "stored, MB")
    return [[label, *cells, ""] for label, *cells in zip(labels, *columns, strict=True)]


def _comparison_rows(figures: dict[str, Any], names: Sequence[str]) -> list[list[str]]:
    """Every contestant against the plain recipe: seconds and accuracy."""
    ours = {**figures, "ratio": figures["ratio"][TOTAL]}
    found = {**figures["others"], OURS: ours}
    ratios = [_times(found[name]["ratio"]) if name in found else "" for name in names]
    points = [
        _difference(found[name]["accuracy_difference"]) if name in found else "" for name in names
    ]
    return [[f"total, {PLAIN} / it", *ratios, ""], [f"accuracy, it − {PLAIN}", *points, ""]]


def _markdown(race: Race, report: RaceReport) -> str:
    spec = race.spec
    seeds = sorted({timing.seed for timing in race.timings})
    what = (
        f"Trained: {title(spec.model.backbone)} at {spec.data.image_size} px, weights "
        f"{title(spec.model.weights)}, {spec.devices.precision}, "
        f"batches of {spec.training.batch_size}, "
        f"{' + '.join(map(_describe, spec.phases))}; "
        f"{', '.join(f'{number:,} {split}' for split, number in race.num_images.items())} "
        f"images; seeds {', '.join(map(str, seeds))}; {num_processors()} processors."
    )
    lines = [
        f"# {TITLE}",
        report.headline,
        report.table.markdown(),
        f"{_COUNTS} {report.table.caption}",
        what,
        "![seconds and accuracy](race.png)",
    ]
    return "\n\n".join(lines) + "\n"


def _describe(phase: PhaseSpec) -> str:
    if phase.method == "exact":
        return f"{phase.name} solved (by the plain recipe {HEAD_EPOCHS} epochs)"
    few = f" from {phase.min_images:,} images on" if phase.min_images else ""
    return f"{phase.epochs} epochs {phase.name}{few}"


def _seconds(value: float) -> str:
    return f"{value:.1f}" if value < 10 else f"{value:,.0f}"


def _times(ratio: float) -> str:
    if ratio < 1:
        return f"{ratio:.2g} ×"
    return f"{ratio:.1f} ×" if ratio < 10 else f"{ratio:,.0f} ×"
