"""The comparison of an export with its model: any other weights or classes fail."""

import dataclasses
import shutil
from pathlib import Path

import keras
import numpy as np
import pytest

from keras_transfer.data.reading import read_pixels
from keras_transfer.errors import DataError, ExportError
from keras_transfer.export.contract import Contract
from keras_transfer.export.saved_model import proof
from keras_transfer.export.saved_model.network import as_trained
from keras_transfer.export.saved_model.proof import check_parity, policy_of
from keras_transfer.export.saved_model.writer import export_saved_model
from keras_transfer.export.verification import IsolatedProcess
from keras_transfer.models.forward import predict_pixels

pytestmark = pytest.mark.graph_optimizer


@pytest.fixture(scope="module")
def files(photos: Path) -> list[Path]:
    return sorted(photos.iterdir())


@pytest.fixture(scope="module")
def pixels(files: list[Path]) -> np.ndarray:
    images = read_pixels(files, image_size=32, resize="crop", max_megapixels=1)
    return np.stack([image.pixels for image in images])


def export(model: keras.Model, folder: Path, class_names, *, resize: str = "crop") -> Path:
    terms = Contract(
        name="m", class_names=class_names, image_size=32, resize=resize, max_megapixels=1
    )
    export_saved_model(as_trained(model), folder, terms)
    return folder


@pytest.fixture(scope="module")
def exported(classifier, class_names, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An export of `classifier`; tests must leave it as it is."""
    return export(classifier, tmp_path_factory.mktemp("exported") / "1", class_names)


def test_parity_holds_for_the_model_itself_where_keras_cannot_be_imported(
    classifier, class_names, files, pixels, exported: Path, tmp_path: Path, capfd, monkeypatch
):
    for name in ("keras", "tf_keras", "keras_transfer"):
        (tmp_path / "traps" / name).mkdir(parents=True)
        (tmp_path / "traps" / name / "__init__.py").write_text(f"raise SystemExit('{name}!')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "traps"))
    monkeypatch.setattr(proof, "IsolatedProcess", IsolatedProcess)  # Not the one that tests share.
    capfd.readouterr()
    expected = predict_pixels(classifier, pixels, activation="softmax")
    parity = check_parity(exported, files, expected, class_names, max_megapixels=1)
    assert parity.num_files == len(files) == 36
    assert parity.label_agreement == 1.0
    assert parity.max_abs_difference <= 1e-6
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("resize", ["crop", "pad", "squash"])
def test_parity_holds_for_every_kind_of_file(
    resize, classifier, class_names, odd_photos: Path, tmp_path: Path
):
    files = sorted(odd_photos.iterdir())
    images = list(read_pixels(files, image_size=32, resize=resize, max_megapixels=1))
    expected = predict_pixels(
        classifier, np.stack([image.pixels for image in images]), activation="softmax"
    )
    folder = export(classifier, tmp_path / "1", class_names, resize=resize)
    parity = check_parity(folder, files, expected, class_names, max_megapixels=1)
    assert (parity.num_files, parity.label_agreement) == (15, 1.0)
    odd_bitmap = "BMP with a palette, 16 bits, compression or an old header"
    assert parity.refused == {"animated GIF": 1, odd_bitmap: 1}
    (sentence,) = proof.describe_refused(parity)
    assert "serving_default refuses 2 as they are" in sentence
    assert f"1 × {odd_bitmap}" in sentence
    assert parity.max_abs_difference <= 1e-6


def test_parity_fails_and_names_the_file_for_another_weight(
    classifier, class_names, files, pixels, tmp_path: Path
):
    expected = predict_pixels(classifier, pixels, activation="softmax")
    tampered = keras.models.clone_model(classifier)
    tampered.set_weights(classifier.get_weights())
    bias = tampered.get_layer("logits").bias
    bias.assign(bias + [0.0, 1e-3, 0.0])
    folder = export(tampered, tmp_path / "1", class_names)
    shift = np.abs(predict_pixels(tampered, pixels, activation="softmax") - expected).max(axis=1)
    with pytest.raises(ExportError, match="disagree") as failure:
        check_parity(folder, files, expected, class_names, max_megapixels=1)
    # Rounding decides between files that are equally far off.
    furthest = [str(files[row]) for row in np.flatnonzero(shift > shift.max() - 1e-6)]
    assert any(file in str(failure.value) for file in furthest)
    assert f"{shift.max():.2g}" in str(failure.value)


def test_parity_fails_for_classes_in_another_order(
    make_classifier, class_names, files, pixels, tmp_path: Path
):
    turned = make_classifier(class_names[::-1])
    folder = export(turned, tmp_path / "1", class_names[::-1])
    expected = predict_pixels(turned, pixels, activation="softmax")
    with pytest.raises(ExportError, match=r"labels\.txt in .* lists other classes"):
        check_parity(folder, files, expected, class_names, max_megapixels=1)
    # The same once more with label files that hide it.
    dataclasses.replace(Contract.read(folder), class_names=class_names).write(folder)
    with pytest.raises(ExportError, match="class_names are not those of the model"):
        check_parity(folder, files, expected, class_names, max_megapixels=1)


def test_parity_does_not_fail_for_an_exact_tie(
    make_classifier, class_names, files, pixels, tmp_path: Path
):
    model = make_classifier(class_names)
    kernel, bias = model.get_layer("logits").get_weights()
    model.get_layer("logits").set_weights([np.repeat(kernel[:, :1], 3, axis=1), bias])
    folder = export(model, tmp_path / "1", class_names)
    expected = predict_pixels(model, pixels, activation="softmax")
    assert np.ptp(expected) < 1e-6
    # The last rounding error decides each label; let it decide otherwise.
    expected[:, 2] += 1e-7
    parity = check_parity(folder, files, expected, class_names, max_megapixels=1)
    assert parity.label_agreement == 1.0


def test_parity_fails_with_the_traceback_of_what_cannot_be_run(
    classifier, class_names, files, pixels, exported: Path, tmp_path: Path
):
    folder = shutil.copytree(exported, tmp_path / "1")
    shutil.rmtree(folder / "variables")
    expected = predict_pixels(classifier, pixels, activation="softmax")
    with pytest.raises(ExportError, match="cannot be run by tensorflow alone") as failure:
        check_parity(folder, files, expected, class_names, max_megapixels=1)
    assert "variables" in str(failure.value).split("Received")[1]


def test_parity_refuses_files_it_cannot_compare(class_names, exported: Path, tmp_path, files):
    with pytest.raises(ExportError, match="0 files"):
        check_parity(exported, [], np.empty((0, 3)), class_names, max_megapixels=1)
    some = [*files[:2], tmp_path / "gone.jpg"]
    with pytest.raises(DataError, match=r"gone\.jpg"):
        check_parity(exported, some, np.full((3, 3), 1 / 3), class_names, max_megapixels=1)


def test_the_policy_is_that_of_the_least_precise_layer(classifier):
    assert policy_of(classifier) == "float32"
    pixels = keras.Input([4])
    hidden = keras.layers.Dense(2, dtype="mixed_bfloat16")(pixels)
    assert policy_of(keras.Model(pixels, keras.layers.Dense(2)(hidden))) == "mixed_bfloat16"
