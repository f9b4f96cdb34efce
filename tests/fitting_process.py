"""Trainings and audits in a process of its own, on as many devices and hosts as it is given.

    python tests/fitting_process.py '{"folder": "/tmp/fit", "backbone": "vgg16", …}' …

What is printed last is JSON: a list with every epoch's figures and the seconds of each training,
which is of two phases on digits, and what each audit found. The weights go to a file.
"""

import dataclasses
import json
import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")
sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1])]

import numpy as np

from keras_transfer.devices import speed_up_imports

speed_up_imports()

NUM_TRAIN, NUM_VAL = 90, 37
"""Neither is a multiple of a batch."""


@dataclass(frozen=True)
class Fit:
    """What is trained, and on what; `stop_after` epochs it is given up and begun again."""

    folder: str
    backbone: str = "small"
    last_stage: str = "stage2"
    unfreeze: str = "last"
    image_size: int = 32
    epochs: tuple[int, int] = (2, 2)
    strategy: str = "auto"
    logical_devices: int = 1
    stop_after: int | None = None
    dropout: float = 0.0
    cache: str = "on"

    def weights(self) -> dict[str, np.ndarray]:
        """What it ended with, by the variables' paths."""
        with np.load(Path(self.folder) / "weights.npz") as file:
            return dict(file)


def command(*fits: Fit, audit: dict[str, str] | None = None) -> list[str]:
    """Of a process that trains one after the other, and then audits with these arguments."""
    jobs = [*map(dataclasses.asdict, fits), *([audit] if audit else [])]
    return [sys.executable, __file__, *map(json.dumps, jobs)]


def fit(job: Fit) -> dict:  # noqa: PLR0915
    """Train; figures of every epoch."""
    import keras
    import tensorflow as tf
    from feature_sources import make_source, source_of
    from small_backbone import SMALL

    from keras_transfer.backbones.registry import BACKBONES
    from keras_transfer.config import override
    from keras_transfer.data.splits import Splits
    from keras_transfer.devices import set_up
    from keras_transfer.features.phase_inputs import PhaseInputs
    from keras_transfer.methods.networks import prepare_classifier
    from keras_transfer.methods.registry import make_methods
    from keras_transfer.reporting.reporter import SilentReporter
    from keras_transfer.specs import (
        CacheSpec,
        DeviceSpec,
        ModelSpec,
        PhaseSpec,
        RunSpec,
        TrainingSpec,
        ViewSpec,
    )
    from keras_transfer.storage.cache import Cache
    from keras_transfer.storage.run_folder import RunFolder
    from keras_transfer.tasks.single_label import SingleLabel
    from keras_transfer.training.fitting import fit_phases

    keras.utils.clear_session()  # Weights are compared by their names.
    BACKBONES[SMALL.name] = SMALL
    if job.logical_devices > 1 and keras.backend.backend() == "tensorflow":
        cpu = tf.config.list_physical_devices("CPU")[0]
        logical = [tf.config.LogicalDeviceConfiguration()] * job.logical_devices
        tf.config.set_logical_device_configuration(cpu, logical)
    # Not Adam, which divides by the size of gradients: rounding errors would show in full.
    head = PhaseSpec(epochs=job.epochs[0], learning_rate=3e-3, optimizer="sgd")
    tail = PhaseSpec(
        name="fine-tune",
        epochs=job.epochs[1],
        unfreeze=job.unfreeze,
        learning_rate=3e-3,
        layer_decay=0.5,
        optimizer="sgd",
    )
    spec = RunSpec(
        model=ModelSpec(
            backbone=job.backbone, last_stage=job.last_stage, weights="none", dropout=job.dropout
        ),
        views=ViewSpec(count=2),
        phases=(head, tail),
        training=TrainingSpec(batch_size=32, rollback=False, refit=False, label_smoothing=0.0),
        cache=CacheSpec(mode=job.cache, dtype="float32", precision="float32"),
        devices=DeviceSpec(strategy=job.strategy),
    )
    spec = override(spec, {"data.image_size": job.image_size})
    folder = Path(job.folder)
    (folder / "checkpoint").mkdir(parents=True, exist_ok=True)
    devices = set_up(spec.devices, seed=0)
    devices.check_batch_size(32)
    source = make_source(NUM_TRAIN + NUM_VAL, views=spec.views)
    if job.image_size != 32:
        repeats = job.image_size // 32
        pixels = source.examples.pixels.repeat(repeats, axis=1).repeat(repeats, axis=2)
        source = source_of(pixels, source.examples.targets.values, spec.views)
    rows = np.arange(NUM_TRAIN + NUM_VAL)
    none = np.array([], np.int64)
    splits = Splits(
        train=rows[:NUM_TRAIN],
        val=rows[NUM_TRAIN:],
        test=none,
        seed=0,
        val_fraction=0.2,
        test_fraction=0.2,
    )
    started = time.perf_counter()
    for num_epochs in (*([job.stop_after] if job.stop_after else []), None):
        classifier = prepare_classifier(spec, SingleLabel(tuple("0123456789")))
        phase_inputs = PhaseInputs(
            spec,
            source,
            splits,
            methods=make_methods(spec),
            cache=Cache(folder / "store"),
            reporter=SilentReporter(),
        )
        outcomes = fit_phases(
            classifier,
            phase_inputs,
            reporter=SilentReporter(),
            run=RunFolder(folder),
            num_epochs=num_epochs,
        )
    seconds = time.perf_counter() - started
    if devices.host == 0:
        values = {v.path: np.array(v) for v in classifier.model.variables if "int" not in v.dtype}
        np.savez(folder / "weights.npz", **values)
    history = [
        {name: row[name] for name in ("loss", "accuracy", "val_loss", "val_accuracy")}
        for outcome in outcomes
        for row in outcome.history
    ]
    answers = [outcome.val_loss for outcome in outcomes]
    found = dataclasses.asdict(devices)
    return {"history": history, "answers": answers, "seconds": seconds, "devices": found}


if __name__ == "__main__":
    results = []
    for given in map(json.loads, sys.argv[1:]):
        if "images" in given:
            from auditing import find_images

            results.append(find_images(**given))
        else:
            results.append(fit(Fit(**{**given, "epochs": tuple(given.get("epochs", (2, 2)))})))
    print(json.dumps(results))  # noqa: T201
