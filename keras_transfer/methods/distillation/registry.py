"""The table of kinds of distillation, by the name in `method_options.kind`."""

import dataclasses
from collections.abc import Mapping
from typing import Any, Final

from keras_transfer.errors import SpecError
from keras_transfer.fields import build, load_row
from keras_transfer.methods.distillation.kind import Kind

KINDS: Final = {
    "logits": "keras_transfer.methods.distillation.logits:Logits",
    "adversarial": "keras_transfer.methods.distillation.adversarial:Adversarial",
    "attention": "keras_transfer.methods.distillation.attention:Attention",
    "decoupled": "keras_transfer.methods.distillation.decoupled:Decoupled",
    "dynamic": "keras_transfer.methods.distillation.dynamic:Dynamic",
    "feature": "keras_transfer.methods.distillation.feature:Feature",
    "similarity": "keras_transfer.methods.distillation.feature:Similarity",
    "multi_task": "keras_transfer.methods.distillation.multi_task:MultiTaskKind",
    "relational": "keras_transfer.methods.distillation.relational:Relational",
}
"""Import strings, so that reading the table imports no kind."""


def make_kind(name: str, options: Mapping[str, Any]) -> Kind:
    """The kind of this name with its options.

    Raises:
        SpecError: the kind or one of its options is unknown or out of range.
    """
    found = load_row(KINDS, name, f"there is no kind of distillation called {name!r}")
    if options and not dataclasses.fields(found.Options):
        raise SpecError(
            f"kind {name!r} of distillation has no options",
            expected="kind_options left out",
            received=", ".join(options),
            fix="remove them, or choose another kind",
        )
    kind: Kind = found(build(found.Options, options, "kind_options.", "the options of distill"))
    return kind
