"""What the JAX backend hands over, received by a process of TensorFlow's."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from jax_processes import JAX
from tensorflow.core.protobuf import saved_model_pb2

from keras_transfer.data.images import load_encoded
from keras_transfer.export.card import hash_weights
from keras_transfer.export.saved_model.proof import AS_TRAINED, FOLDED
from keras_transfer.inference.explanation import HIGHEST, explainer
from keras_transfer.models.forward import predict_pixels
from keras_transfer.tasks.single_label import SingleLabel

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("jax") is None, reason="JAX is not installed"),
    pytest.mark.skipif(
        keras.backend.backend() != "tensorflow", reason="TensorFlow is to receive it"
    ),
]
ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def files(photos: Path) -> list[Path]:
    return sorted(photos.iterdir())[:5]


@pytest.fixture(scope="module")
def handed_over(files, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("handed_over")
    command = [sys.executable, Path(__file__).with_name("jax_process.py"), folder, *files]
    environment = {**os.environ, **JAX, "PYTHONPATH": str(ROOT)}
    subprocess.run(command, env=environment, check=True)
    return folder


@pytest.fixture(scope="module")
def recorded(handed_over: Path) -> dict[str, np.ndarray]:
    with np.load(handed_over / "recorded.npz") as content:
        return dict(content)


@pytest.fixture(scope="module")
def model(handed_over: Path) -> keras.Model:
    return keras.models.load_model(handed_over / "model.keras")


@pytest.fixture(scope="module")
def signatures(handed_over: Path):
    return tf.saved_model.load(str(handed_over / "export" / "1")).signatures


@pytest.mark.parametrize("size", [1, 5])
def test_saved_model_and_keras_file_of_jax_answer_alike_on_tensorflow(
    size, recorded, model, signatures, files
):
    assert recorded["backend"] == "jax"
    pixels, expected = recorded["pixels"][:size], recorded["probabilities"][:size]
    assert expected.std() > 0.01
    encoded = tf.constant([load_encoded(file, max_megapixels=1) for file in files[:size]])
    received = [
        predict_pixels(model, pixels, activation="softmax"),
        signatures["serving_resized"](pixels=tf.constant(pixels))["probabilities"],
        signatures["serving_pixels"](pixels=tf.constant(pixels))["probabilities"],
        signatures["serving_default"](image_bytes=encoded)["probabilities"],
    ]
    for probabilities in received:
        np.testing.assert_allclose(probabilities, expected, rtol=0, atol=1e-5)


def test_heat_maps_of_jax_are_those_of_tensorflow(recorded, model, signatures, files):
    encoded = tf.constant([load_encoded(file, max_megapixels=1) for file in files])
    served = signatures["serving_explain"](image_bytes=encoded, class_index=tf.fill([5], HIGHEST))
    probabilities, heat = explainer(model, SingleLabel(()))(recorded["pixels"], HIGHEST)
    assert heat.max() == 1
    for received in (heat, served["heat_map"]):
        np.testing.assert_allclose(received, recorded["heat"], rtol=0, atol=1e-4)
    for received in (probabilities, served["probabilities"], recorded["explained"]):
        np.testing.assert_allclose(received, recorded["probabilities"], rtol=0, atol=1e-5)


def test_predictions_on_jax_are_compiled_anew_in_full_float32(recorded):
    assert recorded["heard"].tolist() == ["None", "float32"]


def test_weights_of_jax_have_the_same_hash_on_tensorflow(recorded, model):
    assert hash_weights(model) == recorded["weights_hash"]


def test_proof_of_jax_names_its_ways_and_the_export_every_platform(handed_over: Path):
    proof = json.loads((handed_over / "export" / "1" / "proof.json").read_text())
    assert proof["backend"] == "jax"
    assert [variant["name"] for variant in proof["variants"]] == [AS_TRAINED, FOLDED]
    assert all(v["parity"]["max_abs_difference"] <= 1e-5 for v in proof["variants"])
    file = handed_over / "export" / "1" / "saved_model.pb"
    (graph,) = saved_model_pb2.SavedModel.FromString(file.read_bytes()).meta_graphs
    nodes = [node for f in graph.graph_def.library.function for node in f.node_def]
    programs = [node for node in nodes if node.op == "XlaCallModule"]
    assert len(programs) == 3  # trunk, head and the head's gradient, each of them once
    for program in programs:
        assert program.attr["platforms"].list.s == [b"CPU", b"CUDA", b"TPU"]
