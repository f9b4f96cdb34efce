"""Model files that a spec names: Keras models and earlier runs as backbones.

`model.backbone` is a name in the table of backbones, or a path: of a `.keras` or `.h5` file with a
whole model, or of an earlier run. `resolve` replaces a path by what a run keeps: that of a file by
`/path/net.keras#sha256=…`, so that a change of the file is noticed, and that of a run by its
backbone, last stage, weights and preprocessing. The standard library is enough for all of it.
"""

import dataclasses
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from keras_transfer.config import load_spec
from keras_transfer.errors import SpecError, WeightsError
from keras_transfer.specs import ModelSpec, RunSpec
from keras_transfer.storage.checksums import sha256_of, verify_checksums

OWN_WEIGHTS: Final = "file"
"""The value of `model.weights` for the weights in the model file itself."""

TEACHER: Final = "teacher"
"""The option of a phase's method that names model files, several separated by commas."""

SOURCE: Final = "source"
"""The option of a phase's method that names the file of the pretrained network's classifier."""

ADDING: Final = ("adapters",)
"""Methods of a phase that add layers to the trunk."""

SUFFIXES: Final = (".keras", ".h5", ".hdf5")

_DEFAULTS: Final = ("", ModelSpec().weights, OWN_WEIGHTS)
_MARK: Final = "#sha256="
_MODEL: Final = "model.keras"


def names_file(text: str) -> bool:
    """Whether a backbone is a path, and not a name: names have no separator and no such suffix."""
    path = text.partition(_MARK)[0]
    return path.endswith(SUFFIXES) or "/" in path or os.sep in path or path.startswith("~")


def find_file(text: str) -> Path:
    """The file that a path, with or without a digest, stands for; that of a run for its folder."""
    path = Path(text.partition(_MARK)[0]).expanduser()
    return path / _MODEL if path.is_dir() else path


def title(text: str) -> str:
    """The name of a backbone or of weights to be shown: of a path only its end."""
    path = Path(text.partition(_MARK)[0])
    return f"{path.parent.name}/{path.name}" if path.name == _MODEL else path.name


def check_digest(text: str) -> Path:
    """The existing file of a path, which must have the digest given with it.

    Raises:
        WeightsError: the file was changed.
    """
    file, expected = find_file(text), text.partition(_MARK)[2]
    if expected and (received := sha256_of(file)) != expected:
        raise WeightsError(
            f"{file} was changed since the spec was written",
            expected=f"SHA-256 {expected}",
            received=received,
            fix=f"restore the file, or give its path without {_MARK}… to use it as it is now",
        )
    return file


def resolve(spec: RunSpec) -> RunSpec:
    """The spec as a run keeps it: see `resolve_model`; also files of methods get digests."""
    phases = tuple(
        dataclasses.replace(phase, method_options={**phase.method_options, **pinned})
        if (pinned := _pinned_options(phase.method_options))
        else phase
        for phase in spec.phases
    )
    return dataclasses.replace(spec, model=resolve_model(spec.model), phases=phases)


def _pinned_options(options: Mapping[str, Any]) -> dict[str, str]:
    """The options of a method that name files, with digests."""
    named = {TEACHER: teachers_of(options), SOURCE: sources_of(options)}
    return {name: ",".join(map(_pinned, paths)) for name, paths in named.items() if paths}


def _pinned(path: str) -> str:
    """A path as absolute and with a digest, unless it has one or no file is there."""
    file = find_file(path)
    return path if _MARK in path or not file.is_file() else _pin(file)


def check_teachers(paths: Sequence[str]) -> None:
    """Raise SpecError for paths of teachers where no model is."""
    if missing := [path for path in paths if not find_file(path).is_file()]:
        raise SpecError(
            "a teacher does not exist",
            expected="run folders or Keras model files, separated by commas",
            received=", ".join(missing),
            fix="correct the path, or train the teacher first and give its run folder",
        )


def teachers_of(options: Mapping[str, Any]) -> list[str]:
    """The paths of teachers in the options of a phase's method."""
    text = options.get(TEACHER)
    return [part.strip() for part in text.split(",")] if isinstance(text, str) and text else []


def sources_of(options: Mapping[str, Any]) -> list[str]:
    """The path of the source's classifier in the options of a phase's method, if there is one."""
    text = options.get(SOURCE)
    return [text] if isinstance(text, str) and text else []


def check_sources(paths: Sequence[str]) -> None:
    """Raise SpecError for paths of sources where no file is."""
    if missing := [path for path in paths if not find_file(path).is_file()]:
        raise SpecError(
            "the file with the pretrained network's classifier does not exist",
            expected="a run folder, a Keras model file, or a weights file (.h5) with its top",
            received=", ".join(missing),
            fix="correct the path in source",
        )


def _pin(file: Path) -> str:
    return f"{file.absolute()}{_MARK}{sha256_of(file)}"


def resolve_model(model: ModelSpec) -> ModelSpec:
    """The model with what stands for the path in its backbone.

    Names, paths with a digest and paths where no file is stay as they are: the first two are
    resolved already, and an error follows where the backbone is built.

    Raises:
        SpecError: the backbone is a run, and weights of another origin are set.
        WeightsError: the model of the run was changed.
    """
    if not names_file(model.backbone):
        return model
    weights = OWN_WEIGHTS if model.weights in _DEFAULTS else model.weights
    file = find_file(model.backbone)
    if _MARK in model.backbone or not file.is_file():
        return dataclasses.replace(model, weights=weights)
    pinned = _pin(file)
    if file.name == _MODEL and (file.parent / "spec.json").is_file():
        verify_checksums(
            file.parent, [_MODEL], error=WeightsError, fix="restore the file, or train again"
        )
        spec = load_spec(file.parent)
        # With layers that a phase added, the trunk is the one in the file.
        is_plain = not any(phase.method in ADDING for phase in spec.phases)
        if is_plain and not names_file(spec.model.backbone):
            return _of_run(model, spec.model, pinned)
    return dataclasses.replace(model, backbone=pinned, weights=weights)


def _of_run(model: ModelSpec, source: ModelSpec, pinned: str) -> ModelSpec:
    """The model with the trunk of a run, whose model was `source` and whose file is `pinned`."""
    if model.weights not in (*_DEFAULTS, "none"):
        raise SpecError(
            "model.backbone is a run, which has weights of its own",
            expected=f"model.weights={OWN_WEIGHTS}, or none for random weights",
            received=f"model.weights={model.weights}",
            fix=f"set model.weights={OWN_WEIGHTS}, or model.backbone={source.backbone}",
        )
    return dataclasses.replace(
        model,
        backbone=source.backbone,
        last_stage=model.last_stage or source.last_stage,
        weights="none" if model.weights == "none" else pinned,
        preprocess=model.preprocess or source.preprocess,
    )
