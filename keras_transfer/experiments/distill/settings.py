"""The spec of a student that learns from a teacher, and of the same student without one."""

import dataclasses
from typing import Any, Final

from keras_transfer.backbones.scaling import GREY
from keras_transfer.config import override
from keras_transfer.specs import HEAD, DistillSpec, PhaseSpec, RunSpec
from keras_transfer.storage.model_files import TEACHER, resolve

REPORT_FILE: Final = "distillation.json"
"""Written last: it marks a distillation as complete."""

DISTILL: Final = "distill"
ANY_FEATURES: Final = ("logits", "decoupled", "dynamic", "multi_task")
"""Kinds of distillation that also serve where only a linear head trains."""


def distillation_spec(spec: RunSpec, teacher: str, settings: DistillSpec) -> RunSpec:
    """The spec with every phase by distillation.

    A phase of a linear head compares logits where the kind compares features, which do not train
    there. Phases that distil already keep their options.

    Args:
        teacher: paths, separated by commas.
    """
    given = {"temperature": settings.temperature, "hard_weight": settings.hard_weight}
    common = {name: value for name, value in given.items() if value is not None}

    def taught(phase: PhaseSpec) -> PhaseSpec:
        only_head = phase.unfreeze == HEAD and spec.model.head == "linear"
        fits = not only_head or settings.kind in ANY_FEATURES
        kind = {"kind": settings.kind, "kind_options": settings.kind_options}
        options: dict[str, Any] = {
            **(kind if fits else {"kind": "logits"}),
            **common,
            **(phase.method_options if phase.method == DISTILL else {}),
            TEACHER: teacher,
        }
        return dataclasses.replace(phase, method=DISTILL, method_options=options)

    changed = dataclasses.replace(spec, phases=tuple(map(taught, spec.phases)))
    unlabelled = settings.unlabelled or spec.data.unlabelled
    return override(changed, {"data.unlabelled": unlabelled})


def spec_alone(spec: RunSpec) -> RunSpec:
    """The spec without a teacher: a head is solved, and other phases train on labels alone."""

    def plain(phase: PhaseSpec) -> PhaseSpec:
        if phase.method != DISTILL:
            return phase
        method = "exact" if phase.unfreeze == HEAD else "supervised"
        return dataclasses.replace(phase, method=method, method_options={})

    changed = dataclasses.replace(spec, phases=tuple(map(plain, spec.phases)))
    return override(changed, {"data.unlabelled": ""})


def spec_smaller(spec: RunSpec, settings: DistillSpec) -> RunSpec | None:
    """The spec of the smaller network, which is trained like the student alone; None without one.

    Its pixels are scaled as its weights demand; a student that sees grey has one that does, too.
    """
    if not settings.smaller:
        return None
    model = {
        "backbone": settings.smaller,
        "weights": settings.smaller_weights,
        "last_stage": "",
        "preprocess": GREY if spec.model.preprocess.startswith(GREY) else "",
    }
    fields = {f"model.{name}": value for name, value in model.items()}
    return resolve(override(spec_alone(spec), fields))
