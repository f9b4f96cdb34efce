"""The graphs that converters and quantisation read have the outputs of the model."""

from pathlib import Path

import keras
import numpy as np
import pytest

from keras_transfer.backbones.preprocess import Preprocess
from keras_transfer.backbones.scaling import MODES
from keras_transfer.export.formats.source import inference_graph
from keras_transfer.models.forward import predict_pixels
from keras_transfer.storage.class_names import model_name
from keras_transfer.tasks.single_label import SingleLabel


@pytest.mark.skipif(
    keras.backend.backend() != "tensorflow", reason="the graph is made of TensorFlow's operations"
)
@pytest.mark.parametrize("mode", MODES)
def test_the_inference_graph_equals_the_model_in_every_mode_of_preprocessing(mode, pixels):
    import tensorflow as tf

    inputs = keras.Input((32, 32, 3), dtype="float32")
    x = Preprocess(mode)(inputs)
    x = keras.layers.Conv2D(4, 3, padding="same")(x)
    x = keras.layers.BatchNormalization()(x)
    x = keras.layers.GlobalAveragePooling2D(name="pooling")(x)
    model = keras.Model(inputs, keras.layers.Dense(3)(x), name=model_name("abc"))
    graph = inference_graph(model, SingleLabel(("a", "b", "c")))
    outputs = graph(tf.constant(pixels))[0].numpy()
    np.testing.assert_allclose(
        outputs, predict_pixels(model, pixels, activation="softmax"), rtol=0, atol=1e-5
    )


def test_shared_strides_become_one_pooling_and_change_no_output(tmp_path: Path):
    onnx = pytest.importorskip("onnx")
    runtime = pytest.importorskip("onnxruntime")
    from keras_transfer.export.formats.onnx_format import share_strides

    generator = np.random.default_rng(0)
    weights = [generator.normal(size=(4, 3, 1, 1)).astype(np.float32) for _ in range(3)]

    def point(number: int, source: str, stride: int) -> object:
        return onnx.helper.make_node(
            "Conv",
            [source, f"w{number}"],
            [f"y{number}"],
            f"conv{number}",
            kernel_shape=[1, 1],
            strides=[stride, stride],
        )

    info, kind = onnx.helper.make_tensor_value_info, onnx.TensorProto.FLOAT
    nodes = [
        onnx.helper.make_node("Relu", ["x"], ["a"], "relu"),
        point(0, "a", 2),
        point(1, "a", 2),
        point(2, "x", 1),  # without a stride: left as it is
    ]
    outputs = [info(f"y{n}", kind, [1, 4, side, side]) for n, side in enumerate((4, 4, 7))]
    constants = [onnx.numpy_helper.from_array(w, f"w{n}") for n, w in enumerate(weights)]
    graph = onnx.helper.make_graph(nodes, "g", [info("x", kind, [1, 3, 7, 7])], outputs, constants)
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)])
    model.ir_version = 9

    def run() -> list[np.ndarray]:
        session = runtime.InferenceSession(
            model.SerializeToString(), providers=["CPUExecutionProvider"]
        )
        x = np.random.default_rng(1).normal(size=(1, 3, 7, 7)).astype(np.float32)
        return list(session.run(None, {"x": x}))

    before = run()
    share_strides(model)
    onnx.checker.check_model(model)
    kinds = [node.op_type for node in model.graph.node]
    assert kinds == ["Relu", "MaxPool", "Conv", "Conv", "Conv"]
    for new, old in zip(run(), before, strict=True):
        np.testing.assert_allclose(new, old, rtol=0, atol=1e-6)
