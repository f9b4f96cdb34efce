"""The folder source: images in one sub-folder a class, or in such folders below each split."""

import os
from collections import Counter
from pathlib import Path

from keras_transfer.data.images import EXTENSIONS
from keras_transfer.data.records import Listing, Record, counted
from keras_transfer.errors import DataError
from keras_transfer.specs import DataSpec

_LAYOUT = "class sub-folders with images in them, or train, val and test folders of such"


def read(spec: DataSpec) -> Listing:
    """List the images of a folder; the name of the class folder is the target.

    Raises:
        DataError: the folder or a class is empty, or split folders and other folders are mixed.
    """
    root = _existing_folder(spec.path)
    folders = _sub_folders(root)
    roles = {spec.train_split: "train", spec.val_split: "val", spec.test_split: "test"}
    stray = sum(1 for entry in root.iterdir() if entry.is_file() and not _is_hidden(entry.name))
    items: list[Record] = []
    skipped: Counter[str] = Counter()
    if roles.keys().isdisjoint(folders):
        for label in folders:
            items += _read_class(root, label, None, label, skipped)
    else:
        _check_split_folders(root, folders, spec)
        for name in folders:
            for label in _sub_folders(root / name):
                items += _read_class(root, f"{name}/{label}", roles[name], label, skipped)
    if not items:
        raise DataError(
            f"data.path={spec.path} has no class sub-folders",
            expected=_LAYOUT,
            received=f"files: {stray}, sub-folders: {len(folders)}, classes: none",
            fix="put the images of each class into a sub-folder named after the class",
        )
    return Listing(items, root, _notes(stray, skipped))


def _notes(stray: int, skipped: Counter[str]) -> list[str]:
    notes = []
    if stray:
        notes.append(f"{counted(stray, 'file', 'files')} beside the class folders ignored")
    if skipped:
        kinds = ", ".join(f"{suffix} {count}" for suffix, count in skipped.most_common(5))
        words = counted(skipped.total(), "file", "files")
        notes.append(f"{words} without an image's suffix ignored ({kinds})")
    return notes


def _existing_folder(path: str) -> Path:
    root = Path(path).expanduser().absolute()
    if not path or not root.is_dir():
        raise DataError(
            f"data.path={path!r} is not a folder",
            expected=_LAYOUT,
            received="a file" if path and root.exists() else "nothing there",
            fix="set data.path to your folder of images, or data.source=csv for a CSV file",
        )
    return root


def _sub_folders(folder: Path) -> list[str]:
    return sorted(
        entry.name for entry in folder.iterdir() if entry.is_dir() and not _is_hidden(entry.name)
    )


def _is_hidden(name: str) -> bool:
    return name.startswith(".")


def _check_split_folders(root: Path, folders: list[str], spec: DataSpec) -> None:
    """Raise DataError where split folders are mixed with other folders."""
    known = (spec.train_split, spec.val_split, spec.test_split)
    others = [name for name in folders if name not in known]
    free = [
        field
        for field, name in zip(("train_split", "val_split", "test_split"), known, strict=True)
        if name not in folders
    ]
    if not others and spec.train_split in folders:
        return
    settings = " or ".join(f"data.{field}={name}" for name in others for field in free)
    raise DataError(
        f"{root} mixes split folders with other folders"
        if others
        else f"{root} has no training split",
        expected=f"splits named {', '.join(known)}, or class folders alone",
        received=", ".join(f"{name!r}" for name in folders),
        fix=f"if one of them is a split, name it by {settings or 'data.train_split=...'}; if they "
        "are all classes, give data.train_split, val_split and test_split other names",
    )


def _stop(error: OSError) -> None:
    """Raise: by default `os.walk` skips a folder that cannot be read."""
    raise error


def _read_class(
    root: Path, folder: str, split: str | None, label: str, skipped: Counter[str]
) -> list[Record]:
    """The images below one class folder; files with other suffixes are counted in `skipped`."""
    items: list[Record] = []
    for parent, names, files in os.walk(root / folder, onerror=_stop):
        names[:] = sorted(name for name in names if not _is_hidden(name))
        for name in sorted(file for file in files if not _is_hidden(file)):
            suffix = Path(name).suffix.lower()
            if suffix in EXTENSIONS:
                path = Path(parent, name).relative_to(root).as_posix()
                items.append(Record(path=path, target=(label,), split=split))
            else:
                skipped[suffix or "without suffix"] += 1
    if not items:
        raise DataError(
            f"class folder {root / folder} has no image",
            expected=f"files named {', '.join(sorted(EXTENSIONS))}",
            received="none",
            fix="add images of the class, or remove the folder",
        )
    return items
