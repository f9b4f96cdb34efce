"""Notebooks executed cell by cell, as in a browser, by the Python that runs the tests."""

import json
import os
import re
import zipfile
from pathlib import Path

import nbformat
from jupyter_client.kernelspec import KernelSpecManager
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient

from keras_transfer.config import load_spec

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "pipelines" / "notebooks"
SMALL = {
    "model.backbone": "small",
    "model.last_stage": "stage2",
    "model.weights": "none",
    "model.pooling": "flatten",
    "phases.0.epochs": 4,
    "phases.0.learning_rate": 1e-3,
    "phases.1.epochs": 1,
    "phases.1.unfreeze": "stage2",
    "data.train_size": 120,
    "data.val_fraction": 0.05,
    "data.test_fraction": 0.05,
    "training.refit": False,
    "search.space": {"model.dropout": {"values": [0.0, 0.2]}},
}
"""The quickstart on fewer images and few layers."""

STARTING = f"""
import sys

sys.path.append({str(ROOT / "tests")!r})
from small_backbone import SMALL
from keras_transfer.backbones.registry import BACKBONES
from keras_transfer.devices import speed_up_imports

BACKBONES["small"] = SMALL
speed_up_imports()
"""
"""A first cell after which the process knows the backbone `small`."""

SHARING = """
from checking import one_checking_process

checking = one_checking_process()
checking.__enter__()
"""
"""Ends that cell: one process checks all exports of the notebook, and ends with it."""


def read_notebook(name: str) -> nbformat.NotebookNode:
    return nbformat.read(FOLDER / f"{name}.ipynb", as_version=nbformat.NO_CONVERT)


def find_cell(notebook: nbformat.NotebookNode, ident: str) -> nbformat.NotebookNode:
    return next(cell for cell in notebook.cells if cell.id == ident)


def execute(
    name: str, folder: Path, *, before: str = "", environment=None, **parameters
) -> nbformat.NotebookNode:
    """Run all cells in `folder`, with other parameters, and return the notebook with its outputs.

    As papermill does it, a cell with the parameters goes behind the one that is tagged so. `before`
    is code of the first cell.
    """
    notebook = read_notebook(name)
    lines = (f"{field} = {value!r}" for field, value in parameters.items())
    injected = nbformat.v4.new_code_cell(
        "\n".join(lines), metadata={"tags": ["injected-parameters"]}
    )
    notebook.cells.insert(notebook.cells.index(find_cell(notebook, "parameters")) + 1, injected)
    notebook.cells.insert(0, nbformat.v4.new_code_cell(STARTING + before + SHARING))
    # No folders of kernels: then "python3" is the Python that runs this, whatever is installed.
    manager = AsyncKernelManager(
        kernel_name="python3", kernel_spec_manager=KernelSpecManager(kernel_dirs=[])
    )
    client = NotebookClient(
        notebook,
        km=manager,
        timeout=600,
        # On a busy machine outputs come later than the 4 s that are waited for by default.
        iopub_timeout=60,
        resources={"metadata": {"path": folder}},
    )
    private = {"PYTHONPATH": str(ROOT), "IPYTHONDIR": str(folder / "ipython")}
    client.execute(cleanup_kc=True, env={**os.environ, **private, **(environment or {})})
    return notebook


def words(notebook: nbformat.NotebookNode, ident: str) -> str:
    """What a cell says, on one line and without colours."""
    outputs = find_cell(notebook, ident).outputs
    texts = [output.get("text") or output.data.get("text/plain", "") for output in outputs]
    return " ".join(re.sub(r"\x1b\[[\d;]*m", "", " ".join(map(str, texts))).split())


def count_images(notebook: nbformat.NotebookNode, ident: str) -> int:
    outputs = find_cell(notebook, ident).outputs
    return sum("image/png" in output.get("data", {}) for output in outputs)


def read_json(path: Path):
    return json.loads(path.read_text())


def check_run(run: Path, *, num_test: int) -> None:
    """A run that is complete and knows far more than chance, which is 10 % of ten digits."""
    metrics = read_json(run / "metrics.json")
    assert metrics["test"]["num_examples"] == num_test
    assert metrics["test"]["interval"][0] > 0.5
    assert metrics["export"]["label_agreement"] == 1
    assert (run / "export/1/saved_model.pb").is_file()


def check_search(search: Path, *, num_trials: int) -> None:
    """A search with a page, the best trial's spec, and a run of it."""
    content = read_json(search / "search.json")
    assert len(content["trials"]) == num_trials
    assert load_spec(search / "best.toml").model.dropout in (0.0, 0.1, 0.2)
    assert "<svg" in (search / "search.html").read_text()
    assert (search / "winner/export/1/saved_model.pb").is_file()


def check_archive(archive: Path, *names: str) -> None:
    with zipfile.ZipFile(archive) as file:
        assert {*names} <= set(file.namelist())


def check_look(notebook: nbformat.NotebookNode, **images: int) -> None:
    """What cells on data, training and errors show, and how many pictures others do."""
    assert "120 train, 90 validation, 90 test" in words(notebook, "preview")
    (shown, *_) = find_cell(notebook, "errors").outputs
    assert "| class | precision | recall | F1 | images |" in shown.data["text/markdown"]
    shown = {ident: count_images(notebook, ident) for ident in ("train", "errors", *images)}
    assert shown == {"train": 2, "errors": 2, **images}


def check_course(notebook: nbformat.NotebookNode, folder: Path, *, num_trials: int) -> None:
    """What the notebooks for accelerators, which also tune, leave and show."""
    saved = folder / "saved_models"
    check_run(saved / "quickstart", num_test=90)
    check_search(saved / "quickstart-search", num_trials=num_trials)
    packed = [*saved.glob("quickstart.zip"), *saved.glob("quickstart-search/winner.zip")]
    assert len(packed) == 1
    check_archive(packed[0], "model.keras", "export/1/saved_model.pb", "figures/mistakes.png")
    check_look(notebook, export=1)
