"""Image files of all formats that were damaged at random, reproducible by their seed."""

import io
import os
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from PIL import Image

NUM_FILES = int(os.environ.get("MUTATED_FILES", "200"))
"""How many files the tests of agreement use."""

_ENDS = {"jpg": b"\xff\xd9", "png": b"\0\0\0\0IEND\xaeB`\x82", "gif": b"\0;"}


@dataclass(frozen=True)
class Mutated:
    """A damaged file; `is_cut`: its second half is missing, although it may have an end marker."""

    name: str
    data: bytes
    is_cut: bool


def mutated_files(count: int, *, seed: int = 0) -> Iterator[Mutated]:
    """Files damaged in one of seven ways, every eighth of them whole."""
    generator = np.random.default_rng(seed)
    sources = list(_sources().items())
    for number in range(count):
        name, data = sources[number % len(sources)]
        way = int(generator.integers(8))
        changed = _change(data, name.rpartition(".")[2], way, generator)
        # The first frame of an animation may be whole, or a scan of a progressive file.
        is_cut = way in (1, 2) and not name.startswith(("animated", "progressive"))
        yield Mutated(f"{number:04d}-{way}-{name}", changed, is_cut)


def _change(data: bytes, kind: str, way: int, generator: np.random.Generator) -> bytes:
    content = bytearray(data)
    middle = int(generator.integers(len(data) // 3, len(data) * 2 // 3))
    if way == 1:
        return data[:middle]
    if way == 2:
        return data[:middle] + _ENDS.get(kind, b"")
    if way == 3:
        for place in generator.integers(0, 64, 2):
            content[place % len(content)] = generator.integers(256)
    elif way == 4:
        for place in generator.integers(0, len(content), 3):
            content[place] = generator.integers(256)
    elif way == 5:
        content[middle : middle + 40] = bytes(40)
    elif way == 6:
        content[middle:middle] = generator.bytes(20)
    elif way == 7:
        content += generator.bytes(50)
    return bytes(content)


def _sources() -> dict[str, bytes]:
    from sklearn.datasets import load_sample_images

    photo = Image.fromarray(load_sample_images().images[0]).crop((100, 50, 231, 147))
    veiled = photo.convert("RGBA")
    veiled.putalpha(Image.linear_gradient("L").resize(photo.size))
    deep = Image.fromarray(np.asarray(photo.convert("L"), np.uint16) * 257)
    turned, palette = Image.Exif(), photo.quantize(64)
    turned[0x0112] = 6
    frames = {"save_all": True, "append_images": [photo.rotate(180)]}
    images = {
        "rgb.jpg": (photo, {"quality": 90}),
        "turned.jpg": (photo, {"exif": turned}),
        "grey.jpg": (photo.convert("L"), {}),
        "cmyk.jpg": (photo.convert("CMYK"), {}),
        "progressive.jpg": (photo, {"progressive": True}),
        "restarts.jpg": (photo, {"restart_marker_rows": 1}),
        "rgb.png": (photo, {}),
        "alpha.png": (veiled, {"exif": turned}),
        "palette.png": (palette, {"transparency": 3}),
        "deep.png": (deep, {}),
        "still.gif": (palette, {}),
        "transparent.gif": (palette, {"transparency": 3}),
        "animated.gif": (palette, frames),
        "rgb.bmp": (photo, {}),
        "padded.bmp": (photo.convert("RGBA"), {}),
        "palette.bmp": (palette, {}),
        "rgb.webp": (photo, {"exif": turned}),
        "lossless.webp": (photo, {"lossless": True}),
        "alpha.webp": (veiled, {"lossless": True}),
        "animated.webp": (photo, frames),
    }
    return {name: _encoded(name, image, options) for name, (image, options) in images.items()}


def _encoded(name: str, image: Image.Image, options: dict[str, object]) -> bytes:
    stream = io.BytesIO()
    kind = name.rpartition(".")[2]
    image.save(stream, "JPEG" if kind == "jpg" else kind, **options)
    return stream.getvalue()
