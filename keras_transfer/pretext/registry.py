"""The table of pretext tasks, by the name in `kind`."""

import importlib
from typing import TYPE_CHECKING, Final

from keras_transfer.errors import SpecError
from keras_transfer.fields import nearest

if TYPE_CHECKING:
    from keras_transfer.pretext.kind import Kind

KINDS: Final = {
    "rotation": "keras_transfer.pretext.rotation:Rotation",
    "simsiam": "keras_transfer.pretext.simsiam:SimSiam",
}
"""Import strings, so that reading the table imports no kind."""

DEFAULT: Final = "simsiam"
"""On flowers, at the rates of `pretrain`, rotation lowered accuracies by 4 points and this did not
(`docs/guides/pretraining.md`)."""


def check_kind(name: str) -> None:
    """Raise SpecError if there is no pretext task of this name; nothing is imported."""
    if name not in KINDS:
        raise SpecError(
            f"kind: there is no pretext task called {name!r}",
            expected=f"one of {', '.join(KINDS)}",
            received=name,
            fix=nearest(name, list(KINDS)),
        )


def make_kind(name: str) -> "Kind":
    """The pretext task of this name.

    Raises:
        SpecError: there is none.
    """
    check_kind(name)
    module, _, attribute = KINDS[name].partition(":")
    kind: Kind = getattr(importlib.import_module(module), attribute)()
    return kind
