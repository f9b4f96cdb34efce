"""Which fields of a spec have no effect on what it trains, and why.

Trainings whose fields with an effect are equal have the same result. A search varies only fields
with an effect, and trains equal specs once. Where this module does not know, a field counts as one
with an effect: that costs time, and changes no result.
"""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations, product
from typing import Any, Final

from keras_transfer.config import override, spec_to_dict
from keras_transfer.data.splits import Splits
from keras_transfer.data.views import strengths
from keras_transfer.errors import SpecError
from keras_transfer.experiments.tune.space import extremes
from keras_transfer.features.phase_inputs import describe_too_few, refits
from keras_transfer.methods.registry import make_method
from keras_transfer.specs import HEAD, RunSpec, ViewSpec

_PARTS: Final = ("seed", "model", "phases", "training", "views")
_STEPS: Final = (
    *("epochs", "learning_rate", "optimizer", "weight_decay", "warmup_epochs", "schedule"),
    "patience_epochs",
)
"""Fields of a phase that only training step by step reads."""
_BELOW: Final = ("layer_decay", "train_batchnorm")
"""Fields of a phase that only layers below the head read."""
_OWNED: Final = (("crop_aspect", "crop_area", 1), ("erasing_area", "erasing", 0))
"""A strength of the views, and the strength that switches it off by a value."""
_MOST_OTHERS: Final = 2
"""Other fields of a space that together may give a field its effect."""


@dataclass(frozen=True)
class Trained:
    """What the trials of a search train on: images at least, and whether they may be refitted."""

    num_train: int
    may_refit: bool

    @classmethod
    def of(cls, spec: RunSpec, splits: Sequence[Splits]) -> "Trained":
        """From the splits that every trial trains on."""
        refitted = replace(spec, training=replace(spec.training, refit=True))
        fewest = min(len(own.train) for own in splits)
        return cls(fewest, any(refits(refitted, own) for own in splits))


def idle_fields(spec: RunSpec, trained: Trained) -> dict[str, str]:
    """Fields without effect, or the beginnings of their names, and why, as parts of sentences."""
    return dict([*_idle_phases(spec, trained), *_idle_settings(spec, trained)])


def _kept(spec: RunSpec, trained: Trained) -> list[int]:
    """Numbers of the phases that are trained."""
    return [n for n, phase in enumerate(spec.phases) if trained.num_train >= phase.min_images]


def _solved(spec: RunSpec, trained: Trained) -> list[int]:
    """Numbers of the trained phases that are solved."""
    kept = [(number, spec.phases[number]) for number in _kept(spec, trained)]
    return [n for n, phase in kept if make_method(phase, n).is_solved(spec, phase)]


def _idle_phases(spec: RunSpec, trained: Trained) -> Iterator[tuple[str, str]]:
    kept, solved = _kept(spec, trained), _solved(spec, trained)
    for number, phase in enumerate(spec.phases):
        field, named = f"phases.{number}", f"phase {phase.name!r}"
        yield f"{field}.name", "a name changes nothing"
        # That a phase is left out is told by the others of its fields.
        yield f"{field}.min_images", f"its values do not change whether {named} is trained"
        if number not in kept:
            few = describe_too_few(phase, number, trained.num_train).rstrip(".")
            fields = (name for name in vars(phase) if name != "min_images")
            yield from ((f"{field}.{name}", f"{named} is left out: {few}") for name in fields)
        elif number in solved:
            exact = f"{named} is solved exactly, without epochs and rates"
            yield from ((f"{field}.{name}", exact) for name in (*_STEPS, *_BELOW))
        else:
            if phase.unfreeze == HEAD:
                frozen = f"{field}.unfreeze=head trains no layer below the head"
                yield from ((f"{field}.{name}", frozen) for name in _BELOW)
            if phase.method == "exact" and spec.model.head != "linear":
                hidden = f"a head with a hidden layer is not solved (model.head={spec.model.head})"
                yield f"{field}.method_options", hidden


def _idle_settings(spec: RunSpec, trained: Trained) -> Iterator[tuple[str, str]]:
    kept = _kept(spec, trained)
    if kept == _solved(spec, trained):
        exact = "every phase that is trained is solved exactly"
        yield from ((f"training.{name}", exact) for name in ("label_smoothing", "batch_size"))
        if spec.model.weights != "none":
            yield "seed", f"{exact}, without chance"
    if spec.model.head == "linear":
        yield "model.hidden_units", "model.head=linear has no hidden layer"
    if len(kept) == 1:
        yield "training.rollback", "only one phase is trained"
    if not trained.may_refit:
        yield "training.refit", "trials are compared on validation images, without a refit"
    yield from _idle_views(spec.views)


def _idle_views(views: ViewSpec) -> Iterator[tuple[str, str]]:
    if views.count == 1:
        names = (name for name in vars(views) if name != "count")
        yield from ((f"views.{name}", "views.count=1 shows plain images only") for name in names)
        return
    # Otherwise `strengths` warns of the same.
    plain = replace(views, crop_aspect=None, erasing_area=None)
    for name, owner, off in _OWNED:
        if getattr(strengths(plain), owner) == off:
            yield f"views.{name}", f"views.{owner} is off"


def fields_with_effect(spec: RunSpec, trained: Trained) -> tuple[tuple[str, Any], ...]:
    """The names and values of all fields with an effect: equal for trainings of equal results."""
    idle, values = idle_fields(spec, trained), spec_to_dict(spec)
    kept = _kept(spec, trained)
    found = [pair for part in _PARTS for pair in _flat(values[part], part)]
    return (
        ("phases", tuple(kept)),
        *((name, value) for name, value in found if _reason(name, idle) is None),
    )


def _flat(value: Any, name: str) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict | list):
        entries = value.items() if isinstance(value, dict) else enumerate(value)
        for key, entry in sorted(entries):
            yield from _flat(entry, f"{name}.{key}")
    else:
        yield name, value


def _reason(name: str, idle: Mapping[str, str]) -> str | None:
    """Why a field, or a table with it, has no effect; None if it has one."""
    parts = name.split(".")
    tables = (".".join(parts[: length + 1]) for length in range(len(parts)))
    return next((idle[table] for table in tables if table in idle), None)


def without_effect(spec: RunSpec, trained: Trained) -> dict[str, str]:
    """The fields of the search's space whose values all train the same, and why."""
    idle = idle_fields(spec, trained)
    space = spec.search.space
    return {
        name: _reason(name, idle) or "all its values train the same"
        for name in space
        if not _has_effect(spec, name, trained)
    }


def _has_effect(spec: RunSpec, name: str, trained: Trained) -> bool:
    """Whether two of a field's values train differently, with some values of the other fields."""
    tried = extremes(spec.search.space[name])
    for others in _contexts(spec, name):
        found = set()
        for value in tried:
            # Values that contradict each other are an error of the trial that has them.
            with contextlib.suppress(SpecError):
                found.add(fields_with_effect(override(spec, {**others, name: value}), trained))
        if len(found) > 1:
            return True
    return False


def _contexts(spec: RunSpec, name: str) -> Iterator[dict[str, Any]]:
    """Values of the other fields: the spec's own, and those of the space for up to two fields."""
    others = [other for other in spec.search.space if other != name]
    for number in range(_MOST_OTHERS + 1):
        for chosen in combinations(others, number):
            values = (extremes(spec.search.space[other]) for other in chosen)
            yield from (dict(zip(chosen, some, strict=True)) for some in product(*values))
