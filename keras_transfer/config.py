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
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final, TypeVar

from keras_transfer.errors import SpecError, check_all
from keras_transfer.fields import (
    Typed,
    build,
    nearest,
    raise_unknown,
    run_name,
    run_name_flaw,
    similar_path,
)
from keras_transfer.specs import (
    COLOURS,
    DEFAULT_SPACE,
    HEAD,
    SOURCES,
    ParameterSpec,
    PretrainSpec,
    RunSpec,
)

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
_BY_GRADIENT: Final = (
    *("epochs", "learning_rate", "layer_decay", "optimizer", "weight_decay"),
    *("warmup_epochs", "schedule", "patience_epochs"),
)
"""Fields of a phase that a head does not have whose weights are solved."""
OTHER_NAMES: Final = {
    **{name: f"phases.N.{name}" for name in (*_BY_GRADIENT, "unfreeze", "min_images")},
    "train_batchnorm": "phases.N.train_batchnorm",
    **dict.fromkeys(("num_epochs", "n_epochs", "max_epochs"), "phases.N.epochs"),
    "lr": "phases.N.learning_rate",
    **dict.fromkeys(("patience", "early_stopping"), "phases.N.patience_epochs"),
    **dict.fromkeys(("arch", "model", "network"), "model.backbone"),
    "pretrained": "model.weights",
    **dict.fromkeys(("data", "data_dir", "dataset"), "data.path"),
    **dict.fromkeys(("batch", "bs"), "training.batch_size"),
    **dict.fromkeys(("img_size", "imgsz", "input_size", "resolution"), "data.image_size"),
    **dict.fromkeys(("augment", "augmentation"), "views.policy"),
    **dict.fromkeys(("random_state", "random_seed"), "seed"),
    **dict.fromkeys(("cv", "kfold", "k_folds", "n_splits"), "folds"),
    **dict.fromkeys(("validation_split", "val_size"), "data.val_fraction"),
    "test_size": "data.test_fraction",
}
"""Short names and those of other libraries, and the fields; N is the last phase."""
_SHARES: Final = {"val_split": "data.val_fraction", "test_split": "data.test_fraction"}
"""Names of splits, and the fields that are meant where their value is a share."""
_NO_FIELDS: Final = {
    **dict.fromkeys(
        ("classes", "num_classes", "n_classes"),
        "leave it out: the classes are the names of the folders, or the labels of the CSV file",
    ),
    **dict.fromkeys(
        ("loss", "metrics"),
        "leave it out: the task decides it; task=single_label, multi_label, regression or "
        "multi_task",
    ),
    **dict.fromkeys(
        ("device", "gpu", "gpus", "cuda", "accelerator"),
        "leave it out: all accelerators are used; devices.strategy=cpu uses the processor alone",
    ),
    **dict.fromkeys(
        ("method", "method_options"),
        "name the phase: phases.0.{name}=… is of the first one, phases.{last}.{name}=… of the last",
    ),
    "mixup": "write phases.{last}.method=mixup",
    **dict.fromkeys(
        ("freeze", "frozen", "trainable"),
        "say what trains: phases.{last}.unfreeze=head, last, last_two or the name of a stage",
    ),
    **dict.fromkeys(
        ("output", "output_dir", "save_dir"),
        "write --output DIR on a command line, output=DIR in Python",
    ),
    "resume": "write --resume on a command line, resume=True in Python",
    **{name: f"write --{name.replace('_', '-')}" for name in ("dry_run", "print_spec", "profile")},
}
"""Names that are no field, and what to write instead."""

Spec = TypeVar("Spec", RunSpec, PretrainSpec)


def load_spec(source: str | Path, *, presets: Path | None = PRESETS) -> RunSpec:
    """Read the settings of a run.

    Args:
        source: the name of a preset, such as "lite", a TOML or JSON file, or a run folder.
        presets: folder of `<name>.toml` files in which a bare name is looked for.

    Raises:
        SpecError: nothing of that name exists, or its content is not a spec.
    """
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
    """Build and check a spec of any kind; `where` is the values' origin, as for `fields.build`."""
    spec: Spec = build(kind, values, "", where)
    if flaw := run_name_flaw(spec.name):
        raise SpecError(
            f"name={spec.name!r}{where and f' in {where}'} cannot name a run, whose folder is "
            "called after it",
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

    `phases = [...]` replaces all phases at once. A number just past the end adds a phase, if one of
    the changes says what it trains, `phases.2.unfreeze`, or how, `phases.2.method`.

    Raises:
        SpecError: a name is unknown, a value has the wrong type or is out of range, or a phase
            would be added by other fields alone.
    """
    values = spec_to_dict(spec)
    if isinstance(spec, RunSpec) and "phases" not in changes:
        _check_added_phases(spec, changes)
    for dotted, value in changes.items():
        _assign(type(spec), values, dotted, value)
    return build_spec(type(spec), values, where="")


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


def _check_added_phases(spec: RunSpec, changes: Mapping[str, Any]) -> None:
    """Raise SpecError where fields of one phase more are set, but not what it trains or how."""
    number = len(spec.phases)
    given = [name for name in changes if name.startswith(f"phases.{number}.")]
    added = [f"phases.{number}.{name}" for name in ("unfreeze", "method")]
    if given and not set(given) & set(added):
        names = (f"phases.{n} is {phase.name!r}" for n, phase in enumerate(spec.phases))
        last = given[0].replace(f".{number}.", f".{number - 1}.")
        raise SpecError(
            f"there is no phase {number}: phases are counted from 0",
            expected=f"a field of a phase that there is: {', '.join(names)}",
            received=", ".join(given),
            fix=f"write {last} for the last phase; or add a phase: {added[0]}=… says what it "
            f"trains, or {added[1]}=… how",
        )


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
                fix=f"write {dotted.rpartition('.')[0]}.{len(target) - 1} for the last one",
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
    _check_split_names(spec)
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


def _check_split_names(spec: RunSpec) -> None:
    for name in ("train_split", *_SHARES):
        text = getattr(spec.data, name)
        if _is_share(text):
            raise SpecError(
                f"data.{name} is the name of a split in the source, not a share of the images",
                expected=f"a name such as {getattr(RunSpec().data, name)}",
                received=text,
                fix="leave it out: what is in no other split is for training"
                if name == "train_split"
                else f"write {_SHARES[name]}={text}",
            )


def _is_share(value: Any) -> bool:
    """Whether a value is a number between 0 and 1, or such a number as text."""
    try:
        return 0 < float(value) < 1
    except (TypeError, ValueError):
        return False


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
    """The spec; without a search space with what its phases and its task can vary by default."""
    if spec.search.space:
        return spec
    space = {name: entry for name, entry in DEFAULT_SPACE.items() if _can_vary(spec, name)}
    if spec.phases[0].method != "exact":
        # Where no head is solved, the rate matters most.
        space["phases.0.learning_rate"] = DEFAULT_SPACE["phases.1.learning_rate"]
    return _with_space(spec, space)


def _can_vary(spec: RunSpec, name: str) -> bool:
    """Whether a field of `DEFAULT_SPACE` exists in the spec, and may differ from its default."""
    root, *rest = name.split(".")
    if root != "phases":
        return spec.task in ("single_label", "multi_label")
    if int(rest[0]) >= len(spec.phases):
        return False
    phase = spec.phases[int(rest[0])]
    chooses = phase.method_options.get("cross_validate", False)
    return rest[1] != "method_options" or (phase.method == "exact" and not chooses)


def _with_space(spec: RunSpec, space: Mapping[str, ParameterSpec]) -> RunSpec:
    return dataclasses.replace(spec, search=dataclasses.replace(spec.search, space=dict(space)))


def with_dotted_space(spec: RunSpec, say: Callable[[str], None]) -> RunSpec:
    """The spec with the dotted names of the fields that its search varies, such as `lr`.

    Args:
        say: called with a sentence for each name of another library, as of a field that is set.

    Raises:
        SpecError: the spec has no field of such a name, or two names are of one field.
    """
    # As of a value that is no table: `model` is also a table of fields.
    names = dict.fromkeys(spec.search.space)
    check_all(*(partial(_dotted, name, None, spec, ()) for name in names))
    dotted = {name: _dotted(name, None, spec, ()) for name in names}
    for field in dotted.values():
        given = [name for name, own in dotted.items() if own == field]
        if len(given) > 1:
            raise SpecError(
                f"search.space varies {field} twice",
                expected="one entry for each field",
                received=", ".join(given),
                fix=f"leave out all but one of {', '.join(given)}",
            )
    for sentence in describe_other_names(names, spec):
        say(sentence)
    return _with_space(spec, {dotted[name]: own for name, own in spec.search.space.items()})


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
    named = {_dotted(name, value, spec, also): value for name, value in fields.items()}
    match named.get("data.image_size"):
        case (int(side), int(other)) if side == other:  # As Keras writes it.
            named["data.image_size"] = side
        case (int(side), int(other)):
            raise SpecError(
                "images become squares, so their size is one number",
                expected="the side in px",
                received=f"image_size=({side}, {other})",
                fix=f"write image_size={side}; data.resize says how other shapes become squares",
            )
    return named


def describe_other_names(fields: Mapping[str, Any], base: RunSpec | None = None) -> list[str]:
    """A sentence for each name of another library, which says for which field it is taken."""
    spec = base or RunSpec()
    sentences = []
    for name, value in fields.items():
        if field := _other(name, value):
            of_phase = f", a field of phase {spec.phases[-1].name!r}" if _PHASE in field else ""
            sentences.append(f"{name} is taken for {_of_last(field, spec)}{of_phase}.")
    return sentences


def describe_without_effect(fields: Mapping[str, Any], spec: RunSpec) -> list[str]:
    """A sentence for each phase of `spec` with a solved head whose `fields` have no effect."""
    dotted = dotted_fields(fields, spec)
    sentences = []
    for number, phase in enumerate(spec.phases):
        names = [f"phases.{number}.{name}" for name in _BY_GRADIENT]
        given = [name for name in names if name in dotted]
        trains_more = phase.unfreeze != HEAD or spec.model.head != "linear" or spec.model.dropout
        if given and phase.method == "exact" and not trains_more:
            sentences.append(
                f"{' and '.join(given)} {'have' if len(given) > 1 else 'has'} no effect: the head "
                f"of phase {phase.name!r} is solved exactly, without epochs. "
                f"phases.{number}.method=supervised trains it step by step."
            )
    return sentences


def _other(name: str, value: Any) -> str:
    """The field for which a name of another library is taken, '' for other names."""
    if name in _SHARES and _is_share(value):
        return _SHARES[name]
    # `model` and `data` are also tables of fields.
    return "" if isinstance(value, Mapping) else OTHER_NAMES.get(name, "")


def _of_last(field: str, spec: RunSpec) -> str:
    return field.replace(_PHASE, f".{len(spec.phases) - 1}.")


def _dotted(name: str, value: Any, spec: RunSpec, also: Sequence[str]) -> str:
    if field := _other(name, value):
        return _of_last(field, spec)
    if "." in name or hasattr(spec, name):
        return name
    for section in _SECTIONS:
        if hasattr(getattr(spec, section), name):
            return f"{section}.{name}"
    parts = [spec, *(getattr(spec, section) for section in _SECTIONS)]
    known = [field.name for part in parts for field in dataclasses.fields(part)]
    instead = _NO_FIELDS.get(name, "").format(name=name, last=len(spec.phases) - 1)
    raise SpecError(
        f"there is no field {name!r}",
        expected="a field's own name, such as backbone, or its dotted one, model.backbone",
        received=name,
        fix=instead
        or nearest(name, [*also, *known, *OTHER_NAMES], otherwise="--help-fields lists all fields"),
    )
