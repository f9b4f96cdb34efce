"""Rendered letters: a source task that needs no download and no licence beyond matplotlib's fonts.

52 classes (A-Z, a-z) in the text fonts that ship with matplotlib, each image warped, blurred,
coarsened and coloured at random. Every image is a pure function of (seed, index).
"""

import functools
import string
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import tensorflow as tf
from PIL import Image, ImageDraw, ImageFilter, ImageFont

CLASS_NAMES = tuple(string.ascii_uppercase + string.ascii_lowercase)
FONT_FAMILIES = ("DejaVuSans", "DejaVuSerif", "STIXGeneral", "cmr10", "cmss10", "cmtt10", "cmb10")
CANVAS = 96
"""Side on which a letter is drawn before it is warped and shrunk, px."""


@functools.cache
def font_files() -> tuple[Path, ...]:
    """Matplotlib's TrueType files that hold the plain alphabet, sorted by name."""
    import matplotlib

    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    files = sorted(folder.glob("*.ttf"))
    # "Display" and "STIXSiz…" hold symbols only.
    return tuple(
        file for file in files if file.stem.startswith(FONT_FAMILIES) and "Display" not in file.stem
    )


@functools.cache
def _font(file: Path, size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(str(file), size)


def render_letter(
    seed: int, index: int, *, image_size: int = 32, class_names: Sequence[str] = CLASS_NAMES
) -> tuple[np.ndarray, int]:
    """Draw one letter, or another character: (uint8 image [S, S, 3], class index)."""
    random = np.random.default_rng([seed, index])
    label = int(random.integers(len(class_names)))
    canvas = _draw(random, class_names[label])
    coarse = _warp_and_shrink(random, canvas, image_size)
    grey = np.asarray(coarse, np.float32) / 255
    ink, paper = _two_tones(random)
    pixels = paper + (ink - paper) * grey[..., None]
    pixels = pixels + random.normal(0, random.uniform(0, 0.06), pixels.shape)
    return np.clip(np.round(pixels * 255), 0, 255).astype(np.uint8), label


def _draw(random: np.random.Generator, letter: str) -> Image.Image:
    files = font_files()
    font = _font(files[random.integers(len(files))], int(random.integers(52, 76)))
    canvas = Image.new("L", (CANVAS, CANVAS), 0)
    # Strokes from thin to the width of a felt pen, because handwriting varies more than fonts do.
    stroke = int(random.integers(0, 5))
    ImageDraw.Draw(canvas).text(
        (CANVAS / 2, CANVAS / 2), letter, fill=255, font=font, anchor="mm", stroke_width=stroke
    )
    return canvas


def _warp_and_shrink(
    random: np.random.Generator, canvas: Image.Image, image_size: int
) -> Image.Image:
    """A tight crop around the letter under a random perspective, at a random resolution."""
    left, top, right, bottom = canvas.getbbox() or (0, 0, CANVAS, CANVAS)
    margin = random.uniform(0.0, 0.35, 4) * max(right - left, bottom - top)
    corners = np.array(
        [
            (left - margin[0], top - margin[1]),
            (left - margin[0], bottom + margin[3]),
            (right + margin[2], bottom + margin[3]),
            (right + margin[2], top - margin[1]),
        ]
    )
    corners += random.normal(0, 4.0, (4, 2))
    angle = np.deg2rad(random.normal(0, 10))
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    centre = corners.mean(axis=0)
    corners = (corners - centre) @ turn + centre
    warped = canvas.transform(
        (64, 64), Image.Transform.QUAD, tuple(corners.ravel()), Image.Resampling.BILINEAR
    )
    warped = warped.filter(ImageFilter.GaussianBlur(random.uniform(0, 2.5)))
    # Scans can be as coarse as 8 px: half of the letters pass through a low resolution.
    side = int(random.integers(7, 17)) if random.random() < 0.5 else image_size
    coarse = warped.resize((side, side), Image.Resampling.BOX)
    return coarse.resize((image_size, image_size), Image.Resampling.BILINEAR)


def _two_tones(random: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Colours of ink and paper in 0-1, at least 0.4 apart in lightness, either one the darker."""
    dark, light = random.uniform(0, 0.3), random.uniform(0.7, 1.0)
    tint = random.uniform(-0.1, 0.1, (2, 3)) * (random.random() < 0.5)
    tones = np.array([[dark], [light]]) + tint
    return (tones[0], tones[1]) if random.random() < 0.5 else (tones[1], tones[0])


def render_letters(
    seed: int, count: int, *, image_size: int = 32, first: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Draw letters `first` to `first + count`: (uint8 [count, S, S, 3], int64 labels [count])."""
    pixels = np.empty((count, image_size, image_size, 3), np.uint8)
    labels = np.empty(count, np.int64)
    for row in range(count):
        pixels[row], labels[row] = render_letter(seed, first + row, image_size=image_size)
    return pixels, labels


def letters_dataset(
    seed: int, *, image_size: int, batch_size: int, first_batch: int, num_batches: int
) -> tf.data.Dataset:
    """Batches of new letters, rendered while the network trains.

    Batch b starts at letter b * batch_size, so training can resume at any batch.
    Elements: (float32 images [B, S, S, 3] in 0-255, one-hot float32 labels [B, 52]).
    """

    def render(batch: np.int64) -> tuple[np.ndarray, np.ndarray]:
        pixels, labels = render_letters(
            seed, batch_size, image_size=image_size, first=int(batch) * batch_size
        )
        return pixels, np.eye(len(CLASS_NAMES), dtype=np.float32)[labels]

    def draw(batch: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        pixels, labels = tf.numpy_function(render, [batch], (tf.uint8, tf.float32))
        pixels.set_shape((batch_size, image_size, image_size, 3))
        labels.set_shape((batch_size, len(CLASS_NAMES)))
        return tf.cast(pixels, tf.float32), labels

    batches = tf.data.Dataset.range(first_batch, first_batch + num_batches)
    return batches.map(draw, num_parallel_calls=2, deterministic=True).prefetch(4)
