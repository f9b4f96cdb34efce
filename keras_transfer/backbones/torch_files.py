"""Files of PyTorch in the layout before version 1.6, read without PyTorch.

Such a file is a row of pickles: a magic number, the version of the layout, properties of the
machine that wrote it, the tensors by name, and the keys of the storages. Then come the storages in
that order: the number of values, int64, and the values. A tensor is a view of a storage.
Source: `_legacy_save` in `torch/serialization.py`.

A pickle can call any function by its name. Here it can call only those in `_CALLED`.
"""

import pickle
from collections import OrderedDict
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from keras_transfer.errors import WeightsError

_MAGIC = 0x1950A86A20F9469CFC6C
_VERSION = 1001


class _Storage(NamedTuple):
    key: str
    dtype: np.dtype


class _Tensor(NamedTuple):
    """The arguments of `_rebuild_tensor_v2`; offset and strides count values."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    requires_grad: bool
    hooks: Any


_CALLED = {
    ("collections", "OrderedDict"): OrderedDict,
    ("torch._utils", "_rebuild_tensor_v2"): _Tensor,
    ("torch", "FloatStorage"): np.dtype("<f4"),
    ("torch", "LongStorage"): np.dtype("<i8"),
}


class _Unpickler(pickle.Unpickler):
    """Reads tensors as `_Tensor`, whose values come later in the file."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _CALLED:
            raise pickle.UnpicklingError(f"the file asks for {module}.{name}")
        return _CALLED[module, name]

    def persistent_load(self, pid: Any) -> _Storage:
        _, dtype, key, *_ = pid
        return _Storage(key, dtype)


def read_tensors(file: Path) -> dict[str, np.ndarray]:
    """The tensors of a file by name, as arrays that cannot be written to.

    Raises WeightsError if the file is damaged, has another layout, or has anything but tensors.
    """
    try:
        with file.open("rb") as content:
            return _read(content)
    except Exception as error:  # A damaged pickle may raise any.
        raise WeightsError(
            f"{file} cannot be read as a file of PyTorch's tensors",
            expected="a dictionary of float32 and int64 tensors, in the layout before PyTorch 1.6",
            received=f"{type(error).__name__}: {error}",
            fix="restore the file, or install the package again if it came with one",
        ) from error


def _read(content: BinaryIO) -> dict[str, np.ndarray]:
    magic, version, _, tensors = (_Unpickler(content).load() for _ in range(4))
    if (magic, version) != (_MAGIC, _VERSION):
        raise ValueError(f"the file starts with {magic!r}, {version!r}")
    dtypes = dict(tensor.storage for tensor in tensors.values())
    storages = {}
    for key in _Unpickler(content).load():
        num_values = int.from_bytes(content.read(8), "little")
        storages[key] = content.read(num_values * dtypes[key].itemsize)
    return {name: _view(tensor, storages[tensor.storage.key]) for name, tensor in tensors.items()}


def _view(tensor: _Tensor, storage: bytes) -> np.ndarray:
    """The tensor's values; NumPy raises ValueError if they are not all in the storage."""
    dtype = tensor.storage.dtype
    offset, *strides = (number * dtype.itemsize for number in (tensor.offset, *tensor.strides))
    return np.ndarray(tensor.shape, dtype, storage, offset, strides)
