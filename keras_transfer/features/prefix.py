"""The frozen layers as one compiled function: folded, in the fastest precision, in fixed batches.

A row must not depend on the other rows of its batch, or a resumed extraction would give other
bits. So all batches have the same size, the last one is filled, and the first choice of precision
and batch size (`Choice`) is kept with the features.
"""

import functools
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Final

import keras
import numpy as np

from keras_transfer.backbones.graph import is_random_state
from keras_transfer.devices.graphs import compile_frozen
from keras_transfer.devices.strategy import current, on_one_device
from keras_transfer.models.cuts import Cut
from keras_transfer.models.folding import fold

AGREEMENT: Final = 0.999
"""Least cosine between an image's features in half precision and in float32."""

BATCH_SIZE: Final = 32
BATCH_SIZES: Final = (16, 32, 64)
COMPARED: Final = 16
"""Images that precisions are compared on."""

_USUAL = 1.1
"""Speedup at which another batch size is used; smaller differences are noise."""

_TOO_SHORT_TO_MEASURE_SECONDS = 6.0
_MANY_VIEWS = 40 * sum(BATCH_SIZES)
"""Fewest views for which batch sizes are compared; that takes about a twentieth of the job."""

_PROMISING = 1.2
"""Least speedup of a matrix product for which the networks are compared."""

_SIDE = 1536
"""Side of the matrices of this comparison: 7 · 10^9 operations, about 50 ms on two cores."""

_MOST_TRIES = 4
_ENOUGH_SECONDS = 0.5


@dataclass(frozen=True)
class Choice:
    """Precision and batch size of a prefix, with the reason.

    `rates` are measured images/s, by 'precision × batch size'; `agreement` is the least cosine
    between an image's features in half precision and in float32, None where not compared;
    `reason` is the reason for the precision in a few words.
    """

    precision: str
    batch_size: int = BATCH_SIZE
    rates: dict[str, float] = field(default_factory=dict)
    agreement: float | None = None
    reason: str = ""

    def to_dict(self) -> dict[str, Any]:
        """For the cache's notes."""
        return asdict(self)

    @property
    def way(self) -> tuple[str, int]:
        """Precision and batch size: the results depend on nothing else."""
        return self.precision, self.batch_size

    @property
    def rate(self) -> float:
        """The highest rate measured in this precision, views per second."""
        return max(rate for name, rate in self.rates.items() if name.startswith(self.precision))

    def describe(self) -> str:
        """One sentence with all rates."""
        text = f"Frozen layers run in {self.precision}, {self.batch_size} views at a time"
        if self.rates:
            text += " (" + ", ".join(f"{name}: {rate:,.0f}/s" for name, rate in self.rates.items())
            text += f" measured; {self.reason})"
        return text + "."


class Prefix:
    """From pixels to the activations at several cuts of one classifier."""

    def __init__(self, cuts: Sequence[Cut], *, precision: str):
        model = keras.Model(cuts[0].model.input, [cut.tensor for cut in cuts])
        # Folding would drop it, and features must be what training saw.
        assert not any(map(is_random_state, model.variables)), "a random layer below a cut"
        with on_one_device():
            self._run = compile_frozen(fold(model, dtype=precision))

    def __call__(self, pixels: np.ndarray, batch_size: int) -> list[np.ndarray]:
        """Activations float32 [B, …] at each cut for uint8 pixels [B, S, S, C], B ≤ batch_size."""
        num_missing = batch_size - len(pixels)
        filling = np.zeros((num_missing, *pixels.shape[1:]), np.uint8)
        filled = np.concatenate([pixels, filling]) if num_missing else pixels
        return [output[: len(pixels)] for output in self._run(filled)]


def choose(
    cuts: Sequence[Cut], pixels: np.ndarray, *, precision: str, num_views: int
) -> tuple[Choice, Prefix]:
    """Choose precision and batch size: as given, or the fastest that agrees with float32.

    A given precision is used in batches of `BATCH_SIZE`, without measuring. With 'auto', half
    precision (bfloat16 on CPUs, float16 on GPUs) and other batch sizes are measured. Half precision
    is used if it is faster and every image's features have a cosine of at least `AGREEMENT` with
    those in float32. A matrix product shows first whether the processor is fast in half precision
    at all, before the network is built twice. Jobs of a few seconds are not measured. Batch sizes
    matter less than precision and are compared for thousands of views only.

    Args:
        pixels: uint8 [N, S, S, C], repeated where they do not fill a batch.
        precision: as `cache.precision`; 'auto' measures.
        num_views: how many views are to be computed.
    """
    trials = _Trials(cuts, pixels)
    best = "float32" if precision == "auto" else precision

    def is_long() -> bool:
        return num_views / trials.rate(best, COMPARED) > _TOO_SHORT_TO_MEASURE_SECONDS

    if precision != "auto" or not is_long():
        trials.rate(best, COMPARED)
        reason = "set by cache.precision" if precision != "auto" else "too few views to compare"
        return Choice(best, BATCH_SIZE, trials.rates, reason=reason), trials.prefix(best)
    half = half_precision()
    agreement, speedup = None, _speedup(half)
    reason = f"this machine multiplies matrices {speedup:.1f} times as fast in {half}"
    if speedup > _PROMISING:
        agreement = trials.agreement(best, half)
        reason = f"{half} agrees to a cosine of {agreement:.5f}"
        if agreement >= AGREEMENT and trials.rate(half, COMPARED) > trials.rate(best, COMPARED):
            best = half
    size = BATCH_SIZE
    if is_long() and num_views >= _MANY_VIEWS:
        fastest = max(BATCH_SIZES, key=lambda other: trials.rate(best, other))
        size = fastest if trials.rate(best, fastest) > _USUAL * trials.rate(best, size) else size
    return Choice(best, size, trials.rates, agreement, reason), trials.prefix(best)


def half_precision() -> str:
    """The half precision that this kind of device may have instructions for."""
    return "float16" if current().kind == "gpu" else "bfloat16"


@functools.cache
def _speedup(half: str) -> float:
    """Speed of a matrix product in half precision, as a multiple of float32's."""

    def seconds(precision: str) -> float:
        matrix = keras.ops.ones((_SIDE, _SIDE), precision)
        return _least_seconds(lambda: float(keras.ops.cast((matrix @ matrix)[0, 0], "float32")))

    return seconds("float32") / seconds(half)


def _least_seconds(call: Callable[[], object]) -> float:
    """The shortest time of some calls, after one to warm up."""
    call()
    seconds: list[float] = []
    while len(seconds) < _MOST_TRIES and sum(seconds) < _ENOUGH_SECONDS:
        started = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - started)
    return min(seconds)


class _Trials:
    """Prefixes in several precisions, built when needed, and their measured rates."""

    def __init__(self, cuts: Sequence[Cut], pixels: np.ndarray):
        self.rates: dict[str, float] = {}
        self._cuts, self._pixels = cuts, pixels
        self._prefixes: dict[str, Prefix] = {}

    def prefix(self, precision: str) -> Prefix:
        if precision not in self._prefixes:
            self._prefixes[precision] = Prefix(self._cuts, precision=precision)
        return self._prefixes[precision]

    def rate(self, precision: str, batch_size: int) -> float:
        """Images per second, the best of some batches after one to warm up."""
        name = f"{precision} × {batch_size}"
        if name not in self.rates:
            run, batch = self.prefix(precision), self._batch(batch_size)
            self.rates[name] = batch_size / _least_seconds(lambda: run(batch, batch_size))
        return self.rates[name]

    def agreement(self, *precisions: str) -> float:
        """The least cosine over images and cuts."""
        batch = self._batch(COMPARED)
        one, other = (self.prefix(precision)(batch, COMPARED) for precision in precisions)
        return min(_least_cosine(a, b) for a, b in zip(one, other, strict=True))

    def _batch(self, size: int) -> np.ndarray:
        return np.resize(self._pixels, (size, *self._pixels.shape[1:]))


def _least_cosine(a: np.ndarray, b: np.ndarray) -> float:
    a, b = a.reshape(len(a), -1).astype(np.float64), b.reshape(len(b), -1).astype(np.float64)
    lengths = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    # The cosine of a zero vector is undefined: two zero vectors agree.
    cosines = np.sum(a * b, axis=1) / np.where(lengths > 0, lengths, 1)
    both_zero = ~(a.any(axis=1) | b.any(axis=1))
    return float(np.min(np.where(both_zero, 1.0, cosines)))
