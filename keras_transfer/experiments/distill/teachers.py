"""Teachers that a program has in memory, stored as files that a spec can name."""

import tempfile
from pathlib import Path
from typing import Any

import keras

from keras_transfer.errors import SpecError
from keras_transfer.storage.atomic import put_in_place, storage_error
from keras_transfer.storage.cache import home
from keras_transfer.storage.checksums import sha256_of
from keras_transfer.storage.keras_file import drop_times


def store_teacher(model: Any) -> Path:
    """The file of a Keras model, below `home()`/teachers, named by its content.

    Only layers and weights are stored: no optimizer, and of a subclass of `keras.Model` that is
    built from inputs and outputs, such as a task of KerasHub, not the class itself.

    Raises:
        SpecError: the model has no graph of layers, which could be stored.
        RunError: the disk is full.
    """
    try:
        plain = keras.Model(model.input, model.output, name="teacher")
    except (AttributeError, ValueError) as error:
        raise SpecError(
            "the teacher has no graph of layers from one input to its outputs",
            expected="a functional model, or a Sequential one that has been built",
            received=f"a {type(model).__name__}",
            fix="call it on a keras.Input, and give keras.Model(inputs, outputs)",
        ) from error
    parent = home() / "teachers"
    try:
        parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=parent, prefix="new-") as scratch:
            file = Path(scratch, "teacher.keras")
            plain.save(file)
            drop_times(file)
            target = parent / f"{sha256_of(file)[:16]}.keras"
            if not target.is_file():
                put_in_place(file, target)
    except OSError as error:
        raise storage_error(error, parent) from error
    return target
