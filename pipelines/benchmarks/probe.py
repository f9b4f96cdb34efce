"""The value of pretrained weights: linear probes on few labels, and two controls.

A logistic regression is trained on a few labelled images and evaluated on all others, for the
trunk's pooled features, for the same trunk with random weights, and for raw pixels. The difference
between the first and the other two is the gain from pretraining.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import keras
import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from keras_transfer.config import override
from keras_transfer.data.datasets import Pixels
from keras_transfer.errors import DataError
from keras_transfer.experiments.session import open_session
from keras_transfer.models.classifier import build_classifier
from keras_transfer.models.forward import forward_pixels
from keras_transfer.reporting.reporter import Reporter
from keras_transfer.specs import RunSpec
from keras_transfer.storage.model_files import title
from keras_transfer.tasks.task import Task


@dataclass(frozen=True)
class Probe:
    """Accuracies of one kind of features with one number of labels, one per seed."""

    features: str
    num_labels: int
    accuracies: tuple[float, ...]


def probe(
    spec: RunSpec, label_counts: Sequence[int], *, num_seeds: int, reporter: Reporter
) -> list[Probe]:
    """Probe the trunk of `spec` on its data; its head, phases and views are not used.

    A seed draws the labelled images, stratified, and the random trunk's weights.

    Raises:
        DataError: there are fewer labels than classes, or no image is left to evaluate on.
        SpecError, WeightsError: as in a run.
    """
    with open_session(spec, reporter=reporter) as session:
        records, pixels, _ = session.read_images()
        labels = np.asarray(records.targets.values)
        fixed = {"raw pixels": np.asarray(pixels, np.float32).reshape(len(pixels), -1)}
        if spec.model.weights != "none":
            features = pooled_features(spec, session.task, pixels)
            fixed = {f"{title(spec.model.weights)} weights": features, **fixed}
        random_spec = override(spec, {"model.weights": "none"})
        result: dict[tuple[str, int], list[float]] = {}
        for seed in range(num_seeds):
            random = pooled_features(override(random_spec, {"seed": seed}), session.task, pixels)
            for name, features in {**fixed, "random weights": random}.items():
                for num_labels in label_counts:
                    train, others = draw_labelled(labels, num_labels, seed)
                    accuracy = score(features, labels, train, others)
                    result.setdefault((name, num_labels), []).append(accuracy)
            reporter.info(f"Seed {seed} of {num_seeds} is done.")
    return [Probe(name, number, tuple(values)) for (name, number), values in result.items()]


def pooled_features(spec: RunSpec, task: Task, pixels: Pixels) -> np.ndarray:
    """Pooled features [N, channels] of the last stage."""
    model = build_classifier(
        spec.model, image_size=spec.data.image_size, task=task, seed=spec.seed
    ).model
    trunk = keras.Model(model.input, model.get_layer("pooling").output)
    return forward_pixels(trunk, pixels)


def draw_labelled(labels: np.ndarray, count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows of `count` labelled images, stratified, and of all others.

    Raises:
        DataError: there are fewer labels than classes, or no other image is left.
    """
    num_classes = len(np.unique(labels))
    if not num_classes <= count <= len(labels) - num_classes:
        raise DataError(
            f"{count} images cannot be drawn as labelled ones",
            expected=f"from {num_classes}, the number of classes, to {len(labels) - num_classes}",
            received=f"{count} of {len(labels)} images",
            fix="change --labels",
        )
    train, others = train_test_split(
        np.arange(len(labels)), train_size=count, stratify=labels, random_state=seed
    )
    return train, others


def score(features: np.ndarray, labels: np.ndarray, train: np.ndarray, test: np.ndarray) -> float:
    """The accuracy on the rows `test` of a logistic regression that was fitted on `train`."""
    probe = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000))
    probe.fit(features[train], labels[train])
    return float(probe.score(features[test], labels[test]))
