"""Reads, checks, decodes and resizes many files on several threads, in order."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Unpack

import numpy as np
import tensorflow as tf

from keras_transfer.data.file_kinds import irregularity
from keras_transfer.data.images import (
    Decoding,
    Encoded,
    UnreadableError,
    decoder,
    read_encoded,
    refusal,
)
from keras_transfer.data.records import BadFile

_NUM_THREADS = 4
_LOOK_AHEAD = 4 * _NUM_THREADS


@dataclass(frozen=True, slots=True, eq=False)
class DecodedImage:
    """A decoded file: `pixels` is uint8 [S, S, C]; `encoded` has the facts about the file."""

    file: Path
    pixels: np.ndarray
    encoded: Encoded

    @property
    def digest(self) -> str:
        """SHA-256 of the file's bytes, in hex."""
        return self.encoded.digest


@dataclass(frozen=True, slots=True, eq=False)
class Known:
    """A file that was read but not decoded, because its pixels are already known."""

    file: Path
    encoded: Encoded


_Waiting = Future[DecodedImage | BadFile] | Known | BadFile


def read_pixels(
    files: Iterable[Path], **decoding: Unpack[Decoding]
) -> Iterator[DecodedImage | BadFile]:
    """Read, check, decode and resize files, in their order, on several threads.

    A file that cannot be used is returned as a `BadFile`, without an error. The iterable is read
    only a few files ahead, so it may be endless.
    """
    for item in read_new_pixels(
        files,
        known=lambda digest: False,  # noqa: ARG005
        **decoding,
    ):
        assert not isinstance(item, Known)
        yield item


def read_new_pixels(
    files: Iterable[Path],
    *,
    known: Callable[[str], bool],
    **decoding: Unpack[Decoding],
) -> Iterator[DecodedImage | Known | BadFile]:
    """As `read_pixels`, but a file whose digest is `known` is read and checked, not decoded.

    `known` is called once per file, in the caller's thread and in the order of the files.
    """
    decode, max_megapixels = decoder(**decoding), decoding["max_megapixels"]
    pool = ThreadPoolExecutor(_NUM_THREADS, thread_name_prefix="read_pixels")

    def decode_new(read: Future[Encoded | BadFile], file: Path) -> _Waiting:
        encoded = read.result()
        if isinstance(encoded, BadFile):
            return encoded
        if known(encoded.digest):
            return Known(file, encoded)
        return pool.submit(_decode, file, encoded, decode)

    reading: deque[tuple[Future[Encoded | BadFile], Path]] = deque()
    waiting: deque[_Waiting] = deque()
    try:
        for file in files:
            reading.append((pool.submit(_read, file, max_megapixels), file))
            if len(reading) == _LOOK_AHEAD:
                waiting.append(decode_new(*reading.popleft()))
            if len(waiting) == _LOOK_AHEAD:
                yield _result(waiting.popleft())
        while reading:
            waiting.append(decode_new(*reading.popleft()))
        while waiting:
            yield _result(waiting.popleft())
    finally:
        pool.shutdown(cancel_futures=True)


def _result(waiting: _Waiting) -> DecodedImage | Known | BadFile:
    return waiting.result() if isinstance(waiting, Future) else waiting


def _read(file: Path, max_megapixels: float) -> Encoded | BadFile:
    # Opening a named pipe would wait for its writer.
    if reason := irregularity(file):
        return BadFile(file.as_posix(), reason)
    try:
        return read_encoded(file, max_megapixels=max_megapixels)
    except UnreadableError as error:
        return BadFile(file.as_posix(), str(error))


def _decode(
    file: Path, encoded: Encoded, decode: Callable[[tf.Tensor], tf.Tensor]
) -> DecodedImage | BadFile:
    try:
        return DecodedImage(file, decode(tf.constant(encoded.data)).numpy(), encoded)
    except tf.errors.InvalidArgumentError as error:
        return BadFile(file.as_posix(), refusal(error))
