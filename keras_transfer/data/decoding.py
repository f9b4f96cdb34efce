"""Decoding of image files as TensorFlow graph code, the same in training and in exported models.

What TensorFlow's decoders leave to their caller is read from the bytes: EXIF orientation,
transparency, files that they would decode wrongly, and JPEG data that end too early.

`content` is uint8 [N + 64], the bytes of a file and zeros: numbers past its end are read as 0.
Positions and numbers are int64 scalars; the position of an EXIF block is -1 where there is none.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

import numpy as np
import tensorflow as tf

from keras_transfer.data.array_files import HEADER, MAGIC, PREFIX_BYTES
from keras_transfer.data.parts import most_parts
from keras_transfer.specs import COLOURS

BACKGROUNDS: Final = {"white": 255, "grey": 128, "black": 0}
"""Grey levels by the values of `data.background`."""

_PADDING: Final = 64
_PIXELS_PER_BYTE: Final = 512
"""The most that a JPEG file can have: a block of 8 x 8 pixels takes at least one bit."""

_NOISE: Final = bytes((37 * number + 11) % 251 for number in range(64))
_PROBE: Final = _NOISE + b"".join(bytes((0xFF, 0xD0 + number)) + _NOISE for number in range(8))
"""Bytes that a JPEG decoder skips after complete data, and else decodes: with each of the markers
that restart decoding."""

_FILLED: Final = (128, 64, 63)
"""Grey levels of blocks that a JPEG decoder has no data for, in RGB and in CMYK."""

_ENDS_EARLY: Final = "the image data end too early"
TOO_MANY_PARTS: Final = "too many segments, chunks or blocks"
MOST_TAGS: Final = 200
"""EXIF tags that are read: they are sorted, and few have a lower number than the orientation."""
_ORIENTATION_TAG: Final = 0x0112
_SHORT: Final = 3

_MOST_HEADER: Final = 256
"""Bytes of the longest header of an array that is read; NumPy writes one of 118."""

Read = tuple[tf.Tensor, tf.Tensor]
"""Pixels uint8 [H, W, C] as they are stored, and the position of the EXIF block."""


class _File(NamedTuple):
    """The bytes of a file, and the other arguments of `decode`."""

    encoded: tf.Tensor
    content: tf.Tensor
    max_megapixels: float
    background: str
    bit_depth: int
    channels: int


def decode(
    encoded: tf.Tensor, *, max_megapixels: float, background: str, bit_depth: int, channels: int = 3
) -> tuple[tf.Tensor, tf.Tensor]:
    """Decode one image.

    Args:
        encoded: scalar string, the bytes of a JPEG, a PNG, a still and opaque GIF, a BMP of 24 or
            32 bits, a still WebP, or a .npy file.
        max_megapixels: larger images are refused before they are decoded.
        background: what is shown where an image is transparent, a key of `BACKGROUNDS`.
        bit_depth: 8-16, bits of 16-bit PNG and .npy files that are used; the highest 8 of them are
            kept.
        channels: values of each pixel in a .npy file. Files of other kinds are for 1 and 3 only.

    Returns:
        The pixels as they are stored, uint8 [H, W, C], and their EXIF orientation, int64 1-8. C is
        `channels`, but 3, RGB, for `channels` of 1: a grey image has the same value three times.

    Raises:
        tf.errors.InvalidArgumentError: the bytes are not such an image, or damaged.
    """
    return _traced(max_megapixels, background, bit_depth, channels)(encoded)


@functools.cache
def _traced(
    max_megapixels: float, background: str, bit_depth: int, channels: int
) -> tf.types.experimental.PolymorphicFunction:
    """`decode` as a function that is traced once, which takes longer than most other graphs."""

    @tf.function(input_signature=[tf.TensorSpec([], tf.string)], autograph=False)
    def read(encoded: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        raw = tf.io.decode_raw(encoded, tf.uint8)
        content = tf.concat([raw, tf.zeros([_PADDING], tf.uint8)], axis=0)
        return _read(_File(encoded, content, max_megapixels, background, bit_depth, channels))

    return read


def _read(file: _File) -> tuple[tf.Tensor, tf.Tensor]:
    """What `decode` returns, of a file of any kind."""
    content = file.content
    if file.channels not in (1, COLOURS):
        pixels, _ = _read_array(file)
        return tf.ensure_shape(pixels, [None, None, file.channels]), _int(1)
    readers = [
        (_starts(content, [MAGIC]), functools.partial(_read_array, file)),
        (_starts(content, [b"\xff\xd8\xff"]), functools.partial(_read_jpeg, file)),
        (_starts(content, [b"\x89PNG\r\n\x1a\n"]), functools.partial(_read_png, file)),
        (_starts(content, [b"GIF87a", b"GIF89a"]), functools.partial(_read_gif, file)),
        (_starts(content, [b"RIFF"]), functools.partial(_read_webp, file)),
    ]
    pixels, exif = tf.case(readers, default=functools.partial(_read_bmp, file))
    orientation = tf.cond(exif >= 0, lambda: _orientation(content, exif), lambda: _int(1))
    return tf.ensure_shape(pixels, [None, None, COLOURS]), orientation


def _read_jpeg(file: _File) -> Read:
    content = file.content
    shape = tf.cast(tf.io.extract_jpeg_shape(file.encoded), tf.int64)
    num_pixels, channels = shape[0] * shape[1], shape[2]
    too_short = num_pixels > tf.size(content, tf.int64) * _PIXELS_PER_BYTE
    encoded = _checked(file, num_pixels, (too_short, _ENDS_EARLY))
    scan, exif = _walk_jpeg(content)
    pixels = _decode(encoded, channels=3)
    # A file with one scan for everything has grey blocks where its data end. Progressive files
    # have several scans: less is known of the whole image.
    (in_scan,) = _numbers(content, scan, (4, 1))
    (last_coefficient,) = _numbers(content, scan + 2 * in_scan, (6, 1))
    is_single = (in_scan == channels) & (last_coefficient == 63)
    last = tf.cast(pixels[-1, -1], tf.int32)
    is_filled = tf.reduce_any(tf.reduce_all(last == np.array(_FILLED)[:, np.newaxis], axis=1))
    is_complete = tf.cond(
        is_single & ~is_filled,
        lambda: tf.constant(True),
        lambda: _is_complete(encoded, content, scan, pixels),
    )
    with tf.control_dependencies([_refuse(~is_complete, _ENDS_EARLY)]):
        return tf.identity(pixels), exif


def _is_complete(
    encoded: tf.Tensor, content: tf.Tensor, scan: tf.Tensor, pixels: tf.Tensor
) -> tf.Tensor:
    """Whether more data before the end marker would leave the pixels of a JPEG as they are."""
    is_end = (content[scan:-1] == 0xFF) & (content[scan + 1 :] == 0xD9)
    end = scan + tf.argmax(tf.cast(is_end, tf.uint8))
    start = tf.strings.substr(encoded, 0, tf.cast(end, tf.int32))
    probed = _decode(tf.strings.join([start, _PROBE, b"\xff\xd9"]), channels=3)
    return tf.reduce_all(probed == pixels)


def _walk_jpeg(content: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Positions of the first scan, or of what is not a segment, and of the first EXIF block."""
    fields = (0, 1), (1, 1), (2, 2), (4, 4)

    def goes_on(_: tf.Tensor, __: tf.Tensor, prefix: tf.Tensor, marker: tf.Tensor) -> tf.Tensor:
        return (prefix == 0xFF) & (marker != 0xDA)

    def step(
        position: tf.Tensor, exif: tf.Tensor, _: tf.Tensor, marker: tf.Tensor
    ) -> tuple[tf.Tensor, ...]:
        *_, length, name = _numbers(content, position, *fields)
        is_exif = (marker == 0xE1) & (name == int.from_bytes(b"Exif", "big")) & (exif < 0)
        exif = tf.where(is_exif, position + 10, exif)
        # Any number of 0xFF may precede a marker.
        position += tf.where(marker == 0xFF, _int(1), 2 + length)
        return position, exif, *_numbers(content, position, *fields[:2])

    start = _int(2), _int(-1), *_numbers(content, 2, *fields[:2])
    scan, exif, *_ = _walk(content, goes_on, step, start)
    return scan, exif


def _walk(
    content: tf.Tensor,
    goes_on: Callable[..., tf.Tensor],
    step: Callable[..., tuple[tf.Tensor, ...]],
    start: tuple[tf.Tensor, ...],
) -> list[tf.Tensor]:
    """The values after the last step over the parts of a file, if there are not too many."""
    most_steps = most_parts(tf.size(content) - _PADDING)
    values = tf.while_loop(goes_on, step, start, maximum_iterations=most_steps)
    with tf.control_dependencies([_refuse(goes_on(*values), TOO_MANY_PARTS)]):
        return [tf.identity(value) for value in values]


def _read_png(file: _File) -> Read:
    width, height, depth, colours = _numbers(file.content, 0, (16, 4), (20, 4), (24, 1), (25, 1))
    encoded = _checked(file, width * height)
    # Colour types 4 and 6 have an alpha channel; of the others a chunk may name clear colours.
    has_alpha = (colours >= 4) | (_find_chunk(file.content, 8, b"tRNS") >= 0)
    pixels = tf.cond(
        has_alpha,
        lambda: _opaque(_decode_png(encoded, depth, file.bit_depth, channels=4), file.background),
        lambda: _decode_png(encoded, depth, file.bit_depth, channels=3),
    )
    return pixels, _find_chunk(file.content, 8, b"eXIf")


def _decode_png(
    encoded: tf.Tensor, depth: tf.Tensor, bit_depth: int, *, channels: int
) -> tf.Tensor:
    """uint8 [H, W, channels]; the colours of a file with 16 bits use `bit_depth` of them."""
    if bit_depth == 16:
        return _decode(encoded, channels=channels)

    def decode_deep() -> tf.Tensor:
        values = tf.cast(tf.io.decode_png(encoded, channels=channels, dtype=tf.uint16), tf.int32)
        # Alpha always uses all bits.
        shifts = tf.constant([*[bit_depth - 8] * 3, 8][:channels])
        return tf.cast(tf.minimum(tf.bitwise.right_shift(values, shifts), 255), tf.uint8)

    return tf.cond(depth == 16, decode_deep, lambda: _decode(encoded, channels=channels))


def _read_webp(file: _File) -> Read:
    content = file.content
    (kind,) = _numbers(content, 0, (12, 4))
    is_extended = kind == int.from_bytes(b"VP8X", "big")
    is_lossless = kind == int.from_bytes(b"VP8L", "big")
    flags, packed, *sides = _numbers(
        content, 0, (20, 1), (21, 4), (24, 3), (27, 3), (26, 2), (28, 2), is_big=False
    )
    # Widths and heights are stored less one, except in lossy files.
    extended, lossy = (sides[0] + 1) * (sides[1] + 1), sides[2] % 2**14 * (sides[3] % 2**14)
    lossless = (packed % 2**14 + 1) * (packed // 2**14 % 2**14 + 1)
    num_pixels = tf.where(is_extended, extended, tf.where(is_lossless, lossless, lossy))
    encoded = _checked(file, num_pixels, (is_extended & _has_bit(flags, 1), "animated WebP"))
    has_alpha = (is_extended & _has_bit(flags, 4)) | (is_lossless & _has_bit(packed, 28))
    pixels = tf.cond(
        has_alpha,
        lambda: _opaque(_decode(encoded, channels=4), file.background),
        lambda: _decode(encoded, channels=3),
    )
    exif = _find_chunk(content, 12, b"EXIF", is_riff=True)
    (name,) = _numbers(content, tf.maximum(exif, 0), (0, 4))
    # Some programs copy the name that JPEG files have before the block.
    return pixels, exif + tf.where(name == int.from_bytes(b"Exif", "big"), _int(6), _int(0))


def _read_gif(file: _File) -> Read:
    width, height = _numbers(file.content, 0, (6, 2), (8, 2), is_big=False)
    num_frames, is_transparent, left, top, right, bottom, num_left = _walk_gif(file.content)
    is_part = (left > 0) | (top > 0) | (right < width) | (bottom < height)
    encoded = _checked(
        file,
        tf.maximum(width, right) * tf.maximum(height, bottom),
        (num_left <= 0, TOO_MANY_PARTS),
        (num_frames > 1, "animated GIF"),
        (is_transparent, "transparent GIF"),
        # What decoders show around it differs.
        (is_part, "GIF with a frame smaller than itself"),
    )
    return _decode(encoded, channels=3), _int(-1)


def _walk_gif(content: tf.Tensor) -> list[tf.Tensor]:
    """What is in a GIF, up to its second frame.

    Returns:
        The number of frames, 2 for more than one; whether the first has a transparent colour; the
        left, upper, right and lower edge of the first; and how many more parts would have been
        walked over.
    """

    def table_bytes(flags: tf.Tensor) -> tf.Tensor:
        return tf.where(_has_bit(flags, 7), 3 * 2 ** (flags % 8 + 1), _int(0))

    def goes_on(position: tf.Tensor, frames: tf.Tensor, *others: tf.Tensor) -> tf.Tensor:
        (kind,) = _numbers(content, position, (0, 1))
        return (frames < 2) & (others[-1] > 0) & ((kind == 0x21) | (kind == 0x2C))

    def step(
        position: tf.Tensor,
        frames: tf.Tensor,
        seen: tf.Tensor,
        *others: tf.Tensor,
    ) -> tuple[tf.Tensor, ...]:
        kind, label, control, flags = _numbers(content, position, (0, 1), (0, 2), (3, 1), (9, 1))
        place = _numbers(content, position, (1, 2), (3, 2), (5, 2), (7, 2), is_big=False)
        is_frame = kind == 0x2C
        seen |= (label == 0x21F9) & _has_bit(control, 0) & (frames == 0)
        is_first = is_frame & (frames == 0)
        *edges, num_left = others
        found = [*place[:2], place[0] + place[2], place[1] + place[3]]
        edges = [tf.where(is_first, *values) for values in zip(found, edges, strict=True)]
        position += tf.where(is_frame, 11 + table_bytes(flags), _int(2))
        position, num_left = _skip_gif_data(content, position, num_left - 1)
        return position, frames + tf.cast(is_frame, tf.int64), seen, *edges, num_left

    (flags,) = _numbers(content, 0, (10, 1))
    most_steps = most_parts(tf.size(content, tf.int64) - _PADDING, is_gif=True)
    edges = [_int(0)] * 4
    first = 13 + table_bytes(flags), _int(0), tf.constant(False), *edges, most_steps + 1
    _, *found = tf.while_loop(goes_on, step, first)
    return found


def _skip_gif_data(
    content: tf.Tensor, position: tf.Tensor, num_left: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor]:
    """The end of data in blocks that are preceded by their length, the last of which is empty.

    At most `num_left` blocks are skipped; the second value is how many of them are left.
    """

    def goes_on(_: tf.Tensor, length: tf.Tensor, num_left: tf.Tensor) -> tf.Tensor:
        return (length > 0) & (num_left > 0)

    def step(position: tf.Tensor, length: tf.Tensor, num_left: tf.Tensor) -> tuple[tf.Tensor, ...]:
        position += length + 1
        return position, *_numbers(content, position, (0, 1)), num_left - 1

    start = position, *_numbers(content, position, (0, 1)), num_left
    position, _, num_left = tf.while_loop(goes_on, step, start)
    return position + 1, num_left


def _read_bmp(file: _File) -> Read:
    head, width, height, bits, compression = _numbers(
        file.content, 0, (14, 4), (18, 4), (22, 4), (28, 2), (30, 4), is_big=False
    )
    # A negative height means that the rows are stored from the top.
    height = tf.where(height < 2**31, height, 2**32 - height)
    is_plain = (head >= 40) & ((bits == 24) | (bits == 32)) & (compression == 0)
    encoded = _checked(
        file,
        width * height,
        (~_starts(file.content, [b"BM"]), "not an image"),
        (~is_plain, "BMP with a palette, 16 bits, compression or an old header"),
    )
    return _decode(encoded, channels=3), _int(-1)


def _read_array(file: _File) -> Read:
    """A .npy file: uint8 or uint16 [H, W, C], where C is `file.channels`; of one also [H, W]."""
    (size,) = _numbers(file.content, 0, (8, 2), is_big=False)
    is_array, is_deep, height, width, last = _array_header(file, size)
    start = PREFIX_BYTES + size
    num_values = height * width * file.channels
    found = tf.size(file.content, tf.int64) - _PADDING - start
    fits = (last == file.channels) | ((last == 0) & (file.channels == 1))
    shape = " × ".join(["height", "width", *([str(file.channels)] if file.channels > 1 else [])])
    encoded = _checked(
        file,
        height * width,
        (~is_array | ~fits, f"not a .npy file of uint8 or uint16, {shape}, in C order"),
        (found != num_values * tf.where(is_deep, _int(2), _int(1)), "too few or too many values"),
        (num_values == 0, "no pixels"),
    )
    values = tf.strings.substr(encoded, tf.cast(start, tf.int32), -1)

    def decode_deep() -> tf.Tensor:
        deep = tf.cast(tf.io.decode_raw(values, tf.uint16, little_endian=True), tf.int32)
        return tf.cast(tf.minimum(deep // 2 ** (file.bit_depth - 8), 255), tf.uint8)

    pixels = tf.cond(is_deep, decode_deep, lambda: tf.io.decode_raw(values, tf.uint8))
    pixels = tf.reshape(pixels, tf.stack([height, width, file.channels]))
    return (tf.repeat(pixels, COLOURS, axis=2) if file.channels == 1 else pixels), _int(-1)


def _array_header(file: _File, size: tf.Tensor) -> Sequence[tf.Tensor]:
    """Whether there is a header as in `HEADER`, and 16 bits; height, width and channels, else 0."""
    start = tf.minimum(PREFIX_BYTES, tf.strings.length(file.encoded))
    text = tf.strings.substr(file.encoded, start, tf.cast(tf.minimum(size, _MOST_HEADER), tf.int32))
    is_array = _starts(file.content, [MAGIC]) & tf.strings.regex_full_match(text, HEADER)
    kind, *numbers = (
        tf.where(is_array, tf.strings.regex_replace(text, HEADER, rf"\{group}"), "")
        for group in (1, 2, 3, 4)
    )
    sides = [tf.strings.to_number(tf.strings.join(["0", one]), tf.int64) for one in numbers]
    return is_array, kind == "<u2", *sides


def _checked(file: _File, num_pixels: tf.Tensor, *refusals: tuple[tf.Tensor, str]) -> tf.Tensor:
    """The bytes of the file, unless one of the refusals holds or it is too large."""
    too_large = num_pixels > int(file.max_megapixels * 1e6)
    limit = f"more than {file.max_megapixels:g} megapixels"
    checks = [_refuse(condition, reason) for condition, reason in (*refusals, (too_large, limit))]
    with tf.control_dependencies(checks):
        return tf.identity(file.encoded)


def _refuse(condition: tf.Tensor, reason: str) -> tf.Operation:
    return tf.debugging.Assert(tf.logical_not(condition), [reason])


def _decode(encoded: tf.Tensor, *, channels: int) -> tf.Tensor:
    return tf.io.decode_image(encoded, channels=channels, expand_animations=False)


def _opaque(pixels: tf.Tensor, background: str) -> tf.Tensor:
    """uint8 [H, W, 3] of [H, W, 4] in front of the background."""
    colours, alpha = pixels[..., :3], pixels[..., 3:]

    def blended() -> tf.Tensor:
        share = tf.cast(alpha, tf.int32)
        sums = tf.cast(colours, tf.int32) * share + BACKGROUNDS[background] * (255 - share)
        return tf.cast((sums + 127) // 255, tf.uint8)

    return tf.cond(tf.reduce_all(alpha == 255), lambda: colours, blended)


def _find_chunk(content: tf.Tensor, start: int, name: bytes, *, is_riff: bool = False) -> tf.Tensor:
    """Position of the data of a chunk in a PNG or, as in WebP, a RIFF file; -1 if it has none."""
    sought, end = (
        int.from_bytes(name[::-1] if is_riff else name, "big"),
        tf.size(content, tf.int64) - _PADDING,
    )
    fields = ((4, 4), (0, 4)) if is_riff else ((0, 4), (4, 4))

    def is_other(position: tf.Tensor, _: tf.Tensor, found: tf.Tensor) -> tf.Tensor:
        return (position < end) & (found != sought)

    def step(position: tf.Tensor, length: tf.Tensor, _: tf.Tensor) -> tuple[tf.Tensor, ...]:
        # RIFF pads data to an even length; a PNG has a checksum after them.
        position += 8 + length + (length % 2 if is_riff else 4)
        return position, *_numbers(content, position, *fields, is_big=not is_riff)

    first = _int(start), *_numbers(content, start, *fields, is_big=not is_riff)
    position, _, found = _walk(content, is_other, step, first)
    return tf.where(found == sought, position + 8, _int(-1))


def _orientation(content: tf.Tensor, start: tf.Tensor) -> tf.Tensor:
    """EXIF orientation 1-8 in the TIFF header at `start`; 1 where it has none or a wrong one."""
    order, *_ = _numbers(content, start, (0, 2))
    numbers = functools.partial(_numbers, content, is_big=order == int.from_bytes(b"MM", "big"))
    table = start + numbers(start, (4, 4))[0]
    num_entries = tf.minimum(numbers(table, (0, 2))[0], MOST_TAGS)

    def is_other(entry: tf.Tensor, tag: tf.Tensor, _: tf.Tensor) -> tf.Tensor:
        return (entry < num_entries) & (tag != _ORIENTATION_TAG)

    def step(entry: tf.Tensor, _: tf.Tensor, __: tf.Tensor) -> tuple[tf.Tensor, ...]:
        tag, kind, value = numbers(table + 2 + 12 * (entry + 1), (0, 2), (2, 2), (8, 2))
        return entry + 1, tag, tf.where(kind == _SHORT, value, 1)

    _, tag, value = tf.while_loop(is_other, step, (_int(-1), _int(0), _int(1)))
    is_known = (tag == _ORIENTATION_TAG) & (value >= 1) & (value <= 8)
    return tf.where(is_known, value, 1)


def _numbers(
    content: tf.Tensor,
    start: tf.Tensor | int,
    *fields: tuple[int, int],
    is_big: bool | tf.Tensor = True,
) -> Sequence[tf.Tensor]:
    """The unsigned numbers in fields, each the distance from `start` and the number of bytes."""
    span = max(distance + size for distance, size in fields)
    big, little = np.zeros((2, span, len(fields)), np.int64)
    for column, (distance, size) in enumerate(fields):
        powers = 256 ** np.arange(size)
        little[distance : distance + size, column] = powers
        big[distance : distance + size, column] = powers[::-1]
    last = tf.size(content, tf.int64) - span
    window = tf.gather(content, tf.minimum(tf.cast(start, tf.int64), last) + np.arange(span))
    weights = tf.where(is_big, big, little) if tf.is_tensor(is_big) else big if is_big else little
    numbers: list[tf.Tensor] = tf.unstack(
        tf.reduce_sum(tf.cast(window, tf.int64)[:, tf.newaxis] * weights, axis=0)
    )
    return numbers


def _starts(content: tf.Tensor, magics: Sequence[bytes]) -> tf.Tensor:
    """Whether a file starts with one of some texts of the same length."""
    start = content[: len(magics[0])]
    return tf.reduce_any(tf.reduce_all(start == [list(magic) for magic in magics], axis=1))


def _has_bit(number: tf.Tensor, bit: int) -> tf.Tensor:
    return number // 2**bit % 2 == 1


def _int(value: int) -> tf.Tensor:
    return tf.constant(value, tf.int64)
