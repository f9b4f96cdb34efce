"""What a server is told: where it listens, what it batches and how much it takes on at once."""

import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from keras_transfer.errors import ExportError, SpecError
from keras_transfer.export.contract import version_folders

_NAME: Final = re.compile(r"[A-Za-z0-9_.-]+")


@dataclass(frozen=True, kw_only=True)
class Settings:
    """One server's terms.

    `folder` holds the numbered versions. `max_queue` counts images that were admitted and not
    answered yet; `max_megapixels` is None for what the artefact's contract allows. Requests may
    take `request_seconds` to arrive.
    """

    folder: Path
    name: str = ""
    host: str = "127.0.0.1"
    port: int = 8501
    max_batch: int = 32
    max_wait_ms: float = 2.0
    max_queue: int = 256
    max_instances: int = 128
    max_body_megabytes: float = 32.0
    max_megapixels: float | None = None
    request_seconds: float = 30.0
    poll_seconds: float = 2.0
    grace_seconds: int = 20

    def __post_init__(self) -> None:
        """Raise SpecError for what no server can be told."""
        if self.name and not _NAME.fullmatch(self.name):
            raise SpecError(
                "the model's name does not fit into URLs",
                expected="--name with letters, digits, dots, dashes and underscores",
                received=repr(self.name),
                fix="choose another name",
            )
        for field in ("max_body_megabytes", "max_megapixels", "request_seconds", "poll_seconds"):
            value = getattr(self, field)
            if value is not None and not 0 < value < math.inf:
                raise _out_of_range(field, value, "more than 0")
        if not 0 <= self.max_wait_ms < math.inf:
            raise _out_of_range("max_wait_ms", self.max_wait_ms, "0 or more")

    @property
    def max_body_bytes(self) -> int:
        """Largest accepted body of a request."""
        return int(self.max_body_megabytes * 1e6)


def _out_of_range(field: str, value: float, expected: str) -> SpecError:
    return SpecError(
        f"--{field.replace('_', '-')} is out of range",
        expected=f"a number, {expected}",
        received=f"{value:g}",
        fix="leave it out for the default",
    )


def find_export_folder(given: Path) -> Path:
    """The folder of versions that a run folder, or the folder itself, stands for.

    Raises:
        ExportError: there is no exported version in it.
    """
    for folder in (given / "export", given):
        if any((path / "saved_model.pb").is_file() for path in version_folders(folder).values()):
            return folder
    raise ExportError(
        f"there is no exported model in {given}",
        expected="a run folder, or a folder of versions, such as saved_models/flowers/export",
        received="a folder without one" if given.is_dir() else "no folder",
        fix="train or export first, and give the folder that was written",
    )
