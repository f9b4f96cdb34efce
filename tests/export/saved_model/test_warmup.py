"""Warm-up requests, read back as TensorFlow Serving reads them, and run."""

from pathlib import Path

import pytest
import tensorflow as tf
from tensorflow_serving.apis.prediction_log_pb2 import PredictionLog

from keras_transfer.export.contract import Contract
from keras_transfer.export.saved_model.network import as_trained
from keras_transfer.export.saved_model.writer import WARMUP_FILE, export_saved_model, write_warmup


@pytest.fixture(scope="module")
def exported(classifier, class_names, photos: Path, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("warm") / "1"
    terms = Contract(
        name="photos", class_names=class_names, image_size=32, resize="crop", max_megapixels=1
    )
    export_saved_model(as_trained(classifier), folder, terms)
    assert write_warmup(folder, sorted(photos.iterdir()), terms) == 9
    return folder


def test_every_record_is_a_request_that_the_model_serves(exported: Path):
    records = tf.data.TFRecordDataset(str(exported / WARMUP_FILE))
    logs = [PredictionLog.FromString(record.numpy()) for record in records]
    signatures = tf.saved_model.load(str(exported)).signatures
    requested = []
    for log in logs:
        assert log.WhichOneof("log_type") == "predict_log"
        request = log.predict_log.request
        assert request.model_spec.name == "photos"
        inputs = {
            name: tf.constant(tf.make_ndarray(proto)) for name, proto in request.inputs.items()
        }
        served = signatures[request.model_spec.signature_name](**inputs)
        rows = served["probabilities"].shape[0]
        assert rows == next(iter(inputs.values())).shape[0]
        requested.append((request.model_spec.signature_name, rows))
    assert requested == [
        *(("serving_default", size) for size in (1, 2, 4, 8, 16, 32)),
        ("serving_resized", 1),
        ("serving_pixels", 1),
        ("serving_explain", 1),
    ]


def test_requests_are_real_images_of_more_than_one_kind(exported: Path):
    records = tf.data.TFRecordDataset(str(exported / WARMUP_FILE))
    request = PredictionLog.FromString(list(records)[2].numpy()).predict_log.request
    images = tf.make_ndarray(request.inputs["image_bytes"])
    assert len(set(images)) == 4
    for image in images:
        assert tf.io.decode_image(image, expand_animations=False).shape.rank == 3
