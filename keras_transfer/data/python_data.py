"""Data that a program has in memory, stored as image files and a CSV file that a spec can name.

    (images, labels)           NumPy arrays uint8 [N, H, W, 3], [N, H, W, 1] or [N, H, W], and [N]
    tf.data.Dataset            of (image, label), or of batches of them
    pandas.DataFrame           with the columns of a CSV file; the paths, or the bytes of the files

Where `data.channels` is not 3, arrays are uint8 or uint16 [N, H, W, C], also [N, H, W] for 1, and
become .npy files.
They are stored once, below `home()`/data in a folder named by their content, and read from there as
any other CSV file: with the same splits, checks and resume. The order of a data set does not
matter, so a shuffled one is the same data.
"""

import contextlib
import csv
import hashlib
import io
import os
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
from PIL import Image

from keras_transfer.data.images import encode_array, sniff
from keras_transfer.errors import DataError
from keras_transfer.specs import COLOURS
from keras_transfer.storage.atomic import put_in_place, storage_error
from keras_transfer.storage.cache import home

CSV_FILE: Final = "images.csv"
_EXPECTED: Final = "(images, labels) as NumPy arrays, a tf.data.Dataset, or a pandas.DataFrame"
_HEAD: Final = 12
_NUMBER: Final = (int, np.integer)
_INDICES: Final = (
    "pass class indices: np.argmax(labels, axis=1) of one-hot labels; several labels of an image "
    "go into a CSV file"
)


def is_in_memory(source: Any) -> bool:
    """Whether a source of images is data in memory, and not a path or a spec."""
    return _is_pair(source) or _is_table(source) or hasattr(source, "element_spec")


def store(
    source: Any,
    *,
    class_names: Sequence[str] | None = None,
    path_column: str = "path",
    label_column: str = "label",
    channels: int = COLOURS,
) -> Path:
    """Store data, unless the same is stored already; returns its CSV file.

    Args:
        source: as in the table above.
        class_names: names of the classes for labels that are numbers; by default those of a data
            set that has them, as of `keras.utils.image_dataset_from_directory`, or the numbers.
        path_column: column of a table with the paths, or the bytes, of the images.
        label_column: column of the labels in a table, and in the CSV file written for arrays.
        channels: values of each pixel of arrays, as `data.channels`.

    Raises:
        DataError: the data have another form, or their values are not pixels.
        RunError: the disk is full.
    """
    if _is_table(source):
        return _store_table(source, path_column, label_column, class_names)
    names = class_names or names_in(source)
    pairs = _pairs_of(source) if _is_pair(source) else _pairs_in(source)
    encoded = (
        (_encoded(image, number, channels), label) for number, (image, label) in enumerate(pairs)
    )
    return _store(
        ((data, {label_column: _named(label, names)}) for data, label in encoded), path_column
    )


def names_in(source: Any) -> Sequence[str] | None:
    """Class names that a data set brings, as of `keras.utils.image_dataset_from_directory`."""
    return None if _is_table(source) else getattr(source, "class_names", None)


def has_numbers(source: Any, label_column: str) -> bool:
    """Whether labels of data in memory that can be stored are whole numbers."""
    if _is_table(source):
        columns = source.to_dict("list")
        return any(isinstance(label, _NUMBER) for label in columns.get(label_column, ()))
    if _is_pair(source):
        return any(isinstance(label, _NUMBER) for label in np.asarray(source[1]).tolist())
    return bool(source.element_spec[1].dtype.is_integer)


def are_encoded(source: Any) -> bool:
    """Whether images of data in memory are pixels, of which `store` writes new files."""
    return is_in_memory(source) and not _is_table(source)


def is_stored(path: str) -> bool:
    """Whether the images of a CSV file were stored by `store` on this machine."""
    file = Path(path).absolute()
    return file.name == CSV_FILE and file.parent.parent == (home() / "data").absolute()


def path_of(
    images: Any,
    *,
    is_labelled: bool = True,
    class_names: Sequence[str] | None = None,
    path_column: str = "path",
    label_column: str = "label",
    channels: int = COLOURS,
) -> str:
    """The path that was given, or that of data in memory, which are stored first.

    Args:
        is_labelled: whether labels are needed, as data in memory have.
        class_names, path_column, label_column, channels: as for `store`.

    Raises:
        DataError: it is neither, or as `store`.
    """
    if isinstance(images, str | os.PathLike):
        return os.fspath(images)
    if is_labelled and is_in_memory(images):
        columns = {"path_column": path_column, "label_column": label_column}
        return str(store(images, class_names=class_names, **columns, channels=channels))
    data = ", (images, labels) as arrays, a tf.data.Dataset or a pandas.DataFrame"
    raise DataError(
        "these are no images that can be read here",
        expected=f"the path of a folder{' or CSV file' + data if is_labelled else ''}",
        received=f"{type(images).__name__}",
        fix="give the folder that the files are in, as one path",
    )


def write_images(
    source: Any, folder: Path, *, path_column: str = "path", channels: int = COLOURS
) -> Iterator[Path]:
    """The image files of data in memory, in their order; what is no file is written into `folder`.

    Raises:
        DataError: as `store`.
    """
    images: Iterable[Any]
    if _is_table(source):
        images = _columns_of(source, path_column)[path_column]
    else:
        pairs = _pairs_of(source) if _is_pair(source) else _pairs_in(source)
        images = (_encoded(image, number, channels) for number, (image, _) in enumerate(pairs))
    for number, image in enumerate(images):
        file = folder / str(number) if isinstance(image, bytes) else Path(str(image))
        if isinstance(image, bytes):
            file.write_bytes(image)
        yield file


def _is_pair(source: Any) -> bool:
    return isinstance(source, tuple) and len(source) == 2


def _is_table(source: Any) -> bool:
    return hasattr(source, "columns") and hasattr(source, "to_dict")


def _pairs_of(source: tuple[Any, Any]) -> Iterator[tuple[np.ndarray, Any]]:
    images, labels = (np.asarray(part) for part in source)
    if labels.ndim == 2 and len(images) == len(labels):
        raise _not_one_label(
            f"labels {list(labels.shape)}",
            fix="pass labels.ravel()" if labels.shape[1] == 1 else _INDICES,
        )
    if images.ndim == 1 and labels.ndim in (3, 4):
        raise DataError(
            "labels and images are in the wrong order",
            expected="(images, labels)",
            received=f"first {list(images.shape)}, then {list(labels.shape)}",
            fix="swap them",
        )
    if images.ndim not in (3, 4) or labels.ndim != 1 or len(images) != len(labels):
        raise DataError(
            "these arrays are not images with a label each",
            expected="images [N, H, W, 3] and labels [N]",
            received=f"images {list(images.shape)} and labels {list(labels.shape)}",
            fix="give one label for each image; files with several labels go into a CSV file",
        )
    return zip(images, labels.tolist(), strict=True)


def _pairs_in(dataset: Any) -> Iterator[tuple[np.ndarray, Any]]:
    """The examples of a `tf.data.Dataset`, batched or not."""
    spec = dataset.element_spec
    parts: tuple[Any, ...] = spec if _is_pair(spec) else ()
    ranks = [len(part.shape) for part in parts if hasattr(part, "shape")]
    if ranks in ([3, 1], [4, 2]):
        raise _not_one_label(
            f"labels of shape {list(parts[1].shape)}",
            fix="map them: dataset.map(lambda image, label: (image, tf.argmax(label, axis=-1))); "
            'or read the folder with label_mode="int"',
        )
    if ranks not in ([3, 0], [4, 1]):
        raise DataError(
            "this data set does not have an image and a label in each element",
            expected="elements (image [H, W, 3], label), or batches of them",
            received=str(spec)[:300],
            fix="map it to (image, label), with the label as a number or a text",
        )
    for images, labels in dataset.as_numpy_iterator():
        if ranks == [3, 0]:
            yield images, _plain(labels)
        else:
            yield from ((image, _plain(label)) for image, label in zip(images, labels, strict=True))


def _not_one_label(received: str, *, fix: str) -> DataError:
    return DataError(
        "the labels are not one class for each image",
        expected="a class index or a class name for each image, labels [N]",
        received=f"{received}, such as one-hot labels",
        fix=fix,
    )


def _plain(label: Any) -> Any:
    return label.decode() if isinstance(label, bytes) else np.asarray(label).item()


def _named(label: Any, names: Sequence[str] | None) -> str:
    if names is None or not isinstance(label, _NUMBER):
        return str(label)
    if not 0 <= label < len(names):
        raise DataError(
            "a label is not the number of one of the classes",
            expected=f"numbers from 0 to {len(names) - 1}",
            received=str(label),
            fix="give all class_names in their order, or labels as texts",
        )
    return str(names[int(label)])


def _encoded(image: np.ndarray, number: int, channels: int) -> bytes:
    """An image as a file: a PNG of colours, else a .npy file; floats 0-255 are rounded."""
    return _png(image, number) if channels == COLOURS else _array(image, number, channels)


def _array(image: np.ndarray, number: int, channels: int) -> bytes:
    """An image [H, W, C], of one channel also [H, W], as a .npy file."""
    pixels = np.asarray(image)
    fits = pixels.shape[2:] == (channels,) or (channels == 1 and pixels.ndim == 2)
    if not fits or not (pixels.dtype == np.uint16 or _is_in_range(pixels)):
        also = " or [H, W]" if channels == 1 else ""
        raise DataError(
            f"element {number} is not an image of {channels} channels",
            expected=f"uint8, uint16 or floats from 0 to 255 [H, W, {channels}]{also}, as "
            f"data.channels={channels} says",
            received=_described(pixels),
            fix=advice(pixels) if fits else "set data.channels to the length of the last axis",
        )
    return encode_array(pixels if pixels.dtype == np.uint16 else np.rint(pixels).astype(np.uint8))


def advice(pixels: np.ndarray) -> str:
    """How images of another range or order of the axes become pixels 0-255."""
    is_float = pixels.dtype.kind == "f" and pixels.size > 0
    if is_float and not np.isfinite(pixels).all():
        return f"replace the {np.sum(~np.isfinite(pixels)):,} values that are NaN or infinite"
    if pixels.ndim == 3 and pixels.shape[0] in (1, 3, 4) and pixels.shape[-1] not in (1, 3, 4):
        return "move the channels of all images to the end: np.moveaxis(images, 1, -1)"
    if is_float and -1 <= pixels.min() < 0 and pixels.max() <= 1:
        return "scale values from -1 to 1: (127.5 * (images + 1)).round().astype('uint8')"
    if is_float and pixels.min() >= 0 and pixels.max() <= 1:
        return "scale values from 0 to 1: (255 * images).round().astype('uint8')"
    return "give values from 0 to 255, and set data.channels where pixels are not in colours"


def as_uint8(images: np.ndarray) -> np.ndarray:
    """Floats from 0 to 255 as rounded uint8; other arrays as they are."""
    is_float = images.dtype.kind == "f" and _is_in_range(images)
    return np.rint(images).astype(np.uint8) if is_float else images


def _is_in_range(pixels: np.ndarray) -> bool:
    """Whether values are pixels 0-255, and not 0-1."""
    if not pixels.size or not 0 <= pixels.min() <= pixels.max() <= 255:
        return False
    return pixels.dtype.kind != "f" or not 0 < pixels.max() <= 1


def _described(pixels: np.ndarray) -> str:
    values = f" with values from {pixels.min():g} to {pixels.max():g}" if pixels.size else ""
    return f"{pixels.dtype} {list(pixels.shape)}{values}"


def _png(image: np.ndarray, number: int) -> bytes:
    """An image in grey or colours as a PNG file."""
    pixels = np.asarray(image)
    if pixels.ndim == 3 and pixels.shape[-1] == 1:
        pixels = pixels[..., 0]
    is_image = pixels.ndim == 2 or (pixels.ndim == 3 and pixels.shape[-1] in (3, 4))
    if not is_image or not _is_in_range(pixels):
        raise DataError(
            f"element {number} is not an image of pixels 0-255",
            expected="uint8 [H, W, 3], [H, W, 4] or [H, W, 1], or floats from 0 to 255",
            received=_described(pixels),
            fix=advice(pixels),
        )
    buffer = io.BytesIO()
    Image.fromarray(np.rint(pixels).astype(np.uint8)).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def _columns_of(table: Any, path_column: str) -> dict[str, list[Any]]:
    columns: dict[str, list[Any]] = table.to_dict("list")
    if path_column not in columns:
        raise DataError(
            "the table has no column of images",
            expected=f"a column {path_column!r} with paths, or with the bytes of files",
            received=", ".join(map(str, columns)) or "no columns",
            fix="rename the column, or set data.path_column",
        )
    return columns


def _store_table(
    table: Any, path_column: str, label_column: str, names: Sequence[str] | None
) -> Path:
    columns = _columns_of(table, path_column)
    if names and label_column in columns:
        columns[label_column] = [_named(_known(label), names) for label in columns[label_column]]
    images = columns.pop(path_column)
    values = zip(*columns.values(), strict=True) if columns else [()] * len(images)
    rows = [dict(zip(columns, map(_known, row), strict=True)) for row in values]
    if not all(isinstance(image, bytes) for image in images):
        paths = [Path(str(image)).absolute().as_posix() for image in images]
        return _write_csv(paths, rows, path_column)
    return _store(zip(images, rows, strict=True), path_column)


def _known(cell: Any) -> Any:
    """A cell; an empty text where pandas has None, NaN, NaT or NA."""
    if cell is None or type(cell).__name__ in ("NAType", "NaTType"):
        return ""
    return "" if isinstance(cell, float) and cell != cell else cell


def _write_csv(paths: Sequence[str], rows: Sequence[dict[str, Any]], path_column: str) -> Path:
    """Store a CSV file of images that are files already."""
    with _storing() as folder:
        named = [{path_column: path, **row} for path, row in zip(paths, rows, strict=True)]
        return _finish(folder, named)


def _store(examples: Iterable[tuple[bytes, dict[str, Any]]], path_column: str) -> Path:
    """Store files, named by their content, and the CSV file."""
    counts: Counter[str] = Counter()
    with _storing() as folder:
        rows = []
        for data, row in examples:
            digest = hashlib.sha256(data).hexdigest()[:32]
            counts[digest] += 1
            copy = f"-{counts[digest]}" if counts[digest] > 1 else ""
            name = f"{digest}{copy}{sniff(data[:_HEAD]) or '.bin'}"
            (folder / name).write_bytes(data)
            rows.append({path_column: name, **row})
        rows.sort(key=lambda row: [str(value) for value in row.values()])
        return _finish(folder, rows)


@contextlib.contextmanager
def _storing() -> Iterator[Path]:
    """A folder to write to, which `_finish` moves away; RunError if the disk is full."""
    parent = home() / "data"
    try:
        parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=parent, prefix="new-") as scratch:
            folder = Path(scratch, "data")
            folder.mkdir()
            yield folder
    except OSError as error:
        raise storage_error(error, parent) from error


def _finish(folder: Path, rows: Sequence[dict[str, Any]]) -> Path:
    """Write the CSV file, and name the folder by it unless the same is stored already."""
    if not rows:
        raise DataError(
            "the data have no examples",
            expected=_EXPECTED,
            received="0 examples",
            fix="give at least some images of each class",
        )
    with (folder / CSV_FILE).open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    digest = hashlib.sha256((folder / CSV_FILE).read_bytes()).hexdigest()[:32]
    target = folder.parents[1] / digest
    if not (target / CSV_FILE).is_file():
        put_in_place(folder, target)
    return target / CSV_FILE
