"""Architecture: levels of packages, no import cycles, and where TensorFlow may be imported."""

import ast
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MODULES = sorted([*ROOT.glob("keras_transfer/**/*.py"), *ROOT.glob("pipelines/**/*.py")])

LEVELS = {
    "keras_transfer.specs": 0,
    "keras_transfer.config": 0,
    "keras_transfer.errors": 0,
    "keras_transfer.fields": 0,
    "keras_transfer.storage": 1,
    "keras_transfer.devices": 1,
    "keras_transfer.reporting": 1,
    "keras_transfer.data": 2,
    "keras_transfer.backbones": 2,
    "keras_transfer.evaluation": 2,
    "keras_transfer.tasks": 3,
    "keras_transfer.models": 3,
    "keras_transfer.compression": 4,
    "keras_transfer.adaptation": 4,
    "keras_transfer.features": 4,
    "keras_transfer.training": 4,
    "keras_transfer.methods": 5,
    "keras_transfer.pretext": 5,
    "keras_transfer.export": 6,
    "keras_transfer.inference": 6,
    "keras_transfer.experiments": 7,
    "keras_transfer.serving": 8,
    "keras_transfer.scale": 8,
    "keras_transfer.api": 9,
    "keras_transfer": 9,
    "pipelines": 10,
}
SEPARATE = [{"data", "backbones"}, {"data", "evaluation"}, {"backbones", "evaluation"}]
TENSORFLOW = (
    "keras_transfer.data.",
    "keras_transfer.devices",
    "keras_transfer.export.",
    "keras_transfer.inference.",
    "keras_transfer.serving.",
    "keras_transfer.tasks.",
    "pipelines.benchmarks.",
)


def _name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _imports(path: Path, *, inside_functions: bool) -> Iterator[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    nodes = ast.walk(tree) if inside_functions else iter(tree.body)
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            if node.module != "keras_transfer":
                yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _level(module: str) -> int:
    while module not in LEVELS:
        module = module.rpartition(".")[0]
    return LEVELS[module]


NAMES = {_name(path): path for path in MODULES}


@pytest.mark.parametrize("name", NAMES)
def test_imports_point_down(name):
    for imported in _imports(NAMES[name], inside_functions=True):
        if imported in NAMES and imported != name:
            assert _level(imported) <= _level(name), f"{name} imports {imported}"
            rooms = {module.split(".")[1] for module in (name, imported) if "." in module}
            assert rooms not in SEPARATE, f"{name} imports {imported}"


def test_there_is_no_cycle():
    graph = {
        name: {i for i in _imports(path, inside_functions=True) if i in NAMES and i != name}
        for name, path in NAMES.items()
    }
    while graph:
        free = [name for name, imports in graph.items() if not imports & graph.keys()]
        assert free, f"a cycle among {sorted(graph)}"
        for name in free:
            del graph[name]


def test_verbs_do_not_import_verbs():
    verbs = {name for name in NAMES if re.fullmatch(r"pipelines\.\w+", name)}
    verbs -= {"pipelines.arguments", "pipelines.benchmarks", "pipelines.__main__"}
    for verb in verbs:
        assert not verbs & set(_imports(NAMES[verb], inside_functions=True))


@pytest.mark.parametrize("name", NAMES)
def test_only_data_devices_and_delivery_know_tensorflow(name):
    knows = any(
        imported.split(".")[0] == "tensorflow"
        for imported in _imports(NAMES[name], inside_functions=True)
    )
    assert not knows or name.startswith(TENSORFLOW)


def test_level_0_imports_the_standard_library_only():
    import sys

    for name in (name for name, level in LEVELS.items() if level == 0):
        for imported in _imports(NAMES[name], inside_functions=True):
            top = imported.split(".")[0]
            assert top in sys.stdlib_module_names or _level(imported) == 0, f"{name}: {imported}"


def test_no_file_is_called_utils():
    for path in MODULES:
        assert path.stem not in ("utils", "helpers", "common", "base")


def test_few_modules_lie_at_the_top_of_the_package():
    loose = [path.name for path in (ROOT / "keras_transfer").glob("*.py")]
    assert len(loose) - 1 <= 6, loose


def test_function_bodies_are_at_most_40_lines():
    for path in MODULES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                body = node.body[1:] if ast.get_docstring(node) else node.body
                lines = body[-1].end_lineno - body[0].lineno + 1 if body else 0
                assert lines <= 40, f"{path.name}: {node.name} has {lines} lines"


def test_public_names_are_few_and_there():
    import keras_transfer

    assert len(keras_transfer.__all__) <= 17
    for name in keras_transfer.__all__:
        assert getattr(keras_transfer, name) is not None


def test_every_import_of_another_package_is_declared():
    import importlib.metadata
    import sys

    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"].values()
    declared = {
        entry.split(">")[0].split("[")[0].lower().replace("_", "-")
        for entry in [*project["dependencies"], *(entry for extra in extras for entry in extra)]
    }
    distributions = importlib.metadata.packages_distributions()
    for name, path in NAMES.items():
        for imported in _imports(path, inside_functions=True):
            top = imported.split(".")[0]
            if top in sys.stdlib_module_names or top in ("keras_transfer", "pipelines"):
                continue
            providers = {p.lower().replace("_", "-") for p in distributions.get(top, [])}
            assert providers & declared, f"{name} imports {top}, which is not declared"
