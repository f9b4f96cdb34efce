"""Export: write a run's model as a SavedModel again, verified like the first one.

    python -m pipelines.export saved_models/my_photos
    python -m pipelines.export saved_models/my_photos --formats all --compare

The new version gets the next number under export/; none is overwritten. Other formats are written
to formats/ under the same number.

The SavedModel consists of TensorFlow operations or, under KERAS_BACKEND=jax, of programs that XLA
compiles for CPUs, GPUs and TPUs. Every run can be exported as either, whatever trained it.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from keras_transfer.devices import native_log_to
from keras_transfer.errors import SpecError, check_all
from keras_transfer.export.formats.registry import check_formats, parse_formats
from keras_transfer.storage.run_folder import RunFolder
from pipelines.arguments import divide_place, main_of, make_parser, scratch_log

if TYPE_CHECKING:
    from keras_transfer.reporting.reporter import TerminalReporter


def _parser() -> argparse.ArgumentParser:
    parser = make_parser("export", str(__doc__))
    parser.add_argument("run", metavar="RUN", help="run folder, such as saved_models/my_photos")
    parser.add_argument(
        "place",
        metavar="data.path=DIR",
        nargs="*",
        help="where the run's images are now, if they were moved",
    )
    parser.add_argument(
        "--precision",
        choices=["float32", "bfloat16"],
        help="precision of the SavedModel, if it then agrees with the model and is faster here "
        "(default: the run's export.precision)",
    )
    parser.add_argument(
        "--formats",
        metavar="LIST",
        help="other formats to write as well: all, or a list such as onnx,litert_int8",
    )
    parser.add_argument(
        "--compare", action="store_true", help="measure the speed of all formats (with --formats)"
    )
    return parser


def _run(argv: Sequence[str] | None) -> None:
    arguments = _parser().parse_intermixed_args(argv)
    others, arguments.place = divide_place(arguments.place, others="RUN")
    if others:
        raise SpecError(
            "export takes one run",
            expected="RUN, and data.path=… for images that were moved",
            received=" ".join(others),
            fix="export the runs one after the other",
        )
    if arguments.compare and arguments.formats is None:
        raise SpecError(
            "--compare needs other formats to compare",
            expected="--formats together with --compare",
            received="no --formats",
            fix="add --formats all",
        )
    check_all(
        lambda: RunFolder.open(arguments.run),
        *([] if arguments.formats is None else [lambda: check_formats(arguments.formats)]),
    )
    with native_log_to(scratch_log()):
        from keras_transfer.experiments.evaluation import export_run
        from keras_transfer.experiments.summary import describe_export, describe_proof
        from keras_transfer.reporting.reporter import TerminalReporter

        terminal = TerminalReporter()
        folder, proof = export_run(
            arguments.run,
            reporter=terminal,
            precision=arguments.precision,
            moved_to=arguments.place,
        )
        terminal.info(describe_proof(proof))
        terminal.info(describe_export(folder))
        if arguments.formats is not None:
            _convert(arguments, folder, terminal)


def _convert(
    arguments: argparse.Namespace, export_folder: Path, terminal: "TerminalReporter"
) -> None:
    from keras_transfer.export.conversion import convert_run
    from keras_transfer.export.formats.report import against_plain, tabulate
    from keras_transfer.export.formats.variants import notes

    folder, rows = convert_run(
        arguments.run,
        export_folder,
        parse_formats(arguments.formats),
        compare=arguments.compare,
        reporter=terminal,
        moved_to=arguments.place,
    )
    table = tabulate(
        rows,
        f"Formats of {arguments.run}",
        notes([row.name for row in rows], timed=arguments.compare),
    )
    terminal.show(table)
    for row in rows:
        if row.refusal:
            terminal.info(f"{row.name} is refused: {row.refusal}")
    for sentence in against_plain(rows):
        terminal.info(sentence)
    terminal.info(f"Formats {folder}")


main = main_of(_run)

if __name__ == "__main__":
    sys.exit(main())
