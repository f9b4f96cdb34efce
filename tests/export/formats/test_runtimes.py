"""Real conversions of a small network: every file gives the outputs of the model, in any batch."""

import json
import shutil
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from guide_snippets import snippets
from scipy.special import softmax

from keras_transfer.errors import ExportError
from keras_transfer.export.contract import Contract
from keras_transfer.export.formats.registry import FORMATS, KERAS_EXPORT, LITERT, kind_of
from keras_transfer.export.formats.runtimes import open_runtime
from keras_transfer.export.verification import IsolatedProcess

# OpenVINO forks when it is imported, which JAX warns of.
pytestmark = pytest.mark.filterwarnings("ignore:os.fork\\(\\) was called:RuntimeWarning")

TOLERANCES = {"float32": 1e-5, "float16": 1e-2, "dynamic": 0.05, "int8": 0.1, "mixed": 0.1}


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_predicts_like_the_model_in_any_batch(name, made, pixels, expected, contract):
    entry = FORMATS[name]
    runtime = open_runtime(made / entry.file, num_threads=None if entry.kind.gives_logits else 1)
    assert runtime.contract == contract
    for batch in (slice(0, 1), slice(0, 32), slice(32, 36), slice(5, 6)):
        outputs = runtime(pixels[batch])
        assert outputs.dtype == np.float32
        assert outputs.shape == (len(pixels[batch]), 3)
        np.testing.assert_allclose(
            outputs, expected[batch], rtol=0, atol=TOLERANCES[entry.precision]
        )


def test_onnx_runtime_alone_predicts_as_the_guide_says(
    made, photos: Path, expected, class_names, tmp_path: Path, monkeypatch, capsys
):
    """Pillow decodes JPEG files a little differently, so probabilities differ a little."""
    monkeypatch.chdir(tmp_path)
    folder = Path("saved_models/my_photos/formats")
    folder.mkdir(parents=True)
    (folder / "2").symlink_to(made)
    (snippet,) = snippets("export_and_formats", "### ONNX Runtime alone", "### With this package")
    number = next(row for row, file in enumerate(sorted(photos.iterdir())) if ".jpg" in file.name)
    shutil.copy(sorted(photos.iterdir())[number], "rose.jpg")
    exec(snippet, {})
    printed = dict(line.rsplit(" ", 1) for line in capsys.readouterr().out.splitlines())
    assert list(printed) == [class_names[column] for column in np.argsort(-expected[number])]
    for name, probability in zip(class_names, expected[number], strict=True):
        assert float(printed[name].rstrip("%")) / 100 == pytest.approx(probability, abs=0.05)


@pytest.mark.parametrize("name", FORMATS)
def test_every_file_remembers_its_classes_and_is_refused_beside_others(
    name, made, contract, tmp_path: Path
):
    copy = Path(shutil.copytree(made, tmp_path / "copy"))
    shuffled = Contract(
        name="tiny",
        class_names=contract.class_names[::-1],
        image_size=32,
        resize="crop",
        max_megapixels=1,
    )
    shuffled.write(copy)
    with pytest.raises(ExportError, match="has other classes, or another order"):
        open_runtime(copy / FORMATS[name].file)


def test_a_litert_file_carries_its_labels_as_its_tools_expect(made, contract):
    with zipfile.ZipFile(made / "model_int8.tflite") as packed:
        assert packed.read("labels.txt").decode().split("\n")[:-1] == list(contract.class_names)
        assert json.loads(packed.read("contract.json"))["class_hash"] == contract.class_hash


def test_pixels_of_another_kind_are_refused(made, pixels):
    runtime = open_runtime(made / "model.onnx")
    for wrong in (pixels[:2].astype(np.float32), pixels[:2, :16], pixels[:0]):
        with pytest.raises(ExportError, match="cannot be run on these pixels"):
            runtime(wrong)


def test_what_cannot_be_opened_is_said(made, tmp_path: Path, monkeypatch):
    for nothing in (tmp_path, tmp_path / "gone.onnx", made / "labels.txt"):
        with pytest.raises(ExportError, match="is not an artefact"):
            open_runtime(nothing)
    copy = Path(shutil.copytree(made, tmp_path / "copy"))
    (copy / "model.onnx").write_bytes((copy / "model.onnx").read_bytes()[:1000])
    with pytest.raises(ExportError, match="cannot be opened by onnxruntime"):
        open_runtime(copy / "model.onnx")
    (copy / "contract.json").unlink()
    with pytest.raises(ExportError, match=r"contract\.json cannot be read"):
        open_runtime(copy / "model.xml")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ExportError, match="cannot be opened") as failure:
        open_runtime(made / "model.onnx")
    assert '".[formats]"' in failure.value.fix


@pytest.mark.parametrize("file", ["model.onnx", "model_int8.tflite", "model_int8.xml"])
def test_files_run_where_keras_tensorflow_and_this_package_cannot_be_imported(
    file: str, made, pixels, expected, contract, tmp_path: Path, monkeypatch
):
    for name in ("tensorflow", "keras", "keras_transfer"):
        (tmp_path / "traps" / name).mkdir(parents=True)
        (tmp_path / "traps" / name / "__init__.py").write_text(f"raise SystemExit('{name}!')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "traps"))
    np.save(tmp_path / "pixels.npy", pixels)
    with IsolatedProcess(kind_of(made / file)) as process:
        artefact = process.open(made / file, input_shape=(32, 32, 3), num_threads=2)
        assert artefact.class_hash == contract.class_hash
        outputs = artefact.predict(tmp_path / "pixels.npy")
        assert len(artefact.seconds(8, 3)) == 3
    np.testing.assert_allclose(outputs, expected, rtol=0, atol=0.1)


def test_keras_own_export_can_be_run_for_comparison(made, pixels, expected, tmp_path: Path):
    np.save(tmp_path / "pixels.npy", pixels)
    with IsolatedProcess(KERAS_EXPORT) as process:
        artefact = process.open(made.parent / "scratch" / "keras_export", input_shape=(32, 32, 3))
        outputs = softmax(artefact.predict(tmp_path / "pixels.npy"), axis=-1)
    np.testing.assert_allclose(outputs, expected, rtol=0, atol=1e-5)


def test_a_damaged_file_ends_in_an_error_with_the_reason(made, tmp_path: Path):
    (tmp_path / "model.tflite").write_bytes(b"no flatbuffer")
    with (
        IsolatedProcess(LITERT) as process,
        pytest.raises(
            ExportError, match=r"model\.tflite cannot be run by ai_edge_litert"
        ) as failure,
    ):
        process.open(tmp_path / "model.tflite", input_shape=(32, 32, 3))
    assert "ValueError" in failure.value.received or "Error" in failure.value.received
