"""Writes a SavedModel with its contract, and warm-up requests for TensorFlow Serving.

The first request of each signature and batch size builds kernels and takes many times as long as
the next. TensorFlow Serving replays assets.extra/tf_serving_warmup_requests, a TFRecord file of
`PredictionLog` records, while a version is loading.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Final

import numpy as np
import tensorflow as tf
from tensorflow_serving.apis import predict_pb2, prediction_log_pb2

from keras_transfer.data.images import decoder, decoding_of, load_encoded
from keras_transfer.errors import ExportError
from keras_transfer.export.contract import Contract
from keras_transfer.export.saved_model.network import Network
from keras_transfer.export.saved_model.signatures import (
    ACCELERATOR_ALIAS,
    BYTES,
    EXPLAIN,
    PIXELS,
    RESIZED,
    Signatures,
)
from keras_transfer.storage.atomic import replacing

MODEL_FILE: Final = "saved_model.pb"
WARMUP_FILE: Final = Path("assets.extra", "tf_serving_warmup_requests")
BATCH_SIZES: Final = (1, 2, 4, 8, 16, 32)
"""Sizes that servers pad batches to; kernels are built for each."""

_NUM_IMAGES: Final = 4
"""How many different test images are stored, at most; larger batches repeat them."""


def export_saved_model(network: Network, folder: Path, contract: Contract) -> None:
    """Write a SavedModel with its contract next to it; `signatures` lists its signatures.

    The folder appears complete or not at all.

    Args:
        network: from `network.as_trained` or `network.frozen`.
        folder: an earlier export there is replaced.

    Raises:
        ExportError: the folder has other files, or a class name does not fit into labels.txt.
        RunError: the disk is full, or the folder cannot be written.
    """
    _check_replaceable(folder)
    # A plain module with the weights: `Model.export` and tracked archives write each weight twice.
    module = Signatures(network, contract)
    signatures = module.concrete()
    options = tf.saved_model.SaveOptions(function_aliases={ACCELERATOR_ALIAS: module.classify})
    with replacing(folder) as path:
        tf.saved_model.save(module, str(path), signatures=signatures, options=options)
        contract.write(path)


def _check_replaceable(folder: Path) -> None:
    is_export = (folder / MODEL_FILE).is_file()
    if folder.is_dir() and not is_export and any(folder.iterdir()):
        raise ExportError(
            f"{folder} has files that do not belong to an exported model",
            expected="a new or empty folder, or an earlier export",
            received=", ".join(sorted(entry.name for entry in folder.iterdir())[:5]),
            fix="give another folder",
        )


def write_warmup(export_folder: Path, files: Sequence[Path], contract: Contract) -> int:
    """Write requests for all signatures: every batch size for images, one for the others.

    Args:
        files: test images; a few, spread evenly, are taken.

    Returns:
        The number of requests.

    Raises:
        DataError: a file cannot be read.
    """
    rows = np.unique(np.linspace(0, len(files) - 1, _NUM_IMAGES).round().astype(int))
    encoded = [load_encoded(files[row], max_megapixels=contract.max_megapixels) for row in rows]
    square = decoder(**decoding_of(contract))(tf.constant(encoded[0]))
    requests = [
        _request(contract, BYTES, image_bytes=tf.constant(_filled(encoded, size)))
        for size in BATCH_SIZES
    ]
    requests += [
        _request(contract, RESIZED, pixels=square[tf.newaxis]),
        _request(contract, PIXELS, pixels=square[tf.newaxis]),
        _request(
            contract, EXPLAIN, image_bytes=tf.constant(encoded[:1]), class_index=tf.constant([-1])
        ),
    ]
    file = export_folder / WARMUP_FILE
    file.parent.mkdir(exist_ok=True)
    with tf.io.TFRecordWriter(str(file)) as writer:
        for request in requests:
            writer.write(request.SerializeToString())
    return len(requests)


def _filled(encoded: list[bytes], size: int) -> list[bytes]:
    return [encoded[number % len(encoded)] for number in range(size)]


def _request(
    contract: Contract, signature: str, **inputs: tf.Tensor
) -> prediction_log_pb2.PredictionLog:
    request = predict_pb2.PredictRequest()
    request.model_spec.name = contract.name
    request.model_spec.signature_name = signature
    for name, tensor in inputs.items():
        request.inputs[name].CopyFrom(tf.make_tensor_proto(tensor))
    log = prediction_log_pb2.PredictLog(request=request)
    return prediction_log_pb2.PredictionLog(predict_log=log)
