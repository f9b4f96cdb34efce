"""Builds dataclasses from plain values, with checks of names, types, choices and ranges.

Every error names the dotted field, the accepted values and the nearest known name.
"""

import contextlib
import dataclasses
import difflib
import importlib
import os
import re
import tomllib
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

from keras_transfer.errors import HIDDEN, SpecError, enumerated

_LONGEST_NAME: Final = 200
"""Bytes of a run's name: suffixes such as '-search-2' follow it in the name of its folder."""

_MOST_NAMED: Final = 5
"""Fields of a table that an error names."""

_UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0}


def option(default: Any, text: str, *, low: float | None = None, high: float | None = None) -> Any:
    """A field of a spec with its help text and inclusive range."""
    return dataclasses.field(default=default, metadata={"help": text, "low": low, "high": high})


class Typed(str):
    """A value as the user typed it; the type of its field decides how it is read."""


def parse_duration(text: str, name: str) -> float:
    """Seconds of '90s', '20m' or '1.5h' in the field `name`; '' is infinitely long.

    Raises:
        SpecError: it is anything else.
    """
    if not text:
        return float("inf")
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smh])", text)
    if not match or not float(match[1]):
        raise SpecError(
            f"{name} is not a duration",
            expected="a number and its unit s, m or h, such as 20m",
            received=repr(text),
            fix=f"write {name}=20m",
        )
    return float(match[1]) * _UNITS[match[2]]


def nearest(name: str, known: Sequence[str], *, otherwise: str = "") -> str:
    """A hint such as "did you mean 'epochs'?"; if no name is similar `otherwise`, or all names."""
    matches = difflib.get_close_matches(name, known, n=1, cutoff=0.65)
    if matches:
        return f"did you mean {matches[0]!r}?"
    return otherwise or f"choose one of {', '.join(sorted(set(known)))}"


def similar_path(path: Path) -> str:
    """A hint with a path beside a missing one that has a similar name, '' if there is none."""
    if path.exists() or not path.name:
        return ""
    try:
        names = sorted(os.listdir(path.absolute().parent))
    except OSError:
        return ""
    matches = difflib.get_close_matches(path.name, names, n=1, cutoff=0.8)
    return f"did you mean {str(path.with_name(matches[0]))!r}? Or " if matches else ""


def load_row(rows: Mapping[str, str], name: str, problem: str) -> Any:
    """What a registry's row names as "module:attribute"; the module is imported.

    Raises:
        SpecError: there is no row of this name; `problem` says so in the words of the registry.
    """
    if name not in rows:
        raise SpecError(
            problem,
            expected=f"one of {', '.join(rows)}",
            received=name,
            fix=nearest(name, list(rows)),
        )
    module, _, attribute = rows[name].partition(":")
    return getattr(importlib.import_module(module), attribute)


def raise_unknown(dotted: str, name: str, known: Sequence[str]) -> typing.NoReturn:
    raise SpecError(
        f"unknown field {dotted!r}",
        expected=f"one of {', '.join(known)}"
        if known
        else "no name after this field, which is a single value",
        received=name,
        fix=nearest(name, known) if known else "remove the last dot and what follows it",
    )


def build(cls: type, values: Mapping[str, Any], prefix: str, where: str) -> Any:
    """An instance of a spec's dataclass from plain values.

    Args:
        prefix: dotted path of this table, '' at the top, for error messages.
        where: where the values come from, for error messages; '' where the user has typed them.

    Raises:
        SpecError: a name is unknown, or a value has the wrong type or is out of range.
    """
    known = {field.name: field for field in dataclasses.fields(cls)}
    hints = typing.get_type_hints(cls)
    for name in values:
        if name not in known:
            raise_unknown(f"{prefix}{name}", name, list(known))
    converted = {
        name: _convert(value, hints[name], _place(known[name], hints[name], prefix, where))
        for name, value in values.items()
    }
    for name, value in converted.items():
        _check_range(f"{prefix}{name}", value, known[name].metadata)
    return cls(**converted)


def _read_typed(text: str, hint: Any) -> Any:
    """Read typed text by the field's type: strings and choices unchanged, all else as TOML."""
    if hint is str or typing.get_origin(hint) is typing.Literal:
        return str(text)
    if typing.get_origin(hint) is types.UnionType and text.lower() == "none":
        return None
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        # Such as '.5', which is no number in TOML.
        with contextlib.suppress(ValueError):
            return float(text) if float in (hint, *typing.get_args(hint)) else str(text)
        return str(text)


class _Place(NamedTuple):
    """Dotted name of a field, where its value comes from, and an assignment that is right."""

    name: str
    where: str
    example: str

    def entry(self, key: object) -> "_Place":
        """The place of an entry of the field."""
        return self._replace(name=f"{self.name}.{key}")


def _place(field: "dataclasses.Field[Any]", hint: Any, prefix: str, where: str) -> _Place:
    return _Place(f"{prefix}{field.name}", where, _example(field, hint, prefix))


def _example(field: "dataclasses.Field[Any]", hint: Any, prefix: str) -> str:
    """An assignment to the field that is right: its default, or a value in its range."""
    name, origin = f"{prefix}{field.name}", typing.get_origin(hint)
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        return _example_of_table(hint, f"{name}.")
    if origin is tuple and dataclasses.is_dataclass(row := typing.get_args(hint)[0]):
        return _example_of_table(row, f"{name}.0.")
    if origin in (tuple, dict):
        return f'{name}=["resnet50", "vgg16"]' if origin is tuple else f"{name}.NAME=VALUE"
    if bool in (hint, *typing.get_args(hint)):
        return f"{name}=true or {name}=false"
    if isinstance(field.default, str | int | float) and field.default != "":
        return f"{name}={field.default}"
    low, high = field.metadata.get("low"), field.metadata.get("high")
    if not {int, float} & {hint, *typing.get_args(hint)}:
        return f"{name}=name"
    usual = 8 if int in (hint, *typing.get_args(hint)) else 0.1
    return f"{name}={min(max(usual, low or 0), usual if high is None else high)}"


def _example_of_table(cls: Any, prefix: str) -> str:
    """An assignment to the first field of a table that is a number, else to its first field."""
    fields, hints = dataclasses.fields(cls), typing.get_type_hints(cls)
    numbers = [field for field in fields if type(field.default) in (int, float)]
    chosen = (numbers or list(fields))[0]
    return _example(chosen, hints[chosen.name], prefix)


def _convert(value: Any, hint: Any, place: _Place) -> Any:
    if isinstance(value, Typed):
        value = _read_typed(value, hint)
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        fields = [field.name for field in dataclasses.fields(hint)]
        if isinstance(value, list | tuple) and "values" in fields:
            value = {"values": value}
        if not isinstance(value, Mapping):
            _raise_type(place, f"a table of {enumerated(fields, _MOST_NAMED)}", value)
        return build(hint, value, f"{place.name}.", place.where)
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is tuple:
        if not isinstance(value, (list, tuple)) or not value:
            _raise_type(place, "a list with at least one entry", value)
        return tuple(
            _convert(entry, arguments[0], place.entry(number)) for number, entry in enumerate(value)
        )
    if origin is dict:
        if not isinstance(value, Mapping):
            _raise_type(place, "a table", value)
        return {
            key: _convert(entry, arguments[1], place.entry(key)) for key, entry in value.items()
        }
    if hint is Any:
        return value
    if origin is typing.Literal:
        if value not in arguments:
            _raise_choice(place.name, value, arguments)
        return value
    if origin is types.UnionType:
        hint = _alternative(value, arguments)
        # TOML has no null, so 'none' is used; in a field of texts it is an ordinary text.
        is_none = value is None or (value == "none" and hint is not str)
        return None if is_none else _convert(value, hint, place)
    return _convert_plain(value, hint, place)


def _alternative(value: Any, hints: Sequence[Any]) -> Any:
    """The type of a union that fits a value: the dataclass for a table, else the first."""
    tables = [hint for hint in hints if dataclasses.is_dataclass(hint)]
    return tables[0] if tables and isinstance(value, Mapping) else hints[0]


def _convert_plain(value: Any, hint: type, place: _Place) -> Any:
    if hint is float and type(value) is int:
        return float(value)
    if type(value) is not hint:
        names = {int: "a whole number", float: "a number", bool: "true or false", str: "a text"}
        _raise_type(place, names[hint], value)
    return value


def _raise_type(place: _Place, expected: str, value: Any) -> typing.NoReturn:
    raise SpecError(
        f"{place.name}{place.where and f' in {place.where}'} is not {expected}",
        expected=expected,
        received=f"{value!r} ({type(value).__name__})",
        fix=f"write {place.example}, for example",
    )


def _raise_choice(name: str, value: Any, choices: Sequence[Any]) -> typing.NoReturn:
    raise SpecError(
        f"{name} cannot be {value!r}",
        expected=f"one of {', '.join(map(str, choices))}",
        received=repr(value),
        fix=nearest(str(value), [str(choice) for choice in choices]),
    )


def _check_range(name: str, value: Any, metadata: Mapping[str, Any]) -> None:
    if value is None or isinstance(value, bool) or not isinstance(value, (int, float)):
        return
    low, high = metadata.get("low"), metadata.get("high")
    # `not (a <= b)` instead of `a > b`, so that NaN is outside every range.
    if (low is not None and not low <= value) or (high is not None and not value <= high):
        bounds = f"from {low} to {high}" if high is not None else f"{low} or more"
        raise SpecError(
            f"{name} is out of range", expected=bounds, received=str(value), fix=f"choose {bounds}"
        )


def run_name_flaw(name: str) -> str:
    """Why a run cannot have this name, in a few words; '' for a name that can be used."""
    if not name.strip() or name.startswith("."):
        return "is empty or begins with a dot"
    if found := re.search(rf"[/\\]|{HIDDEN.pattern}", name):
        return f"contains {found[0]!a}"
    length = len(name.encode())
    return f"has {length} bytes" if length > _LONGEST_NAME else ""


def run_name(text: str) -> str:
    """The nearest name of a run for the name of a folder or file; 'run' if nothing is left."""
    name = HIDDEN.sub("-", re.sub(r"[/\\]", "-", text)).lstrip(". ").strip()
    return name.encode()[:_LONGEST_NAME].decode(errors="ignore") or "run"
