"""What every verb's command line shares: presets, overrides, a quiet start and clear endings."""

import argparse
import difflib
import logging
import os
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from keras_transfer.config import describe_fields, load_spec, override, parse_assignments
from keras_transfer.errors import KerasTransferError, RunError
from keras_transfer.specs import RunSpec

PRESETS: Final = Path(__file__).parent / "presets"
USER_ERROR, INTERRUPTED = 2, 130


def make_parser(verb: str, text: str, *, fields: bool = False) -> argparse.ArgumentParser:
    """A parser for `python -m pipelines.<verb>`; `fields` appends the spec's fields to its help."""
    return argparse.ArgumentParser(
        prog=f"python -m pipelines.{verb}",
        description=text,
        epilog=_list_fields() if fields else None,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def _list_fields() -> str:
    lines = ["fields that key=value can set, with their defaults:"]
    for name, default, text in describe_fields():
        lines.append(f"  {name + '=' + default:44} {text}")
    return "\n".join(lines)


def add_spec_arguments(parser: argparse.ArgumentParser) -> None:
    """The preset and its overrides."""
    known = ", ".join(sorted(file.stem for file in PRESETS.glob("*.toml")))
    parser.add_argument(
        "preset", help=f"a preset ({known}), a .toml or spec.json file, or a run folder"
    )
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="fields to change")


def read_spec(arguments: argparse.Namespace) -> RunSpec:
    """The spec that the command line describes."""
    spec = load_spec(arguments.preset, presets=PRESETS)
    return override(spec, parse_assignments(arguments.overrides))


def positive(text: str) -> int:
    """A whole number of 1 or more, for argparse's `type`."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of 1 or more")
    return int(text)


def run_verb(verb: Callable[[], None]) -> int:
    """Run a verb and turn what ends it into an exit status: 0, 2 for the user's errors, 130."""
    logging.getLogger("keras_transfer").setLevel(logging.INFO)
    try:
        _check_backend()
        verb()
    except KerasTransferError as error:
        print(f"\nerror: {error}", file=sys.stderr)  # noqa: T201
        return USER_ERROR
    except ModuleNotFoundError as error:
        if error.name != "jax":
            raise
        missing = RunError(
            "KERAS_BACKEND=jax asks for JAX, which is not installed",
            expected="a package called jax",
            received="none",
            fix='pip install "keras_transfer[jax]", or unset KERAS_BACKEND',
        )
        print(f"\nerror: {missing}", file=sys.stderr)  # noqa: T201
        return USER_ERROR
    except KeyboardInterrupt:
        print("\nstopped; a training goes on with --resume", file=sys.stderr)  # noqa: T201
        return INTERRUPTED
    except BrokenPipeError:
        # Whoever read our output, such as `head`, has enough.
        sys.stderr.close()
    return 0


def _check_backend() -> None:
    """Raise RunError for a backend that nothing here runs on, before Keras fails to import it."""
    known = ("tensorflow", "jax")
    # As Keras does, nothing set is its own choice: keras.json, or TensorFlow.
    backend = os.environ.get("KERAS_BACKEND") or known[0]
    if backend not in known:
        similar = difflib.get_close_matches(backend.lower(), known, n=1)
        raise RunError(
            f"KERAS_BACKEND={backend} is none that this package runs on",
            expected=" or ".join(known),
            received=backend,
            fix=f"set KERAS_BACKEND={similar[0] if similar else known[0]}"
            + ("" if similar else ", or unset it"),
        )


def scratch_log() -> Path:
    """Where TensorFlow's native log output goes when there is no run folder to write to."""
    # One for each user of a machine: nobody may write to another's.
    user = os.getuid() if hasattr(os, "getuid") else "user"
    return Path(tempfile.gettempdir()) / f"keras_transfer-{user}.log"


def main_of(parse_and_run: Callable[[Sequence[str] | None], None]) -> Callable[..., int]:
    """Turn `parse_and_run(argv)` into a `main(argv=None)` that returns an exit status."""

    def main(argv: Sequence[str] | None = None) -> int:
        return run_verb(lambda: parse_and_run(argv))

    return main
