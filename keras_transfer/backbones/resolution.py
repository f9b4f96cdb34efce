"""Stages of a graph by the resolution of its feature maps, named as those in `applications`.

A stage ends with a tensor on which all later layers depend. Of the tensors at 1/2^k of the input's
side it is the last one, with two exceptions: a pooling that follows belongs to the stage below it,
unless the next stage ends at that resolution, too; and what a 1 × 1 convolution has widened more
than twofold starts the next block, as in the inverted residuals of the MobileNets, where a cut
would store several times the values.
"""

from collections.abc import Iterator, Sequence
from itertools import pairwise
from math import log2, prod
from typing import NamedTuple

import keras

from keras_transfer.backbones.graph import Call, bridges, weights_of
from keras_transfer.backbones.record import Stage


class _End(NamedTuple):
    """A tensor that a stage may end with: its call, k of its side 1/2^k, values of one image."""

    number: int
    level: int
    size: int


def find_stages(images: keras.KerasTensor, calls: Sequence[Call]) -> tuple[Stage, ...]:
    """The stages of a trunk by the rule above, each with weights."""
    candidates = list(_candidates(images, calls))
    levels = sorted({one.level for one in candidates})
    ends = [candidates[-1]]
    for level in reversed(levels[:-1]):
        end = _last_at(level, candidates, calls)
        after = next(one for one in candidates if one.level > level)
        is_first, is_pooling = level == levels[0], not _learns(calls, end, after)
        if is_pooling and after.level < ends[0].level + is_first:
            end = after
        if _learns(calls, end, ends[0]):
            ends.insert(0, end)
    names = [f"stage{end.level}" if end.level else "stem" for end in ends]
    if any(low.level == high.level for low, high in pairwise(ends)):
        names[0] = "stem"  # Only the first stage may end where the next one does.
    return tuple(
        Stage(name, calls[end.number].operation.name) for name, end in zip(names, ends, strict=True)
    )


def _candidates(images: keras.KerasTensor, calls: Sequence[Call]) -> Iterator[_End]:
    """The feature maps above the first weights that all later calls depend on.

    Levels only grow: layers that enlarge a feature map belong to the stage below them.
    """
    level, first = 0, next(number for number, call in enumerate(calls) if weights_of(call))
    for number, call in bridges(images, calls):
        shape = call.makes[0].shape
        if number >= first and len(shape) == 4:
            level = max(level, round(log2(images.shape[1] / shape[1])))
            yield _End(number, level, prod(shape[1:]))


def _last_at(level: int, candidates: Sequence[_End], calls: Sequence[Call]) -> _End:
    """The last tensor of a level, or the one before a 1 × 1 convolution that widens it."""
    same = [one for one in candidates if one.level == level]
    # Padding for the next stage makes the last tensors larger.
    unpadded = [one for one in same if not _learns(calls, one, same[-1])]
    last = min(reversed(unpadded), key=lambda one: one.size)
    narrower = [one for one in same if one.number < last.number and 2 * one.size < last.size]
    if narrower:
        between = calls[narrower[-1].number + 1 : last.number + 1]
        kernels = [
            getattr(call.operation, "kernel_size", None)
            for call in between
            if weights_of(call) and not isinstance(call.operation, keras.layers.BatchNormalization)
        ]
        if kernels == [(1, 1)]:
            return narrower[-1]
    return last


def _learns(calls: Sequence[Call], low: _End, high: _End) -> bool:
    """Whether there are weights between two tensors."""
    return any(map(weights_of, calls[low.number + 1 : high.number + 1]))
