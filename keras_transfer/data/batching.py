"""Batching: how rows become batches of one size, shared among devices and hosts.

TPUs and devices that share a batch want all batches alike, and nothing is dropped: the last batch
is filled up with copies of its own examples that weigh nothing. What the others weigh makes up for
that, so that a loss is the mean over the real examples, as if the batch were smaller.
"""

import math
from dataclasses import dataclass, replace

import numpy as np


@dataclass(frozen=True, kw_only=True)
class Batching:
    """How rows become batches: `size` examples over all devices, of which a host reads its share.

    The hosts are numbered from 0; host h has the h-th of `num_hosts` equal shares of every batch.
    A batch may be read in `num_parts` equal parts, one after another, where memory is short.
    """

    size: int
    num_parts: int = 1
    num_devices: int = 1
    host: int = 0
    num_hosts: int = 1

    def fitted(self, num_rows: int) -> "Batching":
        """The same for so few rows that they do not fill a batch: no larger than all need."""
        if num_rows >= self.size:
            return self
        unit = self.num_devices * self.num_parts
        return replace(self, size=unit * math.ceil(num_rows / unit))

    def fill(self, rows: np.ndarray) -> np.ndarray:
        """Places in `rows` [N, …], N > 0, that make whole batches: int64 [steps, size].

        All in order, then some of the last batch's once more.
        """
        num_left = len(rows) % self.size
        places = np.arange(len(rows))
        if num_left:
            places = np.append(places, np.resize(places[-num_left:], self.size - num_left))
        return places.reshape(-1, self.size)

    def share(self, batches: np.ndarray) -> np.ndarray:
        """This host's part of [steps, size, …], batch after batch: [steps * size / hosts, …]."""
        parts = batches.reshape(len(batches), self.num_hosts, -1, *batches.shape[2:])
        mine: np.ndarray = parts[:, self.host]
        return mine.reshape(-1, *batches.shape[2:])

    @property
    def local_size(self) -> int:
        """Examples that this host reads at a time."""
        return self.size // self.num_hosts // self.num_parts


def steps_per_epoch(num_rows: int, batch_size: int) -> int:
    """Batches in an epoch, the last of which may be filled up."""
    return math.ceil(num_rows / batch_size)


def shares(shape: tuple[int, ...], num_rows: int, *, by_batch: bool) -> np.ndarray:
    """Weights float32 [steps, size] of 0 for copies, and else of a mean of 1.

    The mean is that of each batch, or of all of them together.
    """
    real = (np.arange(math.prod(shape)) < num_rows).reshape(shape).astype(np.float32)
    result: np.ndarray = real / real.mean(axis=1 if by_batch else None, keepdims=True)
    return result
