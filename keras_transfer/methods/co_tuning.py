"""Co-Tuning: the classifier of the pretrained network is trained along, on related source classes.

The loss of a training batch has one term more:

    strength · CE(p(source class | class), source classifier on the same features)

The relation p(source class | class) is the mean of what the pretrained network says of the training
images of a class, in all views. (The paper calibrates these probabilities first.) The source's
classifier trains at the head's rate, and is dropped after the phase.

Source: K. You et al., "Co-Tuning for transfer learning", NeurIPS 2020.
"""

from dataclasses import dataclass, field
from typing import Any, ClassVar

import keras
import numpy as np
from keras import ops

from keras_transfer.errors import SpecError
from keras_transfer.fields import option
from keras_transfer.methods.distillation.soft_targets import probabilities
from keras_transfer.methods.feature_terms import with_term
from keras_transfer.methods.method import MethodDefaults
from keras_transfer.methods.source_classifier import SourceClassifier, load_source
from keras_transfer.specs import HEAD, PhaseSpec, RunSpec
from keras_transfer.storage.model_files import find_file
from keras_transfer.training.objective import Objective, PhaseContext, PhaseImages


@dataclass(frozen=True, kw_only=True)
class CoTuningOptions:
    """Options of Co-Tuning."""

    source: str = option(
        "",
        "the pretrained network with its classifier: a run folder, a Keras model file or a weights "
        "file (.h5) with top ('' = the run or file in model.backbone)",
    )
    strength: float = option(2.3, "of the loss of the source's classifier", low=1e-6, high=1e6)


@dataclass(frozen=True)
class CoTuning(MethodDefaults):
    """Trains on the task's loss and, by the source's classifier, on related source classes."""

    options: CoTuningOptions = field(default_factory=CoTuningOptions)

    Options: ClassVar = CoTuningOptions
    name: ClassVar[str] = "co_tuning"

    def check(self, spec: RunSpec, number: int) -> None:
        """Raise SpecError without a source, or for heads and tasks that it cannot have."""
        phase, model = spec.phases[number], spec.model
        self._source(spec)
        given = {
            "task": (spec.task, "single_label"),
            "model.head": (model.head, "linear"),
            "model.pooling": (model.pooling, "avg"),
        }
        wrong = [f"{name}={own}" for name, (own, needed) in given.items() if own != needed]
        if phase.unfreeze == HEAD:
            wrong.append(f"phases.{number}.unfreeze={HEAD}")
        if wrong:
            raise SpecError(
                f"phase {phase.name!r} has no features that a source's classifier could read",
                expected="task=single_label, model.head=linear, model.pooling=avg, and unfreeze "
                "with a stage of the backbone",
                received=", ".join(wrong),
                fix="change these fields, or use method 'supervised'",
            )

    def prepare(
        self,
        context: PhaseContext,
        phase: PhaseSpec,  # noqa: ARG002
        part: keras.Model,
    ) -> Objective:
        """The task's loss and that of the source's classifier.

        Raises:
            SpecError, WeightsError: the file has no classifier of the backbone's features.
        """
        source = load_source(self._source(context.spec), context)
        relation = ops.convert_to_tensor(
            relation_of(source, context.images, num_classes=len(context.task.names))
        )
        dense = keras.layers.Dense(len(source.bias), dtype="float32", name="source_logits")
        dense.build((None, len(source.kernel)))
        dense.set_weights([source.kernel, source.bias])
        strength = self.options.strength

        def term(features: Any, targets: Any, weights: Any) -> Any:
            logs = ops.log_softmax(dense(ops.cast(features, "float32")))
            losses = -ops.sum(ops.matmul(targets, relation) * logs, axis=-1)
            return strength * ops.mean(losses if weights is None else losses * weights)

        model = with_term(part, context.head, term)
        model.source_classifier = dense
        return Objective(model, context.task.loss(context.spec.training))

    def _source(self, spec: RunSpec) -> str:
        """The path of the source; of a run or a file as backbone its own."""
        if self.options.source:
            return self.options.source
        for place in (spec.model.weights, spec.model.backbone):
            file = find_file(place)
            if file.suffix == ".keras" and file.is_file():
                return place
        raise SpecError(
            "the pretrained network's own classifier is not known",
            expected="method_options.source with a run folder, a Keras model file or a weights "
            "file (.h5) with top; or a run or file with its classifier in model.backbone",
            received=f"model.backbone={spec.model.backbone}, model.weights={spec.model.weights}",
            fix="set phases.N.method_options.source, or use method 'supervised' or 'l2_sp'",
        )


def relation_of(source: SourceClassifier, images: PhaseImages, *, num_classes: int) -> np.ndarray:
    """p(source class | class), float32 [K, S]; rows have the sum 1, or 0 without images.

    The mean of the source's probabilities over the training images of each class in all views.

    Raises:
        SpecError: every epoch has new views.
        RunError: features cannot be stored.
    """
    (features,) = images.read_frozen([source.cut], source.image_size)
    rows, values = images.train_rows[: images.num_labelled], images.train_values
    assert images.num_views is not None, "views without end have no stored features"
    sums = np.zeros((num_classes, len(source.bias)))
    for view in range(images.num_views):
        read = features.read(rows, np.full(len(rows), view)).astype(np.float32)
        np.add.at(sums, values, probabilities(read @ source.kernel + source.bias))
    totals = np.maximum(sums.sum(axis=1, keepdims=True), np.finfo(float).tiny)
    return (sums / totals).astype(np.float32)
