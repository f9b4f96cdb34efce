"""What notebooks are made of, and what their install cells do."""

import ast
import importlib
import json
import os
import re
import subprocess
import sys
import tomllib
import zipfile

import nbformat
import pytest
from IPython.core.inputtransformer2 import TransformerManager
from running_notebooks import FOLDER, ROOT, find_cell, read_notebook

from keras_transfer.config import describe_fields, load_spec, override

NAMES = sorted(path.stem for path in FOLDER.glob("*.ipynb"))
LOGIC = (
    ast.FunctionDef,
    ast.AsyncFunctionDef,
    ast.ClassDef,
    ast.Lambda,
    ast.For,
    ast.While,
    ast.With,
    ast.Try,
    ast.comprehension,
)
MOST_LINES, MOST_CHOICES, MOST_CELLS = 25, 2, 12
FILES = (".png", ".jpg", ".csv", ".html", ".toml")
INSTALLING = """
import json, sys
from IPython.core.interactiveshell import InteractiveShell

missing, cells = json.load(sys.stdin)
shell = InteractiveShell.instance()
touched = []
watched = ("socket.connect", "socket.getaddrinfo", "subprocess.Popen", "os.system", "os.forkpty")
sys.addaudithook(lambda event, _: event in watched and touched.append(event))
if missing:
    sys.modules["keras_transfer"] = None  # As the import system says: there is no such module.
for cell in cells:
    shell.run_cell(cell).raise_error()
sys.stdout.write("\\n" + json.dumps([touched, "keras_transfer" in sys.modules]))
"""


@pytest.fixture(params=NAMES)
def notebook(request):
    return read_notebook(request.param)


def code_of(notebook):
    return [cell.source for cell in notebook.cells if cell.cell_type == "code"]


def parse(source: str) -> ast.Module:
    return ast.parse(TransformerManager().transform_cell(source))


def test_the_four_are_there():
    assert NAMES == ["colab_gpu", "colab_tpu", "quickstart", "search"]


def test_notebooks_are_valid_and_hold_no_outputs(notebook):
    nbformat.validate(notebook)
    assert (notebook.nbformat, notebook.nbformat_minor) == (4, 5)
    assert notebook.metadata.kernelspec.name == "python3"
    for cell in notebook.cells:
        # An id that says what the cell is for stays when the cell changes.
        assert re.fullmatch(r"[a-z]+(-[a-z]+)*", cell.id)
        if cell.cell_type == "code":
            assert cell.outputs == []
            assert cell.execution_count is None


def test_colab_gives_each_the_machine_that_it_is_for():
    chosen = {name: read_notebook(name).metadata for name in NAMES}
    kinds = {name: metadata.get("accelerator") for name, metadata in chosen.items()}
    assert kinds == {"colab_gpu": "GPU", "colab_tpu": "TPU", "quickstart": None, "search": None}
    assert chosen["colab_gpu"].colab.gpuType == "T4"
    assert chosen["colab_tpu"].colab.gpuType == "V5E1"


def test_cells_call_and_show_and_hold_no_logic(notebook):
    for source in code_of(notebook):
        nodes = list(ast.walk(parse(source)))
        assert not [node for node in nodes if isinstance(node, LOGIC)], source
        assert sum(isinstance(node, ast.If) for node in nodes) <= MOST_CHOICES, source
        assert len(source.splitlines()) <= MOST_LINES, source


def test_one_name_of_the_package_is_imported(notebook):
    """Readers see `kt`, and `TransferHyperModel` where a tuner of their own needs it."""
    text = "\n".join(code_of(notebook))
    found = re.findall(r"^(?:from|import) keras_transfer.*$", text, re.MULTILINE)
    own_tuner = "from keras_transfer.tuning import TransferHyperModel"
    assert [line for line in found if line != own_tuner] == ["import keras_transfer as kt"]
    assert len(code_of(notebook)) <= MOST_CELLS


def test_names_that_are_imported_are_public_and_there(notebook):
    for source in code_of(notebook):
        for node in ast.walk(parse(source)):
            root = node.module.split(".")[0] if isinstance(node, ast.ImportFrom) else ""
            if root in ("keras_transfer", "pipelines"):
                names = [alias.name for alias in node.names]
                assert not [part for part in (*node.module.split("."), *names) if part[0] == "_"]
                module = importlib.import_module(node.module)
                assert all(getattr(module, name) for name in names)


def test_one_cell_has_the_parameters_and_nothing_else(notebook):
    tagged = [cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", ())]
    assert [cell.id for cell in tagged] == ["parameters"]
    for statement in parse(tagged[0].source).body:
        assert isinstance(statement, ast.Assign)
        ast.literal_eval(statement.value)


def test_the_lines_for_own_images_make_a_spec(notebook, tmp_path):
    source = find_cell(notebook, "parameters").source
    assert "YOUR OWN IMAGES" in source
    chosen: dict = {}
    exec(re.sub(r"^# (PRESET|CHANGES) =", r"\1 =", source, flags=re.MULTILINE), chosen)
    assert chosen["PRESET"] == "lite"  # It needs no network.
    spec = override(load_spec(chosen["PRESET"]), chosen["CHANGES"])
    assert spec.data.path == "/content/my_photos"


def test_fields_and_notebooks_that_are_named_exist(notebook):
    fields = {name for name, _, _ in describe_fields()}
    for cell in notebook.cells:
        for name in re.findall(r'"([a-z]+(?:\.\w+)+)"', cell.source):
            if name != "google.colab" and not name.endswith(FILES):
                field = re.sub(r"\.\d+\.", ".N.", name.removeprefix("search.space."))
                assert field in fields, name
        for name in re.findall(r"`(\w+\.ipynb)`", cell.source):
            assert (FOLDER / name).is_file(), name


def test_notebooks_are_part_of_the_package():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    patterns = settings["tool"]["setuptools"]["package-data"]["pipelines"]
    found = {path for pattern in patterns for path in (ROOT / "pipelines").glob(pattern)}
    assert set(FOLDER.glob("*.ipynb")) <= found


def run_install(notebook, folder, *, missing: bool, install_from: str = "", **environment):
    """Whether processes and connections were begun, and whether the package was imported."""
    given = f"INSTALL_FROM = {install_from!r}"
    cells = [
        find_cell(notebook, "parameters").source,
        given,
        find_cell(notebook, "install").source,
    ]
    done = subprocess.run(
        [sys.executable, "-c", INSTALLING],
        input=json.dumps([missing, cells]),
        env={**os.environ, "PYTHONPATH": str(ROOT), "IPYTHONDIR": str(folder), **environment},
        cwd=folder,
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    return json.loads(done.stdout.splitlines()[-1])


def test_install_touches_nothing_when_the_package_is_there(notebook, tmp_path):
    touched, imported = run_install(notebook, tmp_path, missing=False)
    assert touched == []
    assert not imported


def test_install_takes_the_package_from_where_it_is_told(tmp_path):
    """pip unpacks a wheel of one module, without an index, into a folder of its own."""
    wheel = tmp_path / "wanted-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as file:
        file.writestr("wanted.py", "")
        about = "wanted-1.0.dist-info"
        file.writestr(f"{about}/METADATA", "Metadata-Version: 2.1\nName: wanted\nVersion: 1.0\n")
        kind = "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        file.writestr(f"{about}/WHEEL", kind)
        file.writestr(f"{about}/RECORD", f"wanted.py,,\n{about}/METADATA,,\n{about}/WHEEL,,\n")
    touched, _ = run_install(
        read_notebook("quickstart"),
        tmp_path,
        missing=True,
        install_from=str(wheel),
        PIP_NO_INDEX="1",
        PIP_TARGET=str(tmp_path / "site"),
    )
    assert touched
    assert (tmp_path / "site" / "wanted.py").is_file()
