"""Distillation: a student learns from the labels and from a teacher's outputs for the same views.

The loss of an example is

    hard_weight · loss(label, z) + (1 - hard_weight) · soft(teacher, z)

with the student's logits z, the task's loss, and soft by its kind. That of kind 'logits' is the
task's as well (`Task.soft_losses`), for single labels

    T² KL(softmax(teacher / T) || softmax(z / T))

Images without a label have the second part only.
A linear head for single labels that trains alone is not trained step by step but solved: with fixed
features this loss is convex.
"""

from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import keras
import numpy as np

from keras_transfer.data.datasets import Columns, Transform
from keras_transfer.errors import SpecError
from keras_transfer.fields import option
from keras_transfer.methods.distillation.kind import Kind
from keras_transfer.methods.distillation.registry import make_kind
from keras_transfer.methods.distillation.soft_targets import (
    NUM_WEIGHTS,
    SoftTargets,
    probabilities,
    read_logits,
)
from keras_transfer.methods.distillation.student import DistillationLoss, make_student
from keras_transfer.methods.distillation.teacher import Teacher, load_teacher
from keras_transfer.methods.exact import Exact, ExactOptions
from keras_transfer.methods.method import MethodDefaults
from keras_transfer.methods.supervised import Supervised
from keras_transfer.models.cuts import Cut
from keras_transfer.specs import HEAD, PhaseSpec, RunSpec
from keras_transfer.storage.model_files import TEACHER, teachers_of
from keras_transfer.tasks.linear_head import HeadFeatures, LinearHead, solve_distilled
from keras_transfer.training.objective import Objective, PhaseContext, Solve


@dataclass(frozen=True, kw_only=True)
class DistillOptions:
    """Options of distillation."""

    teacher: str = option(
        "",
        "run folders or Keras model files, separated by commas; of several the mean of their "
        "probabilities counts",
    )
    kind: str = option("logits", "what is compared: a name in the table of kinds")
    kind_options: dict[str, Any] = field(
        default_factory=dict, metadata={"help": "a table: the options of the kind"}
    )
    temperature: float = option(
        1.0, "divisor T of both logits; the teacher's part is multiplied by T²", low=0.05, high=100
    )
    hard_weight: float = option(
        0.1, "weight of the labels; the teacher's part has the rest of 1", low=0, high=1
    )
    solve: bool = option(
        True, "solve a linear head that trains alone, where the loss is convex in it"
    )
    strength: float | None = option(
        None, "C of a solved head, as of method 'exact' (none = its default)", low=1e-6, high=1e6
    )

    @property
    def teachers(self) -> list[str]:
        """The paths."""
        return teachers_of({TEACHER: self.teacher})


@dataclass(frozen=True)
class Distill(MethodDefaults):
    """Trains a student on labels and on a teacher's outputs, which are computed once a view."""

    options: DistillOptions

    Options: ClassVar = DistillOptions
    name: ClassVar[str] = "distill"

    def __post_init__(self) -> None:
        if not self.options.teachers:
            raise SpecError(
                "there is no teacher",
                expected="phases.N.method_options.teacher with run folders or Keras model files",
                received="none",
                fix="train a teacher first, and give its run folder",
            )
        make_kind(self.options.kind, self.options.kind_options)

    @property
    def kind(self) -> Kind:
        """The kind with its options."""
        return make_kind(self.options.kind, self.options.kind_options)

    @property
    def needs_images(self) -> bool:
        """Whether the kind does, where the teacher counts at all."""
        return self.kind.needs_images and self.options.hard_weight < 1

    @property
    def uses_unlabelled(self) -> bool:
        """Whether the teacher counts at all."""
        return self.options.hard_weight < 1

    def check(self, spec: RunSpec, number: int) -> None:
        """Raise SpecError if the kind compares features that do not train, or are of several."""
        if not self.kind.reads_features or self.options.hard_weight == 1:
            return
        phase = spec.phases[number]
        if phase.unfreeze == HEAD and spec.model.head == "linear":
            raise SpecError(
                f"kind {self.kind.name!r} compares features, which phase {phase.name!r} does not "
                "train",
                expected="a phase that unfreezes layers below a linear head",
                received=f"unfreeze={HEAD}",
                fix=f"set the kind of phase {phase.name!r} to 'logits', or its unfreeze to 'last'",
            )
        if len(self.options.teachers) > 1:
            raise SpecError(
                f"kind {self.kind.name!r} compares features with those of one teacher",
                expected="one teacher",
                received=self.options.teacher,
                fix="give one teacher, or kind='logits'",
            )

    def num_views(self, phase: PhaseSpec, available: int) -> int:
        """All of them where the head may be solved, else one in each epoch."""
        return available if phase.unfreeze == HEAD else min(available, phase.epochs)

    def prepare(self, context: PhaseContext, phase: PhaseSpec, part: keras.Model) -> Objective:
        """The loss of both parts with the teacher's columns, or the solution.

        Raises:
            SpecError: the teacher has other classes or another task, or reads other views, or the
                task has no distribution over classes.
            DataError: the teacher was trained on images of the test split.
        """
        solves = self._solves(context, phase)
        if self.options.hard_weight == 1:
            exact = Exact(ExactOptions(strength=self.options.strength))
            return (exact if solves else Supervised()).prepare(context, phase, part)
        self._check(context, phase)
        data = context.spec.data
        teachers = [
            load_teacher(path, data.image_size, data.channels) for path in self.options.teachers
        ]
        for teacher in teachers:
            teacher.check(context.task, context.images.test_digests)
            if not teacher.names:
                context.reporter.info(
                    f"The teacher {teacher.name} names no classes: its outputs are taken to be in "
                    f"the order {', '.join(context.task.names)}."
                )
        below = teachers[0].cut
        compared = self.kind.teacher_cut(below) if self.kind.reads_features else below
        targets = self._soft_targets(context, teachers, compared)
        hard = context.task.loss(context.spec.training)
        if solves:
            return Objective(part, hard, solve=self._solver(context, targets), fits=False)
        loss = DistillationLoss(hard, self.kind, context.task, self.options.temperature)
        return Objective(
            make_student(part, loss, compared),
            loss,
            self._transform(phase, loss.num_outputs) if self.kind.progress(1) != 1 else None,
            columns=targets,
        )

    def _solves(self, context: PhaseContext, phase: PhaseSpec) -> bool:
        model, options = context.spec.model, self.options
        is_linear = model.head == "linear" and model.dropout == 0 and phase.unfreeze == HEAD
        # Labels alone are solved for every task, and a teacher's outputs for classes.
        is_solved = context.task.activation == "softmax" or options.hard_weight == 1
        return is_linear and options.solve and self.kind.is_convex and is_solved

    def _check(self, context: PhaseContext, phase: PhaseSpec) -> None:
        self.kind.check(context.task)
        if self.kind.needs_classes and context.task.activation != "softmax":
            raise SpecError(
                f"kind {self.kind.name!r} is for single labels only",
                expected="task=single_label",
                received=f"task={context.task.name}",
                fix=f"set the kind of phase {phase.name!r} to 'logits'",
            )
        images = context.images
        has_unlabelled = len(images.train_rows) > images.num_labelled
        if has_unlabelled and context.spec.training.sampling == "balanced":
            raise SpecError(
                "images without labels are of no class that could be drawn equally often",
                expected="training.sampling=natural",
                received="training.sampling=balanced",
                fix="use training.class_weights=balanced, or leave data.unlabelled out",
            )

    def _soft_targets(
        self, context: PhaseContext, teachers: list[Teacher], compared: Cut
    ) -> SoftTargets:
        images, hard_weight = context.images, self.options.hard_weight
        logits, features = read_logits(
            teachers,
            images,
            temperature=self.options.temperature,
            activation=context.task.activation,
            compared=compared,
        )
        rows = images.train_rows
        place = np.full(int(rows.max()) + 1, -1, np.int64)
        place[rows] = np.arange(len(rows))
        is_labelled = np.broadcast_to(
            (np.arange(len(rows)) < images.num_labelled)[:, None], logits.shape[:2]
        )
        soft = (1 - hard_weight) * self.kind.weights(probabilities(logits))
        weights = np.stack([is_labelled, hard_weight * is_labelled, soft], axis=-1)
        more = features if self.kind.reads_features else None
        return SoftTargets(logits, weights.astype(np.float32), place, more)

    def _transform(self, phase: PhaseSpec, num_outputs: int) -> Transform:
        """Shifts weight from the teacher to the labels as training proceeds."""
        kind, whole = self.kind, 1 - self.options.hard_weight

        def transform(
            inputs: np.ndarray,
            encoded: np.ndarray,
            weights: np.ndarray,
            key: tuple[int, int, int],
        ) -> Columns:
            factor = kind.progress(key[1] / max(1, phase.epochs - 1))
            changed = encoded.copy()
            is_labelled, hard, soft = range(num_outputs, num_outputs + NUM_WEIGHTS)
            changed[:, hard] += whole * (1 - factor) * encoded[:, is_labelled]
            changed[:, soft] *= factor
            return inputs, changed, weights

        return transform

    def _solver(self, context: PhaseContext, targets: SoftTargets) -> Solve:
        """Solves the head on labels and the teacher's probabilities at the temperature."""
        task, training, options = context.task, context.spec.training, self.options
        if training.sampling == "balanced":
            training = replace(training, class_weights="balanced")
        soft = targets.weights[..., -1:] * probabilities(targets.logits, options.temperature)

        def solve(features: HeadFeatures, values: np.ndarray) -> LinearHead:
            num_unlabelled = features.num_examples - len(values)
            labels = np.pad(task.encode(values), ((0, num_unlabelled), (0, 0)))
            weights = task.example_weights(values, training)
            return solve_distilled(
                features,
                options.hard_weight * labels.astype(np.float64),
                soft,
                np.append(weights, np.ones(num_unlabelled, np.float32)),
                temperature=options.temperature,
                strengths=() if options.strength is None else (options.strength,),
            )

        return solve
