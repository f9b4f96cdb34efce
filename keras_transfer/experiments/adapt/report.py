"""Writes adaptation.json and adaptation.md, and shows the table of all kinds."""

import os
import shlex
from dataclasses import asdict
from typing import Any, Final

from keras_transfer.adaptation.registry import UNLABELLED, parse_chain
from keras_transfer.evaluation.intervals import Z95
from keras_transfer.experiments.adapt.candidates import Candidate, Comparison
from keras_transfer.inference.prediction import LoadedRun
from keras_transfer.reporting.numbers import fixed, percent
from keras_transfer.reporting.reporter import TerminalReporter
from keras_transfer.reporting.tables import Table
from keras_transfer.storage.run_folder import RunFolder
from keras_transfer.tasks.task import Task

REPORT_FILE: Final = "adaptation.json"
"""Written last: it marks an adaptation as complete."""
MARKDOWN_FILE: Final = "adaptation.md"
_NOTE: Final = (
    "'neighbours': how well the predicted class of a target image tells those of the ten images "
    "most like it, from 0 to 1 (mutual information; higher is better). Without labels "
    f"{' or '.join(UNLABELLED[1:])} is chosen where this is clearly above the run's, by two "
    "standard errors. 'labelled loss', if shown, decides alone: the lowest of all. These decide "
    "nothing: 'entropy', how unsure predictions are, from 0 to 1; 'balance', how evenly the "
    "classes are predicted, 1 for equally often; 'agrees', target images with the same class as "
    "before; 'own test', on the run's own test split."
)


def write_adaptation(new: RunFolder, run: LoadedRun, found: Comparison, *, folder: str) -> None:
    """Write adaptation.md and adaptation.json, which marks the adaptation as complete.

    Raises:
        RunError: the disk is full, or the folder cannot be written.
    """
    table = tabulate(found, run.task)
    lines = [f"# {new.path.name}", describe(found, run.task), table.markdown(), _NOTE]
    new.write_text(MARKDOWN_FILE, "\n\n".join(lines) + "\n")
    made_of = os.path.relpath(run.folder.path, new.path)
    new.write_json(REPORT_FILE, {"made_of": made_of, "target": folder} | _figures(found, run.task))


def show_adaptation(
    new: RunFolder, found: Comparison, task: Task, terminal: TerminalReporter
) -> None:
    """Print the table, its note and the sentence on the choice."""
    table = tabulate(found, task)
    terminal.table(table.title, table.header, table.rows)
    terminal.info(_NOTE)
    terminal.info(describe(found, task))
    terminal.info(f"Written to {new.path}: {REPORT_FILE} and {MARKDOWN_FILE}")
    terminal.info(
        "To check it on the new images, sort some of them into a folder for each class: "
        f"python -m pipelines.evaluate {shlex.quote(str(new.path))} LABELLED_FOLDER"
    )


def describe(found: Comparison, task: Task) -> str:
    """What was chosen and why, and what it changes on the run's own test images."""
    chosen = found.chosen
    if chosen is found.source:
        reason = "It was asked for" if found.is_forced else "Nothing helped clearly"
        return f"{reason}: the new run has the model of the run as it is."
    gain = found.own_gain(task)
    change = task.monitor.format_gain(gain.difference, Z95 * gain.standard_error)
    reason = "it was asked for"
    if not found.is_forced:
        reason = "it has the highest neighbour information"
        if found.num_labelled:
            reason = f"it has the lowest log loss on {found.num_labelled} labelled target images"
    return (
        f"{chosen.name}: {reason}. {100 * (1 - chosen.scores.agreement):.1f} % of "
        f"{found.num_target:,} target images have another class than before. On the run's own test "
        f"images {task.monitor.metric} changes by {change} (95 % interval)."
    )


def card_sentence(found: Comparison, target: str) -> str:
    """What the model's card says of the adaptation; '' where nothing was changed."""
    if found.chosen is found.source:
        return ""
    steps = "; ".join(kind.text for kind in parse_chain(found.chosen.name))
    return (
        f"It was adapted to {found.num_target:,} images without labels, '{target}' "
        f"({found.chosen.name}: {steps}). The figures are those of test images that look like its "
        "training images; how good it is on the others was not measured."
    )


def tabulate(found: Comparison, task: Task) -> Table:
    """A row for each kind; the chosen one is marked."""
    header = ["", "neighbours", "entropy", "balance", "agrees, %"]
    if found.num_labelled:
        header.append("labelled loss")
    header.append(f"own test: {task.monitor.label}")
    rows = [_row(found, one, task) for one in found.candidates]
    return Table("Adaptation", header, rows)


def _row(found: Comparison, one: Candidate, task: Task) -> list[str]:
    scores, headline = one.scores, task.headline(found.own_labels, one.own_outputs)
    loss = [] if scores.labelled_loss is None else [fixed(scores.labelled_loss, 3)]
    return [
        f"{one.name} (chosen)" if one is found.chosen else one.name,
        fixed(scores.neighbours, 3),
        fixed(scores.entropy, 3),
        fixed(scores.balance, 3),
        percent(scores.agreement),
        *loss,
        task.monitor.format_interval(headline.value, headline.interval),
    ]


def _figures(found: Comparison, task: Task) -> dict[str, Any]:
    gain = found.own_gain(task)
    error = Z95 * gain.standard_error
    return {
        "chosen": found.chosen.name,
        "is_forced": found.is_forced,
        "sentence": describe(found, task),
        "num_target": found.num_target,
        "num_labelled": found.num_labelled,
        "own_test": {
            "metric": task.monitor.metric,
            "num_images": len(found.own_labels),
            "gain": gain.difference,
            "gain_interval": [gain.difference - error, gain.difference + error],
        },
        "candidates": [_candidate(found, one, task) for one in found.candidates],
    }


def _candidate(found: Comparison, one: Candidate, task: Task) -> dict[str, Any]:
    scores = asdict(one.scores)
    del scores["information"]  # Its mean is enough.
    headline = task.headline(found.own_labels, one.own_outputs)
    return {
        "name": one.name,
        "neighbours": one.scores.neighbours,
        **scores,
        "own_test": headline.value,
        "own_test_interval": headline.interval,
    }
