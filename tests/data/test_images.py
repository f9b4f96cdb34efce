"""What an image file may be, and that it means the same wherever it is decoded."""

import io
import itertools
import struct
import time
import zlib
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from keras_transfer.data.decoding import decode
from keras_transfer.data.images import (
    EXTENSIONS,
    decode_and_resize,
    load_encoded,
    read_encoded,
    resize_pixels,
)
from keras_transfer.data.reading import DecodedImage, read_pixels
from keras_transfer.data.records import BadFile
from keras_transfer.errors import DataError

RNG = np.random.default_rng(0)
COLOURS = RNG.integers(0, 256, (6, 5, 4), dtype=np.uint8).repeat(4, 0).repeat(4, 1)
RGB = Image.fromarray(COLOURS[..., :3])
RGBA = Image.fromarray(COLOURS)
GREY = Image.fromarray(COLOURS[..., 0])
PALETTE = RGB.quantize(16)

LOSSLESS = {
    "rgb.png": (RGB, {}),
    "alpha.png": (RGBA, {}),
    "grey.png": (GREY, {}),
    "grey_alpha.png": (RGBA.convert("LA"), {}),
    "palette.png": (PALETTE, {}),
    "palette_transparent.png": (PALETTE, {"transparency": 3}),
    "black_and_white.png": (GREY.convert("1"), {}),
    "still.gif": (PALETTE, {}),
    "transparent.gif": (PALETTE, {"transparency": 3}),
    "animated.gif": (PALETTE, {"save_all": True, "append_images": [PALETTE.rotate(180)]}),
    "rgb.bmp": (RGB, {}),
    "alpha.bmp": (RGBA, {}),
    "palette.bmp": (PALETTE, {}),
    "grey.bmp": (GREY, {}),
    "black_and_white.bmp": (GREY.convert("1"), {}),
    "rgb.webp": (RGB, {"lossless": True}),
    "alpha.webp": (RGBA, {"lossless": True, "exact": True}),
    "animated.webp": (RGB, {"lossless": True, "save_all": True, "append_images": [GREY]}),
}
CONVERTED = {
    "transparent.gif": "GIF",
    "animated.gif": "GIF",
    "palette.bmp": "BMP",
    "grey.bmp": "BMP",
    "black_and_white.bmp": "BMP",
    "animated.webp": "WEBP",
}


def save(folder: Path, name: str, image: Image.Image, **options) -> Path:
    image.save(folder / name, **options)
    return folder / name


def read(*files: Path, image_size: int = 16, resize: str = "crop", megapixels: float = 100.0):
    return list(read_pixels(files, image_size=image_size, resize=resize, max_megapixels=megapixels))


def plain_decode(data: bytes) -> np.ndarray:
    pixels, _ = decode(tf.constant(data), max_megapixels=1, background="white", bit_depth=16)
    return pixels.numpy()


def on_white(file: Path) -> np.ndarray:
    with Image.open(file) as opened:
        image = opened.convert("RGBA")
    return np.asarray(Image.alpha_composite(Image.new("RGBA", image.size, "white"), image))[..., :3]


@pytest.mark.parametrize("name", LOSSLESS)
def test_load_encoded_keeps_every_pixel_when_the_format_is_lossless(name, tmp_path):
    image, options = LOSSLESS[name]
    file = save(tmp_path, name, image, **options)
    decoded = plain_decode(load_encoded(file, max_megapixels=100))
    expected = np.asarray(image.convert("RGB")) if name.endswith("bmp") else on_white(file)
    assert np.abs(decoded.astype(int) - expected).max() <= ("alpha" in name)


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_load_encoded_gives_pillows_colours_when_the_file_is_a_jpeg(mode, tmp_path):
    smooth = RGB.resize((60, 60), Image.Resampling.BICUBIC).convert(mode)
    file = save(tmp_path, f"{mode}.jpg", smooth, quality=95, subsampling=0)
    expected = np.asarray(Image.open(file).convert("RGB"), dtype=float)
    decoded = plain_decode(load_encoded(file, max_megapixels=100))
    # TensorFlow's inverse cosine transform is the fast, slightly less accurate one.
    assert np.abs(decoded - expected).mean() <= 2
    assert np.abs(decoded - expected).max() <= 16


def test_load_encoded_keeps_the_high_byte_when_a_png_has_16_bits(tmp_path):
    values = RNG.integers(0, 65536, (9, 7), dtype=np.uint16)
    file = save(tmp_path, "deep.png", Image.fromarray(values))
    decoded = plain_decode(load_encoded(file, max_megapixels=100))
    np.testing.assert_array_equal(decoded, np.stack([values >> 8] * 3, -1))


@pytest.mark.parametrize("name", LOSSLESS)
def test_read_encoded_says_what_is_unusual(name, tmp_path):
    image, options = LOSSLESS[name]
    encoded = read_encoded(save(tmp_path, name, image, **options), max_megapixels=100)
    assert encoded.converted_from == CONVERTED.get(name, "")
    # The fourth byte of a plain 32-bit bitmap is padding by definition.
    has_alpha = "alpha" in name and not name.endswith(".bmp")
    assert encoded.has_alpha == (has_alpha or "transparency" in options)
    assert not encoded.is_rotated


def test_read_encoded_notices_a_rotation_when_exif_has_one(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    for name in ("turned.jpg", "turned.png", "turned.webp"):
        assert read_encoded(save(tmp_path, name, RGB, exif=exif), max_megapixels=1).is_rotated


def test_load_encoded_takes_the_first_image_of_a_phones_double_jpeg(tmp_path):
    file = save(tmp_path, "double.jpg", RGB, format="MPO", save_all=True, append_images=[GREY])
    with Image.open(file) as image:
        first = np.asarray(image.convert("RGB"), dtype=float)
    data = load_encoded(file, max_megapixels=100)
    assert data == file.read_bytes()
    assert np.abs(plain_decode(data) - first).mean() <= 3


def bomb(file: Path) -> Path:
    """A valid 1-bit PNG of 20,000 x 20,000 px in about 50 kB."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return (
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        )

    rows = zlib.compress(bytes(20_000 * (1 + 2_500)), 9)
    header = struct.pack(">IIBBBBB", 20_000, 20_000, 1, 0, 0, 0, 0)
    parts = chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")
    file.write_bytes(b"\x89PNG\r\n\x1a\n" + parts)
    return file


def unusable(folder: Path) -> dict[str, tuple[Path, str]]:
    jpeg, png = io.BytesIO(), io.BytesIO()
    RGB.save(jpeg, "JPEG")
    RGB.save(png, "PNG")
    contents = {
        "empty.jpg": (b"", "empty file"),
        "text.jpg": (b"these are words, not pixels", "not an image"),
        "cut.jpg": (jpeg.getvalue()[:-20], "truncated"),
        "cut.png": (png.getvalue()[:-20], "truncated"),
        "header_only.png": (png.getvalue()[:12], "truncated"),
        "start_only.jpg": (jpeg.getvalue()[:12], "truncated"),
        "bitmap.bmp": (b"BM and nothing more", "an old header"),
        "frames.gif": (b"GIF89a", "truncated"),
    }
    for name, (data, _) in contents.items():
        (folder / name).write_bytes(data)
    files = {name: (folder / name, reason) for name, (_, reason) in contents.items()}
    files["missing.jpg"] = (folder / "missing.jpg", "no such file")
    files["bomb.png"] = (
        bomb(folder / "bomb.png"),
        "20000 × 20000 px is more than 100 megapixels",
    )
    return files


def test_read_pixels_reports_every_unusable_file_and_goes_on(tmp_path):
    files = unusable(tmp_path)
    good = save(tmp_path, "good.png", RGB)
    order = [path for file, _ in files.values() for path in (file, good)]
    results = read(*order)
    assert [result.path for result in results[::2]] == [
        file.as_posix() for file, _ in files.values()
    ]
    for result, (_, reason) in zip(results[::2], files.values(), strict=True):
        assert isinstance(result, BadFile)
        assert reason in result.reason
    assert all(isinstance(result, DecodedImage) for result in results[1::2])


def test_read_pixels_survives_files_damaged_at_random(tmp_path):
    whole = [save(tmp_path, name, it, **more).read_bytes() for name, (it, more) in LOSSLESS.items()]
    whole.append(save(tmp_path, "rgb.jpg", RGB).read_bytes())
    damaged = []
    for number in range(360):
        data = bytearray(whole[number % len(whole)])
        for place in RNG.integers(0, 64 if number % 2 else len(data), 3):
            data[place] = RNG.integers(256)
        damaged.append(tmp_path / f"{number}.jpg")
        damaged[-1].write_bytes(data[: RNG.integers(1, len(data))] if number % 3 == 0 else data)
    results = read(*damaged, megapixels=1)
    assert len(results) == len(damaged)
    assert {type(result) for result in results} == {DecodedImage, BadFile}


def test_load_encoded_raises_with_the_reason_when_the_file_is_unusable(tmp_path):
    for name, (file, reason) in unusable(tmp_path).items():
        if name.startswith(("cut", "start", "header", "bitmap", "frames")):  # Decoding tells.
            continue
        with pytest.raises(DataError, match=name) as raised:
            load_encoded(file, max_megapixels=100)
        assert reason in raised.value.received
        assert raised.value.expected
        assert raised.value.fix


def test_a_image_too_large_is_never_decoded(tmp_path):
    file = bomb(tmp_path / "bomb.png")
    start = time.perf_counter()
    (result,) = read(file)
    assert isinstance(result, BadFile)
    assert time.perf_counter() - start < 0.5
    (result,) = read(save(tmp_path, "small.png", RGB), megapixels=0.0001)
    assert "24 px" in result.reason


def pillow_reference(image: Image.Image, size: int, resize: str) -> np.ndarray:
    width, height = image.size
    if resize == "crop":
        side = min(width, height)
        left, top = (width - side) // 2, (height - side) // 2
        image = image.crop((left, top, left + side, top + side))
    elif resize == "pad":
        scale = size / max(width, height)
        shape = max(1, round(width * scale)), max(1, round(height * scale))
        square = Image.new("RGB", (size, size))
        inner = image.resize(shape, Image.Resampling.BILINEAR)
        square.paste(inner, ((size - shape[0]) // 2, (size - shape[1]) // 2))
        return np.asarray(square)
    return np.asarray(image.resize((size, size), Image.Resampling.BILINEAR))


@pytest.mark.parametrize(
    "shape", [(40, 64), (91, 33), (7, 9), (32, 32), (1, 1), (1, 500), (500, 1)]
)
@pytest.mark.parametrize("resize", ["crop", "pad", "squash"])
def test_resize_pixels_equals_pillows_antialiased_bilinear(resize, shape):
    pixels = RNG.integers(0, 256, (*shape, 3), dtype=np.uint8)
    ours = resize_pixels(tf.constant(pixels), image_size=32, resize=resize).numpy()
    expected = pillow_reference(Image.fromarray(pixels), 32, resize)
    assert ours.shape == (32, 32, 3)
    assert np.abs(ours.astype(int) - expected).max() <= 1


def test_resize_pixels_is_the_identity_when_the_size_fits():
    pixels = RNG.integers(0, 256, (16, 16, 3), dtype=np.uint8)
    for resize in ("crop", "pad", "squash"):
        same = resize_pixels(tf.constant(pixels), image_size=16, resize=resize)
        np.testing.assert_array_equal(same, pixels)


@pytest.mark.parametrize("dtype", [tf.uint8, tf.int32, tf.float16, tf.float32, tf.float64])
def test_resize_pixels_agrees_over_types_and_batches(dtype):
    pixels = RNG.integers(0, 256, (2, 20, 30, 3), dtype=np.uint8)
    batch = resize_pixels(tf.cast(pixels, dtype), image_size=12, resize="crop")
    for row in range(2):
        single = resize_pixels(tf.constant(pixels[row]), image_size=12, resize="crop")
        np.testing.assert_array_equal(batch[row], single)


def test_resize_pixels_never_wraps_around_at_black_and_white():
    shades = RNG.choice([0, 255], (57, 91, 3)).astype(np.uint8)
    white = np.full((57, 91, 3), 255, np.uint8)
    for resize in ("crop", "squash"):
        for size in (8, 31, 200):
            out = resize_pixels(tf.constant(white), image_size=size, resize=resize).numpy()
            assert (out == 255).all()
            mixed = resize_pixels(tf.constant(shades), image_size=size, resize=resize).numpy()
            expected = pillow_reference(Image.fromarray(shades), size, resize)
            assert np.abs(mixed.astype(int) - expected).max() <= 1
    beyond = tf.constant(shades * 3.0 - 200)  # Either -200 or 565.
    clipped = resize_pixels(beyond, image_size=57, resize="crop")
    np.testing.assert_array_equal(clipped, shades[:, 17:74])


def test_decode_and_resize_agrees_in_eager_pipeline_and_saved_model(tmp_path):
    data = load_encoded(save(tmp_path, "rgb.jpg", RGB), max_megapixels=1)
    decode = partial(decode_and_resize, image_size=16, resize="pad")
    eager = decode(tf.constant(data)).numpy()

    module = tf.Module()
    module.decode = tf.function(decode, input_signature=[tf.TensorSpec([], tf.string)])
    tf.saved_model.save(module, tmp_path / "saved")
    loaded = tf.saved_model.load(tmp_path / "saved").decode(tf.constant(data))
    mapped = next(iter(tf.data.Dataset.from_tensors(data).map(decode)))

    np.testing.assert_array_equal(loaded, eager)
    np.testing.assert_array_equal(mapped, eager)
    assert mapped.shape == (16, 16, 3)
    assert mapped.dtype == tf.uint8


def test_decode_and_resize_refuses_palette_bitmaps_instead_of_showing_wrong_colours(tmp_path):
    data = save(tmp_path, "palette.bmp", PALETTE).read_bytes()
    with pytest.raises(tf.errors.InvalidArgumentError, match="palette"):
        decode_and_resize(tf.constant(data), image_size=8, resize="crop")


def test_read_pixels_gives_what_decode_and_resize_gives_in_order(digits_folder):
    files = sorted(digits_folder.rglob("*.png"))[:50]
    for file, image in zip(files, read(*files, image_size=8), strict=True):
        expected = decode_and_resize(tf.constant(file.read_bytes()), image_size=8, resize="crop")
        assert image.file == file
        np.testing.assert_array_equal(image.pixels, expected)


def test_read_pixels_reads_only_a_little_ahead_when_the_files_never_end(tmp_path):
    file = save(tmp_path, "rgb.png", RGB)
    taken = itertools.count()
    endless = (file for _ in taken)
    images = read_pixels(endless, image_size=8, resize="crop", max_megapixels=1)
    for _ in range(100):
        assert isinstance(next(images), DecodedImage)
    images.close()
    assert next(taken) <= 140


def test_extensions_are_lower_case_and_cover_the_promised_formats():
    assert {".jpg", ".jpeg", ".png", ".gif", ".bmp", ".webp", ".npy"} == EXTENSIONS


def test_a_file_that_is_too_long_is_refused_unread(tmp_path):
    file = tmp_path / "long.png"
    RGB.save(file)
    with file.open("r+b") as stream:
        stream.truncate(6 * 10**9)
    start = time.perf_counter()
    with pytest.raises(DataError, match="2 GiB or more"):
        load_encoded(file, max_megapixels=1)
    assert time.perf_counter() - start < 1
