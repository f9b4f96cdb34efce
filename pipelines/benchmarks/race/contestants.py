"""What is trained besides the plain recipe and this package: each contestant is one row.

A contestant is a function of `runners` and the spec that it trains, made from that of this package
or from that of the plain recipe.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

from keras_transfer.config import load_spec, override
from keras_transfer.specs import RunSpec
from pipelines.benchmarks.race import runners

HEAD_EPOCHS: Final = 15
HEAD_RATE: Final = 1e-3
"""How the plain recipe trains a head that this package solves."""

Runner = Callable[..., dict[str, Any]]


@dataclass(frozen=True)
class Contestant:
    """`run` trains `spec_of(spec)` in a process of its own; `spec` is that of this package."""

    run: Runner
    spec_of: Callable[[RunSpec], RunSpec]


def plain_spec(spec: RunSpec) -> RunSpec:
    """The spec with heads that are trained where this package solves them."""
    changes: dict[str, Any] = {}
    for number, phase in enumerate(spec.phases):
        if phase.method == "exact":
            changes[f"phases.{number}.epochs"] = HEAD_EPOCHS
            changes[f"phases.{number}.learning_rate"] = HEAD_RATE
    return override(spec, changes)


def _plain_in(policy: str) -> Contestant:
    def spec_of(spec: RunSpec) -> RunSpec:
        return override(plain_spec(spec), {"devices.precision": policy})

    return Contestant(runners.run_plain, spec_of)


def _ours_by(preset: str) -> Contestant:
    def spec_of(spec: RunSpec) -> RunSpec:
        """Views, phases and training of the preset, on the images and the trunk of the spec."""
        own = load_spec(preset)
        return replace(spec, views=own.views, phases=own.phases, training=own.training)

    return Contestant(runners.run_ours, spec_of)


CONTESTANTS: Final[Mapping[str, Contestant]] = {
    "mixed_bfloat16": _plain_in("mixed_bfloat16"),
    "mixed_float16": _plain_in("mixed_float16"),
    "fast": _ours_by("fast"),
    "best": _ours_by("best"),
    "scikit-learn": Contestant(runners.run_scikit_learn, plain_spec),
}
"""By the name that `--also` takes and the columns have."""
