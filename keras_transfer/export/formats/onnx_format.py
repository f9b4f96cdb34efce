"""ONNX files in float32, in eight bits, and in both; the class hash is in the metadata.

Weights in eight bits are rounded to 7 bits, with one scale per channel: processors without VNNI add
two products of 8 × 8 bits in 16 bits, which would overflow.
"""

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Final

import numpy as np

if TYPE_CHECKING:
    from keras_transfer.export.formats.source import Source

INPUT: Final = "pixels"
_CLASS_HASH: Final = "class_hash"
_OPSET: Final = 17
_QUANTISED: Final = ["Conv", "MatMul", "Gemm", "MaxPool", "Add", "Relu", "Clip", "Concat"]
_BATCH_SIZE: Final = 4


def write(source: "Source", target: Path, *, precision: str) -> None:
    """Write an ONNX file of opset 17 in 'float32', 'int8' or 'mixed'."""
    shutil.copyfile(onnx_file(source, precision), target)


def onnx_file(source: "Source", precision: str) -> Path:
    """The ONNX file of a precision in the scratch folder, written once."""
    file = source.scratch / f"{precision}.onnx"
    if not file.exists():
        write_file = {"float32": _write_float32, "int8": _quantise, "mixed": _mix}[precision]
        write_file(source, file)
    return file


def open_artefact(path: Path, *, num_threads: int | None = None) -> SimpleNamespace:
    """Open an ONNX file on the CPU."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = num_threads or 0
    # Its warnings are about nodes that it creates itself.
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    metadata = session.get_modelmeta().custom_metadata_map
    return SimpleNamespace(
        predict=lambda pixels: session.run(None, {name: pixels})[0],
        class_hash=metadata.get(_CLASS_HASH, ""),
    )


def _write_float32(source: "Source", target: Path) -> None:
    import onnx
    import tensorflow as tf
    import tf2onnx

    graph = source.graph

    def predict(pixels: tf.Tensor) -> dict[str, tf.Tensor]:
        return {source.output_name: graph(pixels)[0]}

    signature = [tf.TensorSpec(graph.inputs[0].shape, tf.uint8, name=INPUT)]
    model, _ = tf2onnx.convert.from_function(tf.function(predict), signature, opset=_OPSET)
    onnx.helper.set_model_props(model, {_CLASS_HASH: source.class_hash})
    onnx.save(model, target)


def _prepared_file(source: "Source") -> Path:
    """The float32 file as it is quantised: constants computed, strides shared, nodes with names."""
    import onnx
    from onnxruntime.quantization.shape_inference import quant_pre_process

    prepared = source.scratch / "prepared.onnx"
    if not prepared.exists():
        quant_pre_process(onnx_file(source, "float32"), prepared, skip_symbolic_shape=True)
        model = onnx.load(prepared)
        share_strides(model)
        for number, node in enumerate(model.graph.node):
            node.name = node.name or f"node{number}"
        onnx.save(model, prepared)
    return prepared


def _mix(source: "Source", target: Path) -> None:
    """Write the float32 file in int8, but for the layers that would cost too much."""
    import onnx

    from keras_transfer.export.formats.mixed_precision import Quantised, choose_layers

    file = target.with_name(f"{target.stem}.int8.onnx")
    # Otherwise a layer in float32 would read values before their activation.
    _quantise(source, file, options={"QDQKeepRemovableActivations": True})
    quantised = Quantised(onnx.load(file), onnx.load(_prepared_file(source)))
    onnx.save(choose_layers(quantised, source, input_name=INPUT), target)


def _quantise(source: "Source", target: Path, *, options: dict[str, Any] | None = None) -> None:
    """Write the float32 file in int8, with quantising and dequantising nodes (QDQ).

    The ranges of all activations come from `source.images`, in batches of 4. `options` are those
    of ONNX Runtime's quantiser.
    """
    import onnx
    from onnxruntime import quantization

    prepared = _prepared_file(source)
    model = onnx.load(prepared)
    starts = range(0, len(source.images), _BATCH_SIZE)
    batches = iter([source.images[start : start + _BATCH_SIZE] for start in starts])

    class Images(quantization.CalibrationDataReader):
        def get_next(self) -> dict[str, np.ndarray] | None:
            batch = next(batches, None)
            return None if batch is None else {INPUT: batch}

    # Convolutions in place of `Preprocess` stay in float32, because pixels need full precision.
    shapes = {tensor.name: list(tensor.dims) for tensor in model.graph.initializer}
    scaling = [
        node.name
        for node in model.graph.node
        if node.op_type == "Conv" and shapes.get(node.input[1]) == [3, 3, 1, 1]
    ]
    assert scaling
    quantization.quantize_static(
        prepared,
        target,
        Images(),
        quant_format=quantization.QuantFormat.QDQ,
        op_types_to_quantize=_QUANTISED,
        per_channel=True,
        reduce_range=True,
        activation_type=quantization.QuantType.QUInt8,
        weight_type=quantization.QuantType.QInt8,
        nodes_to_exclude=scaling,
        extra_options=options or {},
    )


def share_strides(model: Any) -> None:
    """Move the stride of 1 × 1 convolutions that read the same tensor into one 1 × 1 max pooling.

    Outputs stay bit-identical. OpenVINO would do this itself after the quantisation, and then
    compute those convolutions in float32: a third of a ResNet50's time.
    """
    import onnx

    graph = model.graph
    readers: dict[str, list[Any]] = {}
    for node in graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    for name, nodes in readers.items():
        strides = {tuple(_strides_of_a_point(node)) for node in nodes}
        if len(strides) != 1 or strides <= {(), (1, 1)}:
            continue
        thinned = f"{name}_thinned"
        pooling = onnx.helper.make_node(
            "MaxPool", [name], [thinned], thinned, kernel_shape=[1, 1], strides=[*strides.pop()]
        )
        graph.node.insert(min(list(graph.node).index(node) for node in nodes), pooling)
        for node in nodes:
            node.input[0] = thinned
            next(a for a in node.attribute if a.name == "strides").ints[:] = [1, 1]


def _strides_of_a_point(node: Any) -> list[int]:
    """The strides of a convolution of 1 × 1 without padding; nothing for any other node."""
    if node.op_type != "Conv":
        return []
    values = {a.name: list(a.ints) for a in node.attribute}
    is_point = values.get("kernel_shape") == [1, 1] and not any(values.get("pads", []))
    return values.get("strides", []) if is_point else []
