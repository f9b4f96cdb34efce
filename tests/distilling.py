"""A good teacher of handwritten digits, and small students that learn from it."""

import functools
import json
from pathlib import Path

import keras
import numpy as np
from feature_sources import make_source
from listener import Listener
from sklearn.datasets import load_digits
from small_models import CLASS_NAMES

from keras_transfer.config import override
from keras_transfer.data.splits import Splits
from keras_transfer.features.phase_inputs import PhaseInputs
from keras_transfer.methods.registry import make_methods
from keras_transfer.models.classifier import build_classifier
from keras_transfer.specs import CacheSpec, ModelSpec, PhaseSpec, RunSpec, TrainingSpec, ViewSpec
from keras_transfer.storage.cache import Cache
from keras_transfer.storage.class_names import describe_class_names
from keras_transfer.tasks.linear_head import HeadFeatures, LinearHead, solve_softmax
from keras_transfer.tasks.single_label import SingleLabel
from keras_transfer.training.fitting import fit_phases

NUM_IMAGES, NUM_LABELLED = 500, 30
SPEC = RunSpec(
    views=ViewSpec(count=2),
    model=ModelSpec(backbone="small", weights="none"),
    phases=(PhaseSpec(name="student"),),
    training=TrainingSpec(label_smoothing=0.0, refit=False),
    cache=CacheSpec(dtype="float32", precision="float32"),
)
ROWS = np.arange(NUM_IMAGES)
SPLITS = Splits(
    train=ROWS[:NUM_LABELLED],
    val=ROWS[NUM_LABELLED : NUM_LABELLED + 20],
    test=ROWS[NUM_LABELLED + 20 : 200],
    seed=0,
    val_fraction=0.1,
    test_fraction=0.3,
)
UNLABELLED = ROWS[200:]


@functools.cache
def solution() -> LinearHead:
    """A linear classifier of scans that no student sees."""
    scans = load_digits()
    values, labels = scans.data[NUM_IMAGES:], scans.target[NUM_IMAGES:]
    features = HeadFeatures(lambda rows, _: values[rows], len(values), 1, 64)
    return solve_softmax(features, np.eye(10)[labels], np.ones(len(labels)), strengths=(0.3,))


def save_teacher(
    folder: Path,
    names=CLASS_NAMES,
    *,
    top="linear",
    size=32,
    weight=1 / 3,
    head=None,
    task="single_label",
) -> Path:
    """The classifier as a run that reads images of this size; `top` is its last activation.

    It reads the sum of the channels times `weight`; `head` is by default that of `solution`.
    """
    image = keras.Input((size, size, 3))
    pixels = keras.layers.AveragePooling2D(size // 8)(keras.layers.Rescaling(16 / 255)(image))
    grey = keras.layers.Conv2D(1, 1, use_bias=False, name="grey")(pixels)
    dropped = keras.layers.Dropout(0.5)(keras.layers.Flatten()(grey))
    found = head or solution()
    logits = keras.layers.Dense(len(names), activation=top, name="answer")(dropped)
    model = keras.Model(image, logits)
    model.get_layer("grey").set_weights([np.full((1, 1, 3, 1), weight, np.float32)])
    model.get_layer("answer").set_weights([found.kernel, found.bias])
    folder.mkdir(exist_ok=True)
    model.save(folder / "model.keras")
    (folder / "class_names.json").write_text(json.dumps(describe_class_names(names)))
    (folder / "task.json").write_text(json.dumps({"task": task}))
    return folder


def save_backbone(file: Path) -> Path:
    """Random layers that learn digits fast: a hidden layer of 32 units on the scans' 64 pixels."""
    keras.utils.set_random_seed(0)
    image = keras.Input((32, 32, 3))
    pixels = keras.layers.AveragePooling2D(4)(keras.layers.Rescaling(1 / 128, -1)(image))
    units = keras.layers.Conv2D(32, 8, activation="relu")(pixels)
    keras.Model(image, units).save(file)
    return file


def save_maps(file: Path) -> Path:
    """Random layers with a feature map of 8 × 8 positions, the scans' pixels."""
    keras.utils.set_random_seed(0)
    image = keras.Input((32, 32, 3))
    pixels = keras.layers.AveragePooling2D(4)(keras.layers.Rescaling(1 / 128, -1)(image))
    maps = keras.layers.Conv2D(8, 3, padding="same", activation="relu", name="maps")(pixels)
    keras.Model(image, maps).save(file)
    return file


class Training:
    """A student on a folder's cache, trained by one phase: its method's options are given."""

    def __init__(
        self,
        folder: Path,
        options=None,
        changes=None,
        *,
        unlabelled=UNLABELLED,
        source=None,
        task=None,
    ):
        keras.utils.clear_session()
        given = {"method": "distill", "method_options": options} if options else {}
        phase = {f"phases.0.{name}": value for name, value in given.items()}
        self.spec = override(SPEC, phase | (changes or {}))
        self.reporter = Listener()
        self.inputs = PhaseInputs(
            self.spec,
            source or make_source(NUM_IMAGES, views=self.spec.views),
            SPLITS,
            methods=make_methods(self.spec),
            cache=Cache(folder / "cache"),
            reporter=self.reporter,
            unlabelled=unlabelled,
        )
        task = task or SingleLabel(CLASS_NAMES)
        self.classifier = build_classifier(self.spec.model, image_size=32, task=task, seed=0)

    def fit(self, run=None, **arguments):
        """Train all phases, or resume a run."""
        self.outcomes = fit_phases(
            self.classifier, self.inputs, reporter=self.reporter, run=run, **arguments
        )
        return self

    @property
    def weights(self):
        return {v.path: np.array(v) for v in self.classifier.model.variables}

    @property
    def accuracy(self):
        """On the test split; of other tasks than single labels the mean score."""
        outputs = self.inputs.predict(self.classifier, SPLITS.test)
        values = self.inputs.source.examples.targets.values[SPLITS.test]
        return float(self.classifier.task.example_scores(values, outputs).mean())
