"""The SavedModel: its signatures, what is inside, and that weights are stored once."""

from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from guide_snippets import snippets
from tensorflow.core.framework import types_pb2
from tensorflow.core.protobuf import saved_model_pb2

from keras_transfer.data.images import load_encoded
from keras_transfer.data.reading import read_pixels
from keras_transfer.errors import DataError, ExportError, RunError
from keras_transfer.export.contract import Contract
from keras_transfer.export.saved_model import writer as module
from keras_transfer.export.saved_model.network import as_trained
from keras_transfer.export.saved_model.proof import TOLERANCES, export_proven
from keras_transfer.export.saved_model.signatures import ACCELERATOR_ALIAS
from keras_transfer.export.saved_model.writer import export_saved_model
from keras_transfer.models.forward import predict_pixels
from keras_transfer.specs import RunSpec
from keras_transfer.storage.class_names import read_label_files
from keras_transfer.tasks.single_label import SingleLabel

pytestmark = pytest.mark.graph_optimizer


def contract(class_names, *, resize: str = "crop") -> Contract:
    return Contract(
        name="m", class_names=class_names, image_size=32, resize=resize, max_megapixels=1
    )


def export(model: keras.Model, folder: Path, class_names, *, resize: str = "crop") -> Path:
    export_saved_model(as_trained(model), folder, contract(class_names, resize=resize))
    return folder


def encoded_and_pixels(files: list[Path], *, resize: str = "crop") -> tuple[tf.Tensor, np.ndarray]:
    encoded = tf.constant([load_encoded(file, max_megapixels=1) for file in files])
    images = read_pixels(files, image_size=32, resize=resize, max_megapixels=1)
    return encoded, np.stack([image.pixels for image in images])


@pytest.fixture(scope="module")
def exported(classifier, class_names, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export(classifier, tmp_path_factory.mktemp("exported") / "export" / "1", class_names)


@pytest.fixture(scope="module")
def signatures(exported: Path):
    return tf.saved_model.load(str(exported)).signatures


def test_tensorflow_alone_predicts_as_the_guide_says(
    exported: Path, classifier, class_names, photos: Path, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    Path("saved_models").mkdir()
    Path("saved_models/my_photos").symlink_to(exported.parents[1])
    file = min(photos.glob("*.jpg"))
    Path("rose.jpg").symlink_to(file)
    (snippet,) = snippets("export_and_formats", "## The SavedModel", "## Other formats")
    exec(snippet, {})
    (expected,) = predict_pixels(classifier, encoded_and_pixels([file])[1], activation="softmax")
    best = sorted(zip(expected, class_names, strict=True), reverse=True)
    lines = [f"{name} {probability:.1%}" for probability, name in best]
    assert capsys.readouterr().out.splitlines() == lines


def test_serving_default_predicts_encoded_images_like_the_model(
    signatures, classifier, class_names, photos: Path
):
    encoded, pixels = encoded_and_pixels(sorted(photos.iterdir()))
    served = signatures["serving_default"](image_bytes=encoded)
    expected = predict_pixels(classifier, pixels, activation="softmax")
    np.testing.assert_allclose(served["probabilities"], expected, rtol=0, atol=1e-6)
    assert served["probabilities"].dtype == tf.float32
    labels = [label.decode() for label in served["label"].numpy()]
    assert labels == [class_names[column] for column in expected.argmax(axis=1)]
    assert len(set(labels)) > 1
    names = [[name.decode() for name in row] for row in served["class_names"].numpy()]
    assert names == [list(class_names)] * len(pixels)


def test_serving_pixels_predicts_images_of_any_size_like_the_model(
    signatures, classifier, photos: Path
):
    files = sorted(photos.glob("*.png"))[:4]
    encoded, pixels = encoded_and_pixels(files)
    expected = predict_pixels(classifier, pixels, activation="softmax")
    for row, content in enumerate(encoded):
        image = tf.io.decode_image(content, channels=3)
        served = signatures["serving_pixels"](pixels=tf.stack([image, image]))
        for copy in range(2):
            np.testing.assert_allclose(served["probabilities"][copy], expected[row], atol=1e-6)
    assert signatures["serving_pixels"].structured_input_signature[1]["pixels"].dtype == tf.uint8


def test_serving_pixels_refuses_floats(signatures):
    with pytest.raises(tf.errors.InvalidArgumentError, match="uint8"):
        signatures["serving_pixels"](pixels=tf.zeros([1, 40, 40, 3]))


def test_serving_default_refuses_what_is_no_image(signatures):
    with pytest.raises(tf.errors.InvalidArgumentError):
        signatures["serving_default"](image_bytes=tf.constant([b"an image, honestly"]))


def test_export_resizes_as_the_training_did(classifier, class_names, photos: Path, tmp_path: Path):
    encoded, pixels = encoded_and_pixels(sorted(photos.iterdir())[:6], resize="pad")
    folder = export(classifier, tmp_path / "1", class_names, resize="pad")
    served = tf.saved_model.load(str(folder)).signatures["serving_default"](image_bytes=encoded)
    expected = predict_pixels(classifier, pixels, activation="softmax")
    np.testing.assert_allclose(served["probabilities"], expected, rtol=0, atol=1e-6)


def test_export_stores_every_weight_once(exported: Path, classifier):
    files = [file for file in exported.rglob("*") if file.is_file()]
    content = b"".join(file.read_bytes() for file in files)
    for weight in classifier.weights:
        value = weight.numpy()
        if len(np.unique(value)) > 1:  # biases of zeros look like any other zeros
            assert content.count(value.tobytes()) == 1


def test_export_has_no_random_operation(exported: Path, signatures):
    operations = set()
    for signature in signatures.values():
        graph = signature.graph.as_graph_def()
        nodes = [*graph.node, *(node for f in graph.library.function for node in f.node_def)]
        operations |= {node.op for node in nodes}
    assert operations & {"Conv2D", "XlaCallModule"}
    assert [name for name in operations if "Random" in name or "Rng" in name] == []
    assert b"threefry" not in (exported / "saved_model.pb").read_bytes()  # as JAX would draw


def test_export_names_no_file_of_the_machine_that_wrote_it(exported: Path):
    content = (exported / "saved_model.pb").read_bytes()
    assert str(Path(module.__file__).parent).encode() not in content
    assert str(Path(keras.__file__).parent).encode() not in content


def test_best_classes_come_with_their_names(signatures, class_names, photos: Path):
    encoded, _ = encoded_and_pixels(sorted(photos.iterdir())[:8])
    served = signatures["serving_default"](image_bytes=encoded)
    order = np.argsort(-served["probabilities"].numpy(), axis=1)
    names = [[name.decode() for name in row] for row in served["top_class_names"].numpy()]
    assert names == [[class_names[column] for column in row] for row in order]
    best = np.take_along_axis(served["probabilities"].numpy(), order, axis=1)
    np.testing.assert_array_equal(served["top_probabilities"], best)


def test_accelerators_find_a_function_without_strings_by_its_alias(exported: Path, signatures):
    content = saved_model_pb2.SavedModel.FromString((exported / "saved_model.pb").read_bytes())
    (graph,) = content.meta_graphs
    aliased = [
        name
        for name, alias in graph.meta_info_def.function_aliases.items()
        if alias == ACCELERATOR_ALIAS
    ]
    library = {f.signature.name: f for f in graph.graph_def.library.function}
    assert aliased
    for name in aliased:
        arguments = [*library[name].signature.input_arg, *library[name].signature.output_arg]
        assert all(argument.type != types_pb2.DT_STRING for argument in arguments)
    served = signatures["serving_resized"]
    assert served.inputs[0].shape.as_list() == [None, 32, 32, 3]
    assert all(tensor.dtype != tf.string for tensor in served.outputs)


def test_explanations_are_the_square_the_network_sees_and_a_map_of_it(
    signatures, classifier, photos: Path
):
    encoded, pixels = encoded_and_pixels(sorted(photos.iterdir())[:5])
    served = signatures["serving_explain"](
        image_bytes=encoded, class_index=tf.constant([-1, 0, 1, 2, -1])
    )
    squares = [tf.io.decode_png(png).numpy() for png in served["square_bytes"]]
    np.testing.assert_array_equal(squares, pixels)
    np.testing.assert_allclose(
        served["probabilities"], predict_pixels(classifier, pixels, activation="softmax"), atol=1e-6
    )
    size = classifier.get_layer("pooling").input.shape[1]
    assert served["heat_map"].shape == (5, size, size)
    likeliest = int(served["probabilities"][0].numpy().argmax())
    again = signatures["serving_explain"](
        image_bytes=encoded[:1], class_index=tf.constant([likeliest])
    )
    np.testing.assert_allclose(again["heat_map"][0], served["heat_map"][0], atol=1e-6)


def test_export_keeps_the_class_list_beside_it(exported: Path, class_names):
    assert read_label_files(exported) == class_names
    lines = (exported / "labels.txt").read_text(encoding="utf-8").splitlines()
    assert lines == list(class_names)


@pytest.mark.parametrize("dtype", ["mixed_bfloat16", "mixed_float16"])
def test_export_of_a_mixed_precision_model_predicts_in_float32(
    dtype: str, make_classifier, class_names, photos: Path, tmp_path: Path
):
    model = make_classifier(class_names, dtype=dtype)
    encoded, pixels = encoded_and_pixels(sorted(photos.iterdir()))
    folder = export(model, tmp_path / "1", class_names)
    served = tf.saved_model.load(str(folder)).signatures["serving_default"](image_bytes=encoded)
    assert served["probabilities"].dtype == tf.float32
    difference = np.abs(
        served["probabilities"] - predict_pixels(model, pixels, activation="softmax")
    ).max()
    assert difference <= TOLERANCES[dtype]


def test_export_refuses_another_order_of_classes(classifier, class_names, tmp_path: Path):
    with pytest.raises(DataError, match=r"other classes .*or in another order"):
        export_proven(
            classifier,
            tmp_path / "1",
            spec=RunSpec(),
            task=SingleLabel(tuple(class_names[::-1])),
            files=[Path("a.jpg")],
            outputs=np.eye(3)[:1],
        )
    assert list(tmp_path.iterdir()) == []


def test_export_never_replaces_a_folder_of_other_files(classifier, class_names, tmp_path: Path):
    (tmp_path / "thesis.txt").write_text("words")
    with pytest.raises(ExportError, match="has files that do not belong") as failure:
        export(classifier, tmp_path, class_names)
    assert "thesis.txt" in str(failure.value)
    assert (tmp_path / "thesis.txt").read_text() == "words"


def test_export_on_a_full_disk_leaves_nothing_and_says_so(
    classifier, class_names, tmp_path: Path, full_disk
):
    with full_disk(), pytest.raises(RunError, match="disk is full"):
        export(classifier, tmp_path / "export" / "1", class_names)
    assert [path.name for path in tmp_path.rglob("*")] == ["export"]
