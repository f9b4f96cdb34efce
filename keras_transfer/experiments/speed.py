"""Latency and energy of whole networks on this machine, measured in turns."""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from keras_transfer.devices.timing import take_turns
from keras_transfer.features.prefix import Prefix
from keras_transfer.models.cuts import Cut

BATCH_SIZES: Final = (1, 32)
_COUNTER: Final = Path("/sys/class/powercap/intel-rapl:0/energy_uj")


@dataclass(frozen=True)
class Speed:
    """Milliseconds for a batch by its size: median and 95th percentile; joules for an image.

    `joules` is that of the processor in batches of 32; None where it has no counter to read.
    """

    p50: dict[int, float]
    p95: dict[int, float]
    joules: float | None


def measure(networks: Sequence[Sequence[Cut]]) -> list[Speed]:
    """The speed of networks, each of which may have several parts that run one after another."""
    return measure_calls([functools.partial(make_call, cuts) for cuts in networks])


def measure_calls(makers: Sequence[Callable[[int], Callable[[], Any]]]) -> list[Speed]:
    """The speed of networks, each given as what makes a call of it for a batch size."""
    timed: list[dict[int, list[float]]] = [{} for _ in makers]
    joules: list[float | None] = []
    for size in BATCH_SIZES:
        calls = [make(size) for make in makers]
        for seconds, own in zip(take_turns(calls), timed, strict=True):
            own[size] = [1000 * value for value in seconds]
        if size == BATCH_SIZES[-1]:
            joules = [_joules(call, size) for call in calls]
    return [
        Speed(
            {size: float(np.median(values)) for size, values in own.items()},
            {size: float(np.percentile(values, 95)) for size, values in own.items()},
            energy,
        )
        for own, energy in zip(timed, joules, strict=True)
    ]


def make_call(cuts: Sequence[Cut], size: int) -> Callable[[], Any]:
    """A call of a network in Keras, in float32, on a batch of random pixels."""
    calls = []
    for cut in cuts:
        shape = (size, *cut.model.input_shape[1:])
        pixels = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
        calls.append(functools.partial(Prefix([cut], precision="float32"), pixels, size))
    return lambda: [call() for call in calls]


def _joules(call: Callable[[], Any], size: int) -> float | None:
    """Energy of the processor for one image, by the counter of Intel's RAPL."""
    before = _read_counter()
    call()
    after = _read_counter()
    # The counter starts again at 0 from time to time.
    return (
        (after - before) / 1e6 / size if before is not None and after and after > before else None
    )


def _read_counter() -> int | None:
    try:
        return int(_COUNTER.read_text())
    except OSError:
        return None
