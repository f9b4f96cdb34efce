"""The contract of an artefact: what its users need, in files next to it.

contract.json      the fields of `Contract`, with the hash of the classes
class_names.json   the classes in the order of the outputs, and their hash
labels.txt         the same names, one per line

Versions of an export are in folders named by numbers: export/1, export/2 and so on.
"""

import dataclasses
import json
import re
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Final

from keras_transfer.errors import ExportError
from keras_transfer.specs import COLOURS, RunSpec
from keras_transfer.storage.class_names import hash_class_names, read_label_files, write_label_files
from keras_transfer.tasks.registry import describe_task, restore_task
from keras_transfer.tasks.task import Task

FILE_NAME: Final = "contract.json"
CARD_FILE: Final = "card.json"
"""The model's card, next to the contract; see `card.Card`."""
_NOT_IN_URLS: Final = re.compile(r"[^A-Za-z0-9_.-]+")


@dataclass(frozen=True, kw_only=True)
class Contract:
    """What one artefact takes and returns, the same for a SavedModel and for every other format.

    `name` is the model's name in URLs; `class_names` are in the order of the outputs; `image_size`
    (px), `channels` and `resize` give the size and the resizing of the network's square input;
    images of more than `max_megapixels` are refused; `background` and `bit_depth` are those of the
    run's data; `precision` is that of the computation. `task` is {"task": name, "options": {…},
    "state": {…}}: what the outputs are, with the values fitted after training.
    """

    name: str
    class_names: tuple[str, ...]
    image_size: int
    resize: str
    max_megapixels: float
    background: str = "white"
    bit_depth: int = 16
    channels: int = COLOURS
    precision: str = "float32"
    task: dict[str, Any] = field(
        default_factory=lambda: {"task": RunSpec().task, "options": {}, "state": {}}
    )

    @cached_property
    def restored_task(self) -> Task:
        """The task whose outputs the artefact returns.

        Raises:
            SpecError: this version has no such task.
        """
        return restore_task(self.task, self.class_names)

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """[S, S, C] of one image as the network takes it."""
        return self.image_size, self.image_size, self.channels

    @classmethod
    def of(cls, spec: RunSpec, task: Task) -> "Contract":
        """The contract of a run's artefacts; `task` is the one after training."""
        return cls(
            name=_NOT_IN_URLS.sub("-", spec.name).strip("-.") or "model",
            class_names=task.names,
            task=describe_task(task),
            image_size=spec.data.image_size,
            resize=spec.data.resize,
            max_megapixels=spec.data.max_megapixels,
            background=spec.data.background,
            bit_depth=spec.data.bit_depth,
            channels=spec.data.channels,
        )

    @classmethod
    def read(cls, folder: Path) -> "Contract":
        """Read the contract next to an artefact.

        Raises:
            ExportError: a file of it is missing or damaged, or the artefact was written for other
                classes or another order.
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
                f"{folder} lists other classes, or another order, than its artefact",
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
