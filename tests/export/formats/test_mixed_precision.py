"""Layers that eight bits break stay in float32, and no others."""

import dataclasses
from pathlib import Path

import keras
import numpy as np
import pytest

from keras_transfer.backbones.preprocess import Preprocess
from keras_transfer.errors import ExportError
from keras_transfer.export.formats import mixed_precision
from keras_transfer.export.formats.mixed_precision import Quantised
from keras_transfer.models.forward import predict_pixels
from keras_transfer.storage.class_names import model_name
from keras_transfer.tasks.registry import describe_task
from keras_transfer.tasks.regression import Regression

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
pytest.importorskip("tf2onnx")
pytestmark = [
    pytest.mark.skipif(
        keras.backend.backend() != "tensorflow", reason="made of TensorFlow's operations"
    ),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]


@pytest.fixture(scope="module")
def source(class_names, contract, pixels, tmp_path_factory):
    """A network with one channel of huge values, beside which eight bits leave nothing of others.

    The next layer reads that channel with tiny weights. The true classes are its own decisions.
    """
    from keras_transfer.export.formats.source import Source

    keras.utils.set_random_seed(0)
    inputs = keras.Input((32, 32, 3), dtype="float32")
    x = Preprocess("tf")(inputs)
    x = keras.layers.Conv2D(8, 3, strides=2, name="first")(x)
    x = keras.layers.Conv2D(16, 3, strides=2, name="broken")(x)
    x = keras.layers.ReLU()(x)
    x = keras.layers.Conv2D(16, 3, name="sound")(x)
    x = keras.layers.GlobalAveragePooling2D(name="pooling")(x)
    x = keras.layers.Dense(len(class_names), name="logits")(x)
    model = keras.Model(inputs, x, name=model_name("abc"))
    for name, axis, factor in (("first", -1, 1000), ("broken", -2, 1 / 1000)):
        kernel, bias = model.get_layer(name).get_weights()
        np.moveaxis(kernel, axis, 0)[0] *= factor
        model.get_layer(name).set_weights([kernel, bias])
    # Otherwise all images would be of one class.
    kernel, _ = model.layers[-1].get_weights()
    logits = predict_pixels(model, pixels, activation="linear")
    model.layers[-1].set_weights([40 * kernel, -40 * logits.mean(axis=0)])
    values = predict_pixels(model, pixels, activation="softmax").argmax(axis=1)
    assert len(np.unique(values)) > 1
    folder = tmp_path_factory.mktemp("mixed")
    return Source(model, contract, pixels, folder, (pixels, values), folder, lambda text: None)


@pytest.fixture(scope="module")
def quantised(source) -> Quantised:
    return quantise(source)


def quantise(source) -> Quantised:
    from keras_transfer.export.formats import onnx_format

    file = source.scratch / "eight_bits.onnx"
    onnx_format._quantise(source, file, options={"QDQKeepRemovableActivations": True})
    return Quantised(onnx.load(file), onnx.load(onnx_format._prepared_file(source)))


def run(model, pixels):
    return mixed_precision._run(model, pixels, "pixels")


def test_all_layers_in_float32_are_the_whole_network(quantised, pixels):
    whole = run(quantised.whole, pixels)
    assert np.abs(run(quantised.model, pixels) - whole).max() > 0.01
    model = quantised.with_float({*quantised.layers})
    assert not any(node.op_type == "QuantizeLinear" for node in model.graph.node)
    np.testing.assert_allclose(run(model, pixels), whole, rtol=0, atol=1e-6)
    same = quantised.with_float(set())
    np.testing.assert_array_equal(run(same, pixels), run(quantised.model, pixels))


def test_numbers_of_a_network_in_float32_are_not_rounded(contract, pixels, tmp_path):
    """The last layer of such a network gives out the outputs, which eight bits would round."""
    from keras_transfer.export.formats.source import Source

    keras.utils.set_random_seed(0)
    inputs = keras.Input((32, 32, 3), dtype="float32")
    x = keras.layers.Conv2D(4, 3, strides=4)(Preprocess("tf")(inputs))
    x = keras.layers.Dense(2)(keras.layers.GlobalAveragePooling2D()(x))
    x = keras.layers.Rescaling([2.0, 500.0], [10.0, 3000.0])(x)
    task = Regression(("height", "width"), means=(10, 3000), deviations=(2, 500))
    numbers = dataclasses.replace(contract, class_names=task.names, task=describe_task(task))
    model, none = keras.Model(inputs, x), (np.empty(0), np.empty(0))
    found = quantise(Source(model, numbers, pixels, tmp_path, none, tmp_path, lambda text: None))
    (output,) = found.model.graph.output
    assert any(
        node.op_type == "DequantizeLinear" and output.name in node.output
        for node in found.model.graph.node
    )
    whole = run(found.whole, pixels)
    assert np.abs(run(found.model, pixels) - whole).max() > 0.1
    np.testing.assert_allclose(run(found.with_float({*found.layers}), pixels), whole, rtol=1e-5)


def test_a_network_beyond_the_tolerance_is_refused(source, quantised, monkeypatch):
    monkeypatch.setattr(mixed_precision, "TOLERANCE", -1.0)
    with pytest.raises(ExportError, match="even with") as failure:
        mixed_precision.choose_layers(quantised, source, input_name="pixels")
    assert len(str(failure.value).splitlines()) == 1


def test_the_layer_that_breaks_stays_in_float32_and_others_do_not(source, quantised, pixels):
    said = []
    listened = dataclasses.replace(source, say=said.append)
    model = mixed_precision.choose_layers(quantised, listened, input_name="pixels")
    outputs = run(model, pixels)
    assert (outputs.argmax(axis=1) == source.validation[1]).mean() >= 0.99
    assert (run(quantised.model, pixels).argmax(axis=1) == source.validation[1]).mean() < 0.99
    (words,) = said
    assert words.startswith("1 of ")
    assert any(node.op_type == "QuantizeLinear" for node in model.graph.node)


def test_a_network_that_eight_bits_do_not_harm_stays_in_them(source, quantised, monkeypatch):
    monkeypatch.setattr(mixed_precision, "TOLERANCE", 1.0)
    found = mixed_precision.choose_layers(quantised, source, input_name="pixels")
    assert found is quantised.model


@pytest.mark.parametrize("least", [1, 2, 5, 8])
def test_bisection_finds_the_fewest(least):
    assert mixed_precision._fewest(8, lambda count: count >= least) == least


def test_the_files_of_mixed_precision_are_written_with_their_class_hash(made: Path, contract):
    from keras_transfer.export.formats.runtimes import open_runtime

    for name in ("model_mixed.onnx", "model_mixed.xml"):
        assert open_runtime(made / name).contract == contract
