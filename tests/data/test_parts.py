"""The parts of image files, counted as the graph of exported models counts them."""

import io
import random
import struct
import zlib

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from keras_transfer.data.images import decoder, refusal, sniff
from keras_transfer.data.parts import has_too_many_parts, most_parts

REASON = "too many segments, chunks or blocks"
PHOTO = Image.fromarray(np.random.default_rng(0).integers(0, 256, (30, 40, 3), dtype=np.uint8))


def encoded(kind: str) -> bytes:
    buffer = io.BytesIO()
    image = PHOTO.quantize(16) if kind == "GIF" else PHOTO
    image.save(buffer, kind, **({"lossless": True} if kind == "WEBP" else {}))
    return buffer.getvalue()


FILL = {
    "JPEG": (2, b"\xff"),
    "PNG": (33, struct.pack(">I4sI", 0, b"prVt", zlib.crc32(b"prVt"))),
    "WEBP": (None, b"JUNK\0\0\0\0"),
    "GIF": (13 + 3 * 16, b"\x21\xfe\1a\0"),
}
"""Where parts can be put into a file, and a short one, which in a GIF has a block."""


def filled(kind: str, num_parts: int) -> bytes:
    data, (position, part) = encoded(kind), FILL[kind]
    position = len(data) if position is None else position
    return data[:position] + part * num_parts + data[position:]


def refusal_of_the_graph(data: bytes) -> str:
    """Why the graph refuses a file; '' if it does not."""
    decode = decoder(image_size=8, resize="crop", max_megapixels=1.0)
    try:
        decode(tf.constant(data))
    except tf.errors.InvalidArgumentError as error:
        return refusal(error)
    return ""


@pytest.mark.parametrize("kind", FILL)
def test_the_graph_refuses_at_the_same_number_of_parts(kind):
    suffix = sniff(encoded(kind)[:12])
    numbers = range(90, 260)
    refused = [number for number in numbers if has_too_many_parts(filled(kind, number), suffix)]
    first = refused[0]
    assert refused == list(range(first, numbers[-1] + 1))
    assert first > 90
    assert refusal_of_the_graph(filled(kind, first - 1)) == ""
    assert refusal_of_the_graph(filled(kind, first)) == REASON


@pytest.mark.parametrize("kind", FILL)
def test_damaged_files_are_counted_as_in_the_graph(kind):
    draw = random.Random(kind)
    seen = set()
    for number in (0, 185, 195, 200, 300):
        for _ in range(12):
            data = bytearray(filled(kind, number))
            for _ in range(draw.randrange(4)):
                data[draw.randrange(12, min(len(data), 400))] = draw.randrange(256)
            data = bytes(data[: draw.choice([len(data), draw.randrange(12, len(data))])])
            is_counted = has_too_many_parts(data, sniff(data[:12]))
            found = refusal_of_the_graph(data)
            assert found if is_counted else found != REASON  # It may find another reason first.
            seen.add(is_counted)
    assert seen == {False, True}


def test_more_bytes_allow_more_parts():
    assert most_parts(0) == most_parts(1023) == 200
    assert most_parts(10_240) == 210
    assert most_parts(10_240, is_gif=True) == 360
    assert not has_too_many_parts(b"BM" + bytes(100), ".bmp")
