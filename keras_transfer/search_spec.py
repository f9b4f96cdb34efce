"""A search as data: which fields of a spec vary over what, who proposes values, and when it ends.

[search]
tuner = "bayesian"
trials = 20

[search.space]
"phases.0.learning_rate" = {low = 1e-4, high = 1e-2, sampling = "log"}
"phases.1.unfreeze" = {values = ["stage5", "stage4"]}
"""

from dataclasses import dataclass, field
from typing import Any, Literal

from keras_transfer.conversion import option


@dataclass(frozen=True, kw_only=True)
class ParameterSpec:
    """What one field may be: any of `values`, or anything from `low` to `high`."""

    values: tuple[Any, ...] | None = option(None, "texts, numbers or booleans to choose from")
    low: Any = option(None, "smallest value")
    high: Any = option(None, "largest value")
    step: Any = option(
        None, "distance of the values that are tried, with 'log' their factor (none = any between)"
    )
    sampling: Literal["linear", "log"] = option(
        "linear", "'log' draws as many from 0.001 to 0.01 as from 0.01 to 0.1"
    )


@dataclass(frozen=True, kw_only=True)
class SearchSpec:
    """How `tune` looks for better values; training itself takes no notice of it."""

    tuner: Literal["random", "bayesian", "grid", "hyperband"] = option(
        "bayesian", "which of KerasTuner's tuners proposes values"
    )
    trials: int = option(20, "trials at most; 'hyperband' counts its own", low=1)
    objective: Literal["val_accuracy", "val_loss"] = option(
        "val_accuracy", "what is compared; log loss breaks ties of accuracy"
    )
    seed: int = option(0, "seed of the proposals alone", low=0)
    time_budget: str = option(
        "", "begin no trial after this long, such as '90s', '20m' or '1.5h' ('' = no limit)"
    )
    refits: int = option(
        3, "how many other seeds the winner and the spec itself are trained with to compare", low=0
    )
    hyperband_factor: int = option(
        3, "hyperband trains the best 1 of so many on for so many times the epochs", low=2
    )
    hyperband_iterations: int = option(1, "how often hyperband runs all its brackets", low=1)
    space: dict[str, ParameterSpec] = field(
        default_factory=dict,
        metadata={"help": "a table: dotted field = {values = [...]} or {low = ..., high = ...}"},
    )

    @property
    def higher_is_better(self) -> bool:
        """Which way the objective goes."""
        return self.objective == "val_accuracy"
