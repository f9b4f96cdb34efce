"""Small classifiers for tests that train."""

import numpy as np

from keras_transfer.backbones.adapters import Adapters
from keras_transfer.models.classifier import Classifier, build_classifier
from keras_transfer.specs import ModelSpec
from keras_transfer.tasks.single_label import SingleLabel

CLASS_NAMES = tuple("0123456789")


def make_classifier(
    backbone: str = "small",
    *,
    seed: int = 0,
    dropout: float = 0.3,
    adapters: Adapters | None = None,
) -> Classifier:
    """A trunk of random weights through its stage2, at 32 px.

    `small` has all that training and folding handle; others are for what depends on the network.
    """
    model = ModelSpec(backbone=backbone, last_stage="stage2", weights="none", dropout=dropout)
    task = SingleLabel(CLASS_NAMES)
    return build_classifier(model, image_size=32, task=task, seed=seed, adapters=adapters)


def weights_by_stage(classifier: Classifier) -> dict[str, list[np.ndarray]]:
    """Copies of every variable that is not a random generator's state."""
    return {
        stage: [np.array(v) for v in classifier.variables_of(stage) if "int" not in v.dtype]
        for stage in classifier.stages
    }
