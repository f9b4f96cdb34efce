"""The errors of this package.

KerasTransferError          the command line prints it without a traceback
├── SpecError               a field of the spec is unknown, has a wrong type or is out of range
├── DataError               images, labels or splits cannot be used
├── WeightsError            pretrained weights are missing or do not fit the trunk
├── RunError                a run folder cannot be written, read or resumed
│   ├── DivergedError       the loss became infinite or NaN
│   └── OutOfMemoryError    a device has too little memory
└── ExportError             an exported artefact does not agree with its model
"""

import re
from collections.abc import Callable, Sequence
from typing import Final

# Control characters, line and paragraph separators, marks that reverse the direction of text, and
# lone surrogates, which stand for bytes of file names that are not Unicode.
HIDDEN: Final = re.compile(
    "[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]"
)


def printable(text: str, *, keep: str = "") -> str:
    r"""The text with hidden characters but those of `keep` escaped, such as '\x1b' and '\n'."""
    return HIDDEN.sub(lambda found: found[0] if found[0] in keep else ascii(found[0])[1:-1], text)


def enumerated(names: Sequence[str], limit: int) -> str:
    """The first `limit` names with commas in between, and an ellipsis if there are more."""
    return ", ".join(names[:limit]) + (" …" if len(names) > limit else "")


class KerasTransferError(ValueError):
    """An error that the user can fix, described in four parts.

    Args:
        what: one sentence, without a full stop, that names the field, option or file.
        expected: what is accepted.
        received: what was found instead.
        fix: what to do next.
    """

    def __init__(self, what: str, *, expected: str = "", received: str = "", fix: str = ""):
        what, expected, received, fix = (
            printable(part, keep="\n\t") for part in (what, expected, received, fix)
        )
        self.what, self.expected, self.received, self.fix = what, expected, received, fix
        lines = [what, f"Expected: {expected}", f"Received: {received}", f"To fix it: {fix}"]
        given = [
            line for line, text in zip(lines, (what, expected, received, fix), strict=True) if text
        ]
        # A part that ends with a question mark, for example, gets no full stop.
        super().__init__("\n  ".join(x if x[-1] in ".?!" else f"{x}." for x in given))


def check_all(*checks: Callable[[], object]) -> None:
    """Make checks of a user's input, so that one error names all faults at once.

    Raises:
        KerasTransferError: the error of the only check that fails, or one with the texts of all.
    """
    errors: list[KerasTransferError] = []
    for check in checks:
        try:
            check()
        except KerasTransferError as error:
            errors.append(error)
    if len(errors) == 1:
        raise errors[0]
    if errors:
        texts = (f"\n{number}. {error}" for number, error in enumerate(errors, start=1))
        raise type(errors[0])(f"{len(errors)} things cannot be used:" + "".join(texts))


class SpecError(KerasTransferError):
    """A field of the spec is unknown, has a wrong type or is out of range."""


class DataError(KerasTransferError):
    """Images, labels or splits cannot be used."""


class WeightsError(KerasTransferError):
    """Pretrained weights are missing or do not fit the trunk."""


class RunError(KerasTransferError):
    """A run folder cannot be written, read or resumed."""


class DivergedError(RunError):
    """The loss became infinite or NaN."""


class OutOfMemoryError(RunError):
    """A device has too little memory for even the smallest part of a batch."""


class ExportError(KerasTransferError):
    """An exported artefact does not agree with its model."""
