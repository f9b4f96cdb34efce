"""TensorFlow Serving's REST protocol: request and response bodies.

Row format        {"instances": [row, …]}          → {"predictions": [row, …]}
Column format     {"inputs": {name: [value, …]}}   → {"outputs": {name: [value, …]}}

A signature with one input also accepts bare values as rows, or a bare list as `inputs`. A signature
with one output returns bare values. Bytes are {"b64": "…"}; outputs are bytes if their name ends in
`_bytes`. Source: https://www.tensorflow.org/tfx/serving/api_rest
"""

import base64
import binascii
import codecs
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, NoReturn

from starlette.exceptions import HTTPException

DEFAULT_SIGNATURE: Final = "serving_default"
PER_OUTPUT: Final = ("probabilities", "values")
"""Outputs of the signatures with one number for each name of the contract."""
_MAX_SHOWN: Final = 80
_DATA_URI: Final = re.compile(r"\s*data:[^,]{0,200};base64,", re.IGNORECASE)
_REPRS: Final = ("b'", 'b"')
"""How bytes begin that Python's `str` has written."""
_FROM_URL_SAFE: Final = str.maketrans("-_", "+/")


class RefusedError(HTTPException):
    """A request that gets an error response: an HTTP status and a sentence with the reason."""


@dataclass(frozen=True)
class Request:
    """A `predict` request: `columns[input]` holds one JSON value per row."""

    signature: str
    columns: dict[str, list[Any]]
    in_rows: bool

    @property
    def num_rows(self) -> int:
        return len(next(iter(self.columns.values())))

    def label(self, row: int) -> str:
        """The row's name in error messages."""
        return f"{'instances' if self.in_rows else 'inputs'}[{row}]"


def parse_request(body: bytes, inputs: Mapping[str, Sequence[str]]) -> Request:
    """Parse a body; `inputs` lists the input names of each signature. Values are not checked.

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
        raise RefusedError(
            400,
            f"Serving signature name: {_shorten(signature)} not found; "
            f"available: {', '.join(sorted(inputs))}",
        )
    given = content.keys() & {"instances", "inputs"}
    if len(given) != 1:
        number = "only one of" if given else "one of"
        raise RefusedError(
            400,
            f"The body must have {number} 'instances' and 'inputs', such as "
            '{"instances": [{"b64": "…"}]} with the bytes of an image in base64',
        )
    in_rows = "instances" in given
    columns = (_from_rows if in_rows else _from_columns)(content[given.pop()], inputs[signature])
    return Request(signature, columns, in_rows)


def _parse_json(body: bytes) -> Any:
    try:
        return json.loads(body.decode("utf-8-sig"), parse_constant=_refuse_constant)
    except UnicodeDecodeError as error:
        words = f"The body is not UTF-8 at byte {error.start}{_hint_for(body)}"
        raise RefusedError(400, words) from error
    except RecursionError as error:
        raise RefusedError(400, "JSON Parse error: nested too deeply") from error
    except ValueError as error:  # Integers with thousands of digits also raise it.
        raise RefusedError(400, f"JSON Parse error: {error}{_hint_for(body)}") from error


def _hint_for(body: bytes) -> str:
    """What to send instead of a body in another encoding, of a form, or of an image itself."""
    if body[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE) or b"\0" in body[:2]:
        return "; it seems to be UTF-16: send UTF-8"
    if body.removeprefix(codecs.BOM_UTF8).lstrip()[:1] in (b"{", b"["):
        return ""
    return '; send {"instances": [{"b64": "…"}]} with the bytes of an image in base64'


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _from_rows(rows: Any, names: Sequence[str]) -> dict[str, list[Any]]:
    if not isinstance(rows, list):
        raise RefusedError(400, f"'instances' must be a list, received {_kind(rows)}")
    if not rows:
        raise RefusedError(400, "No values in 'instances'")
    listed = ", ".join(names)
    if not _has_names(rows[0]):
        if len(names) > 1:
            raise RefusedError(400, f"Rows must be objects with the inputs {listed}")
        if any(_has_names(row) for row in rows):
            raise RefusedError(400, "All of 'instances' must be objects, or none of them")
        return {names[0]: rows}
    for number, row in enumerate(rows):
        if not _has_names(row) or row.keys() != set(names):
            keys = ", ".join(map(_shorten, row)) if _has_names(row) else _kind(row)
            raise RefusedError(
                400, f"instances[{number}]: keys must be equal to: {listed}; received {keys[:200]}"
            )
    return {name: [row[name] for row in rows] for name in names}


def _from_columns(inputs: Any, names: Sequence[str]) -> dict[str, list[Any]]:
    if not _has_names(inputs):
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


def _has_names(value: Any) -> bool:
    """Whether this is an object of inputs, and not one value in base64."""
    return isinstance(value, dict) and not _is_base64(value)


def _is_base64(value: Any) -> bool:
    return isinstance(value, dict) and value.keys() == {"b64"} and isinstance(value["b64"], str)


def read_bytes(value: Any) -> bytes:
    """The bytes of a string or of {"b64": "…"}.

    Padding, white space, the alphabet for URLs and the beginning of a `data:` URI are optional.

    Raises:
        ValueError: it is neither.
    """
    if isinstance(value, str):
        return value.encode("utf-8", "surrogatepass")
    if not _is_base64(value):
        raise ValueError(f'must be {{"b64": "…"}} or a string, received {_kind(value)}')
    text = value["b64"]
    try:
        return base64.b64decode(text, validate=True)
    except ValueError:
        text = "".join(_DATA_URI.sub("", text, count=1).split()).rstrip("=")
    try:
        text = text.translate(_FROM_URL_SAFE) + "=" * (-len(text) % 4)
        return binascii.a2b_base64(text, strict_mode=True)
    except ValueError as error:
        hint = "; it is a text of Python: decode('ascii') first" if text[:2] in _REPRS else ""
        raise ValueError(f"Unable to base64 decode: {error}{hint}") from error


def add_class_names(columns: dict[str, Any], class_names: Sequence[str]) -> dict[str, Any]:
    """Outputs of `serving_default` and `serving_pixels` from those of `serving_resized`.

    Single-label outputs get their class names. Any other outputs are passed on unchanged.
    """
    if "top_class_indices" not in columns:
        return columns
    top = columns["top_class_indices"]
    return {
        "label": [class_names[indices[0]] for indices in top],
        "class_names": [class_names] * len(top),
        "probabilities": columns["probabilities"],
        "top_class_names": [[class_names[index] for index in indices] for indices in top],
        "top_probabilities": columns["top_probabilities"],
    }


def write_response(columns: Mapping[str, Sequence[Any]], *, in_rows: bool) -> bytes:
    """The body of a `predict` response; `columns[output]` holds a plain value or bytes per row.

    Raises:
        ValueError: a value is NaN or Inf, which JSON does not support.
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
    """JSON in ASCII: a request may contain lone surrogates, which UTF-8 cannot encode.

    Raises:
        ValueError: a value is NaN or Inf.
    """
    return json.dumps(content, allow_nan=False, separators=(",", ":")).encode("ascii")


def version_status(number: int, state: str, error: str = "") -> dict[str, Any]:
    """One entry of `model_version_status`."""
    status = {"error_code": "UNKNOWN" if error else "OK", "error_message": error}
    return {"version": str(number), "state": state, "status": status}


def _base64(value: bytes) -> dict[str, str]:
    return {"b64": base64.b64encode(value).decode("ascii")}


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "a string", bool: "a boolean"}
    return "null" if value is None else names.get(type(value), "a number")


def _shorten(text: str) -> str:
    return repr(text if len(text) <= _MAX_SHOWN else text[:_MAX_SHOWN] + "…")
