"""Rows of a request as pixels for the network, or the reason why a row is invalid."""

import contextlib
import functools
import itertools
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
    count_pixels,
    decoder,
    decoding_of,
    refusal,
    resizer,
)
from keras_transfer.export.contract import Contract
from keras_transfer.serving.protocol import read_bytes

Input = bytes | np.ndarray
"""An encoded image, or its pixels at the network's size."""

Result = TypeVar("Result")
_INT32: Final = np.iinfo(np.int32)
_START_OF_SCAN: Final = b"\xff\xda"
_USUAL_SCANS: Final = 10
"""Scans of a progressive JPEG as encoders write it. Each scan visits all pixels."""


class RowError(Exception):
    """Why a row is invalid; `status` is 400, or 422 for an image that is too large."""

    def __init__(self, message: str, *, status: int = 400):
        super().__init__(message)
        self.status = status


@dataclass(frozen=True)
class ImageRows:
    """Reads rows under one contract; `max_megapixels` may be stricter than the contract.

    Methods take a JSON value, may be called from any thread, and raise RowError.
    """

    contract: Contract
    max_megapixels: float

    def header(self, value: Any) -> tuple[bytes, int]:
        """The bytes of an image with a checked header, and the pixels to decode."""
        try:
            data = read_bytes(value)
        except ValueError as error:
            raise RowError(str(error)) from error
        with _as_row_error('; send its bytes as {"b64": "…"}' if isinstance(value, str) else ""):
            num_pixels = count_pixels(data, max_megapixels=self.max_megapixels)
        return data, num_pixels * max(1, data.count(_START_OF_SCAN) // _USUAL_SCANS)

    def encoded(self, data: bytes) -> bytes:
        """An image from `header` in a form that TensorFlow decodes correctly."""
        with _as_row_error():
            return check_encoded(data, max_megapixels=self.max_megapixels)

    def resized(self, value: Any) -> np.ndarray:
        """Pixels uint8 [S, S, C] of nested lists [H, W, C] of integers 0-255."""
        pixels = _pixels(value, self.contract.channels)
        height, width, _ = pixels.shape
        if height * width > self.max_megapixels * 1e6:
            raise RowError(
                f"{width} × {height} px is more than {self.max_megapixels:g} megapixels", status=422
            )
        resize = resizer(self.contract.image_size, self.contract.resize, self.contract.channels)
        return _run(resize, tf.constant(pixels))

    def unchanged(self, value: Any) -> np.ndarray:
        """Pixels uint8 [S, S, C] of nested lists [S, S, C] of integers 0-255."""
        pixels = _pixels(value, self.contract.channels)
        expected = self.contract.input_shape
        if pixels.shape != expected:
            raise RowError(f"must have the shape {expected}, received {pixels.shape}")
        return pixels

    def class_index(self, value: Any) -> int:
        """The index of an output, such as a class; a negative one selects the highest output."""
        num_outputs = len(self.contract.class_names)
        if type(value) is not int or not _INT32.min <= value < num_outputs:
            raise RowError(f"class_index must be an integer below {num_outputs}, or -1")
        return value

    def decode(self, encoded: bytes) -> np.ndarray:
        """Pixels uint8 [S, S, C] of an image from `encoded`."""
        decode = decoder(**decoding_of(self.contract))
        return _run(decode, tf.constant(encoded))

    def decode_all(self, read: Sequence[Callable[[], Input]]) -> list[np.ndarray | Exception]:
        """Pixels uint8 [S, S, C] of the images that the calls return, or the error of each call.

        Encoded images are decoded in one call, which is much faster than one call each.
        """
        ready = [_attempt(call) for call in read]
        encoded = [image for image in ready if isinstance(image, bytes)]
        try:
            decode = batch_decoder(**decoding_of(self.contract))
            decoded = iter(decode(tf.constant(encoded)).numpy() if encoded else ())
        except tf.errors.InvalidArgumentError:
            decoded = iter([_attempt(functools.partial(self.decode, x)) for x in encoded])
        return [next(decoded) if isinstance(x, bytes) else x for x in ready]


@contextlib.contextmanager
def _as_row_error(hint: str = "") -> Iterator[None]:
    try:
        yield
    except TooLargeError as error:
        raise RowError(str(error), status=422) from error
    except UnreadableError as error:
        raise RowError(f"{error}{hint}") from error


def _attempt(call: Callable[[], Result]) -> Result | Exception:
    """The result or the error of a call: one invalid image must not fail its whole batch."""
    try:
        return call()
    except Exception as error:
        return error


def _run(function: Callable[[tf.Tensor], tf.Tensor], argument: tf.Tensor) -> np.ndarray:
    try:
        pixels: np.ndarray = function(argument).numpy()
    except tf.errors.InvalidArgumentError as error:
        raise RowError(refusal(error)) from error
    return pixels


def _pixels(value: Any, channels: int) -> np.ndarray:
    """Nested lists [H, W, C] as uint8; floats are refused, since their range is unknown."""
    expected = f"must be nested lists [height, width, {channels}] of integers 0-255"
    try:
        pixels = np.array(value)
    except (ValueError, TypeError, OverflowError) as error:
        raise RowError(f"{expected}, received lists of unequal lengths") from error
    if pixels.ndim != 3 or pixels.shape[2] != channels or pixels.size == 0:
        raise RowError(f"{expected}, received the shape {pixels.shape}")
    # NumPy would convert true and false to 1 and 0.
    chain = itertools.chain.from_iterable
    kinds = set().union(*(map(type, chain(row)) for row in value))
    if kinds != {int} or pixels.dtype.kind != "i" or pixels.min() < 0 or pixels.max() > 255:
        raise RowError(f"{expected}, received other numbers or values")
    return pixels.astype(np.uint8)
