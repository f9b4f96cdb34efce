"""The table of kinds of combination, by the name in `how=`."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from keras_transfer.errors import SpecError
from keras_transfer.experiments.combine.choice import Choice
from keras_transfer.fields import load_row
from keras_transfer.reporting.reporter import Reporter

Kind = Callable[[Sequence[str | Path], float | None, Reporter], Choice]
"""From run folders and a scale to the network; it checks what the runs must have in common."""

_HOME = "keras_transfer.experiments.combine"
KINDS: Final = {
    "ensemble": f"{_HOME}.ensemble:ensemble",
    "soup": f"{_HOME}.soup:soup",
    "line": f"{_HOME}.line:line",
    "add": f"{_HOME}.arithmetic:add",
    "negate": f"{_HOME}.arithmetic:negate",
}
SCALED: Final = ("add", "negate")
"""Kinds that take a scale."""


def get_kind(how: str, scale: float | None) -> Kind:
    """The kind of this name.

    Raises:
        SpecError: it is unknown, or has no scale.
    """
    kind: Kind = load_row(KINDS, how, f"there is no combination called {how!r}")
    if scale is not None and how not in SCALED:
        raise SpecError(
            f"how={how} has no scale",
            expected="no scale, or " + " or ".join(f"how={name}" for name in SCALED),
            received=f"scale={scale:g}",
            fix="leave the scale out",
        )
    if scale is not None and not 0 < scale <= 10:
        raise SpecError(
            "the scale of the changes is out of range",
            expected="a number above 0 and at most 10",
            received=f"scale={scale:g}",
            fix="leave it out to choose it on validation images; how=negate removes changes",
        )
    return kind
