"""The plan of the house, held by a test: levels, no cycles, and who may know TensorFlow."""

import ast
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MODULES = sorted([*ROOT.glob("keras_transfer/**/*.py"), *ROOT.glob("pipelines/*.py")])

LEVELS = {
    "keras_transfer.errors": 0,
    "keras_transfer.specs": 0,
    "keras_transfer.labels": 0,
    "keras_transfer.conversion": 0,
    "keras_transfer.search_spec": 0,
    "keras_transfer.config": 0,
    "keras_transfer.home": 0,
    "keras_transfer.devices": 1,
    "keras_transfer.terminal": 1,
    "keras_transfer.delivery.atomic": 1,
    "keras_transfer.delivery.class_list": 1,
    "keras_transfer.delivery.environment": 1,
    "keras_transfer.delivery.runs": 1,
    "keras_transfer.delivery.starting": 1,
    "keras_transfer.features.store": 1,
    "keras_transfer.features.entry": 1,
    "keras_transfer.features.recipe": 1,
    "keras_transfer.features.shards": 1,
    "keras_transfer.data": 2,
    "keras_transfer.backbones": 2,
    "keras_transfer.models": 3,
    "keras_transfer.features": 4,
    "keras_transfer.training": 4,
    "keras_transfer.evaluation": 4,
    "keras_transfer.delivery": 5,
    "keras_transfer.answers": 5,
    "keras_transfer.planning": 5,
    "keras_transfer.shelf": 5,
    "keras_transfer.supply": 5,
    "keras_transfer.fitting": 5,
    "keras_transfer.narration": 5,
    "keras_transfer.report": 5,
    "keras_transfer.looking": 5,
    "keras_transfer.rehearsal": 5,
    "keras_transfer.transfer": 5,
    "keras_transfer.judging": 5,
    "keras_transfer.closing": 5,
    "keras_transfer.converting": 5,
    "keras_transfer": 6,
    "keras_transfer.methods": 6,
    "pipelines": 7,
}
SEPARATE = [{"data", "backbones"}, {"training", "evaluation"}]
TENSORFLOW = (
    "keras_transfer.data.",
    "keras_transfer.devices",
    "keras_transfer.delivery.",
    "keras_transfer.features.prefix",
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
        name: {i for i in _imports(path, inside_functions=False) if i in NAMES and i != name}
        for name, path in NAMES.items()
    }
    while graph:
        free = [name for name, imports in graph.items() if not imports & graph.keys()]
        assert free, f"a cycle among {sorted(graph)}"
        for name in free:
            del graph[name]


def test_verbs_do_not_import_verbs():
    verbs = {name for name in NAMES if name.startswith("pipelines.")} - {"pipelines.arguments"}
    for verb in verbs:
        assert not verbs & set(_imports(NAMES[verb], inside_functions=True))


@pytest.mark.parametrize("name", NAMES)
def test_only_data_devices_and_delivery_know_tensorflow(name):
    knows = any(
        imported.split(".")[0] == "tensorflow"
        for imported in _imports(NAMES[name], inside_functions=True)
    )
    assert not knows or name.startswith(TENSORFLOW)


def test_ground_floor_imports_the_standard_library_and_itself_only():
    import sys

    for name in (name for name, level in LEVELS.items() if level == 0):
        for imported in _imports(NAMES[name], inside_functions=True):
            top = imported.split(".")[0]
            assert top in sys.stdlib_module_names or _level(imported) == 0, f"{name}: {imported}"


def test_files_are_small_and_named_after_what_they_hold():
    for path in MODULES:
        assert path.stem not in ("utils", "helpers", "common", "base")
        assert len(path.read_text(encoding="utf-8").splitlines()) <= 300, path


def test_public_names_are_few_and_there():
    import keras_transfer

    assert len(keras_transfer.__all__) <= 25
    for name in keras_transfer.__all__:
        assert getattr(keras_transfer, name) is not None


def test_readme_names_every_file():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for path in MODULES:
        if path.name != "__init__.py":
            assert path.name in readme, f"README's tree lacks {path.relative_to(ROOT)}"


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
