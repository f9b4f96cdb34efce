"""Views are pure functions: of four arguments, and of nothing else."""

import dataclasses
import hashlib
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf

from keras_transfer.data.view_pixels import apply
from keras_transfer.data.views import POLICIES, draw, strengths, view
from keras_transfer.specs import ViewSpec

SIZE = 20
STRONG = strengths(ViewSpec(policy="strong", vertical_flip=True, erasing=0.5))
ON = {
    "horizontal_flip": True,
    "vertical_flip": True,
    "rotation": 30.0,
    "zoom": 0.3,
    "translation": 0.2,
    "crop_area": 0.4,
    "brightness": 0.2,
    "contrast": 0.4,
    "saturation": 0.5,
    "hue": 0.1,
    "noise": 8.0,
    "erasing": 1.0,
}


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    """Six smooth, colourful pictures, uint8."""
    y, x = np.mgrid[:SIZE, :SIZE] / SIZE
    waves = [
        np.stack([np.sin(3 * x + k), np.cos(4 * y - k), np.sin(2 * (x + y) * (1 + k / 5))], -1)
        for k in range(6)
    ]
    return np.uint8(np.round(127.5 + 110 * np.array(waves)))


def only(**given) -> ViewSpec:
    return strengths(ViewSpec(policy="none", **given))


def views_of(images: np.ndarray, spec: ViewSpec, view_index: int = 1) -> np.ndarray:
    return np.stack(
        [
            view(image, row, view_index, 0, strengths=spec).numpy()
            for row, image in enumerate(images)
        ]
    )


def mapped(images: np.ndarray, rows: list[int], batch_size: int, parallel: int | None) -> dict:
    """Views 1 and 2 of the rows by way of tf.data, as {(row, view): pixels}."""
    keys = [(row, index) for row in rows for index in (1, 2)]
    numbers = np.array(keys, np.int64)
    data = tf.data.Dataset.from_tensor_slices((images[numbers[:, 0]], *numbers.T))
    data = data.map(
        lambda image, row, index: (image, draw(row, index, 7, strengths=STRONG)),
        num_parallel_calls=parallel,
    )
    data = data.batch(batch_size).map(apply, num_parallel_calls=parallel).unbatch()
    return dict(zip(keys, data.as_numpy_iterator(), strict=True))


def test_view_is_the_same_bits_under_any_map_order_and_batch(images):
    alone = {
        (row, index): view(images[row], row, index, 7, strengths=STRONG).numpy()
        for row in range(6)
        for index in (1, 2)
    }
    sequential = mapped(images, [0, 1, 2, 3, 4, 5], 1, None)
    parallel = mapped(images, [5, 3, 1, 0, 2, 4], 5, 4)
    few = mapped(images, [4, 2], 4, 2)
    for found in (sequential, parallel, few):
        for key, pixels in found.items():
            np.testing.assert_array_equal(pixels, alone[key], err_msg=str(key))


def test_view_is_the_same_bits_in_another_process(images, tmp_path):
    np.save(tmp_path / "image.npy", images[0])
    program = (
        "import sys, hashlib, numpy as np\n"
        "from keras_transfer.data.views import strengths, view\n"
        "from keras_transfer.specs import ViewSpec\n"
        "spec = strengths(ViewSpec(policy='strong', vertical_flip=True, erasing=0.5))\n"
        "pixels = view(np.load(sys.argv[1]), 2**62 + 5, 3, 11, strengths=spec).numpy()\n"
        "print(hashlib.sha256(pixels.tobytes()).hexdigest())\n"
    )
    arguments = [sys.executable, "-c", program, str(tmp_path / "image.npy")]
    there = subprocess.run(arguments, capture_output=True, text=True, check=True).stdout.strip()
    here = view(images[0], 2**62 + 5, 3, 11, strengths=STRONG).numpy()
    assert there == hashlib.sha256(here.tobytes()).hexdigest()


def test_view_differs_when_any_bit_of_the_example_id_differs():
    example_ids = [0, *(1 << bit for bit in range(63))]
    drawn = [draw(number, 1, 0, strengths=STRONG)["warp"].numpy() for number in example_ids]
    assert len({warp.tobytes() for warp in drawn}) == 64


def test_view_differs_when_view_index_or_seed_differs(images):
    found = [
        view(images[0], 3, index, seed, strengths=STRONG).numpy().tobytes()
        for index in (1, 2, 2**32 + 1)
        for seed in (0, 1, 2**40)
    ]
    assert len(set(found)) == 9


def test_view_zero_is_the_plain_picture_bit_for_bit(images):
    everything = only(**{**ON, "erasing_area": 0.5})
    plain = view(images[0], 9, 0, 5, strengths=everything)
    assert plain.dtype == tf.float32
    np.testing.assert_array_equal(plain, images[0].astype(np.float32))
    fractions = images[1] / np.float32(3)
    np.testing.assert_array_equal(view(fractions, 9, 0, 5, strengths=everything), fractions)


def test_view_stays_in_range_when_strengths_are_extreme(images):
    spec = only(brightness=1.0, contrast=1.0, saturation=1.0, hue=0.5, noise=128.0, rotation=180.0)
    found = views_of(np.concatenate([images] * 3), spec)
    assert found.min() == 0
    assert found.max() == 255


@pytest.mark.parametrize(("name", "value"), ON.items())
def test_strength_changes_pictures_when_on_and_nothing_when_off(images, name, value):
    assert (views_of(images, only(**{name: value})) != images).any(axis=(1, 2, 3)).sum() >= 2
    np.testing.assert_array_equal(views_of(images, only(**{name: POLICIES["none"][name]})), images)


def test_draw_keeps_other_parts_when_one_strength_changes():
    before = draw(5, 1, 0, strengths=only(rotation=10.0, hue=0.1))
    after = draw(5, 1, 0, strengths=only(rotation=10.0, hue=0.1, noise=4.0, crop_area=0.9))
    np.testing.assert_array_equal(before["mixing"], after["mixing"])
    assert after.keys() - before.keys() == {"noise_scale", "noise_start"}


def test_flips_are_exact_mirror_images(images):
    for spec, mirrored in (
        (only(horizontal_flip=True), images[:, :, ::-1]),
        (only(vertical_flip=True), images[:, ::-1]),
    ):
        found = views_of(images, spec)
        flipped = (found == mirrored).all(axis=(1, 2, 3))
        kept = (found == images).all(axis=(1, 2, 3))
        assert flipped.any()
        assert kept.any()
        assert (flipped | kept).all()


def test_half_a_turn_is_both_mirror_images(images):
    half_turn = tf.constant([[-1, 0, 0, -1, 0, 0]], tf.float32)
    np.testing.assert_array_equal(apply(images[:1], {"warp": half_turn})[0], images[0, ::-1, ::-1])


def slow_warp(image: np.ndarray, affine: np.ndarray) -> np.ndarray:
    """Pixel by pixel: map the centre, fold it back into the picture, interpolate."""
    a, b, c, d, x, y = affine.astype(float)
    size = len(image)
    result = np.zeros(image.shape)
    for row in range(size):
        for column in range(size):
            u, v = (column + 0.5) / size - 0.5, (row + 0.5) / size - 0.5
            across = ((a * u + b * v + x) + 0.5) * size - 0.5
            down = ((c * u + d * v + y) + 0.5) * size - 0.5
            result[row, column] = slow_sample(image, down, across)
    return result


def slow_sample(image: np.ndarray, down: float, across: float) -> np.ndarray:
    def fold(place: float) -> float:
        place = (place + 0.5) % (2 * len(image))
        return np.clip(min(place, 2 * len(image) - place) - 0.5, 0, len(image) - 1)

    down, across = fold(down), fold(across)
    top, left = min(int(down), len(image) - 2), min(int(across), len(image) - 2)
    dy, dx = down - top, across - left
    corners = image[top : top + 2, left : left + 2].astype(float)
    weights = np.outer([1 - dy, dy], [1 - dx, dx])
    return (corners * weights[:, :, None]).sum(axis=(0, 1))


def test_composed_geometry_equals_one_slow_resampling(images):
    spec = only(rotation=30.0, zoom=0.3, translation=0.1, crop_area=0.5, horizontal_flip=True)
    for row in range(3):
        affine = draw(row, 1, 0, strengths=spec)["warp"].numpy()
        expected = slow_warp(images[row], affine)
        found = view(images[row], row, 1, 0, strengths=spec)
        np.testing.assert_allclose(found, expected, atol=0.02)


def test_warps_keep_to_their_ranges():
    spec = only(crop_area=0.25, crop_aspect=2.0)
    maps = np.array([draw(row, 1, 0, strengths=spec)["warp"] for row in range(100)])
    width, height, x, y = maps[:, 0], maps[:, 3], maps[:, 4], maps[:, 5]
    areas, aspects = width * height, width / height
    assert 0.25 <= areas.min() < 0.3
    assert 0.9 < areas.max() <= 1
    assert 0.5 <= aspects.min() < 0.6
    assert 1.7 < aspects.max() <= 2.0001
    assert (np.abs(x) + width / 2 <= 0.50001).all()
    assert (np.abs(y) + height / 2 <= 0.50001).all()
    turned = np.array(
        [draw(row, 1, 0, strengths=only(rotation=40.0))["warp"] for row in range(100)]
    )
    angles = np.rad2deg(np.arctan2(turned[:, 2], turned[:, 0]))
    assert -40 <= angles.min() < -35
    assert 35 < angles.max() <= 40


def test_colour_parts_do_what_they_say(images):
    plain = images.astype(float)
    means = plain.mean(axis=(1, 2), keepdims=True)
    luma = np.array([0.299, 0.587, 0.114])
    soft = (plain - means) * 0.2 + means  # far from the ends of the range, where nothing clips
    shifted = views_of(soft, only(brightness=0.1)) - soft
    np.testing.assert_allclose(shifted.std(axis=(1, 2, 3)), 0, atol=1e-4)
    assert 5 < np.abs(shifted).max() <= 25.5
    stretched = views_of(soft, only(contrast=0.5))
    np.testing.assert_allclose(stretched.mean(axis=(1, 2)), soft.mean(axis=(1, 2)), atol=0.6)
    ratio = stretched.std(axis=(1, 2, 3)) / soft.std(axis=(1, 2, 3))
    assert 0.4 < ratio.min() < 0.9 or 1.1 < ratio.max() < 1.6
    for spec in (only(saturation=0.5), only(hue=0.1)):
        coloured = views_of(soft, spec)
        np.testing.assert_allclose(coloured @ luma, soft @ luma, atol=0.05)
        assert np.abs(coloured - soft).max() > 1


def test_noise_has_its_deviation_and_differs_between_pictures():
    grey = np.full((4, 32, 32, 3), 128, np.uint8)
    noise = views_of(grey, only(noise=6.0)) - 128
    np.testing.assert_allclose(noise.std(axis=(1, 2, 3)), 6, rtol=0.08)
    np.testing.assert_allclose(noise.mean(axis=(1, 2, 3)), 0, atol=0.5)
    correlations = np.corrcoef(noise.reshape(4, -1)) - np.eye(4)
    assert np.abs(correlations).max() < 0.1


def test_erasing_fills_one_box_with_the_mean_colour(images):
    found = views_of(images, only(erasing=1.0, erasing_area=0.3))
    for image, pixels in zip(images, found, strict=True):
        changed = (pixels != image).any(axis=-1)
        rows, columns = np.flatnonzero(changed.any(1)), np.flatnonzero(changed.any(0))
        box = pixels[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        np.testing.assert_allclose(box - image.mean(axis=(0, 1)), 0, atol=1e-3)
        assert changed.mean() < 0.4
    rarely = views_of(np.repeat(images, 10, axis=0), only(erasing=0.25))
    share = (rarely != np.repeat(images, 10, axis=0)).any(axis=(1, 2, 3)).mean()
    assert 0.05 < share < 0.5


def test_strengths_leave_no_field_open_and_keep_what_was_given():
    spec = strengths(ViewSpec(policy="light", rotation=33.0, horizontal_flip=False))
    assert None not in dataclasses.asdict(spec).values()
    assert (spec.rotation, spec.horizontal_flip) == (33.0, False)
    assert spec.zoom == POLICIES["light"]["zoom"]
    assert strengths(spec) == spec


def test_strengths_warn_when_a_given_value_has_no_effect():
    with pytest.warns(UserWarning, match=r"views\.crop_aspect has no effect"):
        strengths(ViewSpec(policy="light", crop_aspect=2.0))
