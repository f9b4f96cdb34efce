"""Writes study.json, out_of_fold.csv and learning_curve.png, and shows a study as a table."""

from typing import Any

import numpy as np

from keras_transfer.evaluation.plots import draw_accuracy_by_size
from keras_transfer.evaluation.predictions import prediction_columns, prediction_rows
from keras_transfer.experiments.study.study import Group, Study, summary_statistics
from keras_transfer.experiments.summary import with_interval
from keras_transfer.reporting.reporter import TerminalReporter


def write_study(study: Study) -> None:
    """Write all files, study.json last: it marks the study as complete."""
    if study.spec.folds > 1:
        _write_out_of_fold(study)
    if study.spec.halvings:
        with study.run.replacing("learning_curve.png") as path:
            points = [group.point for group in study.groups]
            draw_accuracy_by_size(points, path, caption=_describe_accuracy(study))
    content = {
        "kind": study.kind,
        "summary": _summarise(study),
        "cost": _cost(study),
        "trials": [trial.to_dict() for trial in study.trials],
    }
    study.run.write_json("study.json", content)


def _write_out_of_fold(study: Study) -> None:
    """Write a row for each seed and image, as in predictions.csv, in the order of the records."""
    names = study.records.class_names
    labels = np.asarray(study.records.labels())
    rows: list[tuple[tuple[int, int], list[Any]]] = []
    for trial in study.trials:
        seed = trial.seed
        paths = (study.records.items[row].path for row in trial.rows)
        predictions = prediction_rows(paths, labels[trial.rows], trial.probabilities, names)
        for row, prediction in zip(trial.rows.tolist(), predictions, strict=True):
            rows.append(((seed, row), [seed, trial.fold, *prediction]))
    rows.sort(key=lambda pair: pair[0])
    header = ["seed", "fold", *prediction_columns(names)]
    study.run.write_rows("out_of_fold.csv", header, (row for _, row in rows))


def _summarise(study: Study) -> dict[str, Any]:
    groups = study.groups
    summary: dict[str, Any] = {
        "by": study.by,
        "groups": [
            {
                study.by: group.value,
                "num_trials": len(group.trials),
                "num_held_out": group.num_held_out,
                "accuracy": group.accuracy,
                "interval": group.interval if group.is_of_one_seed else None,
                **group.statistics,
            }
            for group in groups
        ],
    }
    if not study.spec.halvings:
        summary["over_groups"] = summary_statistics([group.accuracy for group in groups])
    if study.by == "fold":
        whole = Group(0, study.trials)
        summary["out_of_fold"] = {"accuracy": whole.accuracy, "interval": whole.interval}
    return summary


def _cost(study: Study) -> dict[str, Any]:
    names = ("seconds", "views_computed", "views_found", "views_trained_on")
    return {name: sum(getattr(trial, name) for trial in study.trials) for name in names}


def show_study(study: Study, terminal: TerminalReporter) -> None:
    """Print a row for each group, a summary, and what the cache saved."""
    groups = study.groups
    rows = [
        [
            f"{group.value:,}",
            f"{len(group.trials)}",
            f"{group.num_held_out:,}",
            f"{sum(trial.seconds for trial in group.trials):.0f}",
            with_interval(group.accuracy, group.interval),
        ]
        for group in groups
    ]
    title = {"train_size": "training images"}.get(study.by, study.by)
    header = [title, "trials", "held out", "seconds", "accuracy"]
    caption = f"{_describe_accuracy(study)}, in %"
    terminal.table(f"Study {study.run.path}", header, rows, caption=caption)
    for sentence in (_describe_result(study), _describe_cost(study)):
        terminal.info(sentence)
    if study.spec.folds > 1:
        terminal.info(f"Out-of-fold predictions {study.run.path / 'out_of_fold.csv'}")
    if study.spec.halvings:
        terminal.info(f"Learning curve {study.run.path / 'learning_curve.png'}")
    terminal.info(f"All figures {study.run.study_file}")


def _describe_accuracy(study: Study) -> str:
    """What accuracy and interval of a group mean."""
    if all(group.is_of_one_seed for group in study.groups):
        return "accuracy with its 95 % interval"
    return f"accuracy: median, minimum and maximum over {study.spec.seeds} seeds"


def _describe_result(study: Study) -> str:
    groups = study.groups
    if study.spec.halvings:
        many, few = groups[0], groups[-1]
        return (
            f"{few.accuracy:.1%} with {few.value:,} training images, {many.accuracy:.1%} with "
            f"{many.value:,}."
        )
    over = summary_statistics([group.accuracy for group in groups])
    text = (
        f"over {len(groups)} {study.by}s minimum {over['minimum']:.1%}, median "
        f"{over['median']:.1%}, maximum {over['maximum']:.1%}, mean {over['mean']:.1%}"
    )
    if over["standard_deviation"] is not None:
        text += f", standard deviation {100 * over['standard_deviation']:.1f} points"
    if study.by == "fold":
        whole = Group(0, study.trials)
        low, high = whole.interval
        return (
            f"Out of fold {whole.accuracy:.1%} ({low:.1%} to {high:.1%}) of "
            f"{whole.num_held_out:,} images; {text}."
        )
    what = "Out-of-fold accuracy" if study.spec.folds > 1 else "Test accuracy"
    return f"{what} {text}."


def _describe_cost(study: Study) -> str:
    cost = _cost(study)
    if not cost["views_computed"] + cost["views_found"]:
        return "No features were cached: frozen layers ran in every epoch of every trial."
    return (
        f"Frozen layers ran on {cost['views_computed']:,} views for {len(study.trials)} trials; "
        f"without the cache they would have run on {cost['views_trained_on']:,}."
    )
