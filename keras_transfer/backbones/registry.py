"""The registry of backbones, by name, and the way from a path to the backbone in a model file."""

import dataclasses
import difflib
from itertools import chain
from pathlib import Path

from keras_transfer.backbones import applications, efficientnet_lite
from keras_transfer.backbones.combination import SEPARATOR, combine
from keras_transfer.backbones.record import Backbone
from keras_transfer.backbones.scaling import GREY, MODES, in_grey
from keras_transfer.errors import SpecError
from keras_transfer.storage.model_files import (
    SUFFIXES,
    check_digest,
    find_file,
    names_file,
    title,
)

__all__ = [
    "BACKBONES",
    "Backbone",
    "get_backbone",
    "is_backbone",
    "list_backbones",
    "register_backbone",
]

BACKBONES: dict[str, Backbone] = {
    row.name: row for row in chain(applications.rows(), efficientnet_lite.rows())
}


def list_backbones() -> list[str]:
    """The names that `model.backbone` may have."""
    return list(BACKBONES)


def is_backbone(name: str) -> bool:
    """Whether all backbones that a name has, one or several, are in the table."""
    return all(part in BACKBONES for part in name.split(SEPARATOR))


def register_backbone(backbone: Backbone) -> None:
    """Add a backbone, which `model.backbone` can name in this process from now on.

    Raises SpecError if the name is that of another backbone, or would be read as a path.
    """
    name = backbone.name
    is_read_otherwise = names_file(name) or SEPARATOR in name
    if is_read_otherwise or BACKBONES.get(name, backbone) != backbone:
        raise SpecError(
            f"a backbone cannot be registered as {name!r}",
            expected=f"a name of its own, without /, {SEPARATOR} or the suffix of a file",
            received="a path or a combination"
            if is_read_otherwise
            else "the name of another backbone",
            fix="choose another name",
        )
    BACKBONES[name] = backbone


def get_backbone(name: str, *, preprocess: str = "") -> Backbone:
    """The backbone with that name, the one in the model file with that path, or a combination.

    `preprocess` is the mode of `Preprocess` to use, '' for the backbone's own, and 'grey' for its
    own on images that are turned grey.

    Raises SpecError with the nearest names if there is none, and for a file whose model cannot be
    a backbone; WeightsError for a file that is damaged or was changed.
    """
    if preprocess == GREY and SEPARATOR not in name:
        own = get_backbone(name)
        return dataclasses.replace(own, preprocessing=in_grey(own.preprocessing))
    if preprocess and preprocess not in (GREY, *MODES):
        raise SpecError(
            "model.preprocess is not a mode of Preprocess",
            expected=f"one of {', '.join((GREY, *MODES))}, or nothing for the backbone's own",
            received=repr(preprocess),
            fix="choose one of those modes",
        )
    if names_file(name):
        file = _existing(name)
        from keras_transfer.backbones.model_file import read_backbone

        return read_backbone(file, title(name), preprocess=preprocess)
    if SEPARATOR in name:
        if preprocess:
            raise SpecError(
                "model.preprocess cannot be set for a combination of backbones",
                expected="the scaling of each backbone",
                received=f"model.preprocess={preprocess}, model.backbone={name}",
                fix="leave out model.preprocess",
            )
        return combine(name, get_backbone)
    if name in BACKBONES:
        row = BACKBONES[name]
        return dataclasses.replace(row, preprocessing=preprocess) if preprocess else row
    raise SpecError(
        f"there is no backbone called {name!r}",
        expected=f"one of {', '.join(BACKBONES)}; several of them with {SEPARATOR} between; or a "
        "path with a / or the suffix .keras or .h5",
        received=repr(name),
        fix=f"write ./{name} for the path" if Path(name).exists() else _suggest(name),
    )


def _existing(name: str) -> Path:
    """The model file of a path; SpecError if there is none."""
    file = find_file(name)
    if file.is_file() and file.suffix in SUFFIXES:
        return check_digest(name)
    winner = file.parent / "winner"
    received = "a file of another kind" if file.is_file() else "no such file"
    raise SpecError(
        "model.backbone is not a name in the table of backbones, and not a model file",
        expected="a name, the path of a whole model (.keras, .h5), or a finished run's folder",
        received=f"{received}: {file.absolute()}",
        fix=f"give {winner}, the best trial of this search"
        if find_file(str(winner)).is_file()
        else _suggest(Path(name).stem, otherwise="correct the path"),
    )


def _suggest(name: str, *, otherwise: str = "choose one of those names") -> str:
    nearest = difflib.get_close_matches(name, BACKBONES, n=3, cutoff=0.65)
    return f"did you mean {' or '.join(nearest)}?" if nearest else otherwise
