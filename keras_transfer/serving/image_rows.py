"""One row of a request made ready for the network, and told what is wrong with it otherwise."""

import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeVar

import numpy as np
import tensorflow as tf

from keras_transfer.data.images import (
    TooLargeError,
    UnreadableError,
    batch_decoder,
    check_encoded,
    decoder,
    resizer,
)
from keras_transfer.export.contract import Contract
from keras_transfer.serving.protocol import read_bytes

Ready = bytes | np.ndarray
"""An image to be decoded, or its square."""

Result = TypeVar("Result")
_INT32: Final = np.iinfo(np.int32)


class RowError(Exception):
    """Why a row cannot be answered; `status` is 400, or 422 for an image that is too large."""

    def __init__(self, message: str, *, status: int = 400):
        super().__init__(message)
        self.status = status


@dataclass(frozen=True)
class ImageRows:
    """What rows must be under one contract; `max_megapixels` may be stricter than the contract.

    Methods take a JSON value, may be called from any thread, and raise RowError.
    """

    contract: Contract
    max_megapixels: float

    def decodable(self, value: Any) -> bytes:
        """An encoded image whose header was checked, as TensorFlow decodes it rightly."""
        try:
            return check_encoded(read_bytes(value), max_megapixels=self.max_megapixels)
        except TooLargeError as error:
            raise RowError(str(error), status=422) from error
        except UnreadableError as error:
            hint = '; are its bytes put as {"b64": "…"}?' if isinstance(value, str) else ""
            raise RowError(f"{error}{hint}") from error
        except ValueError as error:
            raise RowError(str(error)) from error

    def squares(self, read: Sequence[Callable[[], Ready]]) -> list[np.ndarray | Exception]:
        """Squares uint8 [S, S, 3] of what the calls return, or what became of each instead.

        Bytes are decoded in one call, which costs a fraction of many.
        """
        ready = [_attempt(call) for call in read]
        encoded = [image for image in ready if isinstance(image, bytes)]
        decoded: Iterator[np.ndarray | Exception]
        try:
            decode_all = batch_decoder(self.contract.image_size, self.contract.resize)
            decoded = iter(decode_all(tf.constant(encoded)).numpy() if encoded else ())
        except tf.errors.InvalidArgumentError:
            calls = (functools.partial(self.square_of, data) for data in encoded)
            decoded = iter([_attempt(call) for call in calls])
        return [next(decoded) if isinstance(x, bytes) else x for x in ready]

    def square_of(self, encoded: bytes) -> np.ndarray:
        """The square of bytes that `decodable` returned."""
        decode = decoder(self.contract.image_size, self.contract.resize)
        return _run(decode, tf.constant(encoded))

    def resized(self, value: Any) -> np.ndarray:
        """The square uint8 [S, S, 3] of nested lists [H, W, 3] of whole numbers 0-255."""
        pixels = _pixels(value)
        height, width, _ = pixels.shape
        if height * width > self.max_megapixels * 1e6:
            raise RowError(
                f"{width} × {height} px is more than {self.max_megapixels:g} megapixels", status=422
            )
        return _run(resizer(self.contract.image_size, self.contract.resize), tf.constant(pixels))

    def square(self, value: Any) -> np.ndarray:
        """The square itself, as nested lists [S, S, 3] of whole numbers 0-255."""
        pixels = _pixels(value)
        expected = (self.contract.image_size, self.contract.image_size, 3)
        if pixels.shape != expected:
            raise RowError(f"must have the shape {expected}, received {pixels.shape}")
        return pixels

    def class_index(self, value: Any) -> int:
        """A column of the probabilities; anything below 0 stands for the likeliest class."""
        num_classes = len(self.contract.class_names)
        if type(value) is not int or not _INT32.min <= value < num_classes:
            raise RowError(f"class_index must be a whole number below {num_classes}, or -1")
        return value


def _attempt(call: Callable[[], Result]) -> Result | Exception:
    """What a call returns or raises: one bad image must not fail the others of its batch."""
    try:
        return call()
    except Exception as error:
        return error


def _run(function: Callable[[tf.Tensor], tf.Tensor], argument: tf.Tensor) -> np.ndarray:
    try:
        square: np.ndarray = function(argument).numpy()
    except tf.errors.InvalidArgumentError as error:
        raise RowError("truncated or damaged") from error
    return square


def _pixels(value: Any) -> np.ndarray:
    """Nested lists [H, W, 3] as uint8, of whole numbers only: floats of 0-1 would be nonsense."""
    wanted = "must be nested lists [height, width, 3] of whole numbers 0-255"
    try:
        pixels = np.array(value)
    except (ValueError, TypeError, OverflowError) as error:
        raise RowError(f"{wanted}, received lists of unequal lengths") from error
    if pixels.ndim != 3 or pixels.shape[2] != 3 or pixels.size == 0:
        raise RowError(f"{wanted}, received the shape {pixels.shape}")
    # NumPy would take true and false for 1 and 0.
    kinds = {type(x) for row in value for pixel in row for x in pixel}
    if kinds != {int} or pixels.dtype.kind != "i" or pixels.min() < 0 or pixels.max() > 255:
        raise RowError(f"{wanted}, received other numbers or values")
    return pixels.astype(np.uint8)
