"""Units: the work of an extraction in fixed pieces that any process may do, again if need be.

A unit says which views go through which layers, and under which numbers their rows are stored.
All of that is settled before the work starts. So the store ends up with the same files, bit by
bit, whoever does which unit, in whatever order and however often.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from keras_transfer.features.recipe import Recipe

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
