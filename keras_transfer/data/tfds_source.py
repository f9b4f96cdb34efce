"""The TFDS source: a TensorFlow Datasets data set, unpacked once into ordinary image files.

Images are copied as they are stored, without decoding: a JPEG stays the same JPEG. After that the
source behaves like a folder: splits, predictions and mistakes can name a file.
"""

import contextlib
import difflib
import io
import json
import os
import shutil
import tempfile
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds
from filelock import FileLock

from keras_transfer.data import digits
from keras_transfer.data.images import sniff
from keras_transfer.data.records import Listing, Record
from keras_transfer.errors import DataError
from keras_transfer.specs import DataSpec
from keras_transfer.storage.cache import home

_MARKER = ".unpacked.json"
_PROBE_URL = "https://storage.googleapis.com/tfds-data"
_PROBE_SECONDS = 4


def read(spec: DataSpec) -> Listing:
    """List the images of a data set; prepare and unpack it first where needed.

    Raises:
        DataError: the name is unknown, the data are neither on disk nor downloadable, the training
            split is missing, or there is no image or no class label in the data.
    """
    # One process at a time prepares and unpacks; the others then find the files.
    home().mkdir(parents=True, exist_ok=True)
    with FileLock(home() / "tfds.lock"):
        builder = _find_builder(spec)
        _prepare(builder, spec)
        splits = _chosen_splits(builder, spec)
        root = home() / "unpacked" / builder.info.full_name
        folders = {split: _unpack(builder, split, root / split) for split in splits}
    items: list[Record] = []
    for split, role in splits.items():
        folder = folders[split]
        for class_folder in sorted(entry for entry in folder.iterdir() if entry.is_dir()):
            label = urllib.parse.unquote(class_folder.name)
            for name in sorted(os.listdir(class_folder)):
                items.append(Record(f"{split}/{class_folder.name}/{name}", (label,), role))
    unused = sorted(set(builder.info.splits) - set(splits))
    notes = [f"splits {', '.join(unused)} of {spec.name} are not used"] if unused else []
    return Listing(items, root, notes)


def _is_digits(spec: DataSpec) -> bool:
    return spec.name.partition(":")[0] == digits.Digits.name


def _find_builder(spec: DataSpec) -> tfds.core.DatasetBuilder:
    folder = spec.path or (str(home() / "tfds") if _is_digits(spec) else None)
    known = tfds.list_builders(with_community_datasets=False)
    try:
        return tfds.builder(spec.name, data_dir=folder)
    except Exception as error:  # The type depends on what is wrong: name, version, configuration.
        near = difflib.get_close_matches(spec.name, known, n=3, cutoff=0.5) or ["digits"]
        is_known = spec.name.partition(":")[0].partition("/")[0] in known
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise DataError(
            f"data.name={spec.name!r} is not a data set of TensorFlow Datasets",
            expected="a name such as 'digits', 'tf_flowers' or 'mnist:3.0.1'",
            received=reason[0] if is_known else f"{spec.name!r}, an unknown name",
            fix=f"did you mean {', '.join(near)}?",
        ) from error


def _prepare(builder: tfds.core.DatasetBuilder, spec: DataSpec) -> None:
    """Download and prepare the data if needed; a missing network is found within seconds."""
    if builder.is_prepared():
        return
    if _is_digits(spec):
        tfds.disable_progress_bar()  # It takes less than a second.
        with contextlib.redirect_stdout(io.StringIO()):
            builder.download_and_prepare()
        return
    reason = _network_failure()
    if not reason:
        try:
            builder.download_and_prepare()
            return
        except Exception as error:  # Each data set has its own script, which may raise anything.
            reason = str(error).strip().splitlines()[0] if str(error).strip() else repr(error)
    raise DataError(
        f"data.name={spec.name!r} is not prepared and cannot be downloaded",
        expected=f"prepared data in {builder.data_dir}",
        received=reason,
        fix=f"run `tfds build {spec.name} --data_dir {builder.data_dir_root}` on a machine with a "
        "network connection, copy that folder here and set data.path to it",
    )


def _network_failure() -> str:
    """Why TFDS's storage cannot be reached within seconds; '' if it can."""
    try:
        urllib.request.urlopen(_PROBE_URL, timeout=_PROBE_SECONDS).close()
    except urllib.error.HTTPError:
        return ""  # The server responded, so there is a network.
    except OSError as error:
        return f"no data on disk, and no network ({error})"
    return ""


def _chosen_splits(builder: tfds.core.DatasetBuilder, spec: DataSpec) -> dict[str, str]:
    """The splits of the data set that are used, with their roles: train, val or test."""
    present = sorted(builder.info.splits)
    if spec.train_split not in present:
        raise DataError(
            f"{spec.name} has no split called data.train_split={spec.train_split!r}",
            expected=f"one of {', '.join(present)}",
            received=repr(spec.train_split),
            fix=f"set data.train_split={present[0] if present else '...'}",
        )
    roles = {spec.train_split: "train", spec.val_split: "val", spec.test_split: "test"}
    return {split: role for split, role in roles.items() if split in present}


def _unpack(builder: tfds.core.DatasetBuilder, split: str, folder: Path) -> Path:
    """Write a split's images below `folder`, one sub-folder per class, unless they are there."""
    info = builder.info.splits[split]
    origin = {"num_examples": info.num_examples, "num_bytes": info.num_bytes}
    origin["from"] = str(builder.data_dir)
    if _is_unpacked(folder, origin):
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{split}.", dir=folder.parent))
    try:
        _write_images(builder, split, temporary)
        (temporary / _MARKER).write_text(json.dumps(origin))
        if folder.exists() and not _is_unpacked(folder, origin):
            shutil.rmtree(folder)
        if not folder.exists():
            temporary.rename(folder)
    except OSError as error:
        raise DataError(
            f"the images of {builder.info.full_name} cannot be unpacked into {folder}",
            expected=f"a writable folder with about {info.num_bytes} free bytes",
            received=str(error),
            fix="make room, or set the environment variable KERAS_TRANSFER_HOME to another disk",
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return folder


def _is_unpacked(folder: Path, origin: dict[str, Any]) -> bool:
    marker = folder / _MARKER
    return marker.is_file() and json.loads(marker.read_text()) == origin


def _write_images(builder: tfds.core.DatasetBuilder, split: str, folder: Path) -> None:
    image_key, label_key = _image_and_label(builder)
    names = builder.info.features[label_key].names
    # A class folder's name is quoted, because a class may have a name such as 'and/or'.
    folders = [folder / urllib.parse.quote(name, safe=" ()',&+") for name in names]
    for class_folder in folders:
        class_folder.mkdir()
    for index, example in enumerate(_encoded_examples(builder, split, image_key)):
        label = int(example[label_key])
        if label < 0:
            raise DataError(
                f"split {split!r} of {builder.info.full_name} has images without a label",
                expected="a class label on every image",
                received=f"none on image {index}",
                fix="set data.test_split or data.val_split to a labelled split, or to a name that "
                "does not exist to have one split off from training",
            )
        data = example[image_key].numpy()
        (folders[label] / f"{index:07d}{sniff(data[:12]) or '.bin'}").write_bytes(data)


def _encoded_examples(
    builder: tfds.core.DatasetBuilder, split: str, image_key: str
) -> Iterable[dict[str, Any]]:
    try:
        skip_decoding = {image_key: tfds.decode.SkipDecoding()}
        return builder.as_dataset(split=split, decoders=skip_decoding)
    except NotImplementedError as error:
        raise DataError(
            f"the files of {builder.info.full_name} in {builder.data_dir} cannot be read in order",
            expected="data prepared in the tfrecord format",
            received=f"{builder.info.file_format}",
            fix="prepare the data again with `tfds build --file_format tfrecord`",
        ) from error


def _image_and_label(builder: tfds.core.DatasetBuilder) -> tuple[str, str]:
    """The keys of the one image and the one class label in an example."""
    features = dict(builder.info.features)
    images = [key for key, value in features.items() if isinstance(value, tfds.features.Image)]
    labels = [key for key, value in features.items() if isinstance(value, tfds.features.ClassLabel)]
    preferred = builder.info.supervised_keys or ()
    images = [key for key in images if key in preferred] or images
    labels = [key for key in labels if key in preferred] or labels
    if len(images) != 1 or len(labels) != 1:
        raise DataError(
            f"{builder.info.full_name} is not a data set of labelled images",
            expected="one image and one class label in each example",
            received=", ".join(f"{key}: {type(value).__name__}" for key, value in features.items()),
            fix="choose another data set, or write its images into class folders",
        )
    return images[0], labels[0]
