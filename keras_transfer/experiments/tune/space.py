"""The space of a search: which fields of the spec vary, checked and declared to KerasTuner."""

import math
from collections.abc import Mapping
from dataclasses import fields
from functools import partial
from typing import Any, Final

import keras_tuner
import numpy as np

from keras_transfer.config import override, spec_to_dict
from keras_transfer.errors import SpecError, check_all
from keras_transfer.experiments.tune.record import CHOICE
from keras_transfer.specs import ParameterSpec, RunSpec

_ROOTS: Final = ("model", "phases", "training", "views")
_EXAMPLE: Final = "search.space.model.dropout={values=[0.1,0.3]}, or a table [search.space]"
_IN_PYTHON: Final = 'space={"model.dropout": [0.1, 0.3]}, or {"lr": {"low": 1e-4, "high": 1e-2}}'
_DIGITS: Final = 6
"""Significant digits of a value: workers get values in single precision."""


def check_space(spec: RunSpec) -> None:
    """Raise SpecError unless every single value of the space makes a valid spec."""
    if not spec.search.space:
        raise SpecError(
            "the spec has no search space",
            expected=_EXAMPLE,
            received="an empty search.space",
            fix="set the values of at least one field in [search.space]; the presets have examples",
        )
    space = spec.search.space
    check_all(*(partial(_check_parameter, spec, name, own) for name, own in space.items()))


def _check_parameter(spec: RunSpec, name: str, parameter: ParameterSpec) -> None:
    _check_field(spec, name)
    _check_form(name, parameter)
    for value in extremes(parameter):
        override(spec, {name: value})
    _check_step(spec, name, parameter)


def read_space(given: Any) -> dict[str, dict[str, Any]]:
    """A space as it is written in Python, in the form of `override`.

    Args:
        given: by field, a list of values, or a `ParameterSpec` or a dict of its fields.

    Raises:
        SpecError: anything else; one error names all wrong entries.
    """
    if not isinstance(given, Mapping):
        raise SpecError(
            "space is no mapping from fields to values",
            expected=_IN_PYTHON,
            received=f"{given!r} ({type(given).__name__})",
            fix=f"write {_IN_PYTHON}",
        )
    check_all(*(partial(_read_entry, name, entry) for name, entry in given.items()))
    return {name: _read_entry(name, entry) for name, entry in given.items()}


def _read_entry(name: Any, given: Any) -> dict[str, Any]:
    entry = given
    if isinstance(entry, ParameterSpec):
        entry = {key: value for key, value in vars(entry).items() if value is not None}
    if not isinstance(entry, Mapping):
        entry = {"values": entry}
    known = [field.name for field in fields(ParameterSpec)]
    values = entry.get("values", ("none are given",))
    is_list = isinstance(values, list | tuple | range | np.ndarray) and len(values) > 0
    if not isinstance(name, str) or not set(entry) <= set(known) or not is_list:
        nested = [key for key in entry if key not in known and isinstance(entry[key], Mapping)]
        fix = f'write {{"{name}": [value, other]}} or {{"{name}": {{"low": …, "high": …}}}}'
        if nested:
            fix = (
                f"write {name}.{nested[0]} as one name with dots, with a list or a dict of its own"
            )
        raise SpecError(
            f"space has no valid entry for {name!r}",
            expected="a list of values, or a dict of low, high, step and sampling",
            received=f"{given!r}",
            fix=fix,
        )
    plain = {key: _plain(value) for key, value in entry.items()}
    return plain | ({"values": [_plain(value) for value in values]} if "values" in entry else {})


def _plain(value: Any) -> Any:
    """A number of NumPy as one of Python, which JSON and TOML have."""
    return value.item() if isinstance(value, np.generic) else value


def _check_field(spec: RunSpec, name: str) -> None:
    root, *rest = name.split(".")
    beyond = root == "phases" and rest and rest[0].isdecimal() and int(rest[0]) >= len(spec.phases)
    counted = spec.search.tuner == "hyperband" and root == "phases" and rest[-1:] == ["epochs"]
    if root not in _ROOTS or beyond or counted or rest[-1:] == ["name"]:
        raise SpecError(
            f"search.space cannot vary {name}",
            expected=f"a field of {', '.join(_ROOTS)}"
            + (", other than epochs, which hyperband sets" if counted else ""),
            received=name + (f", where there are {len(spec.phases)} phases" if beyond else ""),
            fix="leave it out of the space and set it for all trials",
        )


def _check_form(name: str, parameter: ParameterSpec) -> None:
    has_range = parameter.low is not None and parameter.high is not None
    has_part = any(end is not None for end in (parameter.low, parameter.high, parameter.step))
    if (parameter.values is not None) == has_part or has_part != has_range:
        raise _wrong(name, "either values=[...] or both low and high", _shown(parameter))
    if parameter.values is not None:
        kinds = {_kind(value) for value in parameter.values}
        if len(kinds) != 1 or len(set(parameter.values)) < len(parameter.values):
            raise _wrong(name, "values of one kind, each of them once", _shown(parameter))
        return
    ends = [parameter.low, parameter.high]
    if not all(_is_finite(end) for end in ends) or not ends[0] < ends[1]:
        raise _wrong(name, "two finite numbers, low below high", _shown(parameter))
    if parameter.sampling == "log" and ends[0] <= 0:
        raise _wrong(name, "low above 0 with sampling = 'log'", _shown(parameter))


def _check_step(spec: RunSpec, name: str, parameter: ParameterSpec) -> None:
    step, low, high = parameter.step, parameter.low, parameter.high
    if step is None:
        return
    is_whole = isinstance(_field(override(spec, {name: low}), name), int)
    if not _is_finite(step) or (is_whole and not isinstance(step, int)):
        raise _wrong(name, "a number as step, whole for a whole field", _shown(parameter))
    if parameter.sampling == "log" and not 1 < step <= high / low:
        raise _wrong(name, "a step above 1 with sampling = 'log': a factor", _shown(parameter))
    if parameter.sampling == "linear" and not 0 < step <= high - low:
        raise _wrong(name, "a step above 0 and at most high − low", _shown(parameter))


def _is_finite(value: Any) -> bool:
    return _kind(value) == "number" and math.isfinite(value)


def _kind(value: Any) -> str:
    if isinstance(value, bool):
        return "boolean"
    return "number" if isinstance(value, int | float) else type(value).__name__


def _shown(parameter: ParameterSpec) -> str:
    given = {key: value for key, value in vars(parameter).items() if value is not None}
    return ", ".join(f"{key} = {value!r}" for key, value in given.items())


def _wrong(name: str, expected: str, received: str) -> SpecError:
    return SpecError(
        f"search.space has no valid entry for {name}",
        expected=expected,
        received=received,
        fix=f"see {_EXAMPLE}",
    )


def extremes(parameter: ParameterSpec) -> tuple[Any, ...]:
    """The values of a parameter, or both ends of its range."""
    return parameter.values or (parameter.low, parameter.high)


def declare(hyperparameters: keras_tuner.HyperParameters, spec: RunSpec) -> None:
    """Declare every parameter to KerasTuner; its default is the spec's own value where allowed."""
    for name, parameter in spec.search.space.items():
        own = _field(spec, name)
        values = parameter.values
        if values is not None and _kind(values[0]) == "boolean" and len(values) == 2:
            hyperparameters.Boolean(name, default=own)
        elif values is not None:
            given = _alike(values)
            default = own if own in given else given[0]
            hyperparameters.Choice(name, list(given), default=default)
        else:
            _declare_range(hyperparameters, name, parameter, spec, own)


def _declare_range(
    hyperparameters: keras_tuner.HyperParameters,
    name: str,
    parameter: ParameterSpec,
    spec: RunSpec,
    own: Any,
) -> None:
    is_whole = isinstance(_field(override(spec, {name: parameter.low}), name), int)
    low, high = parameter.low, parameter.high
    kind = hyperparameters.Int if is_whole else hyperparameters.Float
    inside = isinstance(own, int | float) and low <= own <= high
    kind(
        name,
        low,
        high,
        step=parameter.step,
        sampling=parameter.sampling,
        default=own if inside else low,
    )


def values_of(spec: RunSpec, proposed: Mapping[str, Any]) -> dict[str, Any]:
    """KerasTuner's values of the space's fields, as they go into a spec.

    KerasTuner sends floats to workers in single precision: numbers keep six digits, and choices
    are replaced by the nearest ones of the space.
    """
    return {
        name: _exact(parameter, proposed[name])
        for name, parameter in spec.search.space.items()
        if name in proposed
    }


def _exact(parameter: ParameterSpec, value: Any) -> Any:
    if _kind(value) != "number":
        return value
    if parameter.values is not None:
        return min(_alike(parameter.values), key=lambda choice: abs(choice - value))
    if isinstance(value, int):
        return value
    return min(max(float(f"{value:.{_DIGITS}g}"), parameter.low), parameter.high)


def _alike(values: tuple[Any, ...]) -> tuple[Any, ...]:
    """Values of one type: whole numbers become floats where others are floats."""
    return tuple(map(float, values)) if any(isinstance(v, float) for v in values) else values


def num_combinations(spec: RunSpec) -> float:
    """How many different trials the space has; infinity if a parameter has any number of values."""
    return math.prod(_num_values(spec, name) for name in spec.search.space)


def _num_values(spec: RunSpec, name: str) -> float:
    parameter = spec.search.space[name]
    if parameter.values is not None:
        return len(parameter.values)
    low, high, step = parameter.low, parameter.high, parameter.step
    is_whole = isinstance(_field(override(spec, {name: low}), name), int)
    # KerasTuner's grid takes ten values of a range without steps; other tuners take any.
    if parameter.sampling == "log" or (step is None and not is_whole):
        return math.inf
    return math.floor((high - low) / (step or 1) + 1e-9) + 1


def scales(spec: RunSpec) -> dict[str, str]:
    """'linear', 'log' or 'choice' for every parameter, in the order of the space."""
    return {
        name: parameter.sampling if parameter.values is None else CHOICE
        for name, parameter in spec.search.space.items()
    }


def choices(spec: RunSpec) -> dict[str, list[Any]]:
    """The values of every parameter that is a choice."""
    return {
        name: list(_alike(parameter.values))
        for name, parameter in spec.search.space.items()
        if parameter.values is not None
    }


def _field(spec: RunSpec, name: str) -> Any:
    """The value of a field; None for an option of a method that is not set."""
    value: Any = spec_to_dict(spec)
    for part in name.split("."):
        value = value[int(part)] if isinstance(value, list) else value.get(part)
    return value
