"""Predict: run files, folders or a list on standard input with a run or an exported model.

python -m pipelines.predict saved_models/my_photos photo.jpg
python -m pipelines.predict saved_models/my_photos photo.jpg more_photos/ --output predictions.csv
python -m pipelines.predict saved_models/my_photos/formats/1/model.onnx photos/ --output all.parquet
find / -name '*.jpg' | python -m pipelines.predict saved_models/my_photos - --output all.csv
python -m pipelines.predict saved_models/my_photos photos/ --output predictions.csv --workers 4

Without --output the predictions of up to 20 images are printed. A run then answers with its
SavedModel, which opens sooner than its Keras model.
"""

import argparse
import functools
import itertools
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from keras_transfer.data.file_kinds import FORMATS
from keras_transfer.devices import native_log_to
from keras_transfer.errors import DataError, SpecError, check_all
from keras_transfer.inference.paths import check_table, check_target, expand_paths, path_checks
from keras_transfer.scale.cluster import check_ray
from keras_transfer.storage.atomic import check_vacant
from pipelines.arguments import UNREAD, main_of, make_parser, positive, say, scratch_log

if TYPE_CHECKING:
    import numpy as np

    from keras_transfer.data.records import BadFile
    from keras_transfer.inference.prediction import LoadedRun, Prediction, Target
    from keras_transfer.inference.writers import PredictionSummary, Row
    from keras_transfer.reporting.reporter import TerminalReporter
    from keras_transfer.tasks.task import Task

_MOST_PRINTED, _MOST_OUTPUTS = 20, 3


def _parser() -> argparse.ArgumentParser:
    parser = make_parser("predict", str(__doc__))
    parser.add_argument(
        "target",
        metavar="TARGET",
        help="run folder, SavedModel folder, or .onnx, .tflite, .xml, .keras, .difference file",
    )
    parser.add_argument("paths", metavar="PATH", nargs="+", help="file, folder or - for stdin")
    parser.add_argument(
        "--output", metavar="FILE", help=".csv or .parquet to write (default: print up to 20)"
    )
    parser.add_argument("--batch-size", type=positive, default=32, help="images per forward pass")
    parser.add_argument(
        "--resume", action="store_true", help="continue the output of an interrupted prediction"
    )
    parser.add_argument(
        "--workers",
        type=positive,
        metavar="N",
        help="processes of a Ray cluster: the one at RAY_ADDRESS, or this machine (default: this "
        "process, without Ray)",
    )
    return parser


def _run(argv: Sequence[str] | None) -> int:
    arguments = _parser().parse_args(argv)
    checks = [lambda: check_target(arguments.target), *path_checks(arguments.paths)]
    if arguments.output is None:
        check_all(*checks)
        return _print(arguments)
    output = Path(arguments.output)
    checks = [lambda: check_table(output), lambda: check_vacant(output), *checks]
    check_all(*checks, *([check_ray] if arguments.workers else []))
    with native_log_to(scratch_log()):
        from keras_transfer.inference.prediction import LoadedRun, identify, open_target
        from keras_transfer.inference.writers import write_predictions
        from keras_transfer.reporting.reporter import TerminalReporter

        terminal = TerminalReporter()
        files = expand_paths(arguments.paths, sys.stdin)
        target = open_target(arguments.target)
        known = _known(target, terminal) if isinstance(target, LoadedRun) else {}
        identity = identify(target)
        predict = _predictor(arguments, target, identity, known, terminal)
        with terminal.progress("predicting") as count:
            summary = write_predictions(
                lambda remaining: terminal.counted(predict(remaining), count),
                files,
                Path(arguments.output),
                task=target.contract.restored_task,
                target=identity,
                resume=arguments.resume,
            )
        _show(summary, arguments.output, terminal)
    return UNREAD if summary.num_bad and not summary.num_predicted else 0


def _print(arguments: argparse.Namespace) -> int:
    """Print the predictions of a few images; the exit status."""
    if arguments.resume or arguments.workers:
        raise SpecError(
            "--resume and --workers are for predictions that are written to a file",
            expected="--output FILE with them",
            received="no --output",
            fix="add --output predictions.csv",
        )
    files = list(itertools.islice(expand_paths(arguments.paths, sys.stdin), _MOST_PRINTED + 1))
    if len(files) > _MOST_PRINTED:
        raise SpecError(
            f"the predictions of more than {_MOST_PRINTED} images are not printed",
            expected="--output FILE",
            received="no --output",
            fix="add --output predictions.csv",
        )
    with native_log_to(scratch_log()):
        from keras_transfer.data.records import BadFile
        from keras_transfer.devices.graphs import full_float32
        from keras_transfer.inference.prediction import Prediction, open_exported, predict_files
        from keras_transfer.reporting.reporter import TerminalReporter

        target = open_exported(arguments.target)
        task = target.contract.restored_task
        with full_float32():
            rows = list(predict_files(target, iter(files), batch_size=arguments.batch_size))
        bad = [row for row in rows if isinstance(row, BadFile)]
        if len(bad) == len(rows):
            raise _all_unreadable(bad)
        cells = [_cells(row, task) for row in rows if isinstance(row, Prediction)]
        title = f"Predictions of {arguments.target}"
        TerminalReporter().table(title, ["file", "prediction", "outputs, the highest first"], cells)
    for row in bad:
        say(f"{row.path} was not predicted: {row.reason}.")
    return UNREAD if bad else 0


def _all_unreadable(bad: "Sequence[BadFile]") -> DataError:
    several = f"none of the {len(bad)} files can"
    return DataError(
        f"{f'{bad[0].path} cannot' if len(bad) == 1 else several} be read as an image",
        expected=f"image files: {FORMATS}",
        received="; ".join(f"{one.path}: {one.reason}" for one in bad),
        fix="give image files, or a folder of them",
    )


def _cells(row: "Prediction", task: "Task") -> list[str]:
    from keras_transfer.models.activations import ranges

    lines = []
    for _, own in ranges(task.activation, len(task.names)):
        order = own.start + (-row.outputs[own]).argsort(kind="stable")[:_MOST_OUTPUTS]
        outputs = (f"{task.names[n]} {task.format_output(row.outputs[n], n)}" for n in order)
        lines.append(", ".join(outputs))
    return [row.path, row.label or "–", "\n".join(lines)]


def _predictor(
    arguments: argparse.Namespace,
    target: "Target",
    identity: str,
    known: "dict[str, np.ndarray]",
    terminal: "TerminalReporter",
) -> "Callable[[Iterator[Path]], Iterator[Row]]":
    """A function from files to their rows, which are computed in this process or by workers."""
    from keras_transfer.inference.prediction import predict_files

    if not arguments.workers:
        return functools.partial(
            predict_files, target, known=known, batch_size=arguments.batch_size
        )
    from keras_transfer.scale.prediction import predict_with_workers

    return functools.partial(
        predict_with_workers,
        arguments.target,
        identity=identity,
        known=known,
        batch_size=arguments.batch_size,
        num_workers=arguments.workers,
        reporter=terminal,
    )


def _known(run: "LoadedRun", terminal: "TerminalReporter") -> "dict[str, np.ndarray]":
    """Outputs in the cache for images of the run's data, by file digest."""
    from keras_transfer.data.audit import pixels_key
    from keras_transfer.features.cached_logits import known_outputs
    from keras_transfer.storage.cache import open_cache

    with open_cache(run.spec, reporter=terminal) as cache:
        return known_outputs(
            run.model,
            pixels=pixels_key(run.spec.data),
            cache=cache,
            activation=run.task.activation,
        )


def _show(summary: "PredictionSummary", output: str, terminal: "TerminalReporter") -> None:
    from keras_transfer.data.records import counted

    if summary.num_kept:
        terminal.info(f"{summary.num_kept:,} rows had been predicted before.")
    title = f"Images: {summary.num_predicted:,}"
    if any(summary.num_by_label.values()) or not summary.num_predicted:
        labels = [[name, f"{number:,}"] for name, number in summary.num_by_label.items()]
        terminal.table(title, ["label", "images"], labels)
    else:
        # No predicted name: values, or no label reaches its threshold.
        terminal.info(f"{title}.")
    if summary.num_bad:
        words = counted(summary.num_bad, "file", "files")
        terminal.info(f"{words} could not be read: see the error column.")
    terminal.info(f"Predictions: {output}")


main = main_of(_run, stopped="the rows so far are kept, and --resume continues after them")

if __name__ == "__main__":
    sys.exit(main())
