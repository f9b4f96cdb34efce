"""Writes study.json, out_of_fold.csv and learning_curve.png, and shows a study as a table."""

from typing import Any

from keras_transfer.evaluation.plots import draw_score_by_size
from keras_transfer.experiments.study.study import Study, summary_statistics
from keras_transfer.reporting.reporter import TerminalReporter


def write_study(study: Study) -> None:
    """Write all files, study.json last: it marks the study as complete."""
    if study.spec.folds > 1:
        _write_out_of_fold(study)
    if study.spec.halvings:
        with study.run.replacing("learning_curve.png") as path:
            points = [group.point for group in study.groups]
            monitor = study.task.monitor
            draw_score_by_size(
                points,
                path,
                metric=monitor.metric,
                is_share=monitor.is_share,
                caption=_describe_score(study),
            )
    content = {
        "kind": study.kind,
        "metric": study.task.monitor.metric,
        "summary": _summarise(study),
        "cost": _cost(study),
        "trials": [trial.to_dict() for trial in study.trials],
    }
    study.run.write_json("study.json", content)


def _write_out_of_fold(study: Study) -> None:
    """Write a row for each seed and image, as in predictions.csv, in the order of the records."""
    task, values = study.task, study.records.targets.values
    rows: list[tuple[tuple[int, int], list[Any]]] = []
    for trial in study.trials:
        seed = trial.seed
        for row, outputs in zip(trial.rows.tolist(), trial.outputs, strict=True):
            path = study.records.items[row].path
            cells = [seed, trial.fold, path, *task.row(outputs, values[row])]
            rows.append(((seed, row), cells))
    rows.sort(key=lambda pair: pair[0])
    header = ["seed", "fold", "path", *task.columns(labelled=True)]
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
                "score": group.score,
                "interval": group.interval if group.is_of_one_seed else None,
                **group.statistics,
            }
            for group in groups
        ],
    }
    if not study.spec.halvings:
        summary["over_groups"] = summary_statistics([group.score for group in groups])
    if study.by == "fold":
        whole = study.group(0, study.trials)
        summary["out_of_fold"] = {"score": whole.score, "interval": whole.interval}
    return summary


def _cost(study: Study) -> dict[str, Any]:
    names = ("seconds", "views_computed", "views_found", "views_trained_on")
    return {name: sum(getattr(trial, name) for trial in study.trials) for name in names}


def show_study(study: Study, terminal: TerminalReporter) -> None:
    """Print a row for each group, a summary, and how much the cache saved."""
    groups, monitor = study.groups, study.task.monitor
    rows = [
        [
            f"{group.value:,}",
            f"{len(group.trials)}",
            f"{group.num_held_out:,}",
            f"{sum(trial.seconds for trial in group.trials):.0f}",
            monitor.format_interval(group.score, group.interval),
        ]
        for group in groups
    ]
    title = {"train_size": "training images"}.get(study.by, study.by)
    header = [title, "trials", "held out", "seconds", monitor.metric.replace("_", " ")]
    caption = f"{_describe_score(study)}{', in %' if monitor.is_share else ''}"
    terminal.table(f"Study {study.run.path}", header, rows, caption=caption)
    for sentence in (_describe_result(study), _describe_cost(study)):
        terminal.info(sentence)
    if study.spec.folds > 1:
        terminal.info(f"Out-of-fold predictions {study.run.path / 'out_of_fold.csv'}")
    if study.spec.halvings:
        terminal.info(f"Learning curve {study.run.path / 'learning_curve.png'}")
    terminal.info(f"All figures {study.run.study_file}")
    terminal.info(
        "A study saves no model: the same command without folds, seeds and halvings trains one."
    )


def _describe_score(study: Study) -> str:
    """The meaning of score and interval of a group."""
    name = study.task.monitor.metric.replace("_", " ")
    if all(group.is_of_one_seed for group in study.groups):
        return f"{name} with its 95 % interval"
    return f"{name}: median, minimum and maximum over {study.spec.seeds} seeds"


def _describe_result(study: Study) -> str:
    groups, monitor = study.groups, study.task.monitor
    show = monitor.format
    if study.spec.halvings:
        many, few = groups[0], groups[-1]
        return (
            f"{show(few.score)} with {few.value:,} training images, {show(many.score)} with "
            f"{many.value:,}."
        )
    over = summary_statistics([group.score for group in groups])
    text = (
        f"over {len(groups)} {study.by}s minimum {show(over['minimum'])}, median "
        f"{show(over['median'])}, maximum {show(over['maximum'])}, mean {show(over['mean'])}"
    )
    if over["standard_deviation"] is not None:
        text += f", standard deviation {monitor.format_difference(over['standard_deviation'])}"
    if study.by == "fold":
        whole = study.group(0, study.trials)
        low, high = map(show, whole.interval)
        return (
            f"Out of fold {show(whole.score)} ({low} to {high}) of "
            f"{whole.num_held_out:,} images; {text}."
        )
    name = monitor.metric.replace("_", " ")
    what = f"Out-of-fold {name}" if study.spec.folds > 1 else f"Test {name}"
    return f"{what} {text}."


def _describe_cost(study: Study) -> str:
    cost = _cost(study)
    if not cost["views_computed"] + cost["views_found"]:
        return "No features were cached: frozen layers ran in every epoch of every trial."
    return (
        f"Frozen layers ran on {cost['views_computed']:,} views for {len(study.trials)} trials; "
        f"without the cache they would have run on {cost['views_trained_on']:,}."
    )
