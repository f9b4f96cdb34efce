"""Init: write a commented TOML file with the settings for your images, to change and train with.

    python -m pipelines.init my_photos
    python -m pipelines.init my_photos --output photos.toml backbone=mobilenet_0.25
    python -m pipelines.train my_photos.toml

The file sets what differs from the defaults. Lines that begin with # give the other usual settings
with their defaults; `--all` lists all settings. An existing file is not overwritten.
"""

import argparse
import dataclasses
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import tomli_w

from keras_transfer.config import changed_fields, describe_fields, spec_to_dict
from keras_transfer.data.sources import read_records
from keras_transfer.devices import native_log_to
from keras_transfer.specs import PhaseSpec, RunSpec
from keras_transfer.storage.atomic import check_vacant, replacing
from keras_transfer.tasks.registry import source_of
from pipelines.arguments import (
    USUAL_FIELDS,
    add_spec_arguments,
    main_of,
    make_parser,
    read_spec,
    say,
    scratch_log,
)

_TEXTS = {name: text for name, _, text in describe_fields(RunSpec)}


def _parser() -> argparse.ArgumentParser:
    parser = make_parser("init", str(__doc__), fields=True)
    add_spec_arguments(parser)
    parser.add_argument("--output", metavar="FILE", help="file to write (default: <name>.toml)")
    parser.add_argument("--all", action="store_true", help="list all settings")
    return parser


def _run(argv: Sequence[str] | None) -> None:
    arguments = _parser().parse_intermixed_args(argv)
    with native_log_to(scratch_log()):
        spec = read_spec(arguments)
        num_images = len(read_records(source_of(spec)).items)
    file = Path(arguments.output or f"{spec.name}.toml")
    check_vacant(file)
    command = shlex.join(["python", "-m", "pipelines.train", str(file)])
    head = [
        f"# {num_images:,} images of {spec.data.path or spec.data.name}. Train with",
        f"#   {command}",
        "# A line that begins with # and a name gives a default: remove the # to change it.",
    ]
    listed = ("",) if arguments.all else USUAL_FIELDS
    with replacing(file) as partial:
        partial.write_text("\n".join([*head, *_describe(spec, listed)]) + "\n", encoding="utf-8")
    say(f"{file} is written. Change it, and train with: {command}")


def _describe(spec: RunSpec, listed: tuple[str, ...]) -> Iterator[str]:
    """The lines of all fields that are set, or whose names begin as one of `listed`."""
    changed, defaults = changed_fields(spec), spec_to_dict(RunSpec())
    phase_defaults = dataclasses.asdict(PhaseSpec(name=""))
    yield from _table("", "", defaults, changed, listed)
    for section, fields in defaults.items():
        if section == "phases":
            for phase in changed[section]:
                own = {
                    name: value for name, value in phase.items() if value != phase_defaults[name]
                }
                yield from _table(section, "phases.N.", phase_defaults, own, listed)
        elif isinstance(fields, dict) and fields:
            yield from _table(section, f"{section}.", fields, changed.get(section, {}), listed)


def _table(
    table: str,
    prefix: str,
    defaults: Mapping[str, Any],
    changed: Mapping[str, Any],
    listed: tuple[str, ...],
) -> Iterator[str]:
    """The lines of the fields of one table; tables of options come last, as TOML asks for."""
    lines: list[str] = []
    options: list[str] = []
    for name, default in defaults.items():
        if prefix + name not in _TEXTS:  # A section.
            continue
        value, comment = changed.get(name), f"# {_TEXTS[prefix + name]}"
        if isinstance(default, dict):
            if value:
                entries = (f"{_inline({key: entry})[1:-1]}" for key, entry in value.items())
                options += ["", comment, f"[{'.'.join(filter(None, (table, name)))}]", *entries]
        elif name in changed:
            lines += [comment, f"{name} = {_inline(value)}"]
        elif (prefix + name).startswith(listed):
            lines += [comment, f"# {name} = {_inline('none' if default is None else default)}"]
    if table and lines:
        yield from ("", f"[[{table}]]" if prefix.endswith(".N.") else f"[{table}]")
    yield from (*lines, *options)


def _inline(value: Any) -> str:
    """A TOML value on one line."""
    if isinstance(value, Mapping):
        # In front of the sign of equality there may be a name in quotation marks.
        entries = (
            tomli_w.dumps({name: 0})[: -len("0\n")] + _inline(entry)
            for name, entry in value.items()
        )
        return "{" + ", ".join(entries) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_inline, value)) + "]"
    return tomli_w.dumps({"x": value}).removeprefix("x = ").strip()


main = main_of(_run)

if __name__ == "__main__":
    sys.exit(main())
