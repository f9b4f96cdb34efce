"""What a race leaves: race.json, a table for terminal and race.md, one sentence, one image."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from keras_transfer.storage.run_folder import RunFolder, describe_environment
from pipelines.benchmarks.race.plot import draw_race
from pipelines.benchmarks.race.race import Race
from pipelines.benchmarks.race.timings import (
    EXTRACTION,
    OURS,
    PLAIN,
    READING,
    STAGES,
    TOTAL,
    Lap,
    compare,
    estimate,
    median_of,
    of,
    stage_seconds,
    total_seconds,
)

TITLE = "The plain Keras recipe and this package, side by side"
_COUNTS = (
    "Seconds are wall time, imports left out, medians over the seeds; accuracy is in %, on the "
    "test split, with Student's 95 % interval over the seeds; peak memory is all that was "
    "resident in the process, TensorFlow and mapped files included."
)


@dataclass(frozen=True)
class Sheet:
    """The comparison in words: `table` is a header and rows of texts."""

    headline: str
    limits: str
    header: list[str]
    rows: list[list[str]]


def write_race(race: Race, folder: RunFolder) -> Sheet:
    """Write race.json, race.md and race.png, and return what the terminal shows.

    Raises:
        RunError: the disk is full, or the folder cannot be written.
    """
    figures = compare(race.laps, race.limits)
    sheet = describe(race.laps, figures)
    folder.write_json("environment.json", describe_environment())
    folder.write_json("race.json", figures)
    folder.write_text("race.md", _markdown(race, sheet))
    with folder.replacing("race.png") as path:
        draw_race(race.laps, sheet.headline, path)
    return sheet


def describe(laps: Sequence[Lap], figures: dict[str, Any]) -> Sheet:
    """Put laps and their comparison (`laps.compare`) into words."""
    names = list(dict.fromkeys(lap.name for lap in laps))
    names.sort(key=lambda name: (name == OURS, name))
    header = ["", *names, f"{PLAIN} / {OURS}"]
    return Sheet(
        headline=_headline(laps, figures),
        limits=_limits(figures["limits"]),
        header=header,
        rows=[*_seconds_rows(laps, names, figures["ratio"]), *_other_rows(laps, names)],
    )


def _headline(laps: Sequence[Lap], figures: dict[str, Any]) -> str:
    plain, ours, ratio = of(laps, PLAIN), of(laps, OURS), dict(figures["ratio"])
    total = ratio.pop(TOTAL)
    phases = [f"{stage} {_times(ratio[stage])}" for stage in ratio if stage not in STAGES]
    once = sum(stage_seconds(ours, stage) for stage in (READING, EXTRACTION))
    speed = f"{_times(total)} faster" if total >= 1 else f"{_times(1 / total)} slower"
    means = [estimate([lap.accuracy for lap in side]).mean for side in (ours, plain)]
    accuracies = " against ".join(f"{_percent(mean)} %" for mean in means)
    return (
        f"Ours took {_seconds(total_seconds(ours))} s where the plain recipe took "
        f"{_seconds(total_seconds(plain))} s: {speed} ({', '.join(phases)}, once "
        f"{_seconds(once)} s were spent on reading and extraction); test accuracy {accuracies}, "
        f"difference {_difference(figures['accuracy_difference'])}."
    )


def _difference(value: dict[str, Any]) -> str:
    text = f"{_signed(value['mean'])} points"
    if value["interval"] is None:
        return f"{text} (one seed, so no interval)"
    low, high = value["interval"]
    return f"{text} ({_signed(low)} to {_signed(high)})"


def _limits(limits: dict[str, Any]) -> str:
    text = (
        f"Limits of this machine: decoding and resizing alone "
        f"{limits['decode_and_resize_per_second']:,.0f} images/s, the frozen layers alone "
        f"{limits['forward_per_second']:,.0f} images/s"
    )
    if limits["extraction_per_second"] is None:
        return f"{text}."
    return (
        f"{text}; extraction made {limits['extraction_per_second']:,.0f} views/s, "
        f"{100 * limits['share_of_slower']:.0f} % of the slower one."
    )


def _seconds_rows(
    laps: Sequence[Lap], names: Sequence[str], ratio: dict[str, float]
) -> list[list[str]]:
    longest = max((lap.stages for lap in laps if lap.name == OURS), key=len)
    rows = []
    for stage in longest:
        cells = [
            _seconds(stage_seconds(of(laps, name), stage))
            if stage in of(laps, name)[0].stages
            else "–"
            for name in names
        ]
        rows.append([f"{stage}, s", *cells, _times(ratio[stage]) if stage in ratio else ""])
    totals = []
    for name in names:
        seconds = [lap.seconds for lap in of(laps, name)]
        spread = f" ({_seconds(min(seconds))}–{_seconds(max(seconds))})" if seconds[1:] else ""
        totals.append(_seconds(total_seconds(of(laps, name))) + spread)
    return [*rows, [f"{TOTAL}, s", *totals, _times(ratio[TOTAL])]]


def _other_rows(laps: Sequence[Lap], names: Sequence[str]) -> list[list[str]]:
    columns = []
    for name in names:
        side = of(laps, name)
        accuracy = estimate([lap.accuracy for lap in side])
        text = _percent(accuracy.mean)
        if accuracy.interval:
            low, high = accuracy.interval
            text += f" ({_percent(max(0.0, low))}–{_percent(min(1.0, high))})"
        peak, stored = (
            median_of([getattr(lap, field) for lap in side]) for field in ("peak_mb", "stored_mb")
        )
        columns.append([text, f"{peak:,.0f}", "–" if stored is None else f"{stored:,.1f}"])
    labels = ("test accuracy, %", "peak memory, MB", "stored, MB")
    return [[label, *cells, ""] for label, *cells in zip(labels, *columns, strict=True)]


def _markdown(race: Race, sheet: Sheet) -> str:
    spec = race.spec
    seeds = sorted({lap.seed for lap in race.laps})
    what = (
        f"Raced: {spec.model.backbone} at {spec.data.image_size} px, weights "
        f"{spec.model.weights}, {spec.devices.precision}, batches of {spec.training.batch_size}, "
        f"{' + '.join(f'{phase.epochs} epochs {phase.name}' for phase in spec.phases)}; "
        f"{', '.join(f'{number:,} {split}' for split, number in race.num_images.items())} "
        f"images; seeds {', '.join(map(str, seeds))}; {os.cpu_count()} processors."
    )
    lines = [
        f"# {TITLE}",
        sheet.headline,
        "\n".join(
            f"| {' | '.join(cells)} |"
            for cells in (sheet.header, ["---"] * len(sheet.header), *sheet.rows)
        ),
        f"{_COUNTS} {sheet.limits}",
        what,
        "![seconds and accuracy](race.png)",
    ]
    return "\n\n".join(lines) + "\n"


def _seconds(value: float) -> str:
    return f"{value:.1f}" if value < 10 else f"{value:,.0f}"


def _times(ratio: float) -> str:
    if ratio < 1:
        return f"{ratio:.2g} ×"
    return f"{ratio:.1f} ×" if ratio < 10 else f"{ratio:,.0f} ×"


def _percent(share: float) -> str:
    return f"{100 * share:.1f}"


def _signed(share: float) -> str:
    """A difference in points, with a real minus sign and no negative zero."""
    text = f"{100 * share:+.1f}"
    return "±0.0" if text[1:] == "0.0" else text.replace("-", "−")
