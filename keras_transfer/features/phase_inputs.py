"""What each phase reads: features stored at its cut where they fit, pictures where they do not.

Both feed the same layers. A phase on features fits the tail, which shares its layers with the
classifier; a phase on pictures fits the classifier itself.

Which phases train on stored features, at which cut and on how many views, and why.

Bytes are estimated before anything is computed. What does not fit makes do with fewer views, and
where two do not fit either, with the pictures themselves: frozen layers then run again in every
epoch, without gradients.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import keras
import numpy as np

from keras_transfer.data.datasets import (
    Batching,
    Examples,
    Inputs,
    Views,
    evaluation_dataset,
    steps_per_epoch,
    training_dataset,
)
from keras_transfer.data.splits import Splits
from keras_transfer.devices.hosts import share_from_first, share_out
from keras_transfer.devices.strategy import current, undistributed
from keras_transfer.features.cached_logits import answer
from keras_transfer.features.extraction import Crew, Tally, alone
from keras_transfer.features.host_extraction import extract_together
from keras_transfer.features.source import Features, Request, Source, features_recipe
from keras_transfer.inference.prediction import predict_pixels
from keras_transfer.models.classifier import Classifier
from keras_transfer.models.cuts import Cut, find_cut
from keras_transfer.reporting.reporter import Narrator
from keras_transfer.specs import PhaseSpec, RunSpec
from keras_transfer.storage.cache import Store
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


@dataclass(frozen=True, eq=False)
class SplitData:
    """The training and validation splits of a run, as phases want them.

    `inputs` are pictures or features; epoch e shows view e mod `num_views`.
    """

    spec: RunSpec
    examples: Examples
    splits: Splits
    inputs: Inputs
    num_views: int | None

    @classmethod
    def of_pictures(cls, spec: RunSpec, examples: Examples, splits: Splits) -> "SplitData":
        """Views made when they are read."""
        return cls(spec, examples, splits, Views(examples, spec.views), spec.views.count)

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps in an epoch."""
        return steps_per_epoch(len(self.splits.train), self.spec.training.batch_size)

    def batching(self, num_parts: int) -> Batching:
        """Batches of the spec's size, shared among the devices there are."""
        devices = current()
        return Batching(
            size=self.spec.training.batch_size,
            num_parts=num_parts,
            num_devices=devices.num_devices,
            host=devices.host,
            num_hosts=devices.num_hosts,
        )

    @property
    def batch_size(self) -> int:
        """Pictures of an optimizer step."""
        return self.spec.training.batch_size

    def training(self, epochs: range, num_parts: int = 1) -> Any:
        """Batches of these epochs, each in so many parts."""
        training = self.spec.training
        return training_dataset(
            self.examples,
            self.splits.train,
            self.inputs,
            num_views=self.num_views,
            batching=self.batching(num_parts),
            seed=self.spec.seed,
            epochs=epochs,
            sampling=training.sampling,
            class_weights=training.class_weights,
        )

    def validation(self, num_parts: int = 1) -> Any:
        """Plain batches of the validation split, each in so many parts."""
        return evaluation_dataset(
            self.examples, self.splits.val, self.inputs, batching=self.batching(num_parts)
        )

    def predict(self, part: keras.Model, rows: np.ndarray) -> np.ndarray:
        """Class probabilities float32 [N, C] of plain pictures by a part that reads `inputs`."""
        plain = _Plain(self.inputs, len(self.examples.labels))
        predictor = undistributed(part)
        return share_out(
            rows,
            lambda some: predict_pixels(predictor, plain, rows=some),
            shape=part.output_shape[1:],
        )


@dataclass(frozen=True)
class _Plain:
    """View 0 of rows, for whoever indexes pictures."""

    inputs: Inputs
    num_rows: int

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.num_rows, *self.inputs.shape)

    def __len__(self) -> int:
        return self.num_rows

    def __getitem__(self, rows: np.ndarray) -> np.ndarray:
        return self.inputs.read(rows, np.zeros(len(rows), np.int64))


class Supply:
    """Hands every phase its inputs; one pass over the pictures serves as many phases as it can.

    `tallies` has an entry for every such pass. `pool` has the rows of this run and its siblings
    in a study: what no training has touched yet is stored for all of them at once. `crew`
    computes what is not stored yet.
    """

    def __init__(
        self,
        spec: RunSpec,
        source: Source,
        splits: Splits,
        *,
        store: Store,
        narrator: Narrator,
        pool: Pool | None = None,
        crew: Crew = alone,
    ):
        self._pool = pool or Pool.of(splits)
        self._crew = crew
        self.spec, self.source, self.splits = spec, source, splits
        self.tallies: list[Tally] = []
        self._store, self._narrator = store, narrator
        self._extracted: dict[int, tuple[Plan, Features]] = {}

    def for_phase(self, classifier: Classifier, number: int) -> tuple[SplitData, keras.Model]:
        """Data of phase `number`, all before it having been trained, and the part that fits them.

        Raises:
            RunError: features cannot be stored.
        """
        if self.spec.cache.mode != "off" and number not in self._extracted:
            self._extract(classifier, number)
        examples = self.source.examples
        if number not in self._extracted:
            return SplitData.of_pictures(self.spec, examples, self.splits), classifier.model
        plan, features = self._extracted.pop(number)
        data = SplitData(self.spec, examples, self.splits, features, plan.num_views)
        return data, plan.cut.tail()

    def predict(self, classifier: Classifier, rows: np.ndarray) -> np.ndarray:
        """Class probabilities float32 [N, C] of plain pictures, by the whole classifier.

        Raises:
            RunError: answers cannot be stored.
        """
        return answer(
            undistributed(classifier.model),
            [self.source.digests[row] for row in rows],
            self.source.examples.pixels,
            rows=rows,
            pixels_recipe=self.source.pixels,
            store=self._store,
            narrator=self._narrator,
        )

    def _extract(self, classifier: Classifier, first: int) -> None:
        """Features for phase `first` and for all later ones that can have theirs already."""
        # Once a phase has trained, what lies below a cut is this run's own.
        pool = Pool.of(self.splits) if first else self._pool
        plans = self._plan(find_cuts(classifier, self.spec.phases, first), pool)
        if not plans:
            return
        requests = [Request(plan.cut, pool.pairs(plan.num_views)) for plan in plans.values()]
        features, tally = extract_together(
            requests,
            self.source,
            cache=self.spec.cache,
            store=self._store,
            narrator=self._narrator,
            crew=self._crew,
        )
        self.tallies.append(tally)
        self._narrator.say(tally.describe())
        pairs = zip(plans.values(), features, strict=True)
        self._extracted.update(zip(plans, pairs, strict=True))

    def _plan(self, cuts: dict[int, Cut], pool: Pool) -> dict[int, Plan]:
        cache, count = self.spec.cache, self.spec.views.count
        if not cuts or count is None:
            return {}
        recipes = [features_recipe(cut, self.source, cache) for cut in cuts.values()]
        plans, told = make_plans(
            cuts,
            self.spec.phases,
            num_views=count,
            num_train=len(pool.train),
            num_plain=len(pool.plain),
            item_size=np.dtype(cache.dtype).itemsize,
            # What host 0 finds, so that all hosts make the same plans.
            room=share_from_first(self._store.free_for(*recipes)) if cache.mode == "auto" else None,
        )
        for sentence in told:
            self._narrator.say(sentence)
        return plans
