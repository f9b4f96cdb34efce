"""Class names: one list in one order, with one hash, in the run folder and in every export.

class_names.json   {"class_names": [...], "hash": "..."}, names in the order of the logits
labels.txt         the same names, one per line, for other tools
"""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from keras_transfer.errors import (
    HIDDEN,
    DataError,
    ExportError,
    KerasTransferError,
    RunError,
    enumerated,
)

_MOST_NAMED: Final = 10
_LONGEST: Final = 255
"""Characters of a class name: as many bytes as the name of a folder may have."""


def hash_class_names(class_names: Sequence[str]) -> str:
    """The SHA-256 of the names in their order, in hex."""
    return hashlib.sha256(json.dumps(list(class_names)).encode()).hexdigest()


def model_name(class_names: Sequence[str]) -> str:
    """The name of a classifier's Keras model, which identifies the class list it was trained on."""
    return f"classifier_{hash_class_names(class_names)[:16]}"


def check_class_order(name_of_model: str, class_names: Sequence[str], where: str) -> None:
    """Raise DataError unless the model was trained on exactly these classes in this order."""
    if name_of_model != model_name(class_names):
        raise DataError(
            f"the model was trained on other classes than {where} lists, or in another order",
            expected=f"the class list whose model is called {name_of_model}",
            received=f"{len(class_names)} classes, {', '.join(list(class_names)[:5])} …",
            fix="restore the class list that was written together with the model",
        )


def describe_class_names(class_names: Sequence[str]) -> dict[str, Any]:
    """The content of class_names.json."""
    return {"class_names": list(class_names), "hash": hash_class_names(class_names)}


def verify_class_names(content: Any, *, where: str) -> tuple[str, ...]:
    """The classes in the content of a class_names.json.

    Raises:
        RunError: it is not a class list, or does not match its hash.
    """
    match content:
        case {"class_names": [*names], "hash": str(digest)} if hash_class_names(names) == digest:
            return tuple(names)
    raise RunError(
        f"{where} was changed after the model was trained",
        expected="the class names in the order of the model, with their hash",
        received=json.dumps(content)[:200],
        fix="restore the file; classes cannot be renamed or reordered afterwards",
    )


def class_name_flaw(name: str) -> str:
    """Why a class cannot have this name, in a few words; '' for a name that can be used."""
    if not name.strip():
        return "nothing but spaces"
    if found := HIDDEN.search(name):
        return f"contains {found[0]!a}"
    return f"has {len(name)} characters" if len(name) > _LONGEST else ""


def check_exportable(class_names: Sequence[str], where: str) -> None:
    """Raise DataError for all names that cannot be written into every artefact."""
    flawed = [f"{name[:60]!r} ({flaw})" for name in class_names if (flaw := class_name_flaw(name))]
    if flawed:
        raise DataError(
            f"{where} has names of classes, labels or columns that cannot be exported",
            expected="names of 1 to 255 characters on one line, without control characters, since "
            "labels.txt has one name per line",
            received=enumerated(flawed, _MOST_NAMED),
            fix="rename them in the data",
        )


def write_label_files(folder: Path, class_names: Sequence[str]) -> None:
    """Write labels.txt and class_names.json into the folder of an exported model.

    Raises:
        DataError: a name cannot be exported.
    """
    check_exportable(class_names, "the model")
    text = "".join(f"{name}\n" for name in class_names)
    (folder / "labels.txt").write_text(text, encoding="utf-8")
    description = json.dumps(describe_class_names(class_names), indent=2)
    (folder / "class_names.json").write_text(description + "\n", encoding="utf-8")


def read_label_files(folder: Path) -> tuple[str, ...]:
    """Read the classes of an exported model from labels.txt and class_names.json.

    Raises:
        ExportError: a file is missing, they differ, or the hash does not match.
    """
    try:
        labels = (folder / "labels.txt").read_text(encoding="utf-8").split("\n")[:-1]
        content = json.loads((folder / "class_names.json").read_text(encoding="utf-8"))
        names = verify_class_names(content, where=str(folder / "class_names.json"))
        reason = "" if list(names) == labels else "labels.txt differs from class_names.json"
    except KerasTransferError as error:
        reason = error.what
    except (OSError, ValueError) as error:
        reason = str(error)
    if reason:
        raise ExportError(
            f"the class list of the model in {folder} has changed",
            expected="labels.txt and class_names.json with the same names and their hash",
            received=reason,
            fix="restore the files, or export again",
        )
    return names
