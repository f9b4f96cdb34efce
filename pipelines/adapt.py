"""Adapt: a finished run for images that look different, of which there are no labels.

    python -m pipelines.adapt saved_models/my_photos new_camera
    python -m pipelines.adapt saved_models/my_photos new_camera labelled=a_few_sorted
    python -m pipelines.adapt saved_models/my_photos new_camera kind=coral

Several kinds of adaptation are compared, and one is chosen without labels, or by the log loss on a
few labelled images of the target. The result is an ordinary run; its folder also has
adaptation.json and adaptation.md. Where nothing helps clearly it has the model of the run as it is.
"""

import argparse
import sys
from collections.abc import Sequence
from typing import Any

from keras_transfer.adaptation.registry import AUTO, CHAINS, KINDS, parse_kind
from keras_transfer.config import parse_assignments
from keras_transfer.devices import native_log_to
from keras_transfer.errors import SpecError, check_all
from keras_transfer.fields import nearest
from keras_transfer.storage.run_folder import RunFolder
from pipelines.arguments import RESUMABLE, main_of, make_parser, scratch_log

_WORDS = {"kind": "kind", "labelled": "labelled", "data.path": "moved_to"}


def _parser() -> argparse.ArgumentParser:
    parser = make_parser("adapt", str(__doc__))
    parser.own = tuple(_WORDS)
    parser.add_argument("run", metavar="RUN", help="run folder, such as saved_models/my_photos")
    parser.add_argument("folder", metavar="FOLDER", help="folder of target images without labels")
    parser.add_argument(
        "words",
        nargs="*",
        metavar="key=value",
        help=f"kind={AUTO} (default), {', '.join(CHAINS)}: "
        + "; ".join(f"{kind.name}: {kind.text}" for kind in KINDS.values())
        + "; labelled=… a folder of classes or a CSV file with labelled images of the target; "
        "data.path=… where the run's own images are now",
    )
    parser.add_argument("--output", metavar="DIR", help="run folder (default: saved_models/<name>)")
    parser.add_argument("--resume", action="store_true", help="continue an interrupted adaptation")
    return parser


def _settings(words: Sequence[str]) -> dict[str, Any]:
    """The arguments of `adapt_run` that the words give."""
    values = parse_assignments(words)
    if unknown := [name for name in values if name not in _WORDS]:
        raise SpecError(
            "an adaptation has no such fields",
            expected=", ".join(f"{name}=…" for name in _WORDS),
            received=", ".join(f"{name}={values[name]}" for name in unknown),
            fix=nearest(unknown[0], list(_WORDS)),
        )
    return {_WORDS[name]: str(value) for name, value in values.items()}


def _run(argv: Sequence[str] | None) -> None:
    arguments = _parser().parse_intermixed_args(argv)
    settings = _settings(arguments.words)
    check_all(lambda: RunFolder.open(arguments.run), lambda: parse_kind(settings.get("kind", AUTO)))
    with native_log_to(scratch_log()):
        from keras_transfer.experiments.adapt.adaptation import adapt_run
        from keras_transfer.experiments.adapt.report import show_adaptation
        from keras_transfer.inference.prediction import load_run
        from keras_transfer.reporting.reporter import TerminalReporter

        terminal = TerminalReporter()
        new, found = adapt_run(
            arguments.run,
            arguments.folder,
            **settings,
            output=arguments.output,
            resume=arguments.resume,
            reporter=terminal,
        )
        show_adaptation(new, found, load_run(new.path).task, terminal)


main = main_of(_run, stopped=RESUMABLE)

if __name__ == "__main__":
    sys.exit(main())
