"""Notebooks executed as a user's browser would, by the Python that runs the tests."""

import os
from pathlib import Path

import nbformat
from jupyter_client.kernelspec import KernelSpecManager
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "pipelines" / "notebooks"
NAMES = sorted(path.stem for path in FOLDER.glob("*.ipynb"))
PARAMETERS = "parameters"


def read_notebook(name: str) -> nbformat.NotebookNode:
    return nbformat.read(FOLDER / f"{name}.ipynb", as_version=nbformat.NO_CONVERT)


def find_cell(book: nbformat.NotebookNode, ident: str) -> nbformat.NotebookNode:
    return next(cell for cell in book.cells if cell.id == ident)


def execute(
    name: str, folder: Path, *, before: str = "", environment: dict[str, str], **parameters
) -> nbformat.NotebookNode:
    """Run all cells in `folder`, with other parameters, and return the notebook with its outputs.

    As papermill does it, a cell with the parameters goes behind the one that is tagged so.

    Args:
        before: code of a first cell.
    """
    book = read_notebook(name)
    place = next(n for n, cell in enumerate(book.cells) if PARAMETERS in cell.metadata.get("tags", ()))
    lines = (f"{name} = {value!r}" for name, value in parameters.items())
    injected = nbformat.v4.new_code_cell("\n".join(lines), metadata={"tags": ["injected-parameters"]})
    book.cells.insert(place + 1, injected)
    if before:
        book.cells.insert(0, nbformat.v4.new_code_cell(before))
    # No folders of kernels: then "python3" is the Python that runs this, whatever is installed.
    kernels = KernelSpecManager(kernel_dirs=[])
    manager = AsyncKernelManager(kernel_name="python3", kernel_spec_manager=kernels)
    client = NotebookClient(book, km=manager, timeout=600, resources={"metadata": {"path": folder}})
    private = {"PYTHONPATH": str(ROOT), "IPYTHONDIR": str(folder / "ipython")}
    client.execute(cleanup_kc=True, env={**os.environ, **private, **environment})
    return book
