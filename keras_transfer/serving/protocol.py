"""TensorFlow Serving's JSON: what a request's body asks for, and how answers are written.

Row format        {"instances": [row, …]}            answered by {"predictions": [row, …]}
Column format     {"inputs": {name: [value, …]}}     answered by {"outputs": {name: [value, …]}}

A signature with one input takes bare values as rows, or a bare list as `inputs`; one with one
output answers bare values. Bytes are {"b64": "…"}, in outputs if their name ends in `_bytes`.
Source: https://www.tensorflow.org/tfx/serving/api_rest
"""

import base64
import binascii
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, NoReturn

DEFAULT_SIGNATURE: Final = "serving_default"
_SHOWN: Final = 80


class RefusedError(Exception):
    """A request that is not answered: an HTTP status, and a sentence that says why."""

    def __init__(self, status: int, message: str, *, headers: Mapping[str, str] | None = None):
        super().__init__(message)
        self.status, self.message, self.headers = status, message, dict(headers or {})


@dataclass(frozen=True)
class Request:
    """A `predict` request: `columns[input]` holds one JSON value a row, all equally many."""

    signature: str
    columns: dict[str, list[Any]]
    in_rows: bool

    @property
    def num_rows(self) -> int:
        return len(next(iter(self.columns.values())))

    def label(self, row: int) -> str:
        """The row's name in messages."""
        return f"{'instances' if self.in_rows else 'inputs'}[{row}]"


def parse_request(body: bytes, inputs: Mapping[str, Sequence[str]]) -> Request:
    """What a body asks for; `inputs` names each signature's inputs. Values are not looked at.

    Raises:
        RefusedError: 400, the body is not JSON of the form above.
    """
    content = _parse_json(body)
    if not isinstance(content, dict):
        raise RefusedError(400, f"The body must be a JSON object, received {_kind(content)}")
    signature = content.get("signature_name", DEFAULT_SIGNATURE)
    if not isinstance(signature, str):
        raise RefusedError(400, f"'signature_name' must be a string, received {_kind(signature)}")
    signature = signature or DEFAULT_SIGNATURE
    if signature not in inputs:
        known = ", ".join(sorted(inputs))
        raise RefusedError(
            400, f"Serving signature name: {_shown(signature)} not found; there is {known}"
        )
    given = content.keys() & {"instances", "inputs"}
    if len(given) != 1:
        problem = "Only one of" if given else "Missing"
        raise RefusedError(400, f"{problem} 'inputs' or 'instances' must be given")
    in_rows = "instances" in given
    columns = (_from_rows if in_rows else _from_columns)(content[given.pop()], inputs[signature])
    return Request(signature, columns, in_rows)


def _parse_json(body: bytes) -> Any:
    try:
        return json.loads(body.decode("utf-8"), parse_constant=_refuse_constant)
    except UnicodeDecodeError as error:
        raise RefusedError(400, f"The body is not UTF-8 at byte {error.start}") from error
    except RecursionError as error:
        raise RefusedError(400, "JSON Parse error: nested too deeply") from error
    except ValueError as error:  # Also of whole numbers with thousands of digits.
        raise RefusedError(400, f"JSON Parse error: {error}") from error


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _from_rows(rows: Any, names: Sequence[str]) -> dict[str, list[Any]]:
    if not isinstance(rows, list):
        raise RefusedError(400, f"'instances' must be a list, received {_kind(rows)}")
    if not rows:
        raise RefusedError(400, "No values in 'instances'")
    if not _is_named(rows[0]):
        if len(names) > 1:
            listed = ", ".join(names)
            raise RefusedError(400, f"Rows must be objects, since there are the inputs {listed}")
        if any(_is_named(row) for row in rows):
            raise RefusedError(400, "All of 'instances' must be objects, or none of them")
        return {names[0]: rows}
    for number, row in enumerate(rows):
        if not _is_named(row) or row.keys() != set(names):
            keys = ", ".join(map(_shown, row)) if _is_named(row) else _kind(row)
            listed = ", ".join(names)
            raise RefusedError(
                400, f"instances[{number}]: keys must be equal to: {listed}; received {keys[:200]}"
            )
    return {name: [row[name] for row in rows] for name in names}


def _from_columns(inputs: Any, names: Sequence[str]) -> dict[str, list[Any]]:
    if not _is_named(inputs):
        if len(names) > 1:
            listed = ", ".join(names)
            raise RefusedError(400, f"'inputs' must be an object with the inputs {listed}")
        inputs = {names[0]: inputs}
    columns = {}
    for name in names:
        if name not in inputs:
            raise RefusedError(400, f"Missing named input: {name} in 'inputs'")
        column = inputs[name]
        if not isinstance(column, list) or not column:
            raise RefusedError(400, f"inputs.{name}: must be a list of one or more rows")
        columns[name] = column
    if len({len(column) for column in columns.values()}) > 1:
        counts = ", ".join(f"{len(column)} of {name}" for name, column in columns.items())
        raise RefusedError(400, f"'inputs' must have equally many rows, received {counts}")
    return columns


def _is_named(value: Any) -> bool:
    """Whether this is an object of inputs, and not one value in base64."""
    return isinstance(value, dict) and not is_base64(value)


def is_base64(value: Any) -> bool:
    """Whether this is {"b64": "…"}, the form of bytes in JSON."""
    return isinstance(value, dict) and value.keys() == {"b64"} and isinstance(value["b64"], str)


def read_bytes(value: Any) -> bytes:
    """The bytes of a string or of {"b64": "…"}, padding and white space being optional there.

    Raises:
        ValueError: it is neither; says why.
    """
    if isinstance(value, str):
        return value.encode("utf-8", "surrogatepass")
    if not is_base64(value):
        raise ValueError(f'must be {{"b64": "…"}} or a string, received {_kind(value)}')
    text = value["b64"]
    try:
        return base64.b64decode(text, validate=True)
    except ValueError:
        text = "".join(text.split()).rstrip("=")
    try:
        return binascii.a2b_base64(text + "=" * (-len(text) % 4), strict_mode=True)
    except ValueError as error:
        raise ValueError(f"Unable to base64 decode: {error}") from error


def write_answer(columns: Mapping[str, Sequence[Any]], *, in_rows: bool) -> bytes:
    """The body of an answer; `columns[output]` holds plain values or bytes, one a row.

    Raises:
        ValueError: a value is NaN or infinite, which JSON has no word for.
    """
    plain = {
        name: [_base64(value) for value in column] if name.endswith("_bytes") else column
        for name, column in columns.items()
    }
    content: Any = plain
    if len(plain) == 1:
        (content,) = plain.values()
    elif in_rows:
        names = list(plain)
        content = [dict(zip(names, row, strict=True)) for row in zip(*plain.values(), strict=True)]
    return write_json({"predictions" if in_rows else "outputs": content})


def write_json(content: Any) -> bytes:
    """JSON in ASCII: halves of surrogate pairs, which a request may hold, have no UTF-8.

    Raises:
        ValueError: a value is NaN or infinite.
    """
    return json.dumps(content, allow_nan=False, separators=(",", ":")).encode("ascii")


def _base64(value: bytes) -> dict[str, str]:
    return {"b64": base64.b64encode(value).decode("ascii")}


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "a string", bool: "a truth value"}
    return "null" if value is None else names.get(type(value), "a number")


def _shown(text: str) -> str:
    return repr(text if len(text) <= _SHOWN else text[:_SHOWN] + "…")
