"""The card of a model: its purpose, training data, test figures and limits.

card.json lies beside the artefact, for servers and pages; export/README.md has the same as text.
"""

import dataclasses
import datetime
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import keras
import numpy as np

from keras_transfer.backbones.registry import get_backbone
from keras_transfer.evaluation.metrics import SingleLabelEvaluation
from keras_transfer.export.contract import CARD_FILE
from keras_transfer.models.cuts import is_random_state
from keras_transfer.specs import RunSpec
from keras_transfer.storage.class_names import hash_class_names
from keras_transfer.storage.run_folder import describe_environment

FEW_IMAGES: Final = 20
"""Figures of a class with fewer test images are imprecise."""

_MUCH_OFF: Final = 0.05
_PREPROCESSING: Final = {
    "caffe": "channels in the order BGR, minus ImageNet's mean of each",
    "tf": "scaled to −1…1",
    "torch": "scaled to 0…1, minus ImageNet's mean of each channel, divided by its deviation",
    "none": "left as it is; the first layers scale it",
}


@dataclass(frozen=True, kw_only=True)
class Card:
    """Plain values, as card.json holds them; shares are 0-1, intervals 95 %.

    `version` and `precision` are the artefact's and set when it is written.
    """

    name: str
    version: int = 0
    created: str
    backbone: str
    last_stage: str
    weights: str
    licence: str
    class_names: tuple[str, ...]
    class_hash: str
    weights_hash: str
    image_size: int
    resize: str
    preprocessing: str
    precision: str = "float32"
    accuracy: float
    accuracy_interval: tuple[float, float]
    num_test: int
    balanced_accuracy: float
    log_loss: float
    calibration_error: float
    calibration_interval: tuple[float, float]
    per_class: dict[str, dict[str, Any]]
    data: dict[str, Any]
    phases: list[dict[str, Any]]
    limits: list[str]
    environment: dict[str, Any]

    @classmethod
    def read(cls, folder: Path) -> "Card":
        """The card that `write` left in a folder."""
        return cls(**json.loads((folder / CARD_FILE).read_text(encoding="utf-8")))

    def write(self, folder: Path) -> None:
        """Write card.json."""
        text = json.dumps(dataclasses.asdict(self), indent=2) + "\n"
        (folder / CARD_FILE).write_text(text, encoding="utf-8")


def make_card(
    spec: RunSpec,
    model: keras.Model,
    class_names: Sequence[str],
    test: SingleLabelEvaluation,
    counts: Mapping[str, int],
) -> Card:
    """The card of a trained model.

    Args:
        class_names: in the order of the outputs.
        test: the evaluation on the test split.
        counts: number of images by split: 'train', 'val' and 'test'.
    """
    backbone = get_backbone(spec.model.backbone)
    source = backbone.weights.get(spec.model.weights)
    environment = describe_environment()
    return Card(
        name=spec.name,
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        backbone=spec.model.backbone,
        last_stage=spec.model.last_stage or backbone.stage_names[-1],
        # Names only: no paths of the machine that trained.
        weights=Path(spec.model.weights).name,
        licence=source.origin if source else "",
        class_names=tuple(class_names),
        class_hash=hash_class_names(class_names),
        weights_hash=hash_weights(model),
        image_size=spec.data.image_size,
        resize=spec.data.resize,
        preprocessing=_PREPROCESSING[backbone.preprocessing],
        **_figures(test),
        data={
            "source": spec.data.source,
            "path": Path(spec.data.path).name if spec.data.path else spec.data.name,
            **{f"num_{split}": counts[split] for split in ("train", "val", "test")},
        },
        phases=[dataclasses.asdict(phase) for phase in spec.phases],
        limits=_limits(test, class_names),
        environment={name: environment[name] for name in ("python", "packages")},
    )


def hash_weights(model: keras.Model) -> str:
    """The SHA-256 of all weights in the model's order, in hex; states of dropout left out."""
    digest = hashlib.sha256()
    for weight in model.weights:
        if not is_random_state(weight):
            digest.update(np.ascontiguousarray(weight).data)
    return digest.hexdigest()


def _figures(test: SingleLabelEvaluation) -> dict[str, Any]:
    return {
        "accuracy": test.accuracy,
        "accuracy_interval": test.intervals["accuracy"],
        "num_test": test.num_examples,
        "balanced_accuracy": test.balanced_accuracy,
        "log_loss": test.log_loss,
        "calibration_error": test.expected_calibration_error,
        "calibration_interval": test.intervals["expected_calibration_error"],
        "per_class": test.to_dict()["per_class"],
    }


def _limits(test: SingleLabelEvaluation, class_names: Sequence[str]) -> list[str]:
    sentences = [
        f"It always predicts one of its {len(class_names)} classes, also for images of anything "
        "else.",
        "It was evaluated on images from the same source as its training images; accuracy may be "
        "lower on images taken elsewhere, or later.",
    ]
    few = [name for name in class_names if test.per_class[name].support < FEW_IMAGES]
    if few:
        named = ", ".join(few[:10]) + (" …" if len(few) > 10 else "")
        sentences.append(
            f"Fewer than {FEW_IMAGES} test images show {named}: the figures of "
            f"{'this class' if len(few) == 1 else 'these classes'} are imprecise."
        )
    if test.expected_calibration_error > _MUCH_OFF:
        sentences.append(
            "Its probabilities are not calibrated: they differ from its accuracy by "
            f"{100 * test.expected_calibration_error:.0f} percentage points on average."
        )
    sentences.append(
        "Images are used as their pixels are stored: EXIF rotation is ignored, transparency is "
        "dropped, and only the first frame of an animation is used."
    )
    return sentences
