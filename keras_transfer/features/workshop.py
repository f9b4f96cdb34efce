"""The workshop: where units of an extraction are computed, and from where their shards come.

views → layers below the cuts → rows as they are stored → shards under their final numbers
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np

from keras_transfer.data.pipeline import Views
from keras_transfer.errors import RunError
from keras_transfer.features.prefix import Prefix
from keras_transfer.features.recipe import Recipe
from keras_transfer.features.shards import Rows, explained, write_shard
from keras_transfer.features.source import Source
from keras_transfer.features.units import Unit
from keras_transfer.models.cuts import Cut

_NUM_THREADS = 2


@dataclass(frozen=True, eq=False)
class Workshop:
    """What units are computed with: the cuts of a classifier by their recipes' digests, pictures.

    `prefixes` are the frozen layers compiled so far, by precision and digests: they are built
    when a unit needs them.
    """

    cuts: Mapping[str, Cut]
    source: Source
    prefixes: dict[tuple[str, ...], Prefix] = field(default_factory=dict)

    def keep(self, recipes: Iterable[Recipe], precision: str, prefix: Prefix) -> None:
        """Use a prefix that was built already, for the units of these recipes."""
        self.prefixes[precision, *(recipe.digest for recipe in recipes)] = prefix

    def compute(
        self, units: Iterable[Unit], on_views: Callable[[int], None] | None = None
    ) -> Iterator[Unit]:
        """Compute units in their order and pass each on when its shards are on disk.

        Views, layers and files overlap, also from one unit to the next.

        Args:
            units: taken a few batches ahead of what is written.
            on_views: told of every batch how many views it had.

        Raises:
            RunError: the disk is full, or activations are too large for their type.
        """
        pixels = self.source.examples.pixels
        rows: list[np.ndarray] = []
        with ThreadPoolExecutor(1) as writer:
            writing: Future[Unit] | None = None
            for unit, start, outputs in self._batches(units):
                if start == 0:
                    recipes = [unit.recipes[target.output] for target in unit.targets]
                    rows = [np.empty((len(unit), *r.shape), r.dtype) for r in recipes]
                for filled, target in zip(rows, unit.targets, strict=True):
                    batch = outputs[target.output]
                    filled[start : start + len(batch)] = batch
                if on_views:
                    on_views(len(outputs[0]))
                if start + len(outputs[0]) < len(unit):
                    continue
                if writing:
                    yield writing.result()
                writing = writer.submit(self._write, unit, rows)
                if isinstance(pixels, Rows):
                    pixels.release()
            if writing:
                yield writing.result()

    def _batches(self, units: Iterable[Unit]) -> Iterator[tuple[Unit, int, list[np.ndarray]]]:
        """Rows as they are stored for every output, batch by batch, and where each starts.

        A thread takes a batch all the way: the cores that one batch leaves idle, while its views
        are made or where a layer is too small to share out, work at another. Measured on two
        cores, that is up to a quarter faster than a thread for views beside one for the layers;
        more than two threads gain nothing more, and each holds the activations of a batch.
        """
        views = Views(self.source.examples, self.source.views)

        def compute(unit: Unit, prefix: Prefix, start: int) -> list[np.ndarray]:
            batch_size = unit.way[1]
            batch = unit.pairs[start : start + batch_size]
            outputs = prefix(views.read(*batch.T), batch_size)
            named = zip(outputs, unit.recipes, strict=True)
            return [self._rounded(output, recipe) for output, recipe in named]

        waiting: deque[tuple[Unit, int, Future[list[np.ndarray]]]] = deque()
        with ThreadPoolExecutor(_NUM_THREADS, thread_name_prefix="features") as pool:
            for unit in units:
                prefix = self._prefix(unit)
                for start in range(0, len(unit), unit.way[1]):
                    waiting.append((unit, start, pool.submit(compute, unit, prefix, start)))
                    if len(waiting) > _NUM_THREADS:
                        yield _done(*waiting.popleft())
            while waiting:
                yield _done(*waiting.popleft())

    def _prefix(self, unit: Unit) -> Prefix:
        digests = [recipe.digest for recipe in unit.recipes]
        precision = unit.way[0]
        if (precision, *digests) not in self.prefixes:
            cuts = [self.cuts[digest] for digest in digests]
            self.prefixes[precision, *digests] = Prefix(cuts, precision=precision)
        return self.prefixes[precision, *digests]

    def _rounded(self, output: np.ndarray, recipe: Recipe) -> np.ndarray:
        """Activations as they are stored; RunError where that loses them."""
        with np.errstate(over="ignore"):
            rows = output.astype(recipe.dtype)
        if not np.isfinite(rows).all():
            raise RunError(
                f"activations at {self.cuts[recipe.digest].name} are too large to be stored",
                expected=f"numbers that {recipe.dtype} can hold",
                received=f"up to {np.abs(output).max():g}",
                fix="set cache.dtype=float32, and cache.precision=float32 if that is not enough",
            )
        return rows

    def _write(self, unit: Unit, rows: list[np.ndarray]) -> Unit:
        for filled, target in zip(rows, unit.targets, strict=True):
            recipe = unit.recipes[target.output]
            folder = unit.folder / recipe.id
            with explained(folder):
                write_shard(
                    folder,
                    target.number,
                    entry=recipe.digest,
                    keys=self.source.keys(unit.pairs_of(target)),
                    rows=filled if target.places is None else filled[target.places],
                )
        return unit


def _done(
    unit: Unit, start: int, computing: Future[list[np.ndarray]]
) -> tuple[Unit, int, list[np.ndarray]]:
    return unit, start, computing.result()
