"""Which version answers: the newest that loads, changed while requests go on.

A thread looks at the folder every few seconds. A newer version is loaded and warmed up beside the
one that answers, takes its place between two requests, and the old one goes when the last request
that holds it is answered. A version that does not load is told once, and tried again when its
files change.
"""

import contextlib
import gc
import logging
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from keras_transfer.errors import KerasTransferError
from keras_transfer.export.contract import version_folders
from keras_transfer.serving.protocol import RefusedError
from keras_transfer.serving.settings import Settings
from keras_transfer.serving.version import Version

_log = logging.getLogger(__name__)

LOADING: Final = "LOADING"
AVAILABLE: Final = "AVAILABLE"
UNLOADING: Final = "UNLOADING"
END: Final = "END"
_DRAIN_SECONDS: Final = 60.0
"""How long a replaced version may still be held before it is let go all the same."""

_Stamp = tuple[tuple[str, int, int], ...]


@dataclass(frozen=True)
class State:
    """What became of one version; `error` is '' where all is well."""

    state: str
    error: str = ""


@dataclass(eq=False)
class _Holding:
    version: Version
    num_requests: int = 0


class Versions:
    """The versions in `settings.folder`; `start` begins to watch them.

    Args:
        say: told what changes, in sentences.
        on_batch: told the number of images in each batch.
    """

    def __init__(
        self, settings: Settings, *, say: Callable[[str], None], on_batch: Callable[[int], None]
    ):
        self._settings, self._say, self._on_batch = settings, say, on_batch
        self._current: _Holding | None = None
        self._states: dict[int, State] = {}
        self._refused: dict[int, _Stamp] = {}
        self._changed = threading.Condition()
        self._stop = threading.Event()
        self._watcher = threading.Thread(target=self._watch, name="versions", daemon=True)
        self.name = settings.name

    def start(self) -> None:
        """Begin to load and to watch, in a thread of its own."""
        self._watcher.start()

    def stop(self) -> None:
        """End the watching, and let go of the version that answers."""
        self._stop.set()
        if self._watcher.is_alive():
            self._watcher.join()
        if self._current is not None:
            self._current.version.close()

    @property
    def number(self) -> int | None:
        """Number of the version that answers; None while there is none."""
        current = self._current
        return None if current is None else current.version.number

    def states(self) -> dict[int, State]:
        """All versions known, the newest first."""
        return dict(sorted(self._states.items(), reverse=True))

    @contextlib.contextmanager
    def holding(self, name: str, number: int | None = None) -> Iterator[Version]:
        """The version that answers, kept loaded while the block runs.

        Raises:
            RefusedError: 404 for another name or number, 503 while none is loaded.
        """
        with self._changed:
            current = self._current
            if current is None:
                raise RefusedError(503, "No version is loaded yet", headers={"Retry-After": "1"})
            if name != self.name or number not in (None, current.version.number):
                asked = f"Latest({name})" if number is None else f"Specific({name}, {number})"
                raise RefusedError(404, f"Servable not found for request: {asked}")
            current.num_requests += 1
        try:
            yield current.version
        finally:
            with self._changed:
                current.num_requests -= 1
                self._changed.notify_all()

    def preview(self) -> None:
        """Load the newest version that is not known to be broken, if it is not loaded yet."""
        folders = version_folders(self._settings.folder)
        for number in [number for number in self._states if number not in folders]:
            if number != self.number:
                del self._states[number]
                self._refused.pop(number, None)
        for number in sorted(folders, reverse=True):
            if number == self.number or self._stop.is_set():
                return
            stamp = _stamp(folders[number])
            if self._refused.get(number) == stamp:
                continue
            if self._load(number, folders[number]):
                return
            self._refused[number] = stamp

    def _watch(self) -> None:
        while True:
            try:
                self.preview()
            except Exception:  # A watcher that ends would be missed only when it is needed.
                _log.exception("%s cannot be watched", self._settings.folder)
            if self._stop.wait(self._settings.poll_seconds):
                return

    def _load(self, number: int, folder: Path) -> bool:
        self._states[number] = State(LOADING)
        try:
            version = Version(number, folder, self._settings, on_batch=self._on_batch)
        except Exception as error:  # Whatever is wrong with it, the version that answers stays.
            # Anybody may ask for the state: paths and contents of files are for the log.
            kind = type(error).__name__
            self._states[number] = State(
                END, f"{kind}: cannot be loaded; the server's log says why"
            )
            if not isinstance(error, KerasTransferError):
                _log.error("version %d does not load", number, exc_info=error)
            self._say(f"Version {number} is refused: {error}")
            return False
        with self._changed:
            old, self._current = self._current, _Holding(version)
            self.name = self.name or version.contract.name
        self._states[number] = State(AVAILABLE)
        self._refused.pop(number, None)
        self._say(f"Version {number} of {self.name} answers from now on.")
        if old is not None:
            self._release(old)
        _tidy_up()
        return True

    def _release(self, old: _Holding) -> None:
        number = old.version.number
        self._states[number] = State(UNLOADING)
        with self._changed:
            self._changed.wait_for(lambda: old.num_requests == 0, timeout=_DRAIN_SECONDS)
        old.version.close()
        self._states[number] = State(END)


def describe_states(states: dict[int, State]) -> list[dict[str, Any]]:
    """Versions as TensorFlow Serving's status lists them."""
    return [
        {
            "version": str(number),
            "state": state.state,
            "status": {
                "error_code": "UNKNOWN" if state.error else "OK",
                "error_message": state.error,
            },
        }
        for number, state in states.items()
    ]


def _stamp(folder: Path) -> _Stamp:
    """Names, sizes and times of all files: what changes while a version is still being copied."""
    found = []
    for path in sorted(folder.rglob("*")):
        with contextlib.suppress(OSError):
            status = path.stat()
            found.append((str(path.relative_to(folder)), status.st_size, status.st_mtime_ns))
    return tuple(found)


def _tidy_up() -> None:
    """Collect what a replaced version left, and take what stays out of later collections.

    A full collection looks at all of TensorFlow's objects, for longer than a request may take.
    """
    gc.unfreeze()
    gc.collect()
    gc.freeze()
