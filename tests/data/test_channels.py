"""Images with other channels than red, green and blue: files, arrays, keys and views."""

import io

import numpy as np
import pytest
import tensorflow as tf
from labelled import read_records
from PIL import Image

from keras_transfer.config import make_spec, override
from keras_transfer.data.audit import audit, pixels_key
from keras_transfer.data.images import (
    UnreadableError,
    count_pixels,
    decoder,
    encode_array,
    read_encoded,
    refusal,
    resizer,
    shown,
)
from keras_transfer.data.python_data import store, write_images
from keras_transfer.data.views import strengths, view
from keras_transfer.errors import DataError, SpecError
from keras_transfer.reporting.reporter import SilentReporter
from keras_transfer.specs import DataSpec, RunSpec, ViewSpec
from keras_transfer.storage.cache import Cache

RNG = np.random.default_rng(0)
SIDE = 12
RGB = RNG.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
SQUARE = {"image_size": SIDE, "resize": "crop", "max_megapixels": 1.0}


def encoded(pixels: np.ndarray, kind: str = "PNG") -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, kind)
    return stream.getvalue()


def square(data: bytes, channels: int, **fields) -> np.ndarray:
    return decoder(**SQUARE, channels=channels, **fields)(tf.constant(data)).numpy()


def reason(data: bytes, channels: int) -> str:
    with pytest.raises(tf.errors.InvalidArgumentError) as raised:
        square(data, channels)
    return refusal(raised.value)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF"])
def test_grey_files_have_their_values_in_one_channel(kind):
    data = encoded(RGB[..., 0], kind)
    np.testing.assert_array_equal(square(data, 1), square(data, 3)[..., :1])
    if kind == "PNG":
        np.testing.assert_array_equal(square(data, 1)[..., 0], RGB[..., 0])


def test_files_in_colours_become_their_grey_level():
    expected = Image.fromarray(RGB).convert("L")
    found = square(encoded(RGB), 1)[..., 0].astype(int)
    assert np.abs(found - np.asarray(expected, int)).max() <= 1


@pytest.mark.parametrize("channels", [1, 2, 3, 4, 13])
def test_arrays_in_files_keep_all_values(channels):
    pixels = RNG.integers(0, 256, (SIDE, SIDE, channels), dtype=np.uint8)
    data = encode_array(pixels)
    np.testing.assert_array_equal(square(data, channels), pixels)
    flat = encode_array(pixels[..., 0])
    np.testing.assert_array_equal(square(flat, 1), pixels[..., :1])
    assert count_pixels(data, max_megapixels=1) == SIDE**2


@pytest.mark.parametrize("bits", [8, 10, 12, 16])
def test_of_16_bits_the_highest_8_in_use_are_kept(bits):
    values = RNG.integers(0, 2**bits, (SIDE, SIDE, 4), dtype=np.uint16)
    found = square(encode_array(values), 4, bit_depth=bits)
    np.testing.assert_array_equal(found, values >> (bits - 8))
    brighter = encode_array(values | 0x8000)
    assert bits == 16 or (square(brighter, 4, bit_depth=bits) == 255).all()


def test_arrays_that_do_not_fit_are_refused_with_the_reason(tmp_path):
    four = RNG.integers(0, 256, (SIDE, SIDE, 4), dtype=np.uint8)
    stream = io.BytesIO()
    np.save(stream, np.asfortranarray(four))
    fits = "not a .npy file of uint8 or uint16, height × width × 5, in C order"
    for data in (
        encode_array(four),
        encode_array(four[..., 0]),
        stream.getvalue(),
        encode_array(four.astype(np.float32)),
        encode_array(four.astype(">u2")),
        encoded(RGB),
        encode_array(four)[:60],
    ):
        assert reason(data, 5) == fits
    assert reason(encode_array(four)[:-1], 4) == "too few or too many values"
    assert reason(encode_array(four[:0]), 4) == "no pixels"
    assert reason(encode_array(four), 3) == fits.replace("× 5", "× 3")
    with pytest.raises(UnreadableError, match="more than"):
        count_pixels(encode_array(four), max_megapixels=1e-5)
    file = tmp_path / "deep.npy"
    file.write_bytes(encode_array(four.astype(np.uint16)))
    assert read_encoded(file, max_megapixels=1).is_deep


def test_colours_have_the_cache_key_of_before_and_others_their_own():
    key = pixels_key(DataSpec(image_size=8))
    assert "channels" not in key.content
    assert key.shape == (8, 8, 3)
    other = pixels_key(DataSpec(image_size=8, channels=4))
    assert (other.shape, other.content["channels"]) == ((8, 8, 4), 4)


def labelled(shape: tuple[int, ...], dtype: type) -> tuple[np.ndarray, np.ndarray]:
    return RNG.integers(0, 256, (4, *shape)).astype(dtype), np.array([0, 1, 0, 1])


@pytest.mark.parametrize(
    ("channels", "shape", "dtype"),
    [(1, (6, 5), np.uint8), (1, (6, 5, 1), np.float32), (4, (6, 5, 4), np.uint16)],
)
def test_data_in_memory_become_files_of_arrays(channels, shape, dtype, tmp_path, monkeypatch):
    monkeypatch.setenv("KERAS_TRANSFER_HOME", str(tmp_path / "home"))
    images, labels = labelled(shape, dtype)
    table = store((images, labels), channels=channels)
    files = [table.parent / line.partition(",")[0] for line in table.read_text().split()[1:]]
    assert {file.suffix for file in files} == {".npy"}
    kept = {np.load(file).tobytes() for file in files}
    stored_type = np.uint16 if dtype == np.uint16 else np.uint8
    assert kept == {image.astype(stored_type).tobytes() for image in images}
    dataset = tf.data.Dataset.from_tensor_slices((images.reshape(4, 6, 5, channels), labels))
    (tmp_path / "files").mkdir()
    written = [*write_images(dataset, tmp_path / "files", channels=channels)]
    assert [np.load(file).size for file in written] == [6 * 5 * channels] * 4


@pytest.mark.parametrize("shape", [(6, 5), (6, 5, 3)])
def test_arrays_with_other_channels_are_refused(shape):
    with pytest.raises(DataError, match=r"not an image of 4 channels[\s\S]*data.channels=4"):
        store(labelled(shape, np.uint8), channels=4)


def test_views_move_and_light_all_channels_alike():
    spec = ViewSpec(policy="strong", noise=0.0, erasing=1.0, hue=0.0, saturation=0.0)
    # Smooth, because OpenCV places pixels more exactly with 1, 3 or 4 channels than with others.
    smooth = np.fromfunction(lambda y, x, c: 7 * x + 5 * y + 30 * c, (SIDE, SIDE, 3))
    image = smooth.astype(np.uint8)
    many = np.concatenate([image, image], axis=-1)
    for number in range(1, 6):
        found = view(many, 7, number, strengths=strengths(spec, 6)).astype(int)
        expected = view(image, 7, number, strengths=strengths(spec)).astype(int)
        assert np.abs(found - np.concatenate([expected, expected], axis=-1)).max() <= 2


@pytest.mark.parametrize("channels", [1, 2, 5])
def test_strong_views_of_other_channels_leave_out_hue_and_saturation(channels):
    used = strengths(ViewSpec(policy="strong"), channels)
    assert (used.hue, used.saturation, used.contrast) == (0, 0, 0.3)
    assert strengths(used, channels) == used
    image = RNG.integers(0, 256, (SIDE, SIDE, channels), dtype=np.uint8)
    found = view(image, 3, 1, strengths=used)
    assert (found.shape, found.dtype) == (image.shape, np.uint8)
    assert (found != image).any()
    np.testing.assert_array_equal(view(image, 3, 0, strengths=used), image)


@pytest.mark.parametrize("channels", [1, 2, 3, 6])
def test_the_first_three_channels_are_shown_or_the_first(channels):
    pixels = RNG.integers(0, 256, (2, 2, channels), dtype=np.uint8)
    expected = pixels[..., :3] if channels > 2 else pixels[..., [0, 0, 0]]
    np.testing.assert_array_equal(shown(pixels), expected)
    assert resizer(1, "crop", channels)(tf.constant(pixels)).shape == (1, 1, channels)


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"views.hue": 0.1, "views.saturation": 0.2}, "views.saturation and views.hue"),
        ({"model.preprocess": "grey"}, "model.preprocess"),
        ({"model.preprocess": "grey_torch"}, "model.preprocess"),
        ({"model.channel_weights": "rgb"}, "model.channel_weights"),
    ],
)
def test_fields_about_colours_are_refused_for_other_channels(fields, named):
    with pytest.raises(SpecError, match=f"{named} cannot be used with data.channels=1"):
        override(RunSpec(), {"data.channels": 1, **fields})


def test_weights_of_colours_need_more_channels():
    with pytest.raises(SpecError, match=r"data\.channels of 4 or more"):
        override(RunSpec(), {"model.channel_weights": "rgb"})
    spec = make_spec(RunSpec(), channels=4, channel_weights="rgb")
    assert (spec.data.channels, spec.model.channel_weights) == (4, "rgb")


def test_the_audit_reads_folders_of_arrays_and_names_those_that_do_not_fit(tmp_path):
    for name, last in (("a/0", 4), ("a/1", 3), ("b/0", 4)):
        file = tmp_path / "set" / f"{name}.npy"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(encode_array(RNG.integers(0, 256, (9, 7, last), dtype=np.uint8)))
    spec = DataSpec(path=str(tmp_path / "set"), image_size=8, channels=4)
    cache = Cache(tmp_path / "store")
    audited, pixels, _ = audit(read_records(spec), spec, cache=cache, reporter=SilentReporter())
    assert pixels.shape == (2, 8, 8, 4)
    (bad,) = audited.bad_files
    assert (bad.path, "height × width × 4" in bad.reason) == ("a/1.npy", True)
