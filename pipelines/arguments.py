"""Shared code of the command lines: presets, overrides, exit statuses and errors."""

import argparse
import contextlib
import difflib
import importlib.metadata
import logging
import os
import re
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from keras_transfer.backbones.choice import choose_backbone
from keras_transfer.config import (
    PRESETS,
    describe_fields,
    dotted_fields,
    is_images,
    load_spec,
    make_spec,
    override,
    parse_assignments,
)
from keras_transfer.devices import skip_optional_imports, use_onednn
from keras_transfer.errors import KerasTransferError, RunError
from keras_transfer.specs import RunSpec

USER_ERROR, INTERRUPTED = 2, 130


def make_parser(
    verb: str, text: str, *, fields: bool = False, own: tuple[str, type] | None = None
) -> argparse.ArgumentParser:
    """A parser for `python -m pipelines.<verb>`.

    Args:
        fields: whether the spec's fields are appended to the help.
        own: the title and the dataclass of further fields, listed before those.
    """
    lists = [_list_fields(f"{own[0]}:", own[1])] if own else []
    if fields:
        lists.append(_list_fields("fields that key=value can set, with their defaults:", RunSpec))
    return argparse.ArgumentParser(
        prog=f"python -m pipelines.{verb}",
        description=text,
        epilog="\n\n".join(lists) or None,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def _list_fields(title: str, kind: type) -> str:
    lines = [title]
    for name, default, text in describe_fields(kind):
        lines.append(f"  {name + '=' + default:44} {text}")
    return "\n".join(lines)


def add_spec_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the images or the preset, and the fields to change, to the arguments."""
    known = ", ".join(sorted(file.stem for file in PRESETS.glob("*.toml")))
    parser.add_argument(
        "source",
        help="a folder with a sub-folder of images for each class, or a CSV file; or a preset "
        f"({known}), a .toml or spec.json file, or a run folder",
    )
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="fields to change")


def read_spec(arguments: argparse.Namespace) -> RunSpec:
    """The spec of the images or the preset, with the fields that are changed."""
    changes = parse_assignments(arguments.overrides)
    spec = read_source(arguments.source, changes)
    if _names_images(arguments.source):
        return choose_backbone(spec, dotted_fields(changes), _say)
    return spec


def read_source(source: str, changes: Mapping[str, Any], *, base: RunSpec | None = None) -> RunSpec:
    """The spec of a folder of images, CSV file, preset, spec file or run folder, with changes.

    Args:
        base: the other fields, for a folder of images or a CSV file; by default the defaults.
    """
    if _names_images(source):
        return make_spec(Path(source), base=base, **changes)
    return override(load_spec(source), changes)


def _names_images(source: str) -> bool:
    return Path(source).exists() and is_images(Path(source))


def _say(text: str) -> None:
    # What is printed to standard output may be read by another program.
    print(text, file=sys.stderr)  # noqa: T201


def positive(text: str) -> int:
    """A whole number of 1 or more, for argparse's `type`."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of 1 or more")
    return int(text)


def run_verb(verb: Callable[[], int | None]) -> int:
    """Run a verb; the exit status: its own or 0, 2 for the user's errors, 130 if interrupted."""
    use_onednn()
    skip_optional_imports()
    logging.getLogger("keras_transfer").setLevel(logging.INFO)
    try:
        _check_backend()
        return verb() or 0
    except KerasTransferError as error:
        print(f"\nerror: {error}", file=sys.stderr)  # noqa: T201
        return USER_ERROR
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        extra = _extra_with(package)
        if not extra or package == "keras_transfer":
            raise
        missing = RunError(
            f"this needs the package {package}, which is not installed",
            expected="one of the optional packages of keras_transfer",
            received=str(error),
            fix=f'pip install "keras_transfer[{extra}]"'
            + (", or unset KERAS_BACKEND" if extra == "jax" else ""),
        )
        print(f"\nerror: {missing}", file=sys.stderr)  # noqa: T201
        return USER_ERROR
    except KeyboardInterrupt:
        print("\nstopped; a training continues with --resume", file=sys.stderr)  # noqa: T201
        return INTERRUPTED
    except BrokenPipeError:
        # The program that reads the output, such as `head`, has closed the pipe.
        sys.stderr.close()
        return 0


def _extra_with(package: str) -> str:
    """The extra of this project that installs a package, '' if none does."""
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        for requirement in importlib.metadata.requires("keras_transfer") or ():
            name = re.match(r"[\w-]+", requirement)
            extra = re.search(r"extra == ['\"](\w+)", requirement)
            if extra and name and name[0].replace("-", "_").lower() == package.lower():
                return extra[1]
    return ""


def _check_backend() -> None:
    """Raise RunError for a backend that is not supported, before Keras fails to import it."""
    known = ("tensorflow", "jax")
    # Unset, Keras chooses: by keras.json, or else TensorFlow.
    backend = os.environ.get("KERAS_BACKEND") or known[0]
    if backend not in known:
        similar = difflib.get_close_matches(backend.lower(), known, n=1)
        raise RunError(
            f"KERAS_BACKEND={backend} is not supported",
            expected=" or ".join(known),
            received=backend,
            fix=f"set KERAS_BACKEND={similar[0] if similar else known[0]}"
            + ("" if similar else ", or unset it"),
        )


def scratch_log() -> Path:
    """The file for TensorFlow's log output when there is no run folder."""
    # One per user of a machine, because users cannot write to each other's files.
    user = os.getuid() if hasattr(os, "getuid") else "user"
    return Path(tempfile.gettempdir()) / f"keras_transfer-{user}.log"


def main_of(parse_and_run: Callable[[Sequence[str] | None], int | None]) -> Callable[..., int]:
    """Turn `parse_and_run(argv)` into a `main(argv=None)` that returns an exit status."""

    def main(argv: Sequence[str] | None = None) -> int:
        return run_verb(lambda: parse_and_run(argv))

    return main
