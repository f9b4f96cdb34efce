"""The table of training methods, by the name in `phases.N.method`."""

import dataclasses
from collections.abc import Sequence
from typing import Any, Final

from keras_transfer.errors import SpecError
from keras_transfer.fields import build, load_row
from keras_transfer.methods.method import Method
from keras_transfer.specs import PhaseSpec, RunSpec

METHODS: Final = {
    "exact": "keras_transfer.methods.exact:Exact",
    "supervised": "keras_transfer.methods.supervised:Supervised",
    "distill": "keras_transfer.methods.distill:Distill",
    "align": "keras_transfer.methods.align:Align",
    "l2_sp": "keras_transfer.methods.l2_sp:L2SP",
    "bss": "keras_transfer.methods.bss:BSS",
    "co_tuning": "keras_transfer.methods.co_tuning:CoTuning",
    "affine": "keras_transfer.methods.affine:Affine",
    "adapters": "keras_transfer.methods.adapters:AdapterTraining",
    "surgical": "keras_transfer.methods.surgical:Surgical",
    "auto_rgn": "keras_transfer.methods.auto_rgn:AutoRGN",
    "ema": "keras_transfer.methods.ema:EMA",
    "mixup": "keras_transfer.methods.mixup:Mixup",
    "prune": "keras_transfer.methods.prune:Prune",
    "private": "keras_transfer.methods.private:Private",
}
"""Import strings, so that reading the table imports no method."""


def make_methods(spec: RunSpec) -> tuple[Method, ...]:
    """The method of each phase, in order.

    Raises:
        SpecError: a method or one of its options is unknown or out of range, other fields
            contradict a method, it needs images where `cache.mode=on` demands stored features, or
            none uses `data.unlabelled`.
    """
    methods = tuple(make_method(phase, number) for number, phase in enumerate(spec.phases))
    if spec.data.unlabelled and not any(method.uses_unlabelled for method in methods):
        raise SpecError(
            "no phase uses the images without labels",
            expected="a phase by method 'align', or by 'distill' with hard_weight below 1",
            received=f"data.unlabelled={spec.data.unlabelled}",
            fix="leave data.unlabelled out, or set the method of a phase",
        )
    for number, method in enumerate(methods):
        method.check(spec, number)
        if method.needs_images and spec.cache.mode == "on":
            raise SpecError(
                f"phases.{number} trains by {method.name!r}, which needs images here",
                expected="cache.mode=auto or cache.mode=off",
                received="cache.mode=on, which always trains on stored features",
                fix=f"set cache.mode=auto, or change phases.{number}.method_options",
            )
    return methods


def check_repeatable(methods: Sequence[Method]) -> None:
    """Raise SpecError if a method must not train on the same images repeatedly."""
    if once := [method.name for method in methods if method.trains_once]:
        raise SpecError(
            "several trainings on the same images would each spend the privacy budget",
            expected="other methods than 'private' in what is repeated, compared or searched",
            received=", ".join(once),
            fix="train single runs, and add up their epsilon and their delta",
        )


def make_method(phase: PhaseSpec, number: int) -> Method:
    """The method of the phase with this number in its spec.

    Raises:
        SpecError: the method or one of its options is unknown or out of range.
    """
    kind = load_row(
        METHODS, phase.method, f"phases.{number}.method: there is no method called {phase.method!r}"
    )
    method: Method = kind(_options(kind, phase, f"phases.{number}.method_options"))
    return method


def _options(kind: Any, phase: PhaseSpec, field: str) -> Any:
    if phase.method_options and not dataclasses.fields(kind.Options):
        raise SpecError(
            f"{field}: method {kind.name!r} has no options",
            expected=f"{field} left out",
            received=", ".join(phase.method_options),
            fix="remove them, or choose another method",
        )
    return build(kind.Options, phase.method_options, f"{field}.", "the spec")
