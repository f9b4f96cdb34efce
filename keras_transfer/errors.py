"""Everything this package raises on purpose, drawn before it is coded.

KerasTransferError          what a front door catches and prints without a traceback
├── SpecError               a field of the spec is unknown, ill-typed or out of range
├── DataError               pictures, labels or splits cannot be used as they are
├── WeightsError            pretrained weights are missing or do not fit the trunk
├── RunError                a run folder cannot be written, read or resumed
└── ExportError             an exported artefact does not agree with its model
"""


class KerasTransferError(ValueError):
    """An error of the user's world, told in four parts.

    Args:
        what: one sentence, without a full stop, that names the field, flag or file.
        expected: what would have been accepted.
        received: what was found instead.
        fix: what to do next.
    """

    def __init__(self, what: str, *, expected: str = "", received: str = "", fix: str = ""):
        self.what, self.expected, self.received, self.fix = what, expected, received, fix
        parts = [f"{what}."]
        parts += [f"Expected: {expected}."] if expected else []
        parts += [f"Received: {received}."] if received else []
        parts += [f"To fix it: {fix}."] if fix else []
        super().__init__("\n  ".join(parts))


class SpecError(KerasTransferError):
    """A field of the spec is unknown, ill-typed or out of range."""


class DataError(KerasTransferError):
    """Pictures, labels or splits cannot be used as they are."""


class WeightsError(KerasTransferError):
    """Pretrained weights are missing or do not fit the trunk."""


class RunError(KerasTransferError):
    """A run folder cannot be written, read or resumed."""


class ExportError(KerasTransferError):
    """An exported artefact does not agree with its model."""
