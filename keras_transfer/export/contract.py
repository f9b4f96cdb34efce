"""The contract of an artefact: what whoever asks it has to know, in files beside it.

contract.json      the fields of `Contract`, with the hash of the classes
class_names.json   the classes in the order of the outputs, and their hash
labels.txt         the same names, one a line
"""

import dataclasses
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from keras_transfer.errors import ExportError
from keras_transfer.specs import RunSpec
from keras_transfer.storage.class_names import hash_class_names, read_label_files, write_label_files

FILE_NAME: Final = "contract.json"
CARD_FILE: Final = "card.json"
"""The model's card, beside the contract; see `card.Card`."""
_NOT_IN_URLS: Final = re.compile(r"[^A-Za-z0-9_.-]+")


@dataclass(frozen=True, kw_only=True)
class Contract:
    """One artefact's terms, the same for a SavedModel and for every other format.

    `name` is the model's name in URLs; `class_names` are in the order of the outputs; `image_size`
    (px) and `resize` say how an image becomes the square the network sees; images of more than
    `max_megapixels` are refused; `precision` is what the network computes in.
    """

    name: str
    class_names: tuple[str, ...]
    image_size: int
    resize: str
    max_megapixels: float
    precision: str = "float32"

    @classmethod
    def of(cls, spec: RunSpec, class_names: tuple[str, ...]) -> "Contract":
        """The terms of a run's artefacts."""
        return cls(
            name=_NOT_IN_URLS.sub("-", spec.name).strip("-.") or "model",
            class_names=class_names,
            image_size=spec.data.image_size,
            resize=spec.data.resize,
            max_megapixels=spec.data.max_megapixels,
        )

    @classmethod
    def read(cls, folder: Path) -> "Contract":
        """The contract beside an artefact.

        Raises:
            ExportError: a file of it is missing or damaged, or the classes are not those, or not
                in the order, that the artefact was made with.
        """
        names = read_label_files(folder)
        path = folder / FILE_NAME
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            digest = content.pop("class_hash")
            contract = cls(class_names=names, **content)
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            raise ExportError(
                f"{path} cannot be read",
                expected="the contract.json that was written together with the artefact",
                received=str(error) or type(error).__name__,
                fix="export again",
            ) from error
        if digest != hash_class_names(names):
            raise ExportError(
                f"{folder} lists other classes, or another order, than its artefact answers with",
                expected=f"the classes with the hash {digest[:16]}…",
                received=", ".join(names[:10]),
                fix="restore labels.txt and class_names.json, or export again",
            )
        return contract

    @property
    def class_hash(self) -> str:
        """The SHA-256 of the classes in their order, in hex."""
        return hash_class_names(self.class_names)

    def write(self, folder: Path) -> None:
        """Write the three files.

        Raises:
            ExportError: a class name does not fit on one line of UTF-8.
        """
        write_label_files(folder, self.class_names)
        content: dict[str, Any] = dataclasses.asdict(self) | {"class_hash": self.class_hash}
        del content["class_names"]
        (folder / FILE_NAME).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
