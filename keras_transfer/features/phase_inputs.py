"""The inputs of each phase: cached features at its cut where they fit, else images.

Both feed the same layers. A phase on features fits the tail, which shares its layers with the
classifier; a phase on images fits the classifier itself.

The size of the features is estimated before anything is computed. If they do not fit, the phase
uses fewer views. If fewer than two views fit, it trains on images, and the frozen layers run
again in every epoch, without gradients.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from itertools import chain, islice
from typing import Any, Final

import keras
import numpy as np

from keras_transfer.data.datasets import (
    Batching,
    Examples,
    Inputs,
    Transform,
    Views,
    evaluation_dataset,
    steps_per_epoch,
    training_dataset,
)
from keras_transfer.data.splits import Splits
from keras_transfer.devices.hosts import share_from_first, share_out
from keras_transfer.devices.strategy import current, undistributed
from keras_transfer.errors import SpecError
from keras_transfer.features.cached_logits import predict_cached
from keras_transfer.features.extraction import ExtractionStats, WorkerPool, this_process
from keras_transfer.features.host_extraction import extract_together
from keras_transfer.features.source import (
    Features,
    JoinedFeatures,
    Request,
    Source,
    features_keys,
)
from keras_transfer.models.activations import activate
from keras_transfer.models.classifier import Classifier
from keras_transfer.models.cuts import Cut, find_cut, split_cut
from keras_transfer.models.forward import forward_pixels
from keras_transfer.reporting.reporter import Reporter
from keras_transfer.specs import HEAD, TWO_PHASES, PhaseSpec, RunSpec
from keras_transfer.storage.cache import Cache
from keras_transfer.tasks.linear_head import HeadFeatures
from keras_transfer.tasks.task import Task
from keras_transfer.training.objective import PhaseMethod
from keras_transfer.training.phases import apply_phase
from keras_transfer.training.progress import changing_variables

FEWEST_VIEWS = 2
HEAD_ONLY = PhaseSpec(unfreeze=HEAD)
NO_ROWS: Final = np.empty(0, np.int64)
NUM_VIEWS = 4
"""Views on which a head is solved where every epoch would have a new one."""


SourceOf = Callable[[int], Source]
"""From an image size to the source of the same rows in this size."""

Extract = Callable[[Sequence[Request], Source], list[Features]]


@dataclass(frozen=True, eq=False)
class Pool:
    """Rows whose features are cached together: `train` in all views, `plain` in view 0 only."""

    train: np.ndarray
    plain: np.ndarray

    @classmethod
    def of(cls, *splits: Splits, refit: bool = False) -> "Pool":
        """The training rows of some splits, and all other rows that they evaluate.

        With `refit` validation rows will be trained on as well.
        """
        trained = [rows for one in splits for rows in (one.train, *([one.val] if refit else []))]
        train = np.unique(np.concatenate(trained))
        evaluated = [rows for one in splits for rows in (one.val, one.test)]
        return cls(train, np.setdiff1d(np.concatenate(evaluated), train))

    def with_trained(self, rows: np.ndarray) -> "Pool":
        """The pool with further rows in all views."""
        return Pool(np.union1d(self.train, rows), np.setdiff1d(self.plain, rows))

    def pairs(self, num_views: int) -> np.ndarray:
        """(row, view) of all of them, int64 [N, 2], sorted."""
        trained = [np.repeat(self.train, num_views), np.tile(np.arange(num_views), len(self.train))]
        plain = [self.plain, np.zeros_like(self.plain)]
        pairs = np.concatenate([np.stack(trained, axis=1), np.stack(plain, axis=1)])
        return pairs[np.lexsort((pairs[:, 1], pairs[:, 0]))]


def refits(spec: RunSpec, splits: Splits) -> bool:
    """Whether a training is repeated with the validation split; only a test split evaluates it."""
    return spec.training.refit and len(splits.test) > 0 and len(splits.val) > 0


@dataclass(frozen=True)
class Plan:
    """One phase on features: `num_views` of each training image, `num_bytes` in all."""

    cut: Cut
    num_views: int
    num_bytes: int


def find_cuts(classifier: Classifier, phases: Sequence[PhaseSpec], first: int) -> dict[int, Cut]:
    """The cuts of phase `first` and of later phases whose frozen layers do not change before them.

    Phases without a cut are left out, and so are those whose frozen layers an earlier phase still
    trains: their features are computed later. Sets the classifier up for phase `first`.
    """
    cuts: dict[int, Cut] = {}
    moved: set[int] = set()
    for number, phase in enumerate(phases[first:], first):
        apply_phase(classifier, phase)
        if cut := find_cut(classifier.model):
            backbone = classifier.trunk.backbone
            cut = replace(cut, name=f"{cut.name} of {backbone.name}")
            if backbone.parts:
                cut = split_cut(cut, [part.name for part in backbone.parts])
            if moved.isdisjoint(map(id, cut.variables)):
                cuts[number] = cut
        moved.update(map(id, changing_variables(classifier, phase)))
    apply_phase(classifier, phases[first])
    return cuts


def find_head_cut(classifier: Classifier) -> Cut:
    """The cut of a phase that trains only the head, for which the classifier is set up."""
    (cut,) = find_cuts(classifier, (HEAD_ONLY,), 0).values()
    return cut


def make_plans(
    cuts: Mapping[int, Cut],
    phases: Sequence[PhaseSpec],
    *,
    num_views: Mapping[int, int],
    num_train: int,
    num_plain: int,
    item_size: int,
    room: int | None,
) -> tuple[dict[int, Plan], list[str]]:
    """Train as many phases on features as there is room for, earlier phases first.

    Args:
        cuts: by phase number.
        num_views: distinct views of a training image that each phase reads.
        num_train: number of images with all their views.
        num_plain: number of images in view 0 only.
        item_size: bytes of a stored value.
        room: bytes available; None means no limit.

    Returns:
        Plans by phase number, and a sentence on every phase with fewer views than wanted.
    """
    plans: dict[int, Plan] = {}
    sentences: list[str] = []
    for number, cut in cuts.items():
        name = phases[number].name
        row_bytes = cut.num_values * item_size
        wanted = num_views[number]
        if room is None:
            plans[number] = Plan(cut, wanted, row_bytes * (num_train * wanted + num_plain))
            continue
        views = min(wanted, (room // row_bytes - num_plain) // num_train)
        if views < min(wanted, FEWEST_VIEWS):
            needed = row_bytes * (num_train * min(wanted, FEWEST_VIEWS) + num_plain)
            sentences.append(
                f"Phase {name!r} trains on images: features at {cut.name} would take "
                f"{needed / 1e9:.2g} GB, and there is room for {room / 1e9:.2g} GB."
            )
            continue
        if views < wanted:
            sentences.append(
                f"Phase {name!r} shows {views} views of each image instead of {wanted}: more "
                f"features at {cut.name} would not fit into {room / 1e9:.2g} GB."
            )
        plans[number] = Plan(cut, views, row_bytes * (num_train * views + num_plain))
        room -= plans[number].num_bytes
    return plans, sentences


@dataclass(frozen=True, eq=False)
class SplitData:
    """The training and validation splits of a run, as phases want them.

    `inputs` are images or features; epoch e shows view e mod `num_views`. `tensor` is the tensor of
    the classifier's graph whose values they are, None where nothing is trained. `unlabelled` are
    rows that are trained on besides the training split; their targets are placeholders. `columns`
    are put behind the targets that are trained on, and `transform` changes those batches. With
    `pairs` one of `unlabelled` follows each row of the training split in a batch.
    """

    spec: RunSpec
    task: Task
    examples: Examples
    splits: Splits
    inputs: Inputs
    num_views: int | None
    tensor: keras.KerasTensor | None = None
    unlabelled: np.ndarray = field(default_factory=lambda: NO_ROWS)
    columns: Inputs | None = None
    transform: Transform | None = None
    pairs: bool = False

    @classmethod
    def of_images(
        cls,
        spec: RunSpec,
        task: Task,
        examples: Examples,
        splits: Splits,
        tensor: keras.KerasTensor | None = None,
        unlabelled: np.ndarray = NO_ROWS,
    ) -> "SplitData":
        """Images: views are computed when they are read."""
        views = Views(examples, spec.views)
        return cls(spec, task, examples, splits, views, spec.views.count, tensor, unlabelled)

    @property
    def train_rows(self) -> np.ndarray:
        """The rows that are trained on, those without labels last."""
        return np.concatenate([self.splits.train, self.unlabelled])

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps in an epoch."""
        rows = self.splits.train if self.pairs else self.train_rows
        return steps_per_epoch(len(rows), self.spec.training.batch_size)

    def batching(self, num_parts: int) -> Batching:
        """Batches of the spec's size, shared among the devices."""
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
        """Images of an optimizer step."""
        return self.spec.training.batch_size

    @property
    def train_values(self) -> np.ndarray:
        """Target values of the training split."""
        return self.examples.targets.values[self.splits.train]

    def training(self, epochs: range, num_parts: int = 1) -> Any:
        """Batches of these epochs, each in so many parts."""
        training = self.spec.training
        weights = self.task.example_weights(self.train_values, training)
        ones = np.ones(len(self.unlabelled), np.float32)
        return training_dataset(
            self.examples,
            self.splits.train if self.pairs else self.train_rows,
            self.inputs,
            num_views=self.num_views,
            batching=self.batching(num_parts),
            seed=self.spec.seed,
            epochs=epochs,
            encode=self.task.encode,
            sampling=training.sampling,
            example_weights=weights if self.pairs else np.append(weights, ones),
            columns=self.columns,
            transform=self.transform,
            partners=self.unlabelled if self.pairs else None,
        )

    def validation(self, num_parts: int = 1) -> Any:
        """Plain batches of the validation split, each in so many parts; None if it is empty."""
        if not len(self.splits.val):
            return None
        return evaluation_dataset(
            self.examples,
            self.splits.val,
            self.inputs,
            batching=self.batching(num_parts),
            encode=self.task.encode,
        )

    def head_features(self, layer: keras.layers.Layer) -> HeadFeatures:
        """The inputs of the classifier's layer `layer`, of all views of the rows that train."""
        tensor, num_rows = layer.input, len(self.examples.targets)
        train_rows = self.train_rows
        below = None if tensor is self.tensor else undistributed(keras.Model(self.tensor, tensor))

        def read(positions: np.ndarray, view: int) -> np.ndarray:
            rows = train_rows[positions]
            if below is None:
                return self.inputs.read(rows, np.full(len(rows), view))
            return forward_pixels(below, _View(self.inputs, num_rows, view), rows=rows)

        # Without a fixed number of views, the next ones of each image.
        num_views = NUM_VIEWS if self.num_views is None else self.num_views
        return HeadFeatures(read, len(train_rows), num_views, tensor.shape[-1])

    def logits(self, part: keras.Model, rows: np.ndarray) -> np.ndarray:
        """Logits float32 [N, K] of plain images by a part that reads `inputs`."""
        plain, predictor = _View(self.inputs, len(self.examples.targets)), undistributed(part)
        return share_out(
            rows,
            lambda some: forward_pixels(predictor, plain, rows=some),
            shape=part.output_shape[1:],
        )

    def predict(self, part: keras.Model, rows: np.ndarray) -> np.ndarray:
        """Outputs float32 [N, K] of plain images by a part that reads `inputs`."""
        logits = self.logits(part, rows)
        return activate(logits, self.task.activation) if len(logits) else logits


@dataclass(frozen=True, eq=False)
class TrainedImages:
    """The images of one phase, as `PhaseImages` of a method.

    `source_of` gives the same rows in another image size; `extract` stores what is missing.
    """

    data: SplitData
    source: Source
    pool: Pool
    source_of: SourceOf
    extract: Extract

    @property
    def train_rows(self) -> np.ndarray:
        """See `PhaseImages`."""
        return self.data.train_rows

    @property
    def train_values(self) -> np.ndarray:
        """Those of the training split."""
        return self.data.train_values

    @property
    def num_labelled(self) -> int:
        """The size of the training split."""
        return len(self.data.splits.train)

    @property
    def num_views(self) -> int | None:
        """See `PhaseImages`."""
        return self.data.num_views

    @property
    def test_digests(self) -> list[str]:
        """See `PhaseImages`."""
        return [self.source.digests[row] for row in self.data.splits.test]

    def read_frozen(self, cuts: Sequence[Cut], image_size: int) -> list[Features]:
        """See `PhaseImages`; views are those of the pool's training rows.

        Raises:
            SpecError: the views are not stored, because every epoch has new ones.
            RunError: activations cannot be stored.
        """
        if self.num_views is None:
            raise SpecError(
                "the outputs of another network are stored for each view, and views have no end",
                expected="views.count of 1 or more",
                received="views.count=none",
                fix="set views.count=4",
            )
        pairs = Pool(self.pool.train, NO_ROWS).pairs(self.num_views)
        source = replace(self.source_of(image_size), views=self.source.views)
        return self.extract([Request(cut, pairs) for cut in cuts], source)


@dataclass(frozen=True)
class _View:
    """One view of all rows, indexed like images."""

    inputs: Inputs
    num_rows: int
    view: int = 0

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.num_rows, *self.inputs.shape)

    def __len__(self) -> int:
        return self.num_rows

    def __getitem__(self, rows: np.ndarray) -> np.ndarray:
        return self.inputs.read(rows, np.full(len(rows), self.view))


def describe_too_few(phase: PhaseSpec, number: int, num_train: int) -> str:
    """Why the phase with this number is left out, and how to train it."""
    return (
        f"there are {num_train:,} training images, and it needs {phase.min_images:,}. "
        f"Add phases.{number}.min_images=0 to train it anyway."
    )


def _describe_left_out(phase: PhaseSpec, number: int, num_train: int) -> str:
    """The same, and which fields of the phase have no effect, of those that are not the usual."""
    usual = asdict(TWO_PHASES[number] if number < len(TWO_PHASES) else PhaseSpec())
    changed = [
        f"phases.{number}.{name}"
        for name, value in asdict(phase).items()
        if value != usual[name] and name not in ("name", "min_images")
    ]
    have = "has" if len(changed) == 1 else "have"
    without = f"{', '.join(changed)} {have} no effect, because phase" if changed else "Phase"
    return f"{without} {phase.name!r} is left out: {describe_too_few(phase, number, num_train)}"


def _without_small_phases(
    spec: RunSpec, methods: Sequence[PhaseMethod], num_train: int, reporter: Reporter
) -> tuple[RunSpec, list[PhaseMethod]]:
    """The spec and the methods without phases that need more training images.

    Raises:
        SpecError: no phase is left.
    """
    kept = [n for n, phase in enumerate(spec.phases) if num_train >= phase.min_images]
    if not kept:
        raise SpecError(
            "every phase needs more training images than there are",
            expected=f"a phase with min_images of at most {num_train}",
            received=", ".join(f"{phase.min_images} in {phase.name!r}" for phase in spec.phases),
            fix="set phases.0.min_images=0",
        )
    for number, phase in enumerate(spec.phases):
        if number not in kept:
            reporter.info(_describe_left_out(phase, number, num_train))
    phases = tuple(spec.phases[number] for number in kept)
    return replace(spec, phases=phases), [methods[number] for number in kept]


class PhaseInputs:
    """Gives every phase its inputs; one pass over the images computes as many phases as possible.

    `extraction_stats` has an entry for every pass. `pool` has the rows of this run and of the
    other trials of a study: features of untrained layers are computed for all of them at once.
    `spec` is the given one without the phases that have too few training images (`min_images`).
    `methods` has one for each phase. `worker_pool` computes missing features. `teacher_stats` has
    an entry for every pass of another network (`images`), whose images `source_of` gives in its
    size; by default only in the size of the source. Phases whose method uses them also train on the
    rows `unlabelled`.
    """

    def __init__(
        self,
        spec: RunSpec,
        source: Source,
        splits: Splits,
        *,
        methods: Sequence[PhaseMethod],
        cache: Cache,
        reporter: Reporter,
        pool: Pool | None = None,
        unlabelled: np.ndarray = NO_ROWS,
        source_of: SourceOf | None = None,
        worker_pool: WorkerPool = this_process,
    ):
        spec, methods = _without_small_phases(spec, methods, len(splits.train), reporter)
        uses_unlabelled = any(method.uses_unlabelled for method in methods)
        self._unlabelled = unlabelled if uses_unlabelled else NO_ROWS
        pool = pool or Pool.of(splits, refit=refits(spec, splits))
        self._pool = pool.with_trained(self._unlabelled)
        self._crew = worker_pool
        self.spec, self.source, self.splits = spec, source, splits
        self.methods = tuple(methods)
        self.extraction_stats: list[ExtractionStats] = []
        self.teacher_stats: list[ExtractionStats] = []
        self._source_of = source_of or self._same_size
        self._cache, self._reporter = cache, reporter
        self._extracted: dict[int, tuple[Plan, Inputs]] = {}

    def for_phase(self, classifier: Classifier, number: int) -> tuple[SplitData, keras.Model]:
        """Data of phase `number`, after all earlier ones, and the part of the model to fit on them.

        Raises:
            RunError: features cannot be stored.
        """
        uses_cache, method = self.spec.cache.mode != "off", self.methods[number]
        if uses_cache and method.needs_images:
            name = self.spec.phases[number].name
            self._reporter.info(f"Phase {name!r} trains on images: {method.name} needs them here.")
        elif uses_cache and number not in self._extracted:
            self._extract(classifier, number)
        examples, task = self.source.examples, classifier.task
        unlabelled = self._unlabelled if method.uses_unlabelled else NO_ROWS
        common = self.spec, task, examples, self.splits
        if number not in self._extracted:
            model = classifier.model
            return SplitData.of_images(*common, model.input, unlabelled), model
        plan, features = self._extracted.pop(number)
        data = SplitData(*common, features, plan.num_views, plan.cut.tensor, unlabelled)
        return data, plan.cut.tail()

    def images(self, data: SplitData) -> TrainedImages:
        """The images of a phase, for its method; `data` are those of `for_phase`."""
        source_of, extract = self._source_of, self._extract_teacher
        return TrainedImages(data, self.source, self._pool, source_of, extract)

    def _same_size(self, image_size: int) -> Source:
        own = self.source.pixels.shape[0]
        if image_size != own:
            raise SpecError(
                "another network reads images of another size, which are not at hand here",
                expected=f"images of {own} px",
                received=f"{image_size} px",
                fix=f"set data.image_size={image_size}",
            )
        return self.source

    def _extract_teacher(self, requests: Sequence[Request], source: Source) -> list[Features]:
        features, stats = self._stored(requests, source)
        self.teacher_stats.append(stats)
        self._reporter.info(f"Teacher: {stats.describe()}")
        return features

    def joined(self) -> "PhaseInputs":
        """The same with validation images in the training split, and none left to validate on."""
        train = np.union1d(self.splits.train, self.splits.val)
        splits = replace(self.splits, train=train, val=self.splits.val[:0])
        joined = PhaseInputs(
            self.spec,
            self.source,
            splits,
            methods=self.methods,
            cache=self._cache,
            reporter=self._reporter,
            unlabelled=self._unlabelled,
            source_of=self._source_of,
            worker_pool=self._crew,
        )
        joined.extraction_stats, joined.teacher_stats = self.extraction_stats, self.teacher_stats
        return joined

    @property
    def refits(self) -> bool:
        """Whether the phases are trained once more on training and validation images."""
        return refits(self.spec, self.splits)

    def predict(self, classifier: Classifier, rows: np.ndarray) -> np.ndarray:
        """Outputs float32 [N, K] of plain images, by the whole classifier.

        Raises:
            RunError: logits cannot be stored.
        """
        return predict_cached(
            undistributed(classifier.model),
            [self.source.digests[row] for row in rows],
            self.source.examples.pixels,
            rows=rows,
            pixels_key=self.source.pixels,
            cache=self._cache,
            reporter=self._reporter,
            activation=classifier.task.activation,
        )

    def _extract(self, classifier: Classifier, first: int) -> None:
        """Features for phase `first` and for all later ones whose frozen layers are final."""
        # Once a phase has trained, what lies below a cut is this run's own.
        pool = self._pool
        if first:
            own = Pool.of(self.splits, refit=self.refits)
            pool = own.with_trained(self._unlabelled)
        cuts = find_cuts(classifier, self.spec.phases, first)
        cuts = {n: cut for n, cut in cuts.items() if not self.methods[n].needs_images}
        plans = self._plan(cuts, pool)
        if not plans:
            return
        requests = [
            Request(plan.cut, pool.pairs(plan.num_views)).parts() for plan in plans.values()
        ]
        features, stats = self._stored(list(chain(*requests)), self.source)
        self.extraction_stats.append(stats)
        self._reporter.info(stats.describe())
        found = iter(features)
        for (number, plan), parts in zip(plans.items(), requests, strict=True):
            stored = list(islice(found, len(parts)))
            inputs = JoinedFeatures(stored) if plan.cut.parts else stored[0]
            self._extracted[number] = plan, inputs

    def _stored(
        self, requests: Sequence[Request], source: Source
    ) -> tuple[list[Features], ExtractionStats]:
        return extract_together(
            requests,
            source,
            cache_spec=self.spec.cache,
            cache=self._cache,
            reporter=self._reporter,
            worker_pool=self._crew,
        )

    def _plan(self, cuts: dict[int, Cut], pool: Pool) -> dict[int, Plan]:
        cache_spec, count = self.spec.cache, self.spec.views.count
        if not cuts or count is None:
            return {}
        num_views = {
            number: self.methods[number].num_views(self.spec.phases[number], count)
            for number in cuts
        }
        make = partial(
            make_plans,
            cuts,
            self.spec.phases,
            num_views=num_views,
            num_train=len(pool.train),
            num_plain=len(pool.plain),
            item_size=np.dtype(cache_spec.dtype).itemsize,
        )
        plans, sentences = make(room=None)
        if cache_spec.mode == "auto":
            cache_keys = chain(
                *(features_keys(cut, self.source, cache_spec) for cut in cuts.values())
            )
            needed = sum(plan.num_bytes for plan in plans.values())
            # What host 0 finds, so that all hosts make the same plans.
            room = share_from_first(self._cache.free_for(*cache_keys, enough=needed))
            plans, sentences = make(room=room)
        for sentence in sentences:
            self._reporter.info(sentence)
        return plans
