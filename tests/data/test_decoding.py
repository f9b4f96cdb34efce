"""The network sees what a person sees: upright, without transparency, and whole images only."""

import contextlib
import io
import struct
import time
import zlib
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image, ImageOps

from keras_transfer.data.images import (
    UnreadableError,
    count_pixels,
    decoder,
    load_encoded,
    read_encoded,
    refusal,
)
from keras_transfer.data.reading import DecodedImage, read_pixels

RNG = np.random.default_rng(0)
COLOURS = RNG.integers(0, 256, (7, 10, 4), dtype=np.uint8).repeat(5, 0).repeat(5, 1)[:, :-3]
RGB = Image.fromarray(COLOURS[..., :3])
RGBA = Image.fromarray(COLOURS)
PHOTO = RGB.resize((141, 93), Image.Resampling.BICUBIC)
SQUARE = {"image_size": 24, "max_megapixels": 1.0}


def encoded(image: Image.Image, kind: str, **options) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def squares(data: bytes, *, resize: str = "crop", **fields) -> np.ndarray:
    """As an exported model decodes the bytes."""
    return decoder(**SQUARE, resize=resize, **fields)(tf.constant(data)).numpy()


def audited(data: bytes, folder: Path, **fields):
    file = folder / "file"
    file.write_bytes(data)
    (result,) = read_pixels([file], **SQUARE, resize="crop", **fields)
    return result


def reason(data: bytes) -> str:
    with pytest.raises(tf.errors.InvalidArgumentError) as raised:
        squares(data)
    return refusal(raised.value)


def exif(orientation: int, order: str = "<", *, kind: int = 3, before: int = 1) -> bytes:
    """An EXIF block whose orientation follows `before` other entries."""
    entries = [struct.pack(f"{order}HHII", 0x0100, 4, 1, 7)] * before
    entries.append(struct.pack(f"{order}HHIHH", 0x0112, kind, 1, orientation, 0))
    head = (b"MM" if order == ">" else b"II") + struct.pack(f"{order}HI", 42, 8)
    table = struct.pack(f"{order}H", len(entries)) + b"".join(entries)
    return b"Exif\0\0" + head + table + bytes(4)


@pytest.mark.parametrize("order", ["<", ">"], ids=["little_endian", "big_endian"])
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("resize", ["crop", "pad", "squash"])
def test_all_eight_orientations_are_turned_upright(kind, order, resize, tmp_path):
    for orientation in range(1, 9):
        block = exif(orientation, order)
        options = {"quality": 95, "subsampling": 0} if kind == "JPEG" else {"lossless": True}
        data = encoded(RGB, kind, exif=block, **options)
        with Image.open(io.BytesIO(data)) as image:
            upright = encoded(ImageOps.exif_transpose(image), "PNG")
        difference = squares(data, resize=resize).astype(int) - squares(upright, resize=resize)
        # TensorFlow's inverse cosine transform is the fast, slightly less accurate one.
        assert np.abs(difference).max() <= (16 if kind == "JPEG" else 1), orientation
        assert np.abs(difference).mean() <= 3
        (tmp_path / "file").write_bytes(data)
        found = read_encoded(tmp_path / "file", max_megapixels=1)
        assert found.is_rotated == (orientation > 1)
        assert not found.converted_from


@pytest.mark.parametrize(
    "block",
    [
        exif(0),
        exif(9),
        exif(6, kind=4),
        exif(6)[:22],
        exif(6)[:8],
        b"Exif\0\0MM\0\x2a\x7f\xff\xff\xff",
        b"Exif\0\0II\x2a\0\x08\0\0\0\xff\xff" + bytes(20),
    ],
    ids=["zero", "nine", "long", "cut", "empty", "table_outside", "endless_table"],
)
def test_a_wrong_orientation_leaves_the_image_as_it_is(block, tmp_path):
    plain = squares(encoded(PHOTO, "JPEG"))
    data = encoded(PHOTO, "JPEG", exif=block)
    np.testing.assert_array_equal(squares(data), plain)
    result = audited(data, tmp_path)
    assert isinstance(result, DecodedImage)
    assert not result.encoded.is_rotated


def test_the_orientation_is_found_behind_other_segments():
    data = encoded(PHOTO, "JPEG", exif=exif(6, before=30))
    comment = b"\xff\xfe" + struct.pack(">H", 1002) + bytes(1000)
    moved = data[:2] + comment + b"\xff\xff" + data[3:]
    np.testing.assert_array_equal(squares(moved), squares(data))
    assert (squares(data) != squares(encoded(PHOTO, "JPEG"))).any()


TRANSPARENT = {
    "rgba.png": (RGBA, "PNG", {}),
    "grey_alpha.png": (RGBA.convert("LA"), "PNG", {}),
    "palette.png": (RGB.quantize(16), "PNG", {"transparency": 3}),
    "clear_colour.png": (RGB, "PNG", {"transparency": RGB.getpixel((0, 0))}),
    "lossless.webp": (RGBA, "WEBP", {"lossless": True, "exact": True}),
    "lossy.webp": (RGBA, "WEBP", {}),
    "palette.gif": (RGB.quantize(16), "GIF", {"transparency": 3}),
    "animated.webp": (
        RGBA,
        "WEBP",
        {"save_all": True, "append_images": [RGBA.rotate(180)], "lossless": True},
    ),
}


@pytest.mark.parametrize("background", ["white", "grey", "black"])
@pytest.mark.parametrize("name", TRANSPARENT)
def test_transparency_shows_the_background(name, background, tmp_path):
    image, kind, options = TRANSPARENT[name]
    data = encoded(image, kind, **options)
    with Image.open(io.BytesIO(data)) as opened:
        layer = opened.convert("RGBA")
    colour = "#808080" if background == "grey" else background
    composed = Image.alpha_composite(Image.new("RGBA", layer.size, colour), layer).convert("RGB")
    result = audited(data, tmp_path, background=background)
    difference = result.pixels.astype(int) - squares(encoded(composed, "PNG"))
    assert np.abs(difference).max() <= 1
    assert result.encoded.has_alpha


def test_content_in_the_alpha_channel_alone_is_seen():
    shape = np.zeros((40, 40, 4), np.uint8)
    shape[10:30, 10:30, 3] = 255
    seen = squares(encoded(Image.fromarray(shape), "PNG"))
    assert (seen[0, 0], seen[12, 12]) == (pytest.approx(255), pytest.approx(0))


@pytest.mark.parametrize("bits", [8, 10, 12, 14, 16])
def test_the_highest_8_of_the_bits_in_use_are_kept(bits):
    values = RNG.integers(0, 2**bits, (24, 24), dtype=np.uint16)
    kept = squares(encoded(Image.fromarray(values), "PNG"), bit_depth=bits)
    np.testing.assert_array_equal(kept, np.stack([values >> (bits - 8)] * 3, -1))
    too_bright = encoded(Image.fromarray(values | 0xF000), "PNG")
    assert (squares(too_bright, bit_depth=bits) >= (values >> 8)[..., np.newaxis]).all()
    plain = encoded(PHOTO, "PNG")
    np.testing.assert_array_equal(squares(plain, bit_depth=bits), squares(plain))


JPEGS = {
    "colour": (PHOTO, {}),
    "grey": (PHOTO.convert("L"), {}),
    "cmyk": (PHOTO.convert("CMYK"), {}),
    "full_chroma": (PHOTO, {"subsampling": 0}),
    "restarts": (PHOTO, {"restart_marker_rows": 1}),
    "progressive": (PHOTO, {"progressive": True}),
}


@pytest.mark.parametrize("name", JPEGS)
@pytest.mark.parametrize("share", [0.5, 0.7, 0.9])
def test_a_jpeg_that_ends_early_is_refused_with_an_end_marker_too(name, share, tmp_path):
    image, options = JPEGS[name]
    whole = encoded(image, "JPEG", quality=90, **options)
    assert isinstance(audited(whole, tmp_path), DecodedImage)
    start = whole.index(b"\xff\xda")
    cut = whole[: start + int(share * (len(whole) - start))]
    assert reason(cut + b"\xff\xd9") == "the image data end too early"
    assert audited(cut + b"\xff\xd9", tmp_path).reason == "the image data end too early"
    assert "early" in reason(cut + b"\xff\xd9" + whole)
    assert reason(cut) == "truncated or damaged"


@pytest.mark.parametrize("name", JPEGS)
@pytest.mark.parametrize("factor", [3, 60])
def test_a_jpeg_that_claims_a_larger_size_is_refused(name, factor):
    image, options = JPEGS[name]
    data = bytearray(encoded(image, "JPEG", **options))
    frame = data.index(b"\xff\xc2" if name == "progressive" else b"\xff\xc0")
    data[frame + 5 : frame + 9] = struct.pack(">HH", 93 * factor, 141 * factor)
    with pytest.raises(tf.errors.InvalidArgumentError, match="early"):
        decoder(image_size=24, resize="crop", max_megapixels=100.0)(tf.constant(bytes(data)))


@pytest.mark.parametrize("name", JPEGS)
def test_a_whole_jpeg_with_a_grey_end_or_other_data_behind_it_is_read(name):
    image, options = JPEGS[name]
    grey = Image.new("RGB", (141, 93), (128, 128, 128))
    grey.paste(PHOTO.crop((0, 0, 141, 40)))
    for shown in (grey, Image.new("RGB", (141, 93), (128, 128, 128)), PHOTO):
        data = encoded(shown.convert(image.mode), "JPEG", **options)
        np.testing.assert_array_equal(squares(data + b"more" + data), squares(data))


REFUSED = {
    "palette.bmp": (RGB.quantize(16), "BMP", {}, "BMP with a palette"),
    "grey.bmp": (RGB.convert("L"), "BMP", {}, "BMP with a palette"),
    "animated.gif": (
        RGB.quantize(16),
        "GIF",
        {"save_all": True, "append_images": [RGB.quantize(16).rotate(180)]},
        "animated GIF",
    ),
    "transparent.gif": (RGB.quantize(16), "GIF", {"transparency": 3}, "transparent GIF"),
    "animated.webp": (
        RGB,
        "WEBP",
        {"save_all": True, "append_images": [RGB.rotate(180)]},
        "animated WebP",
    ),
}


@pytest.mark.parametrize("place", [(5, 0), (0, 5), (0, 0)])
def test_a_gif_that_its_frame_does_not_fill_is_converted(place, tmp_path):
    data = bytearray(_gif(size=(150, 100)))
    frame = data.index(b"\x2c\0\0\0\0")
    data[frame + 1 : frame + 5] = struct.pack("<HH", *place)
    assert "a frame smaller than itself" in reason(bytes(data))
    result = audited(bytes(data), tmp_path)
    assert isinstance(result, DecodedImage)
    assert result.encoded.converted_from == "GIF"
    converted = load_encoded(tmp_path / "file", max_megapixels=1)
    np.testing.assert_array_equal(result.pixels, squares(converted))
    left, top = place
    with Image.open(io.BytesIO(converted)) as shown:
        part = shown.convert("RGB").crop((left, top, left + 141, top + 93))
    assert shown.size == (150, 100)
    np.testing.assert_array_equal(np.asarray(part), np.asarray(PHOTO.quantize(16).convert("RGB")))


@pytest.mark.parametrize("name", REFUSED)
def test_what_exports_refuse_is_refused_with_its_reason_and_converted_by_the_audit(name, tmp_path):
    image, kind, options, words = REFUSED[name]
    data = encoded(image, kind, **options)
    assert words in reason(data)
    result = audited(data, tmp_path)
    assert isinstance(result, DecodedImage)
    assert result.encoded.converted_from == kind
    converted = load_encoded(tmp_path / "file", max_megapixels=1)
    np.testing.assert_array_equal(result.pixels, squares(converted))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "BMP", "WEBP"])
@pytest.mark.parametrize("lossless", [False, True])
def test_the_size_limit_is_that_of_the_audit(kind, lossless, tmp_path):
    image = PHOTO.quantize(16) if kind == "GIF" else PHOTO
    data = encoded(image, kind, lossless=lossless)
    for limit, is_read in ((141 * 93 / 1e6, True), (141 * 93 / 1e6 - 1e-6, False)):
        fields = {"image_size": 24, "resize": "crop", "max_megapixels": limit}
        (tmp_path / "file").write_bytes(data)
        (result,) = read_pixels([tmp_path / "file"], **fields)
        assert isinstance(result, DecodedImage) == is_read
        if not is_read:
            with pytest.raises(tf.errors.InvalidArgumentError, match="megapixels"):
                decoder(**fields)(tf.constant(data))


def _gif(*, size: tuple[int, int] | None = None, blocks: bytes = b"") -> bytes:
    """A GIF whose header states another size, and with blocks before its frame."""
    data = encoded(PHOTO.quantize(16), "GIF")
    frame = data.index(b"\x2c\0\0\0\0")
    data = data[:frame] + blocks + data[frame:]
    return data[:6] + struct.pack("<HH", *size) + data[10:] if size else data


def _png(chunks: bytes) -> bytes:
    data = encoded(PHOTO, "PNG")
    return data[:33] + chunks + data[33:]


EMPTY_CHUNK = struct.pack(">I4sI", 0, b"prVt", zlib.crc32(b"prVt"))
JPEG = encoded(PHOTO, "JPEG")
PARTS = {
    "fill_bytes.jpg": JPEG[:2] + b"\xff" * 100_000 + JPEG[2:],
    "comments.jpg": JPEG[:2] + b"\xff\xfe\0\2" * 50_000 + JPEG[2:],
    "chunks.png": _png(EMPTY_CHUNK * 50_000),
    "chunks.webp": encoded(RGBA, "WEBP", lossless=True) + b"JUNK\0\0\0\0" * 50_000,
    "comments.gif": _gif(blocks=b"\x21\xfe\1a\0" * 50_000),
    "blocks.gif": _gif(blocks=b"\x21\xfe" + b"\1a" * 100_000 + b"\0"),
}


@pytest.mark.parametrize("name", PARTS)
def test_files_with_too_many_parts_are_refused_quickly(name, tmp_path):
    squares(JPEG)  # Traced before the time is taken.
    start = time.perf_counter()
    assert reason(PARTS[name]) == "too many segments, chunks or blocks"
    assert audited(PARTS[name], tmp_path).reason == "too many segments, chunks or blocks"
    with contextlib.suppress(UnreadableError):
        count_pixels(PARTS[name], max_megapixels=1)
    assert time.perf_counter() - start < 5


def test_many_parts_are_read_where_the_file_is_as_large(tmp_path):
    noise = Image.fromarray(RNG.integers(0, 256, (500, 500, 3), dtype=np.uint8))
    whole = JPEG[:2] + b"".join(b"\xff\xed\xff\xff" + bytes(65533) for _ in range(255)) + JPEG[2:]
    for data in (encoded(noise.quantize(256), "GIF"), encoded(noise, "PNG"), whole):
        assert isinstance(audited(data, tmp_path), DecodedImage)


@pytest.mark.parametrize("size", [(1, 1), (10, 1000)])
def test_the_pixels_of_a_gif_are_those_of_its_frame(size, tmp_path):
    data = bytearray(encoded(Image.new("P", (1100, 1000)), "GIF"))
    data[6:10] = struct.pack("<HH", *size)
    assert reason(bytes(data)) == "more than 1 megapixels"
    assert "more than 1 megapixels" in audited(bytes(data), tmp_path).reason
