"""Stratified splits: exact shares, every stratum in every split, units kept together.

A stratum is a group of images whose share every split keeps, such as a class; an image may belong
to several. A unit stays in one split: one image with its exact copies, or a group with all of its
images. scikit-learn's stratified splitters guarantee no minimum per class with groups, so this is
a greedy assignment, largest units first; without groups and with one stratum per image its counts
are exact.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

TRAIN = "train"


def find_units(digests: Sequence[str], groups: Sequence[str | None]) -> np.ndarray:
    """Number the units: rows connected by shared digests or shared groups.

    Returns:
        int64 [N], the unit of each row. An empty digest or a group of None connects nothing.
    """
    num_rows = len(digests)
    nodes: dict[tuple[str, str], int] = {}
    edges: list[tuple[int, int]] = []
    for row, names in enumerate(zip(digests, groups, strict=True)):
        for kind, name in zip(("digest", "group"), names, strict=True):
            if name:
                node = nodes.setdefault((kind, name), num_rows + len(nodes))
                edges.append((row, node))
    rows, columns = np.array(edges, dtype=np.int64).reshape(-1, 2).T
    size = num_rows + len(nodes)
    graph = coo_array((np.ones(len(rows), dtype=np.int8), (rows, columns)), shape=(size, size))
    _, component = connected_components(graph, directed=False)
    return np.unique(component[:num_rows], return_inverse=True)[1]


def count_units(strata: np.ndarray, units: np.ndarray) -> np.ndarray:
    """How many units each stratum of the membership matrix [N, S] appears in, int64 [S]."""
    num_units = int(units.max()) + 1
    rows, columns = np.nonzero(strata)
    pairs = np.unique(columns * num_units + units[rows])
    return np.bincount(pairs // num_units, minlength=strata.shape[1])


def share_out(counts: np.ndarray, fractions: Mapping[str, float]) -> dict[str, np.ndarray]:
    """How many images of each stratum every split should get.

    The total of a split is its fraction of all images, rounded, divided among strata by largest
    remainder. Every stratum gets at least one image in every split; training gets the rest.

    Args:
        counts: images of each stratum, int64 [S], each at least `len(fractions) + 1`.
        fractions: share of each split but training; their sum is below 1.
    """
    shares: dict[str, np.ndarray] = {}
    left = counts.copy()
    for later, (split, fraction) in zip(
        range(len(fractions), 0, -1), fractions.items(), strict=True
    ):
        most = left - later
        owed = counts * fraction
        share = np.clip(np.floor(owed), 1, most).astype(np.int64)
        missing = max(0, round(owed.sum()) - int(share.sum()))
        most_owed_first = np.argsort(share - owed, kind="stable")
        share[[c for c in most_owed_first if share[c] < most[c]][:missing]] += 1
        shares[split] = share
        left = left - share
    return {TRAIN: left, **shares}


def carve(
    strata: np.ndarray,
    units: np.ndarray,
    shares: Mapping[str, np.ndarray],
    generator: np.random.Generator,
) -> np.ndarray:
    """Assign every unit to one split.

    Largest units come first, in random order among equals. Each goes to the split where it exceeds
    the shares of its strata least, and among equal ones to the emptiest. But once a stratum has
    only as many units left as there are splits without it, those splits come first.

    Args:
        strata: which strata each row belongs to, bool [N, S].
        units: unit of each row, int64 [N], 0 to U - 1.
        shares: from `share_out`.

    Returns:
        The name of each row's split, str [N].
    """
    names = list(shares)
    wanted = [shares[name].tolist() for name in names]
    needed = [list(share) for share in wanted]
    rows, columns = np.nonzero(strata)
    shape = (int(units.max()) + 1, strata.shape[1])
    ones = np.ones(len(rows), dtype=np.int64)
    table = coo_array((ones, (units[rows], columns)), shape=shape).tocsr()
    table.sum_duplicates()
    to_come = np.bincount(table.indices, minlength=shape[1]).tolist()
    starts, members, counts = table.indptr.tolist(), table.indices.tolist(), table.data.tolist()
    chosen = np.empty(table.shape[0], dtype=np.int64)

    def preference(split: int, content: list[tuple[int, int]]) -> tuple[float, float]:
        need, want = needed[split], wanted[split]
        overshoot = sum(max(0, count - need[c]) for c, count in content)
        return overshoot, -sum(count * need[c] / want[c] for c, count in content)

    for unit in _largest_first(units, generator):
        part = slice(starts[unit], starts[unit + 1])
        content = list(zip(members[part], counts[part], strict=True))
        candidates: Sequence[int] = range(len(names))
        for c, _ in content:
            lacking = [split for split in range(len(names)) if needed[split][c] == wanted[split][c]]
            if lacking and len(lacking) >= to_come[c]:
                candidates = lacking
            to_come[c] -= 1
        split = min(candidates, key=lambda option: preference(option, content))
        chosen[unit] = split
        for c, count in content:
            needed[split][c] -= count
    return np.array(names)[chosen[units]]


def nested_subset(strata: np.ndarray, size: int, generator: np.random.Generator) -> np.ndarray:
    """A stratified choice of `size` rows of bool [N, S], ascending int64 [size].

    With the same generator state a smaller choice is a subset of every larger one, and each
    stratum is chosen once before any is chosen twice. `size` is at least the number of strata.
    """
    shuffled = generator.permutation(len(strata))
    position = np.full(len(strata), np.inf)
    for members in strata.T:
        rows = shuffled[members[shuffled]]
        if len(rows):
            # The j-th of n images is placed at (j + ½) / n: the first images are then stratified.
            places = (np.arange(len(rows)) + 0.5) / len(rows)
            places[0] = 0
            position[rows] = np.minimum(position[rows], places)
    return np.sort(np.argsort(position, kind="stable")[:size])


def _largest_first(units: np.ndarray, generator: np.random.Generator) -> list[int]:
    sizes = np.bincount(units)
    shuffled = generator.permutation(len(sizes))
    return shuffled[np.argsort(-sizes[shuffled], kind="stable")].tolist()
