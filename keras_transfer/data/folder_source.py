"""The folder source: images in one sub-folder a class, or in such folders below each split."""

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from keras_transfer.data.folder_listing import EMPTY, NO_CLASS, FolderListing
from keras_transfer.data.records import Listing, Record, counted
from keras_transfer.data.split_names import (
    check_one_name_each,
    describe_synonyms,
    field_of,
    find_roles,
)
from keras_transfer.errors import DataError, enumerated
from keras_transfer.fields import similar_path
from keras_transfer.specs import DataSpec

_LAYOUT: Final = "class sub-folders with images in them, or train, val and test folders of such"
_MOST_NAMED: Final = 10


@dataclass(frozen=True)
class _ClassFolder:
    """The images of a class folder, by their paths; `split` is None in a folder without splits."""

    path: str
    split: str | None
    images: Sequence[str]

    def records(self) -> Iterator[Record]:
        label = self.path.rpartition("/")[2]
        return (Record(path=image, target=(label,), split=self.split) for image in self.images)

    def sub_folders(self) -> set[str]:
        """Names of the folders directly below it that have images."""
        parts = (image.removeprefix(f"{self.path}/").split("/") for image in self.images)
        return {names[0] for names in parts if len(names) > 1}


def read(spec: DataSpec) -> Listing:
    """List the images of a folder; the name of the class folder is the target.

    Raises:
        DataError: the folder or a class is empty, split folders and other folders are mixed, or
            the class folders all have the same sub-folders.
    """
    root = _existing_folder(spec.path)
    listing = FolderListing(root)
    loose, folders = listing.files(), listing.folders()
    images = {name: list(listing.images(name)) for name in folders}
    roles = _split_folders(images, spec)
    for name in loose:
        listing.ignored.add(NO_CLASS, name)
    if roles:
        classes = list(_classes_of_splits(listing, images, roles))
        _check_split_folders(root, images, roles, spec)
    else:
        classes = [_ClassFolder(name, None, images[name]) for name in folders]
    if not classes:
        raise DataError(
            f"data.path={spec.path} has no class sub-folders",
            expected=_LAYOUT,
            received=f"files: {len(loose)}, sub-folders: {len(folders)}, classes: none"
            if loose or folders
            else "an empty folder",
            fix="put the images of each class into a sub-folder named after the class, or list "
            "them with their labels in a CSV file",
        )
    _check_not_empty(root, classes, listing)
    for split in {of_class.split for of_class in classes}:
        _check_sub_folders(root, [each for each in classes if each.split == split], spec)
    items = [record for of_class in classes for record in of_class.records()]
    notes = describe_synonyms(roles, spec) if roles else _describe_classes(folders, spec)
    return Listing(items, root, [*notes, *listing.ignored.notes()])


def _describe_classes(folders: Sequence[str], spec: DataSpec) -> list[str]:
    """A sentence on a class that is called like a split."""
    names = ", ".join(find_roles(folders, spec))
    return [f"{names} is a class here: its images are directly in the folder"] if names else []


def _existing_folder(path: str) -> Path:
    root = Path(os.path.expanduser(path)).absolute()
    if not path:
        raise DataError(
            "no images are given",
            expected=_LAYOUT,
            received="an empty data.path",
            fix="set data.path to your folder of images, such as data.path=my_photos",
        )
    if not root.is_dir():
        raise DataError(
            f"data.path={path!r} is not a folder",
            expected=_LAYOUT,
            received="a file" if root.exists() else "nothing there",
            fix=f"{similar_path(root)}set data.path to your folder of images, or "
            "data.source=csv for a CSV file",
        )
    return root


def _split_folders(images: Mapping[str, Sequence[str]], spec: DataSpec) -> dict[str, str]:
    """The split of each split folder, by its name; empty for a folder of classes.

    A split folder has folders with images in it. Images directly in a folder called 'train' are of
    that class, as of photographs of trains, if there are other classes.
    """
    roles = find_roles(images, spec)
    if any(path.count("/") > 1 for name in roles for path in images[name]):
        return roles
    classes = [name for name, paths in images.items() if paths]
    if len(roles.keys() & set(classes)) > 1 or (classes and roles.keys() >= set(classes)):
        raise DataError(
            f"{spec.path} has split folders without class folders in them",
            expected=_LAYOUT,
            received=", ".join(
                f"{name} ({counted(len(images[name]), 'image', 'images')})" for name in roles
            ),
            fix="put the images of each split into sub-folders named after the classes; if the "
            "folders are classes, "
            + " and ".join(
                f"set {field_of(role)} to another name" for role in sorted({*roles.values()})
            ),
        )
    return {}


def _classes_of_splits(
    listing: FolderListing, images: Mapping[str, Sequence[str]], roles: Mapping[str, str]
) -> Iterator[_ClassFolder]:
    """The class folders below all splits; images beside them are noted."""
    for name, paths in images.items():
        if not paths:
            listing.ignored.add(EMPTY, name)
        elif name in roles:
            for path in paths:
                if path.count("/") == 1:
                    listing.ignored.add(NO_CLASS, path)
            # A folder without any class folder has images whose classes are unknown.
            for label in listing.folders(name):
                folder = f"{name}/{label}"
                inside = [path for path in paths if path.startswith(f"{folder}/")]
                yield _ClassFolder(folder, roles[name], inside)


def _check_split_folders(
    root: Path, images: Mapping[str, Sequence[str]], roles: Mapping[str, str], spec: DataSpec
) -> None:
    """Raise DataError where split folders are mixed with others or are not clear."""
    check_one_name_each(
        {name: role for name, role in roles.items() if images[name]}, f"the folder {root}"
    )
    others = [name for name, paths in images.items() if paths and name not in roles]
    trained = [name for name, role in roles.items() if role == "train" and images[name]]
    if not others and trained and any(path.count("/") > 1 for path in images[trained[0]]):
        return
    free = [role for role in ("train", "val", "test") if role not in roles.values()]
    settings = " or ".join(f"{field_of(role)}={name}" for name in others for role in free)
    raise DataError(
        f"{root} mixes split folders with other folders"
        if others
        else f"{root} has no training split",
        expected=f"splits named {spec.train_split}, {spec.val_split}, {spec.test_split} or by "
        "synonyms of these, with class folders in them; or class folders alone",
        received=", ".join(map(repr, images)),
        fix=f"if one of them is a split, name it by {settings or 'data.train_split=...'}; if they "
        "are all classes, give data.train_split, val_split and test_split other names",
    )


def _check_not_empty(root: Path, classes: Sequence[_ClassFolder], listing: FolderListing) -> None:
    """Raise DataError for all class folders without an image, with what is in them."""
    empty = [of_class.path for of_class in classes if not of_class.images]
    if not empty:
        return
    raise DataError(
        f"class {'folder' if len(empty) == 1 else 'folders'} without an image: "
        + enumerated([str(root / name) for name in empty], _MOST_NAMED),
        expected="images in every class folder, as JPEG, PNG, GIF, BMP or WebP",
        received="; ".join(listing.ignored.notes(empty)) or "none",
        fix="add images of the class, or remove the folder",
    )


def _check_sub_folders(root: Path, classes: Sequence[_ClassFolder], spec: DataSpec) -> None:
    """Raise DataError where class folders have splits, or all have the same sub-folders."""
    below = [of_class.sub_folders() for of_class in classes]
    roles = find_roles(set.union(*below), spec)
    # Splits below the classes, also where one class has no test images.
    common = set(roles) if len({*roles.values()}) > 1 else set.intersection(*below)
    if len(classes) > 1 and len(common) > 1:
        named = enumerated(sorted(common), _MOST_NAMED)
        raise DataError(
            f"the folders in {root} {'all ' * (common <= set.intersection(*below))}have the "
            f"sub-folders {named}",
            expected=_LAYOUT,
            received=enumerated(
                [
                    f"{of_class.path}/{min(names)}"
                    for of_class in classes
                    if (names := of_class.sub_folders() & common)
                ],
                _MOST_NAMED,
            ),
            fix="if the sub-folders are the classes, put each class into one folder, or name the "
            "folders above by data.train_split, data.val_split and data.test_split; if they are "
            "splits, put these above the classes; or list the images in a CSV file",
        )
