"""Times of calls on this machine, which alternate: a slow phase of it affects all of them."""

import time
from collections.abc import Callable, Sequence
from typing import Any, Final

_MOST_ROUNDS: Final = 15


def take_turns(
    calls: Sequence[Callable[[], Any]], *, fewest: int = 4, enough_seconds: float = 0.1
) -> list[list[float]]:
    """Seconds of each call, in rounds: at least `fewest` and, for fast calls, up to 16.

    The first round, which traces and allocates, is left out unless it is the only one.

    Args:
        enough_seconds: after which a call is not repeated any more, all of its rounds together.
    """
    seconds: list[list[float]] = [[] for _ in calls]
    for _ in range(1 + _MOST_ROUNDS):
        for call, taken in zip(calls, seconds, strict=True):
            if len(taken) < fewest or sum(taken) < enough_seconds:
                taken.append(_seconds(call))
    return [taken[1:] or taken for taken in seconds]


def _seconds(call: Callable[[], Any]) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started
