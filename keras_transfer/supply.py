"""What each phase reads: features stored at its cut where they fit, pictures where they do not.

Both feed the same layers. A phase on features fits the tail, which shares its layers with the
classifier; a phase on pictures fits the classifier itself.
"""

from dataclasses import dataclass
from typing import Any

import keras
import numpy as np

from keras_transfer.answers import answer
from keras_transfer.data.batching import Batching, steps_per_epoch
from keras_transfer.data.pipeline import (
    Examples,
    Inputs,
    Views,
    evaluation_dataset,
    training_dataset,
)
from keras_transfer.data.splits import Splits
from keras_transfer.delivery.prediction import predict_pixels
from keras_transfer.devices.hosts import share_from_first, share_out
from keras_transfer.devices.strategy import current, undistributed
from keras_transfer.features.extraction import Crew, Tally, alone
from keras_transfer.features.source import Features, Request, Source, features_recipe
from keras_transfer.features.store import Store
from keras_transfer.features.together import extract_together
from keras_transfer.models.classifier import Classifier
from keras_transfer.models.cuts import Cut
from keras_transfer.planning import Plan, Pool, find_cuts, make_plans
from keras_transfer.specs import RunSpec
from keras_transfer.terminal import Narrator


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
