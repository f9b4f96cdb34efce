"""The interface of a task: a kind of target, and everything that depends on it.

A new kind of target is one module with one class and one row in `tasks.registry`.
"""

import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple, Protocol

import keras
import numpy as np

from keras_transfer.data.records import Record
from keras_transfer.data.targets import Targets
from keras_transfer.errors import DataError
from keras_transfer.evaluation.results import Evaluation, Headline, Table
from keras_transfer.models.activations import Activation, range_of, ranges
from keras_transfer.specs import DataSpec, ModelSpec, TrainingSpec
from keras_transfer.tasks.linear_head import STRENGTHS, HeadFeatures, LinearHead
from keras_transfer.tasks.soft_losses import (
    class_divergences,
    label_divergences,
    squared_differences,
)

if TYPE_CHECKING:
    import tensorflow as tf

Draw = Callable[[Path], None]
"""Draws one figure into a PNG file."""


class Head(NamedTuple):
    """A range of columns of the logits, and how far a student's are from a teacher's in it."""

    name: str
    columns: slice
    soft_losses: Callable[[Any, Any, float], Any]


@dataclass(frozen=True)
class Monitor:
    """The validation metric that checkpoints, rollback and the tuner compare.

    Keras logs it as `val_<metric>`. `is_share`: it is a share of 1, shown in %.
    """

    metric: str
    mode: Literal["max", "min"]
    is_share: bool = False

    @property
    def log_name(self) -> str:
        """Name in Keras's logs and of a tuner's objective."""
        return f"val_{self.metric}"

    def rank(self, value: float) -> float:
        """The value, negated where lower is better, so that higher is better."""
        return value if self.mode == "max" else -value

    def format(self, value: float) -> str:
        """The value as text."""
        return f"{value:.1%}" if self.is_share else f"{value:.4g}"

    def format_interval(self, value: float, interval: tuple[float, float]) -> str:
        """The value, in % where it is a share, with its interval on the line below."""
        number, low, high = map(self.format_number, (value, *interval))
        return f"{number}\n{low}–{high}"

    def format_number(self, value: float) -> str:
        """The value as text, in % without the sign where it is a share."""
        return f"{100 * value:.1f}" if self.is_share else f"{value:.4g}"

    @property
    def label(self) -> str:
        """The label of `format_interval`: the metric, with its unit where it is a share."""
        name = self.metric.replace("_", " ")
        return f"{name} in %" if self.is_share else name

    def format_difference(self, difference: float) -> str:
        """A difference of two values, or a deviation, as text."""
        return f"{100 * difference:.1f} points" if self.is_share else f"{difference:.3g}"

    def format_gain(self, gain: float, error: float) -> str:
        """A gain in the mean of `Task.example_scores` with its standard error, as text."""
        if self.is_share:
            return f"{100 * gain:+.1f} ± {100 * error:.1f} points"
        return f"{gain:+.3g} ± {error:.2g}"


@dataclass(frozen=True, kw_only=True)
class CardText:
    """The part of an exported model's card that depends on its task.

    `predicts` completes "Predicts … for an image."; `purpose`, `quality` and `limits` are
    sentences; `figures` are JSON values that become fields of card.json.
    """

    predicts: str
    purpose: str
    quality: list[str]
    tables: list[Table]
    limits: list[str]
    figures: dict[str, Any]


class Task(Protocol):
    """A kind of target. Immutable, and small enough to be sent to other processes.

    `values` are those of `Targets`, or some of their rows; `outputs` are activated, float32
    [N, K], one row for each value.
    """

    @property
    def name(self) -> str:
        """The row of the registry."""

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the K outputs, in order."""

    @property
    def options(self) -> Any:
        """A frozen dataclass with the checked `task_options`."""

    @property
    def activation(self) -> Activation:
        """From logits to outputs."""

    @property
    def monitor(self) -> Monitor:
        """The metric that epochs, phases and trials are compared by."""

    @property
    def state(self) -> dict[str, Any]:
        """The results of `scaled` and `fitted`: fields of the class as JSON values."""

    @classmethod
    def source(cls, spec: DataSpec, options: Any) -> DataSpec:
        """The source with the columns that a task of these options reads.

        Raises:
            SpecError: it cannot be a source of this task.
        """

    def targets(self, records: Sequence[Record]) -> Targets:
        """The targets of images.

        Raises:
            DataError: a target is missing or invalid for this task; the error names the image.
        """

    def notes(self, records: Sequence[Record], spec: DataSpec) -> Sequence[str]:
        """Sentences for the user where targets look like those of another task."""

    def encode(self, values: np.ndarray) -> np.ndarray:
        """Targets in the form of the loss, float32 [B, K]."""

    def head(self, spec: ModelSpec, seed: int) -> list[keras.layers.Layer]:
        """Layers above the trunk, bottom to top; the last gives float32 logits [B, K]."""

    def loss(self, training: TrainingSpec) -> keras.losses.Loss:
        """The training loss of encoded targets and logits."""

    def metrics(self) -> list[keras.metrics.Metric]:
        """New metrics of encoded targets, logits and weights; one is called `monitor.metric`."""

    def example_weights(self, values: np.ndarray, training: TrainingSpec) -> np.ndarray:
        """Weights of training examples in the loss, float32 [N]."""

    @property
    def strengths(self) -> tuple[float, ...]:
        """The candidates for the strength of `solve_head`."""

    def solve_head(
        self,
        features: HeadFeatures,
        values: np.ndarray,
        training: TrainingSpec,
        *,
        strengths: tuple[float, ...] = (),
    ) -> LinearHead | None:
        """The optimal layer of logits on fixed features, or None where `loss` has no such solver.

        Weights are those of `example_weights`; label smoothing does not apply. `strengths` has one
        C, or several to choose from by cross-validation; by default the rule of the solver.
        """

    def soft_losses(self, teacher: Any, student: Any, temperature: float) -> Any:
        """How far a student's logits [B, K] are from a teacher's, tensor [B]; 0 where equal."""

    @property
    def heads(self) -> Sequence[Head]:
        """The heads of several targets; none where there is one target."""

    def example_scores(self, values: np.ndarray, outputs: np.ndarray) -> np.ndarray:
        """Score of each prediction, float64 [N], higher is better; gains are their differences."""

    def example_losses(self, values: np.ndarray, outputs: np.ndarray) -> np.ndarray:
        """The loss of each prediction without label smoothing, float64 [N]."""

    def headline(self, values: np.ndarray, outputs: np.ndarray) -> Headline:
        """The monitored metric of predictions with its interval, the same as in `evaluate`."""

    def evaluate(self, values: np.ndarray, outputs: np.ndarray, *, seed: int = 0) -> Evaluation:
        """All figures; `seed` is the bootstrap's."""

    def fitted(self, values: np.ndarray, outputs: np.ndarray) -> "Task":
        """The task after training, with values chosen on validation, such as thresholds."""

    def columns(self, *, labelled: bool = False) -> list[str]:
        """CSV columns of a prediction; with `labelled` those of the true value as well.

        The last K are numbers, one per output.
        """

    def row(self, outputs: np.ndarray, value: Any = None) -> list[Any]:
        """The cells of one prediction, outputs [K]; labelled where the true value is given.

        Without a true value numbers are float32, and the last K are the outputs.
        """

    @property
    def needs_fitting(self) -> bool:
        """Whether `fitted` chooses anything, so that a run has to predict its validation split."""

    @property
    def decidable(self) -> tuple[str, ...]:
        """The names that `decided` may give, in order."""

    def decided(self, outputs: np.ndarray) -> tuple[str, ...]:
        """The predicted names for outputs [K]: one class, some labels, or nothing."""

    def format_output(self, output: float, column: int = 0) -> str:
        """One output as text; `column` is its place among the K."""

    @property
    def output_name(self) -> str:
        """Name of the outputs where they are served: 'probabilities' or 'values'."""

    @property
    def output_scale(self) -> np.ndarray | float:
        """Size of the outputs, [K] or one number: differences of outputs are divided by it."""

    @property
    def output_offset(self) -> np.ndarray | float:
        """Outputs where logits are 0, [K] or one number; `output_scale` is the size of a logit."""

    def scaled(self, values: np.ndarray) -> "Task":
        """The task with statistics of the training split's values, before training."""

    def initialise(self, model: keras.Model) -> None:
        """Set weights of a new model that depend on `scaled`."""

    def figures(
        self,
        values: np.ndarray,
        outputs: np.ndarray,
        evaluation: Any,
        *,
        image: Callable[[int], np.ndarray],
        files: Sequence[str],
    ) -> dict[str, Draw]:
        """Figures of predictions by file name.

        `image` gives uint8 [S, S, C] of a row, `files` the names of the files.
        """

    def card(self, evaluation: Any) -> CardText:
        """The task's part of an exported model's card, from the evaluation on the test split."""

    def served(self, outputs: "tf.Tensor") -> "dict[str, tf.Tensor]":
        """The results of serving_resized for outputs [B, K]: numbers only, the outputs first."""

    def served_names(self, served: "dict[str, tf.Tensor]") -> "dict[str, tf.Tensor]":
        """Results of serving_default and serving_pixels: `served` with names and decisions."""

    def decision(self, outputs: "tf.Tensor") -> "tf.Tensor":
        """The label in serving_explain, string [B], for outputs [B, K]."""

    def agrees(self, outputs: np.ndarray, expected: np.ndarray, *, margin: float) -> np.ndarray:
        """Bool [N]: whether two sets of outputs [N, K] lead to the same decision.

        Where the expected outputs of two decisions differ by at most `margin`, in units of
        `output_scale`, either is right.
        """

    def inconsistency(self, outputs: np.ndarray) -> str:
        """Why outputs [N, K] of a quantised model cannot be used, '' if they can."""

    def contradictions(self, served: Mapping[str, np.ndarray]) -> list[str]:
        """Inconsistencies between the outputs of serving_default; empty if there are none."""


class TaskDefaults:
    """Members of `Task` that most tasks share; a task inherits them and replaces some."""

    names: tuple[str, ...]
    activation: ClassVar[Activation]
    strengths: ClassVar[tuple[float, ...]] = STRENGTHS
    output_scale: np.ndarray | float = 1.0
    output_offset: np.ndarray | float = 0.0
    heads: Sequence[Head] = ()

    @property
    def needs_fitting(self) -> bool:
        """Whether the task has a `fitted` of its own."""
        return type(self).fitted is not TaskDefaults.fitted

    @property
    def output_name(self) -> str:
        """'values' of a linear activation, 'probabilities' of others."""
        return "values" if self.activation == "linear" else "probabilities"

    @property
    def state(self) -> dict[str, Any]:
        """Empty: nothing is chosen after training."""
        return {}

    @classmethod
    def source(cls, spec: DataSpec, options: Any) -> DataSpec:  # noqa: ARG003
        """The columns in `data.label_column`."""
        return spec

    def notes(self, records: Sequence[Record], spec: DataSpec) -> Sequence[str]:  # noqa: ARG002
        """None."""
        return ()

    def scaled(self, values: np.ndarray) -> Any:  # noqa: ARG002
        """The same."""
        return self

    def initialise(self, model: keras.Model) -> None:
        """Nothing to set."""

    def fitted(self, values: np.ndarray, outputs: np.ndarray) -> Any:  # noqa: ARG002
        """The same: nothing is chosen after training."""
        return self

    def soft_losses(self, teacher: Any, student: Any, temperature: float) -> Any:
        """By the activation; values are compared in units of `output_scale`, at no temperature."""
        if self.activation == "softmax":
            return class_divergences(teacher, student, temperature)
        if self.activation == "sigmoid":
            return label_divergences(teacher, student, temperature)
        return squared_differences(teacher, student, self.output_scale)

    @property
    def decidable(self) -> tuple[str, ...]:
        """The names of all outputs but values."""
        parts = ranges(self.activation, len(self.names))
        return tuple(n for kind, own in parts if kind != "linear" for n in self.names[own])

    def decided(self, outputs: np.ndarray) -> tuple[str, ...]:  # noqa: ARG002
        """Nothing."""
        return ()

    def format_output(self, output: float, column: int = 0) -> str:
        """A probability in %, never rounded to 0 % or 100 %; a value with four digits."""
        if range_of(self.activation, column, len(self.names))[0] == "linear":
            return f"{output:.4g}"
        if 0 < output < 0.0005:
            return "< 0.1 %"
        return "> 99.9 %" if 0.9995 <= output < 1 else f"{100 * output:.1f} %"

    def figures(
        self,
        values: np.ndarray,  # noqa: ARG002
        outputs: np.ndarray,  # noqa: ARG002
        evaluation: Any,  # noqa: ARG002
        *,
        image: Callable[[int], np.ndarray],  # noqa: ARG002
        files: Sequence[str],  # noqa: ARG002
    ) -> dict[str, Draw]:
        """None."""
        return {}

    def card(self, evaluation: Any) -> CardText:
        """The evaluation's sentence, tables and figures."""
        return CardText(
            predicts=", ".join(self.names),
            purpose="Images like those it was trained on.",
            quality=[evaluation.describe()],
            tables=evaluation.tables(),
            limits=[
                "It was evaluated on images from the same source as its training images; its "
                "predictions may be worse on images taken elsewhere, or later."
            ],
            figures=evaluation.to_dict(),
        )

    def served(self, outputs: "tf.Tensor") -> "dict[str, tf.Tensor]":
        """Only the outputs."""
        return {self.output_name: outputs}

    def served_names(self, served: "dict[str, tf.Tensor]") -> "dict[str, tf.Tensor]":
        """The outputs, and output_names string [B, K]."""
        import tensorflow as tf

        outputs = served[self.output_name]
        names = tf.tile(tf.constant([list(self.names)]), [tf.shape(outputs)[0], 1])
        return {**served, "output_names": names}

    def inconsistency(self, outputs: np.ndarray) -> str:  # noqa: ARG002
        """Any finite outputs can be used."""
        return ""

    def contradictions(self, served: Mapping[str, np.ndarray]) -> list[str]:
        """Checks that the names are those of the model."""
        wrong = any(list(row) != list(self.names) for row in served["output_names"])
        return ["output_names are not those of the model"] if wrong else []


def check_spelling(names: Sequence[str], where: str, one: str, several: str) -> None:
    """Raise DataError if two names look the same; `one` and `several` say what they name."""
    by_folded_name: dict[str, str] = {}
    for name in names:
        # Accents are one character or two, as in file names of macOS; others have no width.
        seen = "".join(each for each in name if unicodedata.category(each) != "Cf")
        folded = " ".join(unicodedata.normalize("NFKC", seen).casefold().split())
        twin = by_folded_name.setdefault(folded, name)
        if twin != name:
            raise DataError(
                f"{where} has two {several} whose names differ only by case, spaces or encoding",
                expected=f"one spelling for each {one}",
                received=f"{twin!a} and {name!a}",
                fix="merge the two, or rename one of them",
            )
