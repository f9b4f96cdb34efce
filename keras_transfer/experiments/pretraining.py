"""Pretraining: train a trunk from scratch on rendered letters, and save its weights.

Nothing is downloaded. Pretraining is one phase with every stage unfrozen and BatchNormalization
trained. The letters of an epoch are a pure function of (seed, epoch), so no letter is used twice.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np

from keras_transfer.backbones.archives import save_embedded
from keras_transfer.data.letters import CLASS_NAMES, letters_dataset, render_letters
from keras_transfer.errors import SpecError
from keras_transfer.models.classifier import Classifier, build_classifier
from keras_transfer.specs import ModelSpec, PretrainSpec, TrainingSpec
from keras_transfer.tasks.single_label import SingleLabel
from keras_transfer.training.phases import PhaseResult, train_phase
from keras_transfer.training.progress import Saver

NUM_VALIDATION = 2_000


@dataclass(frozen=True)
class LetterData:
    """Rendered letters as the data of a phase; validation letters come from another seed."""

    seed: int
    num_letters: int
    image_size: int
    batch_size: int

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps over the letters of one epoch."""
        return self.num_letters // self.batch_size

    def training(self, epochs: range, num_parts: int = 1) -> Any:
        """Batches of the letters of these epochs, each divided into `num_parts`."""
        return letters_dataset(
            self.seed,
            image_size=self.image_size,
            batch_size=self.batch_size // num_parts,
            first_batch=epochs.start * self.steps_per_epoch * num_parts,
            num_batches=len(epochs) * self.steps_per_epoch * num_parts,
        )

    def validation(self, num_parts: int = 1) -> tuple[np.ndarray, np.ndarray]:  # noqa: ARG002
        """Letters that are not trained on: (images, one-hot labels)."""
        pixels, labels = render_letters(self.seed + 1, NUM_VALIDATION, image_size=self.image_size)
        return pixels.astype(np.float32), np.eye(len(CLASS_NAMES), dtype=np.float32)[labels]


def pretrain(
    spec: PretrainSpec,
    *,
    saver: Saver | None = None,
    callbacks: Sequence[keras.callbacks.Callback] = (),
) -> tuple[Classifier, PhaseResult]:
    """Train the trunk of `spec` on letters, from scratch, and return it with its head.

    Raises:
        SpecError: the phase names a method, which pretraining does not use.
    """
    if spec.phase.method != "supervised" or spec.phase.method_options:
        raise SpecError(
            "pretraining has one method",
            expected="phase.method and phase.method_options left out",
            received=f"phase.method={spec.phase.method}",
            fix="leave both out",
        )
    model = ModelSpec(
        backbone=spec.backbone, last_stage=spec.last_stage, weights="none", dropout=0.0
    )
    classifier = build_classifier(
        model, image_size=spec.image_size, task=SingleLabel(CLASS_NAMES), seed=spec.seed
    )
    data = LetterData(spec.seed, spec.num_letters, spec.image_size, spec.batch_size)
    result = train_phase(
        classifier,
        spec.phase,
        data,
        loss=classifier.task.loss(TrainingSpec(label_smoothing=spec.label_smoothing)),
        saver=saver,
        callbacks=callbacks,
    )
    return classifier, result


def embed(
    classifier: Classifier, result: PhaseResult, spec: PretrainSpec, *, command: str, folder: Path
) -> Path:
    """Write the weights in float16 with a JSON record of the training; return the weights' path."""
    monitor = classifier.task.monitor
    record = {
        "command": command,
        "source_task": "rendered letters, 52 classes",
        "data_seed": spec.seed,
        "letters_seen": spec.num_letters * result.epochs,
        "steps": (spec.num_letters // spec.batch_size) * result.epochs,
        f"source_{monitor.metric}": round(result.best_row[monitor.log_name], 4),
        "seconds": round(result.seconds),
        "keras": keras.__version__,
    }
    return save_embedded(classifier.trunk, folder, record)
