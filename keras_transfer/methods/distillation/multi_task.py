"""Distillation of several targets: each head has a temperature and a weight of its own.

A teacher and a student of task `multi_task` have a range of logits for each target. The loss is
sum_t w_t soft_t(teacher, student, T_t) with the soft losses of the targets' tasks: the divergence
of classes or labels at T_t, or half the squared difference of numbers in standard deviations.

Source: G. Hinton et al., "Distilling the knowledge in a neural network", 2015, for one head.
"""

from dataclasses import dataclass, field
from typing import Any, ClassVar, Final

from keras_transfer.errors import SpecError
from keras_transfer.fields import nearest
from keras_transfer.methods.distillation.kind import Batch, KindDefaults
from keras_transfer.tasks.task import Head, Task

_LOWEST: Final = {"temperatures": 0.05, "weights": 0.0}
_HIGHEST: Final = 100


@dataclass(frozen=True, kw_only=True)
class MultiTaskKindOptions:
    """Options by target; T is by default that of the method, and the weight 1."""

    temperatures: dict[str, float] = field(
        default_factory=dict, metadata={"help": "a table: T of targets, such as species = 4.0"}
    )
    weights: dict[str, float] = field(
        default_factory=dict, metadata={"help": "a table: weights of the parts of targets"}
    )

    def __post_init__(self) -> None:
        for table, low in _LOWEST.items():
            for name, number in getattr(self, table).items():
                if not low <= number <= _HIGHEST:
                    raise SpecError(
                        f"kind_options.{table}.{name} is out of range",
                        expected=f"from {low:g} to {_HIGHEST}",
                        received=f"{number:g}",
                        fix=f"choose from {low:g} to {_HIGHEST}",
                    )


@dataclass(frozen=True)
class MultiTaskKind(KindDefaults):
    """The sum of the heads' soft losses, each at its temperature, times its weight."""

    options: MultiTaskKindOptions = field(default_factory=MultiTaskKindOptions)

    Options: ClassVar = MultiTaskKindOptions
    name: ClassVar[str] = "multi_task"

    def check(self, task: Task) -> None:
        """Raise SpecError unless the task has several heads, and those of the options."""
        known = [head.name for head in task.heads]
        if not known:
            raise SpecError(
                "kind 'multi_task' is for tasks with several targets",
                expected="task=multi_task",
                received=f"task={task.name}",
                fix="set the kind to 'logits'",
            )
        for name in (*self.options.temperatures, *self.options.weights):
            if name not in known:
                raise SpecError(
                    f"kind_options name a target {name!r} that the task does not have",
                    expected=f"one of {', '.join(known)}",
                    received=name,
                    fix=nearest(name, known),
                )

    def losses(self, batch: Batch) -> Any:
        """See the class; without heads it is the task's own soft loss."""
        heads = batch.heads or [Head("", slice(None), batch.soft_losses)]
        parts = [self._loss(head, batch) for head in heads]
        return sum(parts[1:], parts[0])

    def _loss(self, head: Head, batch: Batch) -> Any:
        temperature = self.options.temperatures.get(head.name, batch.temperature)
        teacher, student = batch.teacher[:, head.columns], batch.student[:, head.columns]
        loss = head.soft_losses(teacher, student, temperature)
        return self.options.weights.get(head.name, 1.0) * loss
