"""Units: the work of an extraction in fixed pieces that any process may do, again if need be.

A unit says which views go through which layers, and under which numbers their rows are stored.
All of that is settled before the work starts. So the store ends up with the same files, bit by
bit, whoever does which unit, in whatever order and however often.

The workshop: where units of an extraction are computed, and from where their shards come.

views → layers below the cuts → rows as they are stored → shards under their final numbers
"""

import dataclasses
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import numpy as np

from keras_transfer.data.datasets import Views
from keras_transfer.errors import RunError
from keras_transfer.features.prefix import Prefix
from keras_transfer.features.source import Source
from keras_transfer.models.cuts import Cut
from keras_transfer.storage.entry import Recipe
from keras_transfer.storage.shards import Rows, explained, write_shard

UNIT_VIEWS: Final = 4096
"""Most views in a unit: small rows would fill a shard only after hours, for a kill to undo."""

_KEY_BYTES: Final = 90
"""What a row takes beside its numbers: its key as JSON."""


@dataclass(frozen=True, eq=False)
class Target:
    """A shard that a unit fills with rows of one of its outputs: all, or those at `places`."""

    output: int
    number: int
    places: np.ndarray | None


@dataclass(frozen=True, eq=False)
class Unit:
    """What one process does at a time, complete in itself and picklable.

    `folder` is the store's. `recipes` are those of the activations that the graph gives, in the
    order of its outputs; `way` is precision and batch size. `pairs` are int64 [N, 2] of (row,
    view). `targets` are written in their order.
    """

    folder: Path
    recipes: tuple[Recipe, ...]
    way: tuple[str, int]
    pairs: np.ndarray
    targets: tuple[Target, ...]

    def __len__(self) -> int:
        return len(self.pairs)

    @property
    def num_bytes(self) -> int:
        """About what its shards take in the store."""
        row_bytes = {n: recipe.row_bytes + _KEY_BYTES for n, recipe in enumerate(self.recipes)}
        return sum(row_bytes[t.output] * len(self.pairs_of(t)) for t in self.targets)

    def pairs_of(self, target: Target) -> np.ndarray:
        """The pairs whose rows a target holds, in the order of the shard."""
        return self.pairs if target.places is None else self.pairs[target.places]

    def alone(self) -> tuple["Unit", np.ndarray]:
        """The unit as it is for a source of its own pictures only, and which rows these are."""
        rows, places = np.unique(self.pairs[:, 0], return_inverse=True)
        pairs = np.stack([places, self.pairs[:, 1]], axis=1)
        return dataclasses.replace(self, pairs=pairs), rows


@dataclass(frozen=True, eq=False)
class Gap:
    """What one entry lacks: `pairs` int64 [N, 2], and numbers of shards that are still free."""

    recipe: Recipe
    pairs: np.ndarray
    numbers: Iterator[int]


def cut_up(
    gaps: Sequence[Gap], *, folder: Path, way: tuple[str, int], shard_bytes: int
) -> list[Unit]:
    """Units that fill all gaps in one pass over the pictures.

    Units end where batches do, and pairs are in order. So when a killed extraction goes on, those
    that are left make up the same batches, and get the same numbers.

    Args:
        gaps: in the order of the graph's outputs; one without pairs is an output nobody stores.
        folder: the store's.
        way: precision and batch size.
        shard_bytes: about how large the largest shard of a unit may be.
    """
    batch_size = way[1]
    batch_bytes = batch_size * max(gap.recipe.row_bytes for gap in gaps)
    size = batch_size * max(1, min(shard_bytes // batch_bytes, UNIT_VIEWS // batch_size))
    codes = np.unique(np.concatenate([_codes(gap.pairs) for gap in gaps]))
    lacking = [np.isin(codes, _codes(gap.pairs), assume_unique=True) for gap in gaps]
    recipes = tuple(gap.recipe for gap in gaps)
    units = []
    for start in range(0, len(codes), size):
        part = slice(start, start + size)
        targets = tuple(
            Target(output, next(gap.numbers), None if mask[part].all() else mask[part].nonzero()[0])
            for output, (gap, mask) in enumerate(zip(gaps, lacking, strict=True))
            if mask[part].any()
        )
        pairs = np.stack([codes[part] >> 32, codes[part] & 0xFFFFFFFF], axis=1)
        units.append(Unit(folder, recipes, way, pairs, targets))
    return units


def _codes(pairs: np.ndarray) -> np.ndarray:
    """Pairs as single numbers in the same order, which NumPy can sort and look up at once."""
    codes: np.ndarray = pairs[:, 0] << 32 | pairs[:, 1]
    return codes


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
