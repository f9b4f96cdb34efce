"""The table of compression steps, and the chain of steps that a command names."""

import importlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from keras_transfer.errors import SpecError
from keras_transfer.fields import nearest

if TYPE_CHECKING:
    from keras_transfer.compression.sample import Sample

Chain = tuple[tuple[str, float], ...]
"""Names of steps with their amounts, in the order in which they are taken."""


@dataclass(frozen=True, kw_only=True)
class Step:
    """A way to make a network smaller.

    `function` is 'module:name' of a function of a flat network, a `Sample` and the amount; it
    returns another network and leaves the first as it is. `amount` says what the number means,
    which is between `low` and `high`. A step that `is_last` would be undone by training of the
    trunk, so no other step follows it, and only a head trains on it. `also` is the name of a
    further file of the run, and 'module:name' of a function of its model and this file that writes
    it.
    """

    name: str
    function: str
    amount: str
    low: float
    high: float
    is_last: bool = False
    also: tuple[str, str] | None = None


STEPS: Final = {
    step.name: step
    for step in (
        Step(
            name="channels",
            function="keras_transfer.compression.structured:prune_channels",
            amount="share of the channels of each block of layers that are removed",
            low=0.0,
            high=0.95,
        ),
        Step(
            name="features",
            function="keras_transfer.compression.structured:prune_features",
            amount="share of the pooled features that are removed, those that the head uses least",
            low=0.0,
            high=0.95,
        ),
        Step(
            name="low_rank",
            function="keras_transfer.compression.low_rank:factorise",
            amount="share of each layer's output variance that may be lost",
            low=0.0,
            high=0.9,
        ),
        Step(
            name="clusters",
            function="keras_transfer.compression.clusters:share_weights",
            amount="different values that the weights of each layer take",
            low=2,
            high=65_536,
            is_last=True,
            also=("weights.npz", "keras_transfer.compression.clusters:write_codebooks"),
        ),
    )
}


_FIXED: Final = ("data", "model", "seed", "seeds", "folds", "search")
"""Fields, or their first words, that a compressed run has from the original one."""


def parse_chain(words: Mapping[str, Any]) -> tuple[Chain, dict[str, Any]]:
    """The steps among assignments, in their order, and the other assignments.

    Raises:
        SpecError: there is no step, amounts are no numbers or out of range, the order undoes a
            step, or a field would change the images, their splits or the backbone.
    """
    chain = tuple((name, _amount(value)) for name, value in words.items() if name in STEPS)
    if not chain:
        raise SpecError(
            "no step of compression is given",
            expected="one of " + "; ".join(f"{name}=…, {x.amount}" for name, x in STEPS.items()),
            received=", ".join(words) or "nothing",
            fix=nearest(next(iter(words), ""), list(STEPS), otherwise="add channels=0.3"),
        )
    wrong = [
        f"{name}={words[name]}"
        for name, amount in chain
        if not STEPS[name].low <= amount <= STEPS[name].high
    ]
    if wrong:
        raise SpecError(
            "steps of compression have amounts out of range",
            expected=", ".join(
                f"{name} from {STEPS[name].low:g} to {STEPS[name].high:g}" for name, _ in chain
            ),
            received=", ".join(wrong),
            fix="0 changes nothing; start with channels=0.3",
        )
    early = [name for name, _ in chain[:-1] if STEPS[name].is_last]
    if early:
        raise SpecError(
            "steps of compression are in an order that undoes one of them",
            expected=f"{early[0]}=… as the last step",
            received=", ".join(name for name, _ in chain),
            fix=f"give {early[0]}=… after the others",
        )
    fields = {name: value for name, value in words.items() if name not in STEPS}
    fixed = [name for name in fields if name.partition(".")[0] in _FIXED]
    if fixed:
        raise SpecError(
            "fields cannot be set for a compressed run",
            expected="the images, splits and backbone of the run",
            received=", ".join(fixed),
            fix="leave them out, or train another run with them and compress that",
        )
    return chain, fields


def compress(network: Any, sample: "Sample", chain: Sequence[tuple[str, float]]) -> Any:
    """Take the steps of a chain, one after another."""
    for name, amount in chain:
        network = _load(STEPS[name].function)(network, sample, amount)
    return network


def further_files(chain: Chain) -> dict[str, Callable[[Any, Path], None]]:
    """By the name of each further file of a run whose trunk the chain made, what writes it."""
    pairs = [STEPS[name].also for name, _ in chain]
    return {pair[0]: _load(pair[1]) for pair in pairs if pair}


def _load(place: str) -> Callable[..., Any]:
    module, _, name = place.partition(":")
    found: Callable[..., Any] = getattr(importlib.import_module(module), name)
    return found


def _amount(value: object) -> float:
    """A number, also as text; NaN for anything else, which is out of every range."""
    try:
        return math.nan if isinstance(value, bool) else float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return math.nan
