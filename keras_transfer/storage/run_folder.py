"""The run folder: the settings, decisions, measurements and results of one run.

    spec.json          the resolved spec         history.csv       one row per epoch
    splits.json        the images of each split  metrics.json      phases, test, export
    class_names.json   the classes and a hash    predictions.csv   one row per test image
    environment.json   versions, command, time   run.log           TensorFlow's native log output
    model.keras        the classifier            figures/          PNG
    export/1/          the SavedModel            checkpoint/       only during training

A folder with spec.json is a run; it is complete when it has metrics.json. Folders of studies and
searches also have spec.json; they are complete when they have study.json or search.json, and those
of pretrainings when they have pretraining.json.
"""

import csv
import datetime
import errno
import importlib.metadata
import json
import math
import os
import platform
import re
import sys
import weakref
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

from keras_transfer.devices.processors import num_processors
from keras_transfer.errors import RunError, enumerated
from keras_transfer.storage.atomic import discard_partials, exists, replacing, storage_error
from keras_transfer.storage.cells import spreadsheet_cell
from keras_transfer.storage.class_names import describe_class_names, verify_class_names

_PACKAGES: Final = (
    "keras_transfer",
    "keras",
    "tensorflow",
    "tensorflow-cpu",
    "jax",
    "numpy",
    "h5py",
    "pillow",
    "scikit-learn",
    "tensorflow-datasets",
    "matplotlib",
    "onnx",
    "onnxruntime",
    "tf2onnx",
    "ai-edge-litert",
    "openvino",
)


FILES: Final = (
    "spec.json",
    "splits.json",
    "class_names.json",
    "environment.json",
    "history.csv",
    "model.keras",
    "predictions.csv",
    "metrics.json",
    "export/1",
)
"""The results of a run, approximately in the order in which they are written."""

EARLIER: Final = "generations"
"""The folder of the runs whose students are the teachers of this one."""

_BEFORE_THE_SPEC: Final = {
    EARLIER,
    "run.log",
    "environment.json",
    "environment.partial.json",
    "spec.partial.json",
    "probe.partial",
}
"""Entries of a run that was killed before it wrote its spec: a new run may use the folder."""


_WITHOUT_LOCKS: Final = (errno.ENOTSUP, errno.ENOSYS, errno.ENOLCK, errno.EBADF)
"""What file systems answer that have no locks on folders, such as some mounted drives."""


class _Lock:
    """Keeps other processes from locking the same folder, until it or this process is gone.

    File systems without such locks, and Windows, do not keep other processes out.

    Raises:
        BlockingIOError: another process has locked it.
    """

    def __init__(self, folder: Path):
        if sys.platform == "win32":
            return
        import fcntl

        descriptor = os.open(folder, os.O_RDONLY)
        weakref.finalize(self, os.close, descriptor)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in _WITHOUT_LOCKS:
                raise


_LOCKS: Final = weakref.WeakValueDictionary[Path, _Lock]()
"""Those of this process, by folder: it may open a run again, after an interruption for example."""


@dataclass(frozen=True)
class RunFolder:
    """The paths of one run, and reading and writing them.

    `is_new`: this process has created the folder or found it empty, so it holds nothing else.
    `lock`: no other process can start or resume a run there as long as this object exists.
    """

    path: Path
    is_new: bool = field(default=False, compare=False)
    lock: _Lock | None = field(default=None, compare=False, repr=False)

    @classmethod
    def create(cls, path: str | Path, *, resume: bool = False) -> "RunFolder":
        """Create the folder of a new run, or open the one to resume; partial files are removed.

        Raises:
            RunError: there is a run already, or none to resume; the folder has other files, is a
                file, cannot be written, or is written by another process.
        """
        run = cls(Path(path), is_new=not resume)
        try:
            run._check(resume=resume)
            run.path.mkdir(parents=True, exist_ok=True)
            run = replace(run, lock=run._locked())
            # Another process may have written a run until it was locked.
            run._check(resume=resume)
            discard_partials(run.path)
            # `os.access` is wrong for root, network disks and full disks, so a file is written.
            probe = run.path / "probe.partial"
            probe.write_text("test", encoding="utf-8")
            probe.unlink()
        except OSError as error:
            raise storage_error(error, run.path) from error
        return run

    @classmethod
    def open(cls, path: str | Path) -> "RunFolder":
        """Open the folder of an existing run for reading.

        Raises:
            RunError: there is no run.
        """
        run = cls(Path(path))
        try:
            run._check_is_run(fix="give a folder written by `train`, such as saved_models/<name>")
        except OSError as error:
            raise storage_error(error, run.path) from error
        return run

    def check_is_vacant(self) -> None:
        """Raise RunError unless a new run can use the folder."""
        try:
            self._check_is_vacant()
        except OSError as error:
            raise storage_error(error, self.path) from error

    @property
    def profile_folder(self) -> Path:
        return self.path / "profile"

    @property
    def spec_file(self) -> Path:
        return self.path / "spec.json"

    @property
    def metrics_file(self) -> Path:
        return self.path / "metrics.json"

    @property
    def study_file(self) -> Path:
        return self.path / "study.json"

    @property
    def search_file(self) -> Path:
        return self.path / "search.json"

    @property
    def pretraining_file(self) -> Path:
        return self.path / "pretraining.json"

    @property
    def history_file(self) -> Path:
        return self.path / "history.csv"

    @property
    def predictions_file(self) -> Path:
        return self.path / "predictions.csv"

    @property
    def model_file(self) -> Path:
        return self.path / "model.keras"

    @property
    def log_file(self) -> Path:
        return self.path / "run.log"

    @property
    def figures_folder(self) -> Path:
        return self.path / "figures"

    @property
    def checkpoint_folder(self) -> Path:
        return self.path / "checkpoint"

    @property
    def export_folder(self) -> Path:
        return self.path / "export"

    @property
    def is_complete(self) -> bool:
        """Whether the run, study, search or pretraining has finished."""
        last = (self.metrics_file, self.study_file, self.search_file, self.pretraining_file)
        return any(file.is_file() for file in last)

    def replacing(self, name: str) -> AbstractContextManager[Path]:
        """Write one file or folder atomically: `with run.replacing("model.keras") as path: …`.

        Raises:
            RunError: the disk is full, or the folder cannot be written; the message lists the saved
                results.
        """
        kept = [name for name in FILES if (self.path / name).exists()]
        safe = "a training continues with --resume"
        return replacing(
            self.path / name, safe=f"{safe}; already saved: {', '.join(kept)}" if kept else safe
        )

    def write_text(self, name: str, text: str) -> None:
        """Write a text file; bytes of file names that are not valid Unicode are kept."""
        with self.replacing(name) as path:
            path.write_text(text, encoding="utf-8", errors="surrogateescape")

    def write_json(self, name: str, value: Any) -> None:
        """Write plain values; NaN and infinities become null, because JSON does not have them."""
        self.write_text(name, json.dumps(plain(value), indent=2, allow_nan=False) + "\n")

    def write_rows(self, name: str, header: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
        """Write a CSV file, row by row; see `spreadsheet_cell`."""
        with (
            self.replacing(name) as path,
            path.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file,
        ):
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(map(spreadsheet_cell, header))
            writer.writerows(map(spreadsheet_cell, row) for row in rows)

    def read_json(self, name: str) -> Any:
        """The content of a JSON file of the run.

        Raises:
            RunError: the file is missing or is not JSON.
        """
        path = self.path / name
        try:
            return json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else f"{error}"
            raise RunError(
                f"{path} cannot be read",
                expected=f"the {name} of the run",
                received=str(reason),
                fix="restore the file, or finish the run with --resume",
            ) from error

    def write_class_names(self, class_names: Sequence[str]) -> None:
        """Write class_names.json: the names in the order of the logits, and their hash."""
        self.write_json("class_names.json", describe_class_names(class_names))

    def read_class_names(self) -> tuple[str, ...]:
        """Read the classes in the order of the logits.

        Raises:
            RunError: the file is missing, not a class list, or was changed since it was written.
        """
        path = self.path / "class_names.json"
        return verify_class_names(self.read_json(path.name), where=str(path))

    def _locked(self) -> _Lock:
        folder = self.path.resolve()
        try:
            lock = _LOCKS.get(folder) or _Lock(folder)
        except BlockingIOError as error:
            raise RunError(
                f"another process writes the run in {self.path}",
                expected="one process for each run",
                received=f"a lock on {folder}",
                fix="wait until it ends, or end it; or give another --output",
            ) from error
        _LOCKS[folder] = lock
        return lock

    def _check(self, *, resume: bool) -> None:
        if resume:
            self._check_is_run(fix="leave out --resume to start a new run")
        else:
            self._check_is_vacant()

    def _check_is_run(self, *, fix: str) -> None:
        if not self.spec_file.is_file():
            raise RunError(
                f"there is no run in {self.path}",
                expected="a folder with a spec.json",
                received="a folder without one" if self.path.is_dir() else "no such folder",
                fix=fix,
            )

    def _check_is_vacant(self) -> None:
        if not exists(self.path):
            return
        if not self.path.is_dir():
            raise RunError(
                f"{self.path} is a file",
                expected="a new or empty folder for the run",
                received=f"a file of {self.path.stat().st_size:,} bytes",
                fix="give another --output",
            )
        if self.spec_file.exists():
            raise RunError(
                f"{self.path} already has a run",
                expected="a new or empty folder, so that no earlier result is lost",
                received="a finished run" if self.is_complete else "an unfinished run",
                fix="give another --output"
                + ("" if self.is_complete else ", or add --resume to continue this one"),
            )
        others = sorted({entry.name for entry in self.path.iterdir()} - _BEFORE_THE_SPEC)
        if others:
            raise RunError(
                f"{self.path} has files that do not belong to a run",
                expected="a new or empty folder",
                received=enumerated(others, 5),
                fix="give another --output",
            )


def next_free(parent: str | Path, name: str) -> Path:
    """The first of `name`, `name-2`, `name-3` … that does not exist in `parent` yet.

    Raises:
        RunError: the name is too long for a folder.
    """
    number = 1
    while exists(path := Path(parent) / (name if number == 1 else f"{name}-{number}")):
        number += 1
    return path


def latest(parent: str | Path, name: str, file: str = "spec.json") -> Path:
    """The run with the highest number among `name`, `name-2`, `name-3` … in `parent`.

    Args:
        file: what a folder has to contain.

    Raises:
        RunError: there is none.
    """
    pattern = re.compile(re.escape(name) + r"(?:-(\d+))?")
    numbers = {
        int(match[1] or 1): folder
        for folder in Path(parent).glob("*/")
        if (match := pattern.fullmatch(folder.name)) and (folder / file).is_file()
    }
    if not numbers:
        raise RunError(
            f"there is no run called {name!r} in {parent}",
            expected=f"{Path(parent) / name} or a later {name}-2, {name}-3 …",
            received=f"no such folder with a {file}",
            fix="give the run's folder with --output, or leave out --resume",
        )
    return numbers[max(numbers)]


def plain(value: Any) -> Any:
    """A value as JSON gives it back: lists in place of tuples, None for NaN and infinities."""
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def describe_environment() -> dict[str, Any]:
    """The content of environment.json: time (UTC), command line, machine and versions.

    Packages that are not installed are left out.
    """
    return {
        "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": sys.argv,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processors": num_processors(),
        "packages": _versions(),
    }


def _versions() -> dict[str, str]:
    versions = {}
    for name in _PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def version_folders(folder: Path) -> dict[int, Path]:
    """The versions in a folder by number; other names are ignored."""
    found = {}
    for path in folder.iterdir() if folder.is_dir() else ():
        # 'isdecimal' accepts other alphabets' digits, and '007' would be a second name for '7'.
        if path.name.isascii() and path.name.isdecimal() and str(int(path.name)) == path.name:
            found[int(path.name)] = path
    return found


def next_version(export_folder: Path) -> Path:
    """The folder of the next version: one more than the highest existing one."""
    return export_folder / str(max(version_folders(export_folder), default=0) + 1)
