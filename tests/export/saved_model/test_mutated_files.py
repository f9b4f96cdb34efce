"""Audit, prediction, server and SavedModel agree on damaged files: what is read, and its pixels."""

import base64
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from mutated_files import NUM_FILES, mutated_files

from keras_transfer.data.images import decoding_of
from keras_transfer.data.reading import DecodedImage, read_pixels
from keras_transfer.export.contract import Contract
from keras_transfer.export.saved_model.network import as_trained
from keras_transfer.export.saved_model.writer import export_saved_model
from keras_transfer.serving.images import ImageRows


def exported_square(artefact, data: bytes) -> np.ndarray | None:
    """The network's input as the SavedModel decodes a file; None if it refuses the file."""
    try:
        explained = artefact.signatures["serving_explain"](
            image_bytes=tf.constant([data]), class_index=tf.constant([-1])
        )
    except tf.errors.InvalidArgumentError:
        return None
    return tf.io.decode_png(explained["square_bytes"][0]).numpy()


def served_square(rows: ImageRows, data: bytes) -> np.ndarray | Exception:
    value = {"b64": base64.b64encode(data).decode()}
    (square,) = rows.decode_all([lambda: rows.encoded(rows.header(value)[0])])
    return square


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
def test_audit_server_and_saved_model_agree_on_mutated_files(
    classifier, class_names, tmp_path: Path
):
    contract = Contract(
        name="m", class_names=class_names, image_size=32, resize="crop", max_megapixels=1
    )
    export_saved_model(as_trained(classifier), tmp_path / "1", contract)
    artefact, rows = tf.saved_model.load(tmp_path / "1"), ImageRows(contract, 1)
    mutated = list(mutated_files(NUM_FILES))
    for each in mutated:
        (tmp_path / each.name).write_bytes(each.data)
    # `predict` reads files by the same function.
    audited = read_pixels([tmp_path / each.name for each in mutated], **decoding_of(contract))
    num_read = 0
    for each, result in zip(mutated, audited, strict=True):
        square, served = exported_square(artefact, each.data), served_square(rows, each.data)
        is_read = isinstance(result, DecodedImage)
        assert is_read == isinstance(served, np.ndarray), each.name
        if not is_read:
            assert square is None, each.name
            continue
        num_read += 1
        assert not each.is_cut, each.name
        assert np.abs(served.astype(int) - result.pixels).max() <= 1, each.name
        if result.encoded.converted_from:
            assert square is None, each.name
        else:
            assert np.abs(square.astype(int) - result.pixels).max() <= 1, each.name
    assert NUM_FILES / 4 < num_read < NUM_FILES
