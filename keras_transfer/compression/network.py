"""A network as a list of steps, which are computed one after another on arrays.

Compression compares a network with a smaller copy step by step, so that each step of the copy can
make up for what the steps before it lost.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
from keras import ops


@dataclass(frozen=True, eq=False)
class Step:
    """One call of a layer or operation, with the tensors that it reads and makes."""

    operation: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    makes: tuple[keras.KerasTensor, ...]

    @property
    def reads(self) -> list[keras.KerasTensor]:
        """The tensors among the arguments."""
        leaves = keras.tree.flatten((self.args, self.kwargs))
        return [leaf for leaf in leaves if isinstance(leaf, keras.KerasTensor)]


@dataclass(frozen=True, eq=False)
class Network:
    """A flat Keras model, and its steps from the input up."""

    model: keras.Model
    steps: tuple[Step, ...]

    @classmethod
    def copied(cls, model: keras.Model, make: Callable[[Any], Any] | None = None) -> "Network":
        """A copy whose layers are what `make` gives for those of `model`.

        By default they are the same layers with the same weights.
        """
        steps = []

        def call(operation: Any, *args: Any, **kwargs: Any) -> Any:
            outputs = operation(*args, **kwargs)
            steps.append(Step(operation, args, kwargs, tuple(keras.tree.flatten(outputs))))
            return outputs

        copy = keras.models.clone_model(
            model, clone_function=make or _same, call_function=call, recursive=False
        )
        if make is None:
            copy.set_weights(model.get_weights())
        return cls(copy, tuple(steps))

    def computing(self, images: np.ndarray) -> Iterator["Computed"]:
        """Compute the steps in order on images; a step runs when the next one is asked for.

        Args:
            images: float32 [N, S, S, C], scaled.
        """
        values: dict[int, Any] = {id(self.model.inputs[0]): ops.convert_to_tensor(images)}
        left = Counter(id(tensor) for step in self.steps for tensor in step.reads)
        for step in self.steps:
            read = [values[id(tensor)] for tensor in step.reads]
            yield Computed(step, read)
            args, kwargs = keras.tree.map_structure(
                lambda leaf: values[id(leaf)] if isinstance(leaf, keras.KerasTensor) else leaf,
                (step.args, step.kwargs),
            )
            outputs = keras.tree.flatten(step.operation(*args, **kwargs))
            values.update(zip(map(id, step.makes), outputs, strict=True))
            for tensor in step.reads:
                left[id(tensor)] -= 1
                if not left[id(tensor)]:
                    del values[id(tensor)]


@dataclass(frozen=True, eq=False)
class Computed:
    """A step that is about to be computed, and the values that it reads."""

    step: Step
    read: list[Any]


def _same(operation: Any) -> Any:
    return type(operation).from_config(operation.get_config())
