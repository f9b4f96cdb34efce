"""The table of kinds of adaptation, and the chains of them that are compared."""

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from keras_transfer.errors import SpecError
from keras_transfer.fields import nearest

SOURCE: Final = "source"
"""The chain without a step: the run as it is."""
AUTO: Final = "auto"
"""All of `CHAINS` are compared, and one is chosen."""
SEPARATOR: Final = "+"


@dataclass(frozen=True, kw_only=True)
class Kind:
    """A step of an adaptation.

    `function` is 'module:name' of a function from `Domains` to `Domains` with another head. A step
    that `changes_trunk` is one of a model and target images, which sets weights of the model; it is
    the first of a chain, because all others read the features of the trunk.
    """

    name: str
    function: str
    text: str
    changes_trunk: bool = False


KINDS: Final = {
    kind.name: kind
    for kind in (
        Kind(
            name="adabn",
            function="keras_transfer.adaptation.batchnorm:adapt_statistics",
            text="BatchNormalization has the statistics of the target images",
            changes_trunk=True,
        ),
        Kind(
            name="coral",
            function="keras_transfer.adaptation.coral:adapt",
            text="the head is solved on source features with the target's mean and covariance",
        ),
        Kind(
            name="self_training",
            function="keras_transfer.adaptation.self_training:adapt",
            text="the head is solved also on target images with their confident predictions",
        ),
    )
}

CHAINS: Final = (
    SOURCE,
    "coral",
    "self_training",
    "coral+self_training",
    "adabn",
    "adabn+coral",
    "adabn+self_training",
    "adabn+coral+self_training",
)
"""What 'auto' compares, the simplest first."""

UNLABELLED: Final = (SOURCE, "coral", "coral+self_training")
"""What 'auto' may choose without labels of the target.

The others made a classifier worse by more than a point in about half of 40 cases of development
(`docs/benchmarks.md`), which no score without labels foretold.
"""


def parse_kind(text: str) -> tuple[str, ...]:
    """The names of the chains to compare, the run as it is first: all of 'auto', or one more.

    Raises:
        SpecError: as of `parse_chain`.
    """
    if text == AUTO:
        return CHAINS
    parse_chain(text)
    return tuple(dict.fromkeys([SOURCE, text]))


def parse_chain(text: str) -> tuple[Kind, ...]:
    """The steps of a chain such as 'adabn+coral'; none for 'source'.

    Raises:
        SpecError: a step is unknown, given twice, or not in its place.
    """
    if text == SOURCE:
        return ()
    names = text.split(SEPARATOR)
    if unknown := [name for name in names if name not in KINDS]:
        raise SpecError(
            "a kind of adaptation is unknown",
            expected=f"{AUTO}, {SOURCE}, {', '.join(KINDS)}, or several of these with {SEPARATOR}",
            received=", ".join(map(repr, unknown)),
            fix=nearest(unknown[0], [AUTO, SOURCE, *KINDS]),
        )
    chain = tuple(KINDS[name] for name in names)
    late = [kind.name for kind in chain[1:] if kind.changes_trunk]
    if late or len(set(names)) < len(names):
        raise SpecError(
            "the steps of an adaptation cannot follow one another",
            expected="each step once, and one that changes the backbone first",
            received=text,
            fix="give one of " + ", ".join(CHAINS),
        )
    return chain


def function_of(kind: Kind) -> Callable[..., Any]:
    """The function of a step, whose module is imported now."""
    module, _, name = kind.function.partition(":")
    function: Callable[..., Any] = getattr(importlib.import_module(module), name)
    return function
