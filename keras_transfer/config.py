"""Builds and checks specs from TOML, JSON and `field=value` words.

Command lines, notebooks and trials all call `override(spec, {"phases.1.epochs": 5})`. An unknown
name is an error that suggests the nearest known one; types and ranges are checked here.
"""

import copy
import dataclasses
import json
import os
import tomllib
import typing
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, TypeVar

from keras_transfer.errors import SpecError
from keras_transfer.fields import (
    Typed,
    build,
    nearest,
    raise_unknown,
    run_name,
    run_name_flaw,
    similar_path,
)
from keras_transfer.specs import COLOURS, DEFAULT_SPACE, SOURCES, PretrainSpec, RunSpec

PRESETS: Final = Path(__file__).parent / "presets"
"""Folder of the presets, `<name>.toml`; those of a pretraining are in `pretraining/`."""

_SECTIONS: Final = (
    "data",
    "model",
    "training",
    "views",
    "devices",
    "cache",
    "search",
    "export",
    "run",
)
"""Sections in which a field's bare name is searched, in this order, after the spec itself."""

_SPACE = "search.space"
"""The one field whose own names have dots."""

_PHASE: Final = ".N."
_OF_PHASE: Final = ", of the last phase; a head that is solved has no epochs and no rate."
OTHER_NAMES: Final = {
    **dict.fromkeys(("arch", "model", "network"), "model.backbone"),
    **dict.fromkeys(("batch", "bs"), "training.batch_size"),
    **dict.fromkeys(("img_size", "imgsz", "input_size"), "data.image_size"),
    "epochs": "phases.N.epochs",
    **dict.fromkeys(("lr", "learning_rate"), "phases.N.learning_rate"),
    "min_images": "phases.N.min_images",
    "validation_split": "data.val_fraction",
}
"""Short names and those of other libraries, and the fields; N is the last phase."""

Spec = TypeVar("Spec", RunSpec, PretrainSpec)


def load_spec(source: str | Path, *, presets: Path | None = PRESETS) -> RunSpec:
    """Read a run's spec: the name of a preset, a TOML or JSON file, or a run folder; see `load`."""
    return load(RunSpec, source, presets=presets)


def load(kind: type[Spec], source: str | Path, *, presets: Path | None = None) -> Spec:
    """Read a preset's name, a TOML or JSON file, or a run folder into a spec.

    Args:
        kind: what the file describes, a run or a pretraining.
        source: what the user typed.
        presets: folder of `<name>.toml` files in which a bare name is looked for.

    Raises:
        SpecError: nothing of that name exists, or its content is not a spec.
    """
    path = Path(source)
    if path.is_dir():
        path = path / "spec.json"
    elif not path.is_file() and presets is not None:
        preset = presets / f"{source}.toml"
        path = preset if preset.is_file() else path
    if not path.is_file():
        known = sorted(file.stem for file in presets.glob("*.toml")) if presets else []
        raise SpecError(
            f"there are no images, preset, spec file or run folder called {str(source)!r}",
            expected="a folder of images or a CSV file, "
            f"a preset ({', '.join(known)}), a .toml or .json file, or a run folder",
            received=str(source),
            fix=similar_path(Path(source))
            + nearest(str(source), known, otherwise="correct the path, or give a preset's name")
            if known
            else "give the path of a spec file",
        )
    return build_spec(kind, _read_mapping(path), where=path.name)


def _read_mapping(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
        content = json.loads(text) if path.suffix == ".json" else tomllib.loads(text)
    except (ValueError, OSError) as error:
        raise SpecError(
            f"{path} cannot be read as a spec",
            expected="valid TOML, or JSON in a .json file",
            received=str(error),
            fix="correct the file at this place",
        ) from error
    if not isinstance(content, dict):
        raise SpecError(
            f"{path} does not hold a spec",
            expected="a table of fields",
            received=f"a {type(content).__name__}",
            fix="start from the output of --print-spec",
        )
    return content


def spec_from_dict(values: Mapping[str, Any]) -> RunSpec:
    """Build and check a run's spec; fields left out take their defaults."""
    return build_spec(RunSpec, values, where="the spec")


def build_spec(kind: type[Spec], values: Mapping[str, Any], *, where: str) -> Spec:
    """Build and check a spec of any kind; `where` is the values' origin for error messages."""
    spec: Spec = build(kind, values, "", where)
    if flaw := run_name_flaw(spec.name):
        raise SpecError(
            f"name={spec.name!r} in {where} cannot name a run, whose folder is called after it",
            expected="a text of at most 200 bytes without slashes, not beginning with a dot",
            received=f"one that {flaw}",
            fix="choose another name, and give the place of the run by --output",
        )
    if isinstance(spec, RunSpec):
        check_consistency(spec)
    return spec


def spec_to_dict(spec: Any) -> dict[str, Any]:
    """All fields, nested, as plain JSON values."""
    result: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(spec)))
    return result


def override(spec: Spec, changes: Mapping[str, Any]) -> Spec:
    """A new spec with the dotted fields changed: `{"phases.1.learning_rate": 3e-5}`.

    `phases = [...]` replaces all phases at once; `phases.2.…` just past the end adds one.

    Raises:
        SpecError: a name is unknown, or a value has the wrong type or is out of range.
    """
    values = spec_to_dict(spec)
    for dotted, value in changes.items():
        _assign(type(spec), values, dotted, value)
    return build_spec(type(spec), values, where="the overrides")


def _assign(kind: type, values: dict[str, Any], dotted: str, value: Any) -> None:
    target: Any = values
    *parents, last = _split(dotted)
    for depth, name in enumerate(parents):
        target = _step_into(target, name, ".".join(parents[: depth + 1]))
    if isinstance(target, list):
        raise SpecError(
            f"{dotted} names a whole phase",
            expected="a field of it, such as " + ".".join([*parents, last, "epochs"]),
            received=f"{dotted}={value!r}",
            fix="set its fields one by one",
        )
    if not isinstance(target, dict) or (last not in target and not _is_open(kind, parents)):
        raise_unknown(dotted, last, list(target) if isinstance(target, dict) else [])
    target[last] = value


def _is_open(kind: Any, names: Sequence[str]) -> bool:
    """Whether the value that the names lead to is a table that takes any name."""
    for name in names:
        if typing.get_origin(kind) is tuple:
            kind = typing.get_args(kind)[0]
        else:
            kind = typing.get_type_hints(kind)[name] if dataclasses.is_dataclass(kind) else None
    return typing.get_origin(kind) is dict


def _split(dotted: str) -> list[str]:
    """The names in a dotted field; below `search.space` the rest is one name."""
    if dotted.startswith(f"{_SPACE}."):
        return [*_SPACE.split("."), dotted.removeprefix(f"{_SPACE}.")]
    return dotted.split(".")


def _step_into(target: Any, name: str, dotted: str) -> Any:
    if isinstance(target, list):
        if not name.isdigit() or int(name) > len(target):
            raise SpecError(
                f"{dotted} does not exist",
                expected=f"a number from 0 to {len(target) - 1}, or {len(target)} to add one",
                received=name,
                fix="count phases from 0",
            )
        if int(name) == len(target):
            target.append({**copy.deepcopy(target[-1]), "name": f"phase {len(target) + 1}"})
        return target[int(name)]
    if not isinstance(target, dict) or name not in target:
        raise_unknown(dotted, name, list(target) if isinstance(target, dict) else [])
    return target[name]


def parse_assignments(words: Sequence[str]) -> dict[str, Any]:
    """Turn `["phases.1.epochs=5", "data.path=my photos"]` into a mapping of overrides.

    Values stay text until the field's type is known: strings need no quotes, numbers and booleans
    are TOML (5, 1e-4, true), and `none` empties a field that may be empty.
    """
    changes: dict[str, Any] = {}
    for word in words:
        name, equals, text = word.partition("=")
        if not equals or not name:
            raise SpecError(
                f"{word!r} is not an override",
                expected="field=value, such as phases.0.epochs=5",
                received=word,
                fix="put '=' between field and value, without spaces around it",
            )
        changes[name] = Typed(text)
    return changes


def check_consistency(spec: RunSpec) -> None:
    """Raise SpecError where valid fields contradict each other."""
    if spec.training.class_weights == "balanced" and spec.training.sampling == "balanced":
        raise SpecError(
            "training.class_weights and training.sampling both correct the imbalance",
            expected="at most one of them 'balanced'",
            received="both",
            fix="set training.class_weights=none or training.sampling=natural",
        )
    if spec.data.min_per_class and spec.task != "single_label":
        raise SpecError(
            "data.min_per_class is about classes, which only task=single_label has",
            expected="data.min_per_class=0",
            received=f"data.min_per_class={spec.data.min_per_class} and task={spec.task}",
            fix="leave it out, or set task=single_label",
        )
    if spec.folds > 1 and spec.halvings:
        raise SpecError(
            "folds and halvings cannot be combined",
            expected="folds=1 or halvings=0",
            received=f"folds={spec.folds} and halvings={spec.halvings}",
            fix="run one after the other; seeds=… goes with either",
        )
    if spec.cache.mode == "on" and spec.views.count is None:
        raise SpecError(
            "features of a new view in every epoch cannot be cached",
            expected="a number of views with cache.mode=on, such as views.count=4",
            received="views.count=none",
            fix="set views.count, or set cache.mode=auto to train on images",
        )
    if spec.data.channels != COLOURS:
        _check_channels(spec)
    elif spec.model.channel_weights == "rgb":
        raise SpecError(
            "model.channel_weights=rgb is for images with more channels than red, green and blue",
            expected="data.channels of 4 or more",
            received="data.channels=3",
            fix="leave out model.channel_weights, or set data.channels",
        )
    _check_phases(spec)


def _check_channels(spec: RunSpec) -> None:
    """Raise SpecError for fields that are about red, green and blue, where images have others."""
    channels, views = spec.data.channels, spec.views
    is_grey = spec.model.preprocess.startswith("grey")
    has_rgb = spec.model.channel_weights == "rgb"
    of_colours = {
        "views.saturation": views.saturation,
        "views.hue": views.hue,
        "model.preprocess": spec.model.preprocess if is_grey else "",
        "model.channel_weights": "rgb" if channels < COLOURS and has_rgb else "",
    }
    if given := {name: value for name, value in of_colours.items() if value}:
        raise SpecError(
            f"{' and '.join(given)} cannot be used with data.channels={channels}",
            expected="images with red, green and blue",
            received=", ".join(f"{name}={value}" for name, value in given.items()),
            fix=f"leave out {' and '.join(given)}, or data.channels",
        )


def _check_phases(spec: RunSpec) -> None:
    names = [phase.name for phase in spec.phases]
    if len(set(names)) < len(names):
        raise SpecError(
            "two phases have the same name",
            expected="a name of its own for every phase",
            received=", ".join(names),
            fix="set phases.N.name",
        )
    for number, phase in enumerate(spec.phases):
        if phase.schedule == "cosine" and phase.warmup_epochs >= phase.epochs > 1:
            raise SpecError(
                f"phases.{number} never ends its warm-up",
                expected=f"phases.{number}.warmup_epochs below its {phase.epochs} epochs",
                received=str(phase.warmup_epochs),
                fix=f"lower phases.{number}.warmup_epochs",
            )


def changed_fields(spec: RunSpec) -> dict[str, Any]:
    """The fields that differ from their defaults, nested as in a TOML file; None is "none".

    Phases are listed with all their fields, because a list replaces its default as a whole.
    """
    values = spec_to_dict(spec)
    changed = _differences(values, spec_to_dict(RunSpec()))
    changed["phases"] = [_without_none(phase) for phase in values["phases"]]
    return changed


def _differences(values: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in values.items():
        if value == defaults[name]:
            continue
        if not isinstance(value, dict):
            found[name] = "none" if value is None else value
        elif defaults[name]:
            found[name] = _differences(value, defaults[name])
        else:  # A table of options, with names of its own.
            found[name] = _without_none(value)
    return found


def _without_none(values: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: _without_none(value) if isinstance(value, dict) else value
        for name, value in values.items()
        if value is not None
    }


def describe_fields(
    cls: type = RunSpec, prefix: str = "", defaults: Any = None
) -> Iterator[tuple[str, str, str]]:
    """Every field as (dotted name, default, help), in the order of the spec.

    Args:
        defaults: an object with the default values; None takes those of the class.
    """
    hints = typing.get_type_hints(cls)
    for field in dataclasses.fields(cls):
        hint = hints[field.name]
        if dataclasses.is_dataclass(hint) and isinstance(hint, type):
            assert field.default_factory is not dataclasses.MISSING
            yield from describe_fields(hint, f"{prefix}{field.name}.", field.default_factory())
        elif typing.get_origin(hint) is tuple and (rows := _dataclass_in(hint)):
            yield from describe_fields(rows, f"{prefix}{field.name}.N.")
        else:
            text = field.metadata["help"]
            if typing.get_origin(hint) is typing.Literal:
                text += f" ({' | '.join(typing.get_args(hint))})"
            default = field.default if defaults is None else getattr(defaults, field.name)
            empty = default is dataclasses.MISSING or default is None or default in ({}, ())
            yield f"{prefix}{field.name}", "none" if empty else str(default), text


def _dataclass_in(hint: Any) -> type | None:
    entry = typing.get_args(hint)[0]
    return entry if isinstance(entry, type) and dataclasses.is_dataclass(entry) else None


def images_at(path: str | Path) -> dict[str, str]:
    """The fields for images at a path: its source by its suffix, else a folder of classes."""
    suffix = Path(path).suffix.lower()
    kinds = (name for name, row in SOURCES.items() if suffix in row.suffixes)
    return {"data.source": next(kinds, "folder"), "data.path": str(path)}


def make_spec(
    source: RunSpec | str | Path | None, *, base: RunSpec | None = None, **fields: Any
) -> RunSpec:
    """A spec from a source of images and fields that differ from their defaults.

    Args:
        source: a spec; a `.toml` or `.json` file or a run folder with a spec; a CSV file; or a
            folder with a sub-folder for each class. None keeps the images of `base`.
        base: the other fields, for a CSV file or folder; by default the defaults.
        fields: dotted names, `**{"phases.0.epochs": 3}`; or bare ones: `backbone` is
            `model.backbone`, `batch_size` is `training.batch_size`.

    Raises:
        SpecError: a field is unknown, has the wrong type or is out of range.
    """
    base = base or RunSpec()
    if isinstance(source, RunSpec | None):
        base = source or base
        return override(base, dotted_fields(fields, base))
    if not isinstance(source, str | os.PathLike):
        raise SpecError(
            "this is no source of images",
            expected="one path of a folder, CSV file or spec, or a RunSpec; kt.fine_tune, tune, "
            "rank_backbones and distill also take (images, labels), a tf.data.Dataset and a "
            "pandas.DataFrame",
            received=type(source).__name__,
            fix="give one of these; of several folders make a CSV file with path and label",
        )
    path = Path(source)
    if not is_images(path):
        base = load_spec(path)
        return override(base, dotted_fields(fields, base))
    images = {"name": run_name(path.stem), **images_at(source)}
    return override(base, {**images, **dotted_fields(fields, base)})


def with_search_space(spec: RunSpec) -> RunSpec:
    """The spec; without a search space with `DEFAULT_SPACE`, for the phases that it has."""
    if spec.search.space:
        return spec
    phases = tuple(f"phases.{number}." for number in range(len(spec.phases)))
    space = {
        name: entry
        for name, entry in DEFAULT_SPACE.items()
        if not name.startswith("phases.") or name.startswith(phases)
    }
    return dataclasses.replace(spec, search=dataclasses.replace(spec.search, space=space))


def check_single_training(spec: RunSpec, what: str, *, fix: str, hint: str = "") -> None:
    """Raise SpecError, which says `what` is wrong, if the spec is a study of several trainings.

    Args:
        fix: how to correct it.
        hint: appended to the expected values.
    """
    if spec.num_trials > 1:
        raise SpecError(
            what,
            expected=f"folds=1, seeds=1 and halvings=0{hint}",
            received=f"folds={spec.folds}, seeds={spec.seeds}, halvings={spec.halvings}",
            fix=fix,
        )


def is_images(path: Path) -> bool:
    """Whether a path is taken for images, a folder or CSV file, and not for a spec."""
    return path.suffix.lower() not in (".toml", ".json") and not (path / "spec.json").is_file()


def divide(values: Mapping[str, Any], cls: type) -> tuple[dict[str, Any], dict[str, Any]]:
    """The values by names of a dataclass's own fields, and all others, which are of a run's spec.

    `table.name` is an entry of a field that is a table of any names.

    Raises:
        SpecError: a name without a dot is a field of neither, or a table is given in two ways.
    """
    names = [field.name for field in dataclasses.fields(cls)]
    own = {name: value for name, value in values.items() if name in names}
    tables: dict[str, dict[str, Any]] = {}
    others = {}
    for dotted, value in values.items():
        table, _, name = dotted.partition(".")
        if name and table in names and _is_open(cls, [table]):
            tables.setdefault(table, {})[name] = value
        elif dotted not in own:
            others[dotted] = value
    for table in tables.keys() & own.keys():
        raise SpecError(
            f"{table} is given as a whole and by its entries",
            expected=f"either {table} or {', '.join(f'{table}.{name}' for name in tables[table])}",
            received="both",
            fix="leave out one of them",
        )
    dotted_fields(others, also=names)
    return own | tables, others


def dotted_fields(
    fields: Mapping[str, Any], base: RunSpec | None = None, *, also: Sequence[str] = ()
) -> dict[str, Any]:
    """The same values by dotted names; names of other libraries are taken for fields.

    Args:
        base: the spec that is changed; by default the defaults.
        also: other names that could have been meant, for the error.

    Raises:
        SpecError: the spec has no such field.
    """
    spec = base or RunSpec()
    return {_dotted(name, value, spec, also): value for name, value in fields.items()}


def describe_other_names(fields: Mapping[str, Any], base: RunSpec | None = None) -> list[str]:
    """A sentence for each name of another library, which says for which field it is taken."""
    spec = base or RunSpec()
    return [
        f"{name} is taken for {_dotted(name, value, spec, ())}"
        + (_OF_PHASE if _PHASE in OTHER_NAMES[name] else ".")
        for name, value in fields.items()
        if _is_other(name, value)
    ]


def _is_other(name: str, value: Any) -> bool:
    # `model` is also a table of fields.
    return name in OTHER_NAMES and not isinstance(value, Mapping)


def _dotted(name: str, value: Any, spec: RunSpec, also: Sequence[str]) -> str:
    if _is_other(name, value):
        return OTHER_NAMES[name].replace(_PHASE, f".{len(spec.phases) - 1}.")
    if "." in name or hasattr(spec, name):
        return name
    for section in _SECTIONS:
        if hasattr(getattr(spec, section), name):
            return f"{section}.{name}"
    parts = [spec, *(getattr(spec, section) for section in _SECTIONS)]
    known = [field.name for part in parts for field in dataclasses.fields(part)]
    raise SpecError(
        f"the spec has no field {name!r}",
        expected="a field's own name, such as backbone, or its dotted one, model.backbone",
        received=name,
        fix=nearest(
            name, [*also, *known, *OTHER_NAMES], otherwise="--help-fields lists all fields"
        ),
    )
