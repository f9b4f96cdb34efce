"""What a spec names and can be refused within a second, before TensorFlow is imported.

Importing this module needs the standard library only.
"""

import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Final

from keras_transfer.backbones.combination import check_combination
from keras_transfer.backbones.record import Backbone
from keras_transfer.backbones.registry import get_backbone
from keras_transfer.backbones.sources import PublishedWeights, find_source
from keras_transfer.backbones.stages import kept_stages, stages_from
from keras_transfer.errors import DataError, KerasTransferError, RunError, check_all
from keras_transfer.fields import similar_path
from keras_transfer.specs import HEAD, ModelSpec, RunSpec
from keras_transfer.storage.model_files import (
    check_sources,
    check_teachers,
    find_file,
    names_file,
    sources_of,
    teachers_of,
)

_COPIES: Final = 3
_WITH_FILES: Final = ("folder", "csv")
"""Sources whose `data.path` is a path."""


def check_early(spec: RunSpec, output: str | None = None) -> None:
    """Check paths, backbone, stages, weights and packages of a spec, and room on the disk.

    Args:
        output: the folder of the results; by default one below the current folder.

    Raises:
        KerasTransferError: one error for all that is wrong.
    """
    options = [phase.method_options for phase in spec.phases]
    teachers = [path for one in options for path in teachers_of(one)]
    sources = [path for one in options for path in sources_of(one)]
    checks: list[Callable[[], object]] = [
        partial(check_teachers, [*dict.fromkeys(teachers)]),
        partial(check_sources, [*dict.fromkeys(sources)]),
    ]
    if spec.data.source in _WITH_FILES:
        checks.append(partial(check_images, spec.data.path, "data.path"))
    if spec.data.unlabelled:
        checks.append(partial(check_images, spec.data.unlabelled, "data.unlabelled"))
    check_all(*checks, *_model_checks(spec, output))


def check_images(path: str, field: str) -> None:
    """Raise DataError unless a folder or a CSV file of images exists."""
    if not path:
        raise DataError(
            "no images are given",
            expected="a folder with a sub-folder of images for each class, or a CSV file",
            received=f"an empty {field}, as in presets for images of your own",
            fix=f"add {field}=my_photos, with the path of your folder or CSV file",
        )
    if not Path(path).expanduser().exists():
        raise DataError(
            f"{path}, given as {field}, does not exist",
            expected="a folder of images or a CSV file",
            received=f"no such path from {Path.cwd()}: {path}",
            fix=f"{similar_path(Path(path).expanduser())}correct the path",
        )


def _model_checks(spec: RunSpec, output: str | None) -> Iterator[Callable[[], object]]:
    """Checks of the model and of what phases train; a model file is only looked for."""
    model = spec.model
    if names_file(model.backbone) and find_file(model.backbone).is_file():
        return
    find = partial(get_backbone, model.backbone, preprocess=model.preprocess)
    try:
        backbone = find()
    except KerasTransferError:
        yield find
        return
    yield from _stage_checks(spec, backbone)
    yield partial(_check_weights, backbone, model)
    yield partial(_check_room, Path(output or "."), spec)


def _stage_checks(spec: RunSpec, backbone: Backbone) -> Iterator[Callable[[], object]]:
    model, names = spec.model, backbone.stage_names
    if backbone.parts:
        yield partial(
            check_combination, backbone, last_stage=model.last_stage, weights=model.weights
        )
    else:
        yield partial(kept_stages, backbone, model.last_stage)
        if model.last_stage in names:
            names = names[: names.index(model.last_stage) + 1]
    for number, phase in enumerate(spec.phases):
        field = f"phases.{number}.unfreeze"
        yield partial(stages_from, phase.unfreeze, [*names, HEAD], field=field)


def _check_weights(backbone: Backbone, model: ModelSpec) -> None:
    """Look for weights in packages and files; the first use of others downloads them."""
    parts = backbone.parts or (backbone,)
    for part in parts:
        source = part.weights.get(model.weights)
        if isinstance(source, PublishedWeights) or model.weights in ("embedded", "none"):
            continue
        if source and source.local():
            continue  # Its digest is compared where it is loaded.
        find_source(part, model.weights, last_stage="")


def _check_room(folder: Path, spec: RunSpec) -> None:
    """Raise RunError unless the disk has room for the weights as often as a run has them.

    They are in model.keras and in two forms of the SavedModel while these are compared. Weights
    that have to be downloaded are not counted.
    """
    model = spec.model
    if names_file(model.backbone):
        files = [find_file(model.backbone)]
    else:
        whole = get_backbone(model.backbone)
        found = [part.weights.get(model.weights) for part in whole.parts or (whole,)]
        files = [file for source in found if source and (file := source.local())]
    needed = _COPIES * sum(file.stat().st_size for file in files if file.is_file())
    existing = next(place for place in (folder, *folder.absolute().parents) if place.is_dir())
    free = shutil.disk_usage(existing).free
    if free < needed:
        raise RunError(
            f"the disk of {folder} is too full for this network",
            expected=f"{needed / 1e6:,.0f} MB or more for model.keras and the SavedModel",
            received=f"{free / 1e6:,.0f} MB free",
            fix="make room, or give --output on another disk",
        )
