"""Views are pure functions: of an image, its number, a view's number and a spec, no more."""

import dataclasses
import hashlib
import math
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import cv2
import numpy as np
import pytest

from keras_transfer.data.views import POLICIES, VERSION, Plan, apply, draw, strengths, view
from keras_transfer.specs import ViewSpec

SIZE = 20
STRONG = strengths(ViewSpec(policy="strong", vertical_flip=True, erasing=0.5, seed=7))
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
PART_OF = {"saturation": "chroma", "hue": "chroma", "erasing": "box"} | {
    name: name for name in ("brightness", "contrast", "noise")
}
"""Which part of a plan a strength belongs to, where it is not the warp."""


def waves(size: int, count: int = 6) -> np.ndarray:
    """Smooth, colourful images, uint8."""
    y, x = np.mgrid[:size, :size] / size
    images = [
        np.stack([np.sin(3 * x + k), np.cos(4 * y - k), np.sin(2 * (x + y) * (1 + k / 5))], -1)
        for k in range(count)
    ]
    return np.uint8(np.round(127.5 + 110 * np.array(images)))


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    return waves(SIZE)


def only(**given) -> ViewSpec:
    return strengths(ViewSpec(policy="none", **given))


def views_of(images: np.ndarray, spec: ViewSpec) -> np.ndarray:
    return np.stack([view(image, row, 1, strengths=spec) for row, image in enumerate(images)])


def plans(count: int = 400, **given) -> list[Plan]:
    return [draw(row, 1, strengths=only(**given)) for row in range(count)]


def digest(pixels: np.ndarray) -> str:
    return hashlib.sha256(pixels.tobytes()).hexdigest()


def test_view_is_the_same_bits_in_any_thread_and_order(images):
    keys = [(row, index) for row in range(6) for index in range(1, 9)]

    def make(key: tuple[int, int]) -> str:
        row, index = key
        # Rows of a batch, NumPy's integers: what a data set passes.
        return digest(view(images[row], np.int64(row), np.int64(index), strengths=STRONG))

    alone = {key: make(key) for key in keys}
    shuffled = [keys[place] for place in np.random.default_rng(0).permutation(len(keys))]
    with ThreadPoolExecutor(4) as threads:
        assert dict(zip(shuffled, threads.map(make, shuffled), strict=True)) == alone
    assert len(set(alone.values())) == len(keys)


def test_view_is_the_same_bits_in_another_process(images, tmp_path):
    np.save(tmp_path / "image.npy", images[0])
    program = (
        "import sys, hashlib, numpy as np\n"
        "from keras_transfer.data.views import strengths, view\n"
        "from keras_transfer.specs import ViewSpec\n"
        "spec = ViewSpec(policy='strong', vertical_flip=True, erasing=0.5, seed=7)\n"
        "pixels = view(np.load(sys.argv[1]), 2**62 + 5, 3, strengths=strengths(spec))\n"
        "print(hashlib.sha256(pixels.tobytes()).hexdigest())\n"
    )
    arguments = [sys.executable, "-c", program, str(tmp_path / "image.npy")]
    there = subprocess.run(arguments, capture_output=True, text=True, check=True).stdout.strip()
    assert there == digest(view(images[0], 2**62 + 5, 3, strengths=STRONG))


def test_view_is_the_same_bits_under_any_number_of_threads_in_opencv():
    (image,) = waves(600, count=1)
    before = cv2.getNumThreads()
    try:
        found = set()
        for num_threads in (1, 2, 5):
            cv2.setNumThreads(num_threads)
            found.add(digest(view(image, 1, 1, strengths=STRONG)))
    finally:
        cv2.setNumThreads(before)
    assert len(found) == 1


def test_plans_are_those_of_this_version():
    """Where this fails on purpose, `VERSION` must be raised: features are stored under it."""
    assert VERSION.startswith("1, ")
    plan = draw(2**62 + 5, 3, strengths=STRONG)
    found = np.hstack(list(dataclasses.asdict(plan).values()))
    colours, noise = [0.7657011 - 0.0165111j, 1.0119031, 24.7632323], [5, 0.4904362]
    warp = [0.6223096, 0.1162609, -0.0899211, 0.8045974, -0.0881917, 0.0700037]
    box = [0.0615230, 0.4004689, 0.5511922, 0.6113700]
    np.testing.assert_allclose(found, [*colours, *warp, *noise, *box], atol=1e-7)


def test_view_differs_when_any_bit_of_the_example_id_differs():
    example_ids = [0, *(1 << bit for bit in range(63))]
    assert len({draw(number, 1, strengths=STRONG) for number in example_ids}) == 64


def test_view_differs_when_view_index_or_seed_differs(images):
    found = [
        digest(view(images[0], 3, index, strengths=dataclasses.replace(STRONG, seed=seed)))
        for index in (1, 2, 2**32 + 1)
        for seed in (0, 1, 2**40)
    ]
    assert len(set(found)) == 9


def test_view_is_the_same_when_only_the_policy_or_the_number_of_views_differs(images):
    expected = view(images[0], 3, 1, strengths=STRONG)
    for changes in ({"policy": "light"}, {"count": 9}, {"count": None}):
        spec = dataclasses.replace(STRONG, **changes)
        np.testing.assert_array_equal(view(images[0], 3, 1, strengths=spec), expected)


def test_view_zero_is_the_plain_image_bit_for_bit(images):
    plain = view(images[0], 9, 0, strengths=only(**{**ON, "erasing_area": 0.5}))
    np.testing.assert_array_equal(plain, images[0])


def test_view_leaves_the_image_alone(images):
    before = images.copy()
    for index in (0, 1):
        for spec in (only(), only(erasing=1.0), STRONG):
            pixels = view(images[0], 5, index, strengths=spec)
            assert pixels.dtype == np.uint8
            assert not np.shares_memory(pixels, images)
    np.testing.assert_array_equal(images, before)


@pytest.mark.parametrize(("name", "value"), ON.items())
def test_strength_changes_images_when_on_and_nothing_when_off(images, name, value):
    assert (views_of(images, only(**{name: value})) != images).any(axis=(1, 2, 3)).sum() >= 2
    np.testing.assert_array_equal(views_of(images, only(**{name: POLICIES["none"][name]})), images)


@pytest.mark.parametrize("name", ON)
def test_strength_leaves_the_other_parts_of_every_view_alone(name):
    half = {"erasing": 0.5} | {other: value for other, value in ON.items() if other != "erasing"}
    off = {**half, name: POLICIES["none"][name]}
    differ = {
        field
        for before, after in zip(plans(30, **half), plans(30, **off), strict=True)
        for field, value in dataclasses.asdict(before).items()
        if value != getattr(after, field)
    }
    assert differ == {PART_OF.get(name, "warp")}


def test_flips_are_exact_mirror_images_of_half_of_the_images(images):
    many = np.repeat(images, 40, axis=0)
    for spec, mirrored in (
        (only(horizontal_flip=True), many[:, :, ::-1]),
        (only(vertical_flip=True), many[:, ::-1]),
    ):
        found = views_of(many, spec)
        flipped = (found == mirrored).all(axis=(1, 2, 3))
        kept = (found == many).all(axis=(1, 2, 3))
        assert (flipped | kept).all()
        assert 0.4 < flipped.mean() < 0.6


def test_warp_turns_and_shifts_pixel_by_pixel(images):
    image, shift = images[0], 3 / SIZE
    half_turn = apply(image, Plan(warp=(-1, 0, 0, -1, 0, 0)))
    np.testing.assert_array_equal(half_turn, image[::-1, ::-1])
    quarter = apply(image, Plan(warp=(0, -1, 1, 0, 0, 0)))
    np.testing.assert_array_equal(quarter, np.rot90(image))
    shifted = apply(image, Plan(warp=(1, 0, 0, 1, shift, -shift)))
    mirrored = np.pad(image, ((3, 0), (0, 3), (0, 0)), mode="symmetric")
    np.testing.assert_array_equal(shifted, mirrored[:SIZE, 3:])


def slow_warp(image: np.ndarray, affine: tuple[float, ...]) -> np.ndarray:
    """Pixel by pixel: map the centre, fold it back into the image, interpolate."""
    a, b, c, d, x, y = affine
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
    for row in range(4):
        expected = slow_warp(images[row], draw(row, 1, strengths=spec).warp)
        found = view(images[row], row, 1, strengths=spec)
        # OpenCV may place a point to 1/32 of a pixel; a whole pixel is up to 30 levels here.
        np.testing.assert_allclose(found, expected, atol=2)
        assert abs((found - expected).mean()) < 0.2


def fills(found: np.ndarray, low: float, high: float) -> bool:
    """Whether uniform numbers keep to a range, reach its ends and have its middle as mean."""
    width = high - low
    inside = low - 1e-9 <= found.min() and found.max() <= high + 1e-9
    reaches = found.min() < low + 0.03 * width and found.max() > high - 0.03 * width
    return inside and reaches and abs(found.mean() - (low + high) / 2) < 0.06 * width


def test_warps_keep_to_their_ranges_and_fill_them():
    turned = np.array([plan.warp for plan in plans(rotation=40.0)])
    np.testing.assert_allclose(np.hypot(turned[:, 0], turned[:, 2]), 1)
    assert fills(np.rad2deg(np.arctan2(turned[:, 2], turned[:, 0])), -40, 40)
    zoomed = np.array([plan.warp for plan in plans(zoom=0.2)])
    np.testing.assert_array_equal(zoomed[:, 0], zoomed[:, 3])
    assert fills(1 / zoomed[:, 0], 0.8, 1.2)
    for shifts in np.array([plan.warp for plan in plans(translation=0.1)]).T[4:]:
        assert fills(shifts, -0.1, 0.1)


def test_composed_warps_turn_a_rectangle_and_shear_nothing():
    a, b, c, d, *_ = np.array([plan.warp for plan in plans(rotation=40.0, crop_area=0.3)]).T
    np.testing.assert_allclose(a * b + c * d, 0, atol=1e-12)
    assert (a * d - b * c > 0.29).all()
    assert np.std(np.hypot(a, c) / np.hypot(b, d)) > 0.1


def test_crops_keep_to_area_aspect_and_image():
    width, _, _, height, x, y = np.array(
        [plan.warp for plan in plans(crop_area=0.25, crop_aspect=2.0)]
    ).T
    assert fills(width * height, 0.25, 1)
    aspects = width / height
    assert 0.5 - 1e-9 <= aspects.min() < 0.55
    assert 1.8 < aspects.max() <= 2 + 1e-9
    assert (np.abs(x) + width / 2 <= 0.5 + 1e-9).all()
    assert (np.abs(y) + height / 2 <= 0.5 + 1e-9).all()


def test_colours_keep_to_their_ranges_and_fill_them():
    assert fills(np.array([plan.brightness for plan in plans(brightness=0.2)]), -51, 51)
    assert fills(np.array([plan.contrast for plan in plans(contrast=0.3)]), 0.7, 1.3)
    chroma = np.array([plan.chroma for plan in plans(saturation=0.5)])
    assert fills(chroma.real, 0.5, 1.5)
    assert not chroma.imag.any()
    chroma = np.array([plan.chroma for plan in plans(hue=0.1)])
    np.testing.assert_allclose(np.abs(chroma), 1)
    assert fills(np.angle(chroma) / (2 * math.pi), -0.1, 0.1)


@pytest.mark.parametrize(
    "plan",
    [
        Plan(brightness=30.0),
        Plan(contrast=0.4),
        Plan(contrast=2.0, brightness=-60.0),
        Plan(chroma=1.6 + 0j),
        Plan(chroma=complex(math.cos(0.6), math.sin(0.6))),
        Plan(chroma=complex(0.3, -0.9), contrast=1.5, brightness=90.0),
    ],
)
def test_colours_equal_slow_arithmetic_even_where_they_clip(images, plan):
    yiq = np.array([[0.299, 0.587, 0.114], [0.5959, -0.2746, -0.3213], [0.2115, -0.5227, 0.3112]])
    for image in images:
        luma, *chroma = np.moveaxis(image @ yiq.T, -1, 0)
        turned = plan.chroma * (chroma[0] + 1j * chroma[1])
        mixed = np.stack([luma, turned.real, turned.imag], axis=-1) @ np.linalg.inv(yiq).T
        mean = mixed.mean(axis=(0, 1))
        expected = np.clip((mixed - mean) * plan.contrast + mean + plan.brightness, 0, 255)
        np.testing.assert_allclose(apply(image, plan), expected, atol=1)


def test_noise_has_its_deviation_and_differs_between_images():
    grey = np.full((4, 48, 48, 3), 128, np.uint8)
    noise = views_of(grey, only(noise=6.0)) - 128.0
    np.testing.assert_allclose(noise.std(axis=(1, 2, 3)), 6, rtol=0.06)
    np.testing.assert_allclose(noise.mean(axis=(1, 2, 3)), 0, atol=0.4)
    correlations = np.corrcoef(noise.reshape(4, -1)) - np.eye(4)
    assert np.abs(correlations).max() < 0.1


def test_noise_does_not_wrap_round_at_black_and_white():
    ends = np.stack([np.full((16, 16, 3), value, np.uint8) for value in (0, 255)])
    dark, bright = views_of(ends, only(noise=20.0))
    assert dark.max() < 120
    assert bright.min() > 135


def test_erasing_fills_one_box_with_the_mean_colour(images):
    found = views_of(images, only(erasing=1.0, erasing_area=0.3))
    for image, pixels in zip(images, found, strict=True):
        changed = (pixels != image).any(axis=-1)
        rows, columns = np.flatnonzero(changed.any(1)), np.flatnonzero(changed.any(0))
        box = pixels[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        np.testing.assert_allclose(box - image.mean(axis=(0, 1)), 0, atol=0.501)
        assert changed.mean() < 0.4


def test_erasing_keeps_to_its_share_of_views_and_area():
    found = plans(erasing=0.25, erasing_area=0.3)
    boxes = np.array([plan.box for plan in found if plan.box])
    assert 0.18 < len(boxes) / len(found) < 0.32
    assert 0 <= boxes.min() <= boxes.max() <= 1 + 1e-9
    areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    assert 0.02 - 1e-9 <= areas.min() < 0.05
    assert 0.26 < areas.max() <= 0.3 + 1e-9


def test_erasing_covers_pixels_by_their_middle():
    dark = np.zeros((10, 10, 3), np.uint8)
    dark[0, 0] = 255
    found = apply(dark, Plan(box=(0.24, 0.26, 0.55, 0.56)))
    expected = np.zeros((10, 10), bool)
    expected[3:6, 2:5] = True
    np.testing.assert_array_equal(found[..., 0] == 3, expected)


def test_strengths_leave_no_strength_open_and_keep_what_was_given():
    spec = strengths(
        ViewSpec(policy="light", count=None, seed=5, rotation=33.0, horizontal_flip=False)
    )
    assert [name for name, value in dataclasses.asdict(spec).items() if value is None] == ["count"]
    assert (spec.rotation, spec.horizontal_flip, spec.seed) == (33.0, False, 5)
    assert spec.zoom == POLICIES["light"]["zoom"]
    assert strengths(spec) == spec


def test_strengths_warn_when_a_given_value_has_no_effect():
    with pytest.warns(UserWarning, match=r"views\.crop_aspect has no effect"):
        strengths(ViewSpec(policy="light", crop_aspect=2.0))
