"""Archives: trunk weights in half precision, some of which come with this package.

An archive is `<backbone>_<last stage>.npz` with keys '<layer name>/<variable name>'. Next to it is
a JSON record of the training of the weights, with the archive's SHA-256.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import keras
import numpy as np

from keras_transfer.backbones.record import Backbone, Trunk
from keras_transfer.errors import WeightsError

EMBEDDED = Path(__file__).with_name("embedded")


def embedded_stages(backbone: Backbone, folder: Path = EMBEDDED) -> tuple[str, ...]:
    """The stages that the backbone's archives in the folder end with, from bottom to top."""
    return tuple(
        stage
        for stage in backbone.stage_names
        if (folder / f"{backbone.name}_{stage}.npz").exists()
    )


def find_embedded(backbone: Backbone, last_stage: str, *, folder: Path = EMBEDDED) -> Path:
    """The smallest archive of the backbone that reaches `last_stage`.

    Raises WeightsError if there is none, naming the stages or backbones there are.
    """
    stages = embedded_stages(backbone, folder)
    names = backbone.stage_names
    for stage in stages:
        if names.index(stage) >= names.index(last_stage):
            return folder / f"{backbone.name}_{stage}.npz"
    others = sorted(file.stem for file in folder.glob("*.npz"))
    if stages:
        fix = f"set model.last_stage={stages[-1]}"
    elif others:
        fix = f"use one of those that exist ({', '.join(others)}), or model.weights=none"
    else:
        fix = "set model.weights=imagenet or model.weights=none"
    raise WeightsError(
        f"there are no embedded weights for {backbone.name} through {last_stage}",
        expected=f"an archive {backbone.name}_{last_stage}.npz in {folder}",
        received=f"archives through {', '.join(stages)}" if stages else "none of this backbone",
        fix=fix,
    )


def save_embedded(trunk: Trunk, folder: Path, record: Mapping[str, Any]) -> Path:
    """Write the trunk's weights as float16, and next to them `record` with their SHA-256.

    Arrays with values beyond the range of float16 (65,504) stay float32. Returns the path of the
    archive. Raises WeightsError for trunks whose layers get other numbers in every build.
    """
    file = folder / f"{trunk.backbone.name}_{trunk.last_stage}.npz"
    arrays = {key: _halved(variable) for key, variable in _named_variables(trunk).items()}
    folder.mkdir(parents=True, exist_ok=True)
    part, part_of_record = file.with_suffix(".npz.part"), file.with_suffix(".json.part")
    with part.open("wb") as target:
        np.savez_compressed(target, allow_pickle=False, **arrays)
    content = {**record, "sha256": hashlib.sha256(part.read_bytes()).hexdigest()}
    part_of_record.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    part.replace(file)
    part_of_record.replace(file.with_suffix(".json"))
    return file


def load_embedded(trunk: Trunk, file: Path) -> dict[str, Any]:
    """Load an archive that reaches the trunk's last stage, or further, and return its record.

    Raises WeightsError if the archive differs from its record, or does not fit.
    """
    record = read_record(file)
    variables = _named_variables(trunk)
    with np.load(file, allow_pickle=False) as archive:
        shapes = {key: archive[key].shape for key in archive.files}
        wrong = [key for key, v in variables.items() if shapes.get(key) != tuple(v.shape)]
        if wrong:
            raise WeightsError(
                f"{file} does not hold {trunk.backbone.name} through {trunk.last_stage}",
                expected=f"{len(variables)} arrays, among them {wrong[0]} of shape "
                f"{tuple(variables[wrong[0]].shape)}",
                received=f"{len(shapes)} arrays, {wrong[0]} of shape "
                f"{shapes.get(wrong[0], 'that is missing')}",
                fix="set model.backbone and model.last_stage to those of the archive's name",
            )
        for key, variable in variables.items():
            variable.assign(archive[key].astype("float32"))
    return record


def read_record(file: Path) -> dict[str, Any]:
    """The record of an archive; WeightsError unless it has this archive's digest."""
    beside = file.with_suffix(".json")
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    try:
        record = json.loads(beside.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise WeightsError(
            f"the record of {file.name} cannot be read",
            expected=f"{beside}, written together with the archive",
            received=str(error),
            fix="restore both files, or install the package again if they came with it",
        ) from error
    if record.get("sha256") != digest:
        raise WeightsError(
            f"{file} was changed since it was written",
            expected=f"SHA-256 {record.get('sha256')}, as its record says",
            received=digest,
            fix="restore both files, or install the package again if they came with it",
        )
    return record


def _named_variables(trunk: Trunk) -> dict[str, keras.Variable]:
    """The trunk's weights under their keys in an archive."""
    unnamed = [layer.name for layer in trunk.layers if layer.weights and _has_numbered_name(layer)]
    if unnamed:
        raise WeightsError(
            f"{trunk.backbone.name} cannot be stored in an archive, which is read by layer names",
            expected="layers with the same names in every build",
            received=f"{len(unnamed)} with names that Keras numbers, such as {unnamed[0]}",
            fix="give model.weights a .keras or .weights.h5 file of this backbone instead",
        )
    pairs = [(f"{layer.name}/{v.name}", v) for layer in trunk.layers for v in layer.weights]
    named = dict(pairs)
    assert len(named) == len(pairs), "two variables of one layer have the same name"
    return named


def _has_numbered_name(layer: keras.layers.Layer) -> bool:
    """Whether the layer's name is its class's name with a number from Keras."""
    stem = re.sub(r"_\d+$", "", layer.name).replace("_", "")
    return stem == type(layer).__name__.lower()


def _halved(variable: keras.Variable) -> np.ndarray:
    """The variable's value as float16, or as float32 if that would overflow."""
    value = np.asarray(keras.ops.convert_to_numpy(variable), "float32")
    return value.astype("float16") if np.abs(value).max(initial=0) <= 65504 else value
