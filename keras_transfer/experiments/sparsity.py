"""How many weights of a network are not zero, and how large its file is before and after gzip."""

import gzip
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import keras
import numpy as np

_LEAST: Final = 0.01
"""Share of zeros from which a network counts as pruned."""


@dataclass(frozen=True, kw_only=True)
class Sparsity:
    """Exact counts over all kernels, in `layers` for each: not zero, and all.

    Zeros make a file smaller only once it is compressed: `num_bytes` is the size of model.keras,
    `num_packed_bytes` that after gzip.
    """

    num_weights: int
    num_nonzero: int
    num_bytes: int
    num_packed_bytes: int
    layers: dict[str, tuple[int, int]]

    def describe(self) -> str:
        """One sentence."""
        return (
            f"{self.num_nonzero:,} of {self.num_weights:,} weights "
            f"({self.num_nonzero / self.num_weights:.1%}) of all kernels are not zero; model.keras "
            f"has {self.num_bytes / 1e6:.2f} MB, after gzip {self.num_packed_bytes / 1e6:.2f} MB."
        )


def measure_sparsity(model: keras.Model, file: Path) -> Sparsity | None:
    """Count the weights of a model in a file; None where fewer than 1 % are zero."""
    layers = {
        variable.path: (int(np.count_nonzero(values)), values.size)
        for variable in model.weights
        if (values := np.array(variable)).ndim > 1
    }
    num_nonzero, num_weights = (sum(column) for column in zip(*layers.values(), strict=True))
    if num_nonzero > (1 - _LEAST) * num_weights:
        return None
    return Sparsity(
        num_weights=num_weights,
        num_nonzero=num_nonzero,
        num_bytes=file.stat().st_size,
        num_packed_bytes=packed_bytes(file),
        layers=layers,
    )


def packed_bytes(file: Path) -> int:
    """Size of a file after gzip, which repeated weights and zeros make smaller."""
    return len(gzip.compress(file.read_bytes(), compresslevel=6))
