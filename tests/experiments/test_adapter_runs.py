"""Runs with adapters from end to end: export, difference file, backbone of another, compression."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest

import keras_transfer as kt
from keras_transfer.errors import WeightsError
from keras_transfer.export.formats import difference_format
from keras_transfer.export.formats.runtimes import open_runtime
from keras_transfer.export.formats.source import Source
from keras_transfer.inference.prediction import load_run
from keras_transfer.models.classifier import build_classifier, put_trunk
from keras_transfer.reporting.reporter import SilentReporter

PHASES = [
    {"name": "frozen", "method": "exact"},
    {
        "name": "adapters",
        "method": "adapters",
        "epochs": 2,
        "unfreeze": "stage2",
        "learning_rate": 1e-2,
        "method_options": {"share": 0.1},
    },
]


def fine_tune(folder, output, **fields):
    settings = {"backbone": "small", "weights": "none", "image_size": 16, "phases": PHASES}
    settings |= {"rollback": False, "reporter": SilentReporter(), **fields}
    return kt.fine_tune(folder, output=output, **settings)


@pytest.fixture(scope="module")
def run(digits_folder, tmp_path_factory):
    return fine_tune(digits_folder, tmp_path_factory.mktemp("runs") / "adapted")


def write_difference(loaded, folder):
    """The difference file of a loaded run, in a folder with its contract."""
    folder.mkdir()
    loaded.contract.write(folder)
    nothing, run_folder = np.empty(0), loaded.folder.path
    source = Source(
        loaded.model, loaded.contract, nothing, folder, (nothing, nothing), run_folder, print
    )
    difference_format.write(source, folder / "model.difference", precision="float32")
    return folder / "model.difference"


@pytest.fixture(scope="module")
def difference(run, tmp_path_factory):
    return write_difference(load_run(run.path), tmp_path_factory.mktemp("difference") / "one")


def pixels_of(size=16):
    return np.random.default_rng(0).integers(0, 256, (9, size, size, 3), np.uint8)


def arrays_of(layers):
    return [np.array(variable) for layer in layers for variable in layer.variables]


def test_the_trunk_of_the_saved_model_has_the_bits_that_it_began_with(run):
    spec = load_run(run.path).spec
    _, trunk = put_trunk(spec.model, image_size=16, channels=3, seed=spec.seed)
    layers = [run.model.get_layer(layer.name) for layer in trunk.layers]
    for one, other in zip(arrays_of(layers), arrays_of(trunk.layers), strict=True):
        np.testing.assert_array_equal(one, other)
    ups = [layer for layer in run.model.layers if layer.name.endswith("_up")]
    assert len(ups) == 2
    assert all(np.any(layer.kernel) for layer in ups)
    metrics = json.loads((run.path / "metrics.json").read_text())
    assert metrics["export"]["label_agreement"] == 1


def test_a_difference_file_has_what_the_trunk_has_not_and_the_same_outputs(run, difference):
    with np.load(difference) as file:
        kept = {name[1:] for name in file.files if name != "header"}
    stages = {path.partition("/")[0] for path in kept}
    assert stages == {f"adapter{n}_{part}" for n in (1, 2) for part in ("down", "up")} | {"logits"}
    expected = load_run(run.path)(pixels_of())
    np.testing.assert_array_equal(open_runtime(difference)(pixels_of()), expected)


def test_a_difference_file_is_refused_with_another_trunk(difference, tmp_path):
    copy = shutil.copytree(difference.parent, tmp_path / "copy") / difference.name
    with np.load(difference) as file:
        arrays = {name: file[name] for name in file.files}
    header = json.loads(str(arrays["header"]))
    other = {**header["trunk"], "seed": header["trunk"]["seed"] + 1}
    arrays["header"] = np.array(json.dumps({**header, "trunk": other}))
    with copy.open("wb") as file:
        np.savez(file, **arrays)
    with pytest.raises(WeightsError, match="a backbone with other weights"):
        open_runtime(copy)


def test_the_weights_of_a_trunk_may_lie_next_to_its_difference_files(run, tmp_path):
    """Two runs on one trunk, in a file that is moved to them."""
    loaded, model = load_run(run.path), tmp_path / "trunk.keras"
    spec = replace(loaded.spec.model, weights="none")
    build_classifier(spec, image_size=16, task=loaded.task, seed=5).save(model)
    phases = [{**PHASES[1], "epochs": 1, "unfreeze": "stage3"}]
    other = fine_tune(loaded.spec.data.path, tmp_path / "run", weights=str(model), phases=phases)
    file = write_difference(load_run(other.path), tmp_path / "files")
    expected = load_run(other.path)(pixels_of())
    shutil.move(model, file.parent)
    np.testing.assert_array_equal(open_runtime(file)(pixels_of()), expected)
    (file.parent / model.name).unlink()
    with pytest.raises(WeightsError, match=r"no such file: .*trunk\.keras"):
        open_runtime(file)


def test_as_a_backbone_a_run_keeps_its_adapters_and_gets_new_ones(run, digits_folder, tmp_path):
    phases = [PHASES[0], {**PHASES[1], "unfreeze": "last", "epochs": 1}]
    again = fine_tune(
        digits_folder, tmp_path / "again", backbone=str(run.path), weights="file", phases=phases
    )
    for layer in run.model.layers:
        if layer.name.startswith("adapter") and layer.weights:
            for one, other in zip(
                layer.get_weights(), again.model.get_layer(layer.name).get_weights(), strict=True
            ):
                np.testing.assert_array_equal(one, other)
    assert np.any(again.model.get_layer("adapter3_up").kernel)


@pytest.mark.slow
def test_compression_takes_adapters_for_layers_of_the_trunk(run, tmp_path):
    small = run.compress(channels=0.5, output=tmp_path / "small", reporter=SilentReporter())
    names = {layer.name for layer in small.model.layers}
    assert {"adapter1_down", "adapter2_down", "adapter3_down", "adapter4_down"} <= names
    assert np.isfinite(small.model(pixels_of().astype(np.float32))).all()


def test_scales_and_offsets_alone_are_a_difference(run, tmp_path):
    loaded = load_run(run.path)
    spec, task = loaded.spec, loaded.task
    model = build_classifier(spec.model, image_size=16, task=task, seed=spec.seed).model
    norm = model.get_layer("small2_bn")
    norm.gamma.assign(norm.gamma + 0.5)
    file = write_difference(replace(loaded, model=model), tmp_path / "affine")
    with np.load(file) as content:
        kept = {name[1:] for name in content.files if name != "header"}
    assert kept == {"small2_bn/gamma", "logits/kernel", "logits/bias"}
    expected = replace(loaded, model=model)(pixels_of())
    np.testing.assert_array_equal(open_runtime(file)(pixels_of()), expected)
