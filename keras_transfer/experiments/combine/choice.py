"""What a kind of combination decides, and the choice of members that some of them share."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import keras
import numpy as np

from keras_transfer.experiments.combine.members import Member, Members


@dataclass(frozen=True)
class Point:
    """A candidate between or beyond networks: its position, and the mean loss on validation."""

    position: float
    val_loss: float


@dataclass(frozen=True, eq=False)
class Choice:
    """The network of a combination, and how it was chosen.

    `title` begins the sentence on what the combination changes. `chosen` are the members with
    outputs that it is made of. `val` are its outputs on validation and `val_loss` its loss there,
    None where nothing was chosen there. `points` are all candidates of a line of weights.
    """

    members: Members
    model: keras.Model
    title: str
    chosen: tuple[Member, ...]
    val: np.ndarray | None
    val_loss: float | None
    points: tuple[Point, ...] = ()


def choose_members(
    members: Members, predict: Callable[[Sequence[Member]], np.ndarray]
) -> tuple[tuple[Member, ...], np.ndarray, float]:
    """The best member, and each other one with which the loss on validation falls.

    Args:
        predict: outputs [N, K] of the combination of some members on validation.

    Returns:
        The members that were taken, their outputs and their loss.
    """
    best = members.best
    assert best.val is not None
    assert best.val_loss is not None
    chosen: tuple[Member, ...] = (best,)
    outputs, loss = best.val, best.val_loss
    for member in members.items[1:]:
        tried = predict((*chosen, member))
        new = members.val_loss(tried)
        if new < loss:
            chosen, outputs, loss = (*chosen, member), tried, new
    return chosen, outputs, loss


def choose_point(
    members: Members, positions: Sequence[float], predict: Callable[[float], np.ndarray]
) -> tuple[float, np.ndarray, tuple[Point, ...]]:
    """The position with the lowest loss on validation, of equal ones the first.

    Args:
        predict: outputs [N, K] of the network at a position on validation.

    Returns:
        The position, the outputs there, and all points.
    """
    outputs = [predict(position) for position in positions]
    losses = [members.val_loss(one) for one in outputs]
    best = int(np.argmin(losses))
    points = tuple(map(Point, positions, losses))
    return positions[best], outputs[best], points


def count_of(kind: str, chosen: Sequence[Member], members: Members) -> str:
    """The title of a combination of some members."""
    return f"The {kind} of {len(chosen)} of {len(members.items)} runs"
