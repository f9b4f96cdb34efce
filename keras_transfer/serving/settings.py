"""Settings of a server: its address, its batches and its limits."""

import dataclasses
import math
import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Final

from keras_transfer.errors import ExportError, SpecError
from keras_transfer.export.formats.registry import DIFFERENCE, FORMATS, KERAS
from keras_transfer.fields import nearest, option
from keras_transfer.storage.run_folder import version_folders

SAVED_MODEL: Final = "saved_model"
AUTO: Final = "auto"
_BFLOAT16: Final = dataclasses.replace(
    FORMATS["openvino"], name="openvino_bfloat16", precision="bfloat16"
)
SERVED_FORMATS: Final = {
    entry.name: entry
    for entry in (*FORMATS.values(), _BFLOAT16)
    if entry.kind not in (KERAS, DIFFERENCE)
}
"""Formats that can compute in place of the SavedModel; OpenVINO's file also in bfloat16."""
_NAME: Final = re.compile(r"[A-Za-z0-9_.-]+")
_HOST_NAME: Final = re.compile(r"\[[0-9a-f:.]+\]|[^\[\]:@/\\?#\s*]+", re.IGNORECASE)
_ORIGIN: Final = re.compile(
    rf"\*|null|[a-z][a-z0-9+.-]*://({_HOST_NAME.pattern})(:\d+)?", re.IGNORECASE
)
_LEAST: Final = 1e-3


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Settings of one server; `folder` holds the numbered versions.

    Raises:
        SpecError: a value is out of range.
    """

    folder: Path
    name: str = option("", "the model's name in URLs, '' for the run's")
    host: str = option("127.0.0.1", "address to listen on")
    port: int = option(8501, "port to listen on, 0 for any free one")
    allow_hosts: str = option("", "more names of this server in URLs, with commas, else 403")
    allow_origins: str = option(
        "", "other sites whose pages may ask, such as https://a.example, with commas, * for all"
    )
    runtime: str = option(
        SAVED_MODEL,
        f"what computes: {SAVED_MODEL}, {AUTO} for the fastest verified format, or a format's name",
    )
    max_batch: int = option(32, "images in a batch", low=1)
    max_wait_ms: float = option(2.0, "how long a batch waits for more images", low=0)
    max_queue: int = option(256, "images of all current requests, else 429", low=1)
    max_instances: int = option(128, "images in a request, else 422", low=1)
    max_body_megabytes: float = option(32.0, "size of a request body, else 413", low=_LEAST)
    max_megapixels: float | None = option(
        None, "size of an image, else 422; None for the limit in the contract", low=_LEAST
    )
    max_request_megapixels: float = option(
        200.0, "sum over the images of a request with several, else 422", low=_LEAST
    )
    request_seconds: float = option(30.0, "for a request body to arrive, else 408", low=_LEAST)
    poll_seconds: float = option(2.0, "how often to check for a newer version", low=_LEAST)
    grace_seconds: int = option(20, "to finish the current requests at shutdown", low=1)

    def __post_init__(self) -> None:
        if self.name and not _NAME.fullmatch(self.name):
            raise SpecError(
                "the model's name cannot be part of a URL",
                expected="--name with letters, digits, dots, dashes and underscores",
                received=repr(self.name),
                fix="choose another name",
            )
        if self.runtime not in (names := (SAVED_MODEL, AUTO, *SERVED_FORMATS)):
            raise SpecError(
                "--runtime has an unknown value",
                expected=", ".join(names),
                received=repr(self.runtime),
                fix=nearest(self.runtime, names),
            )
        _check_listed("--allow-hosts", self.hosts, _HOST_NAME, "names without ports: a.example")
        _check_listed("--allow-origins", self.origins, _ORIGIN, "https://a.example without a path")
        for field in dataclasses.fields(self):
            low, value = field.metadata.get("low"), getattr(self, field.name)
            if low is not None and value is not None and not low <= value < math.inf:
                raise SpecError(
                    f"--{field.name.replace('_', '-')} is out of range",
                    expected=f"a number, {low:g} or more",
                    received=f"{value:g}",
                    fix="leave it out to use the default",
                )

    @cached_property
    def hosts(self) -> frozenset[str]:
        """The names in `allow_hosts`, in lower case."""
        return _listed(self.allow_hosts)

    @cached_property
    def origins(self) -> frozenset[str]:
        """The origins in `allow_origins`, in lower case."""
        return _listed(self.allow_origins)

    @property
    def max_body_bytes(self) -> int:
        """Largest accepted request body."""
        return int(self.max_body_megabytes * 1e6)


def _listed(text: str) -> frozenset[str]:
    return frozenset(part.strip().lower() for part in text.split(",") if part.strip())


def _check_listed(
    argument: str, given: frozenset[str], pattern: re.Pattern[str], expected: str
) -> None:
    wrong = sorted(value for value in given if not pattern.fullmatch(value))
    if wrong:
        raise SpecError(
            f"{argument} has values of another form",
            expected=expected,
            received=", ".join(map(repr, wrong)),
            fix="correct them, with commas between several",
        )


def find_export_folder(given: Path) -> Path:
    """The folder of versions in a run folder, or the given folder itself.

    Raises:
        ExportError: it contains no exported version.
    """
    for folder in (given / "export", given):
        if any((path / "saved_model.pb").is_file() for path in version_folders(folder).values()):
            return folder
    raise ExportError(
        f"there is no exported model in {given}",
        expected="a run folder, or a folder of versions, such as saved_models/my_photos/export",
        received="a folder without one" if given.is_dir() else "no folder",
        fix="train or export first, and give the written folder",
    )
