"""Which phases train on stored features, at which cut and on how many views, and why.

Bytes are estimated before anything is computed. What does not fit makes do with fewer views, and
where two do not fit either, with the pictures themselves: frozen layers then run again in every
epoch, without gradients.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from keras_transfer.data.splits import Splits
from keras_transfer.models.classifier import Classifier
from keras_transfer.models.cuts import Cut, find_cut
from keras_transfer.specs import PhaseSpec
from keras_transfer.training.phases import apply_phase
from keras_transfer.training.progress import changing_variables

FEWEST_VIEWS = 2


@dataclass(frozen=True, eq=False)
class Pool:
    """Rows whose features are stored together: `train` in all views, `plain` in view 0 only."""

    train: np.ndarray
    plain: np.ndarray

    @classmethod
    def of(cls, *splits: Splits) -> "Pool":
        """All that some of the splits train on, and all that none does but some judge."""
        train = np.unique(np.concatenate([one.train for one in splits]))
        judged = [rows for one in splits for rows in (one.val, one.test)]
        return cls(train, np.setdiff1d(np.concatenate(judged), train))

    def pairs(self, num_views: int) -> np.ndarray:
        """(row, view) of all of them, int64 [N, 2], sorted."""
        trained = [np.repeat(self.train, num_views), np.tile(np.arange(num_views), len(self.train))]
        plain = [self.plain, np.zeros_like(self.plain)]
        pairs = np.concatenate([np.stack(trained, axis=1), np.stack(plain, axis=1)])
        return pairs[np.lexsort((pairs[:, 1], pairs[:, 0]))]


@dataclass(frozen=True)
class Plan:
    """One phase on features: `num_views` of each training picture, `num_bytes` in all."""

    cut: Cut
    num_views: int
    num_bytes: int


def find_cuts(classifier: Classifier, phases: Sequence[PhaseSpec], first: int) -> dict[int, Cut]:
    """The cuts of phase `first` and of later ones that nothing moves until their turn comes.

    Phases without a cut, and those whose frozen layers an earlier phase is still to train, are
    left out: these come later. Leaves the classifier set up for phase `first`.
    """
    cuts: dict[int, Cut] = {}
    moved: set[int] = set()
    for number, phase in enumerate(phases[first:], first):
        apply_phase(classifier, phase)
        if cut := find_cut(classifier.model):
            cut = replace(cut, name=f"{cut.name} of {classifier.trunk.backbone.name}")
            if moved.isdisjoint(map(id, cut.variables)):
                cuts[number] = cut
        moved.update(map(id, changing_variables(classifier, phase)))
    apply_phase(classifier, phases[first])
    return cuts


def make_plans(
    cuts: Mapping[int, Cut],
    phases: Sequence[PhaseSpec],
    *,
    num_views: int,
    num_train: int,
    num_plain: int,
    item_size: int,
    room: int | None,
) -> tuple[dict[int, Plan], list[str]]:
    """As many phases on features as there is room for, earlier phases first.

    Args:
        cuts: by the phases' numbers.
        num_views: distinct views of a training picture; a short phase sees fewer.
        num_train: pictures with all their views.
        num_plain: pictures in view 0 only.
        item_size: bytes of a stored number.
        room: bytes that may be taken; None stores whatever it takes.

    Returns:
        Plans by the phases' numbers, and a sentence on every phase that got less than it asked
        for.
    """
    plans: dict[int, Plan] = {}
    told: list[str] = []
    for number, cut in cuts.items():
        name = phases[number].name
        row_bytes = cut.num_values * item_size
        asked = min(num_views, phases[number].epochs)
        if room is None:
            plans[number] = Plan(cut, asked, row_bytes * (num_train * asked + num_plain))
            continue
        views = min(asked, (room // row_bytes - num_plain) // num_train)
        if views < min(asked, FEWEST_VIEWS):
            needed = row_bytes * (num_train * min(asked, FEWEST_VIEWS) + num_plain)
            told.append(
                f"Phase {name!r} trains on pictures: features at {cut.name} would take "
                f"{needed / 1e9:.2g} GB, and there is room for {room / 1e9:.2g} GB."
            )
            continue
        if views < asked:
            told.append(
                f"Phase {name!r} shows {views} views of each picture instead of {asked}: more "
                f"features at {cut.name} would not fit into {room / 1e9:.2g} GB."
            )
        plans[number] = Plan(cut, views, row_bytes * (num_train * views + num_plain))
        room -= plans[number].num_bytes
    return plans, told
