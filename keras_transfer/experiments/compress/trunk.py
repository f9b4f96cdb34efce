"""The smaller trunk of a run, in a file below `home()` that is named by what it is made of.

It is a pure function of the run's model, some of its training images and the steps, so it is made
once, and again only where the file is gone.
"""

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import keras
import numpy as np
from keras import ops

from keras_transfer.backbones.combination import SEPARATOR
from keras_transfer.backbones.model_file import ModelGraph, read_backbone
from keras_transfer.backbones.preprocess import Preprocess, num_planes
from keras_transfer.backbones.record import Backbone
from keras_transfer.compression.registry import STEPS, Chain, compress
from keras_transfer.compression.sample import Sample
from keras_transfer.config import override
from keras_transfer.errors import SpecError
from keras_transfer.export.conversion import read_split
from keras_transfer.inference.prediction import LoadedRun
from keras_transfer.methods.registry import make_method
from keras_transfer.reporting.reporter import Reporter
from keras_transfer.specs import HEAD, RunSpec
from keras_transfer.storage.atomic import replacing
from keras_transfer.storage.cache import home
from keras_transfer.storage.checksums import sha256_of
from keras_transfer.storage.keras_file import drop_times

NUM_IMAGES: Final = 96
"""Training images on which the smaller trunk is fitted to the whole one."""
_VERSION: Final = 1
"""Increase it when the same steps make another trunk."""


def compressed_spec(run: LoadedRun, chain: Chain, *, reporter: Reporter) -> RunSpec:
    """The spec of the run with its trunk made smaller, which is written first.

    Raises:
        SpecError: the run's network cannot be compressed.
        DataError: training images of the run are missing or have changed.
        RunError: the disk is full.
    """
    backbone = _backbone_of(run)
    sample = read_split(run, "train", NUM_IMAGES, reporter=reporter)
    file = _place(run, chain, sample.digests)
    if not file.is_file():
        steps = ", ".join(f"{name}={amount:g}" for name, amount in chain)
        reporter.info(f"Making the backbone smaller ({steps}) …")
        with reporter.progress("making the backbone smaller"):
            network = _network(backbone, run)
            scaled = ops.convert_to_numpy(Preprocess(backbone.preprocessing)(sample.pixels))
            weights = _feature_weights(run.model, network.output.shape[-1])
            trunk = compress(network, Sample(scaled, weights), chain)
        with replacing(file) as path:
            trunk.save(path)
            drop_times(path)
    spec = run.spec
    if STEPS[chain[-1][0]].is_last:
        spec = _with_heads_only(spec, chain[-1][0], reporter)
    return override(
        spec,
        {
            "name": f"{run.spec.name}-small",
            "model.backbone": str(file),
            "model.last_stage": "",
            "model.weights": "file",
            "model.preprocess": backbone.preprocessing,
        },
    )


def _with_heads_only(spec: RunSpec, step: str, reporter: Reporter) -> RunSpec:
    """The spec without phases that would train the trunk."""
    kept = tuple(phase for phase in spec.phases if phase.unfreeze == HEAD)
    if not kept:
        raise SpecError(
            f"{step} would be undone by the run's phases, which train the backbone",
            expected="a phase with unfreeze=head",
            received=", ".join(f"unfreeze={phase.unfreeze}" for phase in spec.phases),
            fix=f"leave {step} out",
        )
    left_out = [phase.name for phase in spec.phases if phase not in kept]
    if left_out:
        reporter.info(f"Left out because {step} would be undone: phase {', '.join(left_out)}.")
    spec = dataclasses.replace(spec, phases=kept)
    if any(make_method(phase, number).uses_unlabelled for number, phase in enumerate(kept)):
        return spec
    return override(spec, {"data.unlabelled": ""})


def _backbone_of(run: LoadedRun) -> Backbone:
    """The trunk of the run's model."""
    name = run.spec.model.backbone
    if SEPARATOR in name:
        raise SpecError(
            "a combination of networks cannot be compressed",
            expected="a run with one backbone",
            received=f"model.backbone={name}",
            fix="train a run with one of them, or distil this one into a smaller network",
        )
    return read_backbone(run.folder.model_file, run.folder.path.name)


def _network(backbone: Backbone, run: LoadedRun) -> keras.Model:
    """The trunk from scaled images to its feature map, with the run's weights."""
    assert isinstance(backbone.builder, ModelGraph)
    data = run.spec.data
    planes = num_planes(backbone.preprocessing, data.channels)
    # Automatic names count, so that they would change with what the process has built before.
    images = keras.Input((data.image_size, data.image_size, planes), name="scaled_images")
    network = keras.Model(images, backbone.builder(images), name="trunk")
    backbone.builder.copy_weights(network)
    return network


def _feature_weights(model: keras.Model, num_channels: int) -> np.ndarray:
    """How much the head uses each channel; ones where it is not linear on pooled features."""
    dense = [layer for layer in model.layers if isinstance(layer, keras.layers.Dense)]
    kernel = ops.convert_to_numpy(dense[-1].kernel) if dense else np.zeros((0, 0))
    if len(kernel) != num_channels:
        return np.ones(num_channels, "float32")
    weights: np.ndarray = np.square(kernel).sum(axis=1)
    return weights


def _place(run: LoadedRun, chain: Chain, digests: Sequence[str]) -> Path:
    content = [_VERSION, sha256_of(run.folder.model_file), chain, run.spec.data.image_size, digests]
    digest = hashlib.sha256(json.dumps(content).encode()).hexdigest()
    return home() / "trunks" / f"{run.spec.name}-{digest[:16]}.keras"
