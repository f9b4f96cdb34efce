"""Difference files: what a run's model has beyond the weights of its pretrained trunk.

Of a run that trained adapters or the scales of BatchNormalization, and a head, that is a small part
of the model. The file has the model's graph, the arrays that the trunk does not have bit by bit,
and for the others where they are in the trunk, with a digest of them. So many files share one
trunk, and one with other weights is refused. Needs Keras and this package.
"""

import hashlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Final

import numpy as np

if TYPE_CHECKING:
    import keras

    from keras_transfer.export.formats.source import Source
    from keras_transfer.specs import ModelSpec

_HEADER: Final = "header"


def write(source: "Source", target: Path, *, precision: str) -> None:  # noqa: ARG001
    """Write the model as it was trained, without the arrays of its trunk.

    Raises:
        SpecError, WeightsError: the trunk of the run cannot be built again.
    """
    import dataclasses

    from keras_transfer.backbones.graph import is_random_state
    from keras_transfer.config import load_spec

    spec = load_spec(source.run)
    built = {
        "image_size": spec.data.image_size,
        "channels": spec.data.channels,
        "seed": spec.seed,
    }
    trunk = _trunk_arrays(spec.model, **built)
    place_of = {_key(array): place for place, array in enumerate(trunk)}
    # The state of dropout has another name in every build, and predictions do not depend on it.
    variables = [one for one in source.model.variables if not is_random_state(one)]
    values = {variable.path: np.array(variable) for variable in variables}
    shared = {
        path: place
        for path, value in values.items()
        if (place := place_of.get(_key(value))) is not None
    }
    header = {
        "graph": source.model.to_json(),
        "model": dataclasses.asdict(spec.model),
        "trunk": built,
        "shared": shared,
        "digest": _digest(trunk, shared.values()),
    }
    arrays = {f"|{path}": value for path, value in values.items() if path not in shared}
    with target.open("wb") as file:  # `numpy` would append a suffix to a path.
        np.savez_compressed(file, **{_HEADER: np.array(json.dumps(header))}, **arrays)  # type: ignore[arg-type]


def open_artefact(path: Path, *, num_threads: int | None = None) -> SimpleNamespace:
    """Open a difference file; its outputs are logits. `num_threads` is for the whole process.

    The weights of the trunk are where they were when it was written, or next to the file.

    Raises:
        SpecError, WeightsError: the trunk is missing, or has other weights.
    """
    if num_threads is not None:
        import tensorflow as tf

        tf.config.threading.set_intra_op_parallelism_threads(num_threads)
    model = _restore(path)

    def predict(pixels: np.ndarray) -> np.ndarray:
        logits: np.ndarray = model.predict_on_batch(pixels.astype(np.float32))
        return logits

    return SimpleNamespace(predict=predict, class_hash=model.name.removeprefix("classifier_"))


def _restore(path: Path) -> "keras.Model":
    import keras

    import keras_transfer.backbones.preprocess  # noqa: F401  registers the layer
    from keras_transfer.backbones.graph import is_random_state
    from keras_transfer.specs import ModelSpec
    from keras_transfer.tasks.registry import register_layers

    with np.load(path) as file:
        header = json.loads(str(file[_HEADER]))
        arrays = {name[1:]: file[name] for name in file.files if name != _HEADER}
    register_layers()
    spec = _found_near(ModelSpec(**header["model"]), path.parent)
    trunk = _trunk_arrays(spec, **header["trunk"])
    shared = header["shared"]
    if (received := _digest(trunk, shared.values())) != header["digest"]:
        raise _other_trunk(path, spec, header["digest"], received)
    model = keras.models.model_from_json(header["graph"])
    for variable in model.variables:
        if is_random_state(variable):
            continue
        place = shared.get(variable.path)
        variable.assign(arrays[variable.path] if place is None else trunk[place])
    return model


def _other_trunk(path: Path, spec: "ModelSpec", expected: str, received: str) -> Exception:
    from keras_transfer.errors import WeightsError

    return WeightsError(
        f"{path} was written for a backbone with other weights",
        expected=f"{spec.backbone} with the weights {spec.weights} of SHA-256 {expected[:16]}…",
        received=f"{received[:16]}…",
        fix=f"restore them, or put the file that it was trained with next to {path.name}",
    )


def _found_near(model: "ModelSpec", folder: Path) -> "ModelSpec":
    """The model with files that are no longer in their places next to the artefact, if there."""
    import dataclasses

    from keras_transfer.storage.model_files import find_file, names_file

    changes: dict[str, Any] = {}
    for field in ("backbone", "weights"):
        text = getattr(model, field)
        near = folder / find_file(text).name
        if names_file(text) and not find_file(text).is_file() and near.is_file():
            changes[field] = str(near)
    return dataclasses.replace(model, **changes)


def _trunk_arrays(
    model: "ModelSpec", *, image_size: int, channels: int, seed: int
) -> list[np.ndarray]:
    """The arrays of the pretrained trunk, in the order of its graph."""
    from keras_transfer.models.classifier import put_trunk

    _, trunk = put_trunk(model, image_size=image_size, channels=channels, seed=seed)
    return [np.array(variable) for layer in trunk.layers for variable in layer.variables]


def _key(array: np.ndarray) -> tuple[str, tuple[int, ...], bytes]:
    """Equal for arrays with the same bits only."""
    return str(array.dtype), array.shape, hashlib.sha256(array.tobytes()).digest()


def _digest(arrays: Sequence[np.ndarray], places: Iterable[int]) -> str:
    """The SHA-256 of the arrays at these places, in hex; of places that do not exist another."""
    digest = hashlib.sha256()
    for place in sorted(set(places)):
        digest.update(repr(_key(arrays[place]) if place < len(arrays) else None).encode())
    return digest.hexdigest()
