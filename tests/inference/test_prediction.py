"""Predictions of a finished run: for files, endless lists of files, and labelled sets."""

import csv
import hashlib
import io
import itertools
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import keras
import numpy as np
import pytest
from labelled import records_of

from keras_transfer.config import spec_to_dict
from keras_transfer.data.reading import read_pixels
from keras_transfer.data.records import BadFile, Record
from keras_transfer.errors import DataError, RunError
from keras_transfer.inference.paths import expand_paths
from keras_transfer.inference.prediction import (
    LoadedRun,
    Prediction,
    load_run,
    predict_files,
)
from keras_transfer.inference.writers import write_predictions
from keras_transfer.models.forward import filled_size, predict_pixels
from keras_transfer.specs import DataSpec, RunSpec
from keras_transfer.storage.run_folder import RunFolder

# `model.save` of Keras 3.15 turns variables into arrays in a way that NumPy 2.4 deprecates.
pytestmark = [
    pytest.mark.graph_optimizer,
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
]


def pixels_of(files: list[Path]) -> np.ndarray:
    images = read_pixels(files, image_size=32, resize="pad", max_megapixels=1)
    return np.stack([image.pixels for image in images])


def test_load_run_gives_back_model_classes_and_spec(run: LoadedRun, classifier, class_names):
    assert run.class_names == class_names
    assert run.spec.data.resize == "pad"
    for loaded, weight in zip(run.model.weights, classifier.weights, strict=True):
        np.testing.assert_array_equal(loaded.numpy(), weight.numpy())


def test_load_run_refuses_a_model_of_another_class_order(
    finished: Path, class_names, tmp_path: Path
):
    copy = Path(shutil.copytree(finished, tmp_path / "run"))
    RunFolder(copy).write_class_names(class_names[::-1])
    with pytest.raises(DataError, match=r"other classes .*or in another order"):
        load_run(copy)


def test_load_run_names_what_is_missing_or_damaged(finished: Path, tmp_path: Path):
    with pytest.raises(RunError, match="there is no run"):
        load_run(tmp_path / "nothing")
    copy = RunFolder(Path(shutil.copytree(finished, tmp_path / "run")))
    copy.model_file.write_bytes(copy.model_file.read_bytes()[:5000])
    with pytest.raises(RunError, match=r"cannot be loaded from .*model\.keras"):
        load_run(copy.path)
    copy.model_file.unlink()
    with pytest.raises(RunError, match="no such file"):
        load_run(copy.path)
    (copy.path / "class_names.json").unlink()
    with pytest.raises(RunError, match=r"class_names\.json cannot be read"):
        load_run(copy.path)


def test_load_run_refuses_a_model_of_another_image_size(finished: Path, tmp_path: Path):
    copy = RunFolder(Path(shutil.copytree(finished, tmp_path / "run")))
    copy.write_json("spec.json", spec_to_dict(RunSpec(data=DataSpec(image_size=64))))
    with pytest.raises(RunError, match="does not fit") as failure:
        load_run(copy.path)
    assert "(None, 64, 64, 3)" in str(failure.value)


def test_saving_a_model_on_a_full_disk_leaves_nothing_and_says_so(
    run: LoadedRun, tmp_path: Path, full_disk
):
    folder = RunFolder.create(tmp_path / "run")
    folder.write_json("spec.json", {})
    with full_disk(), pytest.raises(RunError, match="disk is full"):  # noqa: SIM117
        with folder.replacing("model.keras") as path:
            run.model.save(path)
    assert [path.name for path in folder.path.iterdir()] == ["spec.json"]


def test_predict_files_answers_in_order_and_keeps_bad_files_in_their_place(
    run: LoadedRun, photos: Path, tmp_path: Path
):
    files = sorted(photos.iterdir())
    (tmp_path / "text.jpg").write_text("not an image")
    bad = [tmp_path / "text.jpg", tmp_path / "gone.png"]
    mixed = [bad[0], *files[:7], bad[1], *files[7:]]
    predictions = list(predict_files(run, mixed, batch_size=5))
    assert [prediction.path for prediction in predictions] == [file.as_posix() for file in mixed]
    assert [type(predictions[row]) for row in (0, 8)] == [BadFile, BadFile]
    good = [prediction for prediction in predictions if isinstance(prediction, Prediction)]
    expected = predict_pixels(run.model, pixels_of(files), activation="softmax")
    np.testing.assert_allclose([x.outputs for x in good], expected, rtol=0, atol=1e-6)
    assert [x.label for x in good] == [run.class_names[k] for k in expected.argmax(axis=1)]
    assert [x.confidence for x in good] == [float(x.outputs.max()) for x in good]


def test_predict_files_asks_the_model_about_new_images_only(run: LoadedRun, photos: Path):
    files = sorted(photos.iterdir())[:6]
    expected = list(predict_files(run, files))
    digests = [hashlib.sha256(file.read_bytes()).hexdigest() for file in files]
    known = {digests[1]: np.float32([0.5, 0.25, 0.25]), digests[4]: expected[4].outputs}
    predictions = list(predict_files(run, [files[0], *files], known=known, batch_size=3))
    assert [prediction.path for prediction in predictions] == [
        f.as_posix() for f in [files[0], *files]
    ]
    np.testing.assert_array_equal(predictions[2].outputs, known[digests[1]])
    for prediction, truth in zip(predictions[3:], expected[2:], strict=True):
        np.testing.assert_allclose(prediction.outputs, truth.outputs, atol=1e-6)


def test_predict_files_takes_only_a_little_ahead_of_an_endless_list(run: LoadedRun, photos: Path):
    taken = 0

    def endless() -> Iterator[Path]:
        nonlocal taken
        for file in itertools.cycle(sorted(photos.iterdir())):
            taken += 1
            yield file

    predictions = predict_files(run, endless(), batch_size=8)
    first = list(itertools.islice(predictions, 100))
    assert len(first) == 100
    assert taken < 200
    predictions.close()


def test_predict_files_survives_more_bad_files_than_a_batch(run: LoadedRun, tmp_path: Path):
    missing = [tmp_path / f"{number}.jpg" for number in range(20)]
    predictions = list(predict_files(run, missing, batch_size=8))
    assert [type(prediction) for prediction in predictions] == [BadFile] * 20


def test_predict_pixels_reports_progress_and_reads_mapped_files(
    run: LoadedRun, photos: Path, tmp_path: Path
):
    pixels = pixels_of(sorted(photos.iterdir()))
    np.save(tmp_path / "pixels.npy", pixels)
    seen: list[tuple[int, int]] = []
    probabilities = predict_pixels(
        run.model,
        np.load(tmp_path / "pixels.npy", mmap_mode="r"),
        batch_size=16,
        on_progress=lambda done, total: seen.append((done, total)),
        activation="softmax",
    )
    assert seen == [(16, 36), (32, 36), (36, 36)]
    assert probabilities.dtype == np.float32
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, atol=1e-6)
    logits = run.model.predict_on_batch(pixels.astype(np.float32)).astype(np.float64)
    exponentials = np.exp(logits)
    reference = exponentials / exponentials.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(probabilities, reference, atol=1e-6)


def test_batches_are_filled_up_only_where_each_size_is_compiled():
    sizes = [filled_size(size) for size in (0, 1, 2, 3, 5, 8, 31)]
    on_jax = keras.backend.backend() == "jax"
    assert sizes == ([0, 1, 2, 4, 8, 8, 32] if on_jax else [0, 1, 2, 3, 5, 8, 31])


def test_targets_go_by_the_name_of_the_class(run: LoadedRun, photos: Path):
    files = sorted(photos.iterdir())[:3]
    # Another order of classes than the run's, and one class fewer.
    items = tuple(
        Record(path=file.name, target=(label,))
        for file, label in zip(files, ("temple", "naïve flower", "temple"), strict=True)
    )
    records = records_of(items, photos)
    labels = run.task.targets(records.items).values
    assert [run.class_names[label] for label in labels] == ["temple", "naïve flower", "temple"]


def test_targets_refuse_classes_the_run_does_not_know(run: LoadedRun, photos: Path):
    items = (Record(path="00.jpg", target=("temples",)), Record(path="01.png", target=("path",)))
    records = records_of(items, photos)
    with pytest.raises(DataError, match="not among the model's 3 classes") as failure:
        run.task.targets(records.items)
    assert "'temples'" in str(failure.value)
    assert "did you mean 'temple'" in str(failure.value)


def test_expand_paths_lists_files_folders_and_standard_input(tmp_path: Path):
    for name in ("b/2.JPG", "b/1.png", "a/x.webp", "a/notes.txt", "c.gif", ".hidden/h.jpg"):
        file = tmp_path / "photos" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    (tmp_path / "photos" / "._c.gif").touch()
    for name in ("a/y.jfif", "__MACOSX/y.png"):
        (tmp_path / "photos" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "photos" / name).write_bytes(b"\xff\xd8\xff")
    (tmp_path / "odd.suffix").touch()
    listed = io.StringIO(f"{tmp_path}/gone.jpg\n\n{tmp_path}/photos/a\n")
    arguments = [f"{tmp_path}/odd.suffix", f"{tmp_path}/photos", "-"]
    paths = [path.relative_to(tmp_path).as_posix() for path in expand_paths(arguments, listed)]
    in_a = ["photos/a/x.webp", "photos/a/y.jfif"]
    in_photos = ["photos/c.gif", *in_a, "photos/b/1.png", "photos/b/2.JPG"]
    assert paths == ["odd.suffix", *in_photos, "gone.jpg", *in_a]


def test_expand_paths_refuses_at_once_what_does_not_exist_or_holds_no_image(tmp_path: Path):
    with pytest.raises(DataError, match="does not exist"):
        expand_paths([__file__, str(tmp_path / "gone")], io.StringIO())
    (tmp_path / "notes.txt").touch()
    with pytest.raises(DataError, match="has no image"):
        expand_paths([str(tmp_path)], io.StringIO())


def test_expand_paths_reads_an_endless_list_line_by_line():
    paths = expand_paths(["-"], itertools.repeat("an image.jpg\r\n"))
    assert list(itertools.islice(paths, 3)) == [Path("an image.jpg")] * 3


def test_write_predictions_keeps_every_input_and_counts(
    run: LoadedRun, photos: Path, tmp_path: Path
):
    files = [*sorted(photos.iterdir())[:9], tmp_path / "gone, really.jpg"]
    output = tmp_path / "deep" / "predictions.csv"
    summary = write_predictions(
        lambda remaining: predict_files(run, remaining),
        files,
        output,
        task=run.contract.restored_task,
    )
    assert (summary.num_predicted, summary.num_bad) == (9, 1)
    assert tuple(summary.num_by_label) == run.class_names
    with output.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    columns = ["probability_temple", "probability_naïve flower", "probability_path"]
    assert list(rows[0]) == ["path", "prediction", "confidence", "error", *columns]
    assert [row["path"] for row in rows] == [file.as_posix() for file in files]
    expected = predict_pixels(run.model, pixels_of(files[:9]), activation="softmax")
    written = np.array([[row[name] for name in columns] for row in rows[:9]], np.float32)
    np.testing.assert_allclose(written, expected, atol=1e-6)
    assert rows[9]["prediction"] == rows[9]["confidence"] == rows[9][columns[0]] == ""
    assert "no such file" in rows[9]["error"]
    assert [path.name for path in output.parent.iterdir()] == ["predictions.csv"]


def test_expand_paths_reads_names_that_are_no_text():
    listed = io.TextIOWrapper(io.BytesIO(b"a\xff.jpg\n\xfe\n"), encoding="utf-8")
    assert [os.fsencode(path) for path in expand_paths(["-"], listed)] == [b"a\xff.jpg", b"\xfe"]
