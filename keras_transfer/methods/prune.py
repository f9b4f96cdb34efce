"""Magnitude pruning: the smallest weights become zero while the others go on training.

Over a part of the phase the share of zeros s rises from 0 to `sparsity`:

    s(t) = sparsity · (1 - (1 - t)³),  t from 0 at `begin` to 1 at `end`

At every step that raises it, the largest round(n (1 - s)) of n weights stay. After each step of the
optimizer, whatever it did, the others are set to zero. Weights that are zero when an epoch begins
stay zero, so the weights are all that a resumed phase has to know.

Only kernels of layers that train are pruned. Left as they are: biases, BatchNormalization,
depthwise kernels, the first convolution and the layer of logits: few weights that all matter.

Source: M. Zhu and S. Gupta, "To prune, or not to prune: exploring the efficacy of pruning for model
compression", ICLR 2018 workshop.
"""

import math
from dataclasses import dataclass, field
from typing import Any, ClassVar, Final, Literal

import keras
import numpy as np
from keras import ops

from keras_transfer.backbones.preprocess import Preprocess
from keras_transfer.devices.strategy import scope
from keras_transfer.errors import SpecError
from keras_transfer.fields import option
from keras_transfer.methods.method import MethodDefaults
from keras_transfer.specs import COLOURS, HEAD, PhaseSpec, RunSpec
from keras_transfer.training.objective import Objective, PhaseContext

_KINDS: Final = (
    keras.layers.Conv1D,
    keras.layers.Conv2D,
    keras.layers.Conv2DTranspose,
    keras.layers.Dense,
)


@dataclass(frozen=True, kw_only=True)
class PruneOptions:
    """Options of magnitude pruning."""

    sparsity: float = option(0.5, "share of the weights that are zero in the end", low=0, high=0.99)
    scope: Literal["layer", "global"] = option(
        "layer", "'layer' prunes each layer alike, 'global' the smallest weights of all layers"
    )
    begin: float = option(0.0, "share of the phase's epochs before the first zeros", low=0, high=1)
    end: float = option(
        0.5, "share of the phase's epochs after which no more weights become zero", low=0, high=1
    )
    every_steps: int = option(10, "optimizer steps between two rises of the share", low=1)

    def __post_init__(self) -> None:
        if self.begin > self.end:
            raise SpecError(
                "pruning would end before it begins",
                expected="begin of at most end",
                received=f"begin={self.begin:g}, end={self.end:g}",
                fix="set phases.N.method_options.begin=0",
            )


@dataclass(frozen=True)
class Prune(MethodDefaults):
    """Trains on the task's loss while the smallest weights become zero."""

    options: PruneOptions = field(default_factory=PruneOptions)

    Options: ClassVar = PruneOptions
    name: ClassVar[str] = "prune"

    def check(self, spec: RunSpec, number: int) -> None:
        """Raise SpecError if a later phase would train the zeros."""
        phase, *later = spec.phases[number:]
        # A linear head is not pruned, so that a phase may train it alone.
        spares = HEAD if spec.model.head == "linear" else None
        undoing = [x.name for x in later if x.unfreeze != spares and x.method != phase.method]
        if undoing:
            raise SpecError(
                f"phase {phase.name!r} prunes weights that a later phase trains again",
                expected="method 'prune' in all later phases that train pruned layers",
                received=f"another method of phase {', '.join(undoing)}",
                fix="make the pruning the last phase",
            )

    def prepare(self, context: PhaseContext, phase: PhaseSpec, part: keras.Model) -> Objective:
        """The task's loss, with a callback that prunes."""
        return Objective(
            part,
            context.task.loss(context.spec.training),
            callbacks=(Pruning(self.options, phase.epochs),),
            least_epochs=max(1, math.ceil(self.options.end * phase.epochs)),
        )


class Pruning(keras.callbacks.Callback):
    """Prunes a model while it is fitted for `num_epochs` epochs, or a part of them."""

    def __init__(self, options: PruneOptions, num_epochs: int):
        super().__init__()
        self.options, self.num_epochs = options, num_epochs
        self._kernels: list[keras.Variable] = []
        self._kept: list[Any] = []
        self._epoch, self._sparsity = 0, 0.0

    def on_train_begin(self, logs: dict[str, float] | None = None) -> None:  # noqa: ARG002
        """Find the kernels.

        Raises:
            SpecError: no layer that trains can be pruned.
        """
        self._kernels = prunable_kernels(self.model)
        if not self._kernels:
            raise SpecError(
                "there is nothing to prune",
                expected="a phase that trains convolutions or dense layers below the logits",
                received="none that trains",
                fix="set its unfreeze to 'last' or to a lower stage",
            )

    def on_epoch_begin(self, epoch: int, logs: dict[str, float] | None = None) -> None:  # noqa: ARG002
        """Keep the weights at zero that are zero now."""
        self._epoch, self._sparsity = epoch, 0.0
        self._keep([np.array(kernel) != 0 for kernel in self._kernels])

    def on_train_batch_end(self, batch: int, logs: dict[str, float] | None = None) -> None:  # noqa: ARG002
        """Raise the share of zeros if it is time, and set all that are not kept to zero."""
        # On JAX, asking for the model brings the values of this step into its variables.
        assert self.model
        num_parts = _num_parts(self.model.optimizer)
        number, rest = divmod(batch + 1, num_parts)
        if rest:  # The optimizer gathers gradients and has changed nothing.
            return
        num_batches = self.params["steps"] // num_parts
        if number == num_batches or number % self.options.every_steps == 0:
            sparsity = self.target((self._epoch + number / num_batches) / self.num_epochs)
            if sparsity > self._sparsity:
                self._sparsity = sparsity
                self._keep(self._largest(sparsity))
        with scope():
            for kernel, kept in zip(self._kernels, self._kept, strict=True):
                kernel.assign(ops.where(kept, kernel, 0.0))

    def target(self, position: float) -> float:
        """The share of zeros after this share of the phase's epochs."""
        options = self.options
        if position >= options.end:
            return options.sparsity
        if position <= options.begin:
            return 0.0
        left = (options.end - position) / (options.end - options.begin)
        return options.sparsity * (1 - left**3)

    def _largest(self, sparsity: float) -> list[np.ndarray]:
        """For each kernel which weights stay: not zero yet, and among the largest."""
        sizes = [
            np.where(kept, np.abs(np.array(kernel)), 0)
            for kernel, kept in zip(self._kernels, self._kept, strict=True)
        ]
        if self.options.scope == "layer":
            return [largest(one, sparsity) for one in sizes]
        chosen = largest(np.concatenate([one.ravel() for one in sizes]), sparsity)
        ends = np.cumsum([one.size for one in sizes])[:-1]
        parts = np.split(chosen, ends)
        return [part.reshape(one.shape) for part, one in zip(parts, sizes, strict=True)]

    def _keep(self, kept: list[np.ndarray]) -> None:
        self._kept = [ops.convert_to_tensor(one) for one in kept]


def _num_parts(optimizer: keras.optimizers.Optimizer) -> int:
    """The number of batches whose gradients one step of the optimizer uses."""
    if isinstance(optimizer, keras.optimizers.MultiOptimizer):
        optimizer = optimizer.optimizers[-1]
    return int(optimizer.gradient_accumulation_steps or 1)


def largest(sizes: np.ndarray, sparsity: float) -> np.ndarray:
    """Which of n values are among the largest round(n (1 - sparsity)) and not zero."""
    num_zeros = sizes.size - round(sizes.size * (1 - sparsity))
    kept = sizes.ravel() != 0
    kept[np.argpartition(sizes, num_zeros - 1, axis=None)[:num_zeros]] = False
    return kept.reshape(sizes.shape)


def prunable_kernels(model: keras.Model) -> list[keras.Variable]:
    """The kernels of layers that train, but for the first convolution and the layer of logits."""
    layers = [layer for layer in model.layers if isinstance(layer, _KINDS)]
    # A convolution that reads at most so many planes is the first one.
    scalings = [layer for layer in model.layers if isinstance(layer, Preprocess)]
    planes = max((layer.output.shape[-1] for layer in scalings), default=COLOURS)
    dense = [layer for layer in layers if isinstance(layer, keras.layers.Dense)]
    return [
        layer.kernel
        for layer in layers
        if layer.trainable
        and layer not in dense[-1:]
        and (layer in dense or layer.kernel.shape[-2] > planes)
    ]
