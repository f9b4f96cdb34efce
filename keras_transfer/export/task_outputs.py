"""What the outputs of a model stand for: all that export and inference know about a task.

Everything else here and in `inference` takes a `TaskOutputs` and knows neither softmax nor classes.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Final, Protocol

import numpy as np

from keras_transfer.errors import ExportError
from keras_transfer.evaluation.predictions import probability_columns
from keras_transfer.models import activations

if TYPE_CHECKING:
    import tensorflow as tf

NUM_TOP: Final = 5
"""How many of the most probable classes are served by name."""


class TaskOutputs(Protocol):
    """The outputs float32 [N, K] of one task, after the activation of the logits.

    `names` are what the K outputs stand for, in their order; `activation` turns logits into
    outputs, such as 'softmax'; `output_name` is what the outputs are called where they are served.
    """

    activation: ClassVar[activations.Activation]
    output_name: ClassVar[str]

    @property
    def names(self) -> tuple[str, ...]: ...

    def columns(self) -> list[str]:
        """Columns of a table of predictions; the last K are numbers, one an output."""

    def row(self, outputs: np.ndarray) -> list[Any]:
        """The values of `columns` for outputs [K] of one example."""

    def served(self, outputs: "tf.Tensor") -> dict[str, "tf.Tensor"]:
        """What serving_resized returns for outputs [B, K]: numbers only, the outputs first."""

    def served_names(self, served: "dict[str, tf.Tensor]") -> dict[str, "tf.Tensor"]:
        """What serving_default and serving_pixels return: `served` with names."""

    def decision(self, outputs: "tf.Tensor") -> "tf.Tensor":
        """What serving_explain calls label, string [B], for outputs [B, K]."""

    def agrees(self, outputs: np.ndarray, expected: np.ndarray, *, margin: float) -> np.ndarray:
        """Bool [N]: whether two sets of outputs [N, K] lead to the same decision.

        Where the expected outputs of two decisions differ by at most `margin`, either is right.
        """

    def example_scores(self, values: np.ndarray, outputs: np.ndarray) -> np.ndarray:
        """How good each of N predictions is, float64 [N], higher is better; 1 or 0 for labels."""

    def contradictions(self, served: Mapping[str, np.ndarray]) -> list[str]:
        """In what the outputs of serving_default contradict each other; nothing if they do not."""


@dataclass(frozen=True)
class SingleLabelOutputs:
    """Probabilities of classes that exclude each other."""

    names: tuple[str, ...]
    activation: ClassVar[activations.Activation] = "softmax"
    output_name: ClassVar[str] = "probabilities"

    def columns(self) -> list[str]:
        return ["label", "confidence", *probability_columns(self.names)]

    def row(self, outputs: np.ndarray) -> list[Any]:
        top = outputs.argmax()
        return [self.names[top], outputs[top], *outputs]

    def served(self, outputs: "tf.Tensor") -> dict[str, "tf.Tensor"]:
        import tensorflow as tf

        best, indices = tf.math.top_k(outputs, k=min(NUM_TOP, len(self.names)))
        return {"probabilities": outputs, "top_class_indices": indices, "top_probabilities": best}

    def served_names(self, served: "dict[str, tf.Tensor]") -> dict[str, "tf.Tensor"]:
        import tensorflow as tf

        names, top = tf.constant(list(self.names)), served["top_class_indices"]
        return {
            "label": tf.gather(names, top[:, 0]),
            "class_names": tf.tile(names[tf.newaxis], [tf.shape(top)[0], 1]),
            "probabilities": served["probabilities"],
            "top_class_names": tf.gather(names, top),
            "top_probabilities": served["top_probabilities"],
        }

    def decision(self, outputs: "tf.Tensor") -> "tf.Tensor":
        import tensorflow as tf

        return tf.gather(tf.constant(list(self.names)), tf.argmax(outputs, axis=-1))

    def agrees(self, outputs: np.ndarray, expected: np.ndarray, *, margin: float) -> np.ndarray:
        chosen = expected[np.arange(len(expected)), outputs.argmax(axis=1)]
        result: np.ndarray = expected.max(axis=1) - chosen <= margin
        return result

    def example_scores(self, values: np.ndarray, outputs: np.ndarray) -> np.ndarray:
        return (outputs.argmax(axis=1) == values).astype(np.float64)

    def contradictions(self, served: Mapping[str, np.ndarray]) -> list[str]:
        probabilities, top = served["probabilities"], served["top_probabilities"]
        column = {name: number for number, name in enumerate(self.names)}
        labels = [column.get(label, 0) for label in served["label"]]
        best = np.sort(probabilities, axis=1)[:, ::-1][:, : top.shape[1]]
        found = []
        if any(list(row) != list(self.names) for row in served["class_names"]):
            found.append("class_names are not those of the model")
        if not np.array_equal(best, top):
            found.append("top_probabilities are not the highest ones")
        if not np.array_equal(served["top_class_names"][:, 0], served["label"]):
            found.append("top_class_names do not begin with the label")
        if not np.array_equal(probabilities[np.arange(len(labels)), labels], best[:, 0]):
            found.append("label is not the most probable class")
        return found


def outputs_of(task: Mapping[str, Any], names: tuple[str, ...]) -> TaskOutputs:
    """The outputs of the task that a contract names.

    Args:
        task: {"task": name, "options": {…}, "state": {…}}, as in contract.json.

    Raises:
        ExportError: this version does not know the task.
    """
    if task.get("task") != "single_label":
        raise ExportError(
            "the task of the artefact is unknown",
            expected="single_label",
            received=repr(task.get("task")),
            fix="use the version of keras_transfer that exported it",
        )
    return SingleLabelOutputs(names)


def activate(outputs: TaskOutputs, logits: np.ndarray) -> np.ndarray:
    """Outputs float32 [N, K] of logits [N, K]."""
    return activations.activate(logits, outputs.activation)


def activate_in_graph(outputs: TaskOutputs, logits: "tf.Tensor") -> "tf.Tensor":
    """Outputs float32 [B, K] of logits [B, K], in TensorFlow operations."""
    import tensorflow as tf

    return {"softmax": tf.nn.softmax}[outputs.activation](logits)
