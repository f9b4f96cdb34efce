"""Names of stages in a spec: where a trunk is cut, and from where a phase trains.

Importing this module needs the standard library only.
"""

from collections.abc import Sequence
from typing import Final

from keras_transfer.backbones.record import Backbone, Stage
from keras_transfer.errors import SpecError
from keras_transfer.fields import nearest

HIGHEST: Final = {"last": 1, "last_two": 2}
"""Numbers of the trunk's highest kept stages that train, by their names in `phase.unfreeze`."""


def kept_stages(backbone: Backbone, last_stage: str) -> tuple[Stage, ...]:
    """The stages up to and with `last_stage`, all for ''; SpecError if there is no such stage."""
    names = backbone.stage_names
    if last_stage in names:
        return backbone.stages[: names.index(last_stage) + 1]
    if not last_stage:
        return backbone.stages
    raise SpecError(
        f"model.last_stage is not a stage of {backbone.name}",
        expected=f"one of {', '.join(names)}, or nothing for the whole backbone",
        received=repr(last_stage),
        fix=nearest(last_stage, names),
    )


def stages_from(lowest: str, names: Sequence[str], *, field: str) -> list[str]:
    """Names of `lowest` and all stages above it, of those of a classifier from bottom to top.

    Raises:
        SpecError: there is no such stage; `field` is the spec's field named in the error.
    """
    if lowest in HIGHEST:
        return list(names[-1 - HIGHEST[lowest] :])
    if lowest not in names:
        raise SpecError(
            f"{field} names a stage this model does not have",
            expected=f"one of {', '.join(names)}, or {' or '.join(HIGHEST)}",
            received=lowest,
            fix=nearest(lowest, [*names, *HIGHEST]),
        )
    return list(names[names.index(lowest) :])
