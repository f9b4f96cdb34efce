"""Artefacts asked in processes of their own, in which Keras and this package are unknown.

Each stays open until its block ends, waits without using the processor, and is asked again and
again: for its answers, and for its time, in turns with others.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Any, Final

import numpy as np

from keras_transfer.errors import ExportError
from keras_transfer.export.formats.making import child_environment
from keras_transfer.export.formats.openers import kind_of

_SCRIPT: Final = Path(__file__).with_name("asker.py")
_LINES: Final = 6


class Asked:
    """One artefact, open in a process of its own.

    `class_hash` is what its file remembers of the classes, '' where the format has no room.
    """

    def __init__(
        self,
        path: Path,
        *,
        image_size: int,
        num_threads: int | None = None,
        kind: str = "",
        precision: str = "float32",
        environment: dict[str, str] | None = None,
    ):
        """Start the process and wait until the artefact is open.

        Args:
            kind: of `openers.LIBRARIES`; '' sees it from the path.
            precision: as in `openers.open_artefact`.
            environment: variables beside those of this process.

        Raises:
            ExportError: it does not open; `received` has the reason.
        """
        self.path = path
        words = {
            "path": str(path.absolute()),
            "kind": kind or kind_of(path),
            "image_size": image_size,
            "num_threads": num_threads,
            "precision": precision,
        }
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115
        # -P: this folder's modules must not pose as installed packages.
        self._process = subprocess.Popen(
            [sys.executable, "-P", str(_SCRIPT), json.dumps(words)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            env=child_environment(**environment or {}),
            text=True,
        )
        try:
            self.class_hash = str(self._hear()["class_hash"])
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> "Asked":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.communicate()
        self._stderr.close()

    def answer(self, pixels_file: Path) -> np.ndarray:
        """Probabilities [N, C] of the images uint8 [N, S, S, 3] in a .npy file.

        They are asked for in batches of 32, the last one smaller, and the first once more alone.

        Raises:
            ExportError: it cannot answer.
        """
        with tempfile.TemporaryDirectory() as scratch:
            answers = Path(scratch, "answers.npy")
            self._order(pixels=str(pixels_file.absolute()), answers=str(answers))
            result: np.ndarray = np.load(answers)
        return result

    def seconds(self, batch_size: int, calls: int) -> list[float]:
        """How long so many calls took, one after the other; what is laid out first is not counted.

        Raises:
            ExportError: it cannot answer a batch of this size.
        """
        return list(self._order(batch_size=batch_size, calls=calls)["seconds"])

    def _order(self, **order: Any) -> dict[str, Any]:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(order) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass  # It died; its own last words say why.
        return self._hear()

    def _hear(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        said = json.loads(line) if line.strip() else {"error": self._last_words()}
        if "error" in said:
            raise ExportError(
                f"{self.path.name} cannot be used by its own library alone",
                expected="a file that opens and answers without Keras and this package",
                received="\n    ".join(said["error"].strip().splitlines()[-_LINES:]),
                fix="export again; if it happens again, leave this format out",
            )
        return dict(said)

    def _last_words(self) -> str:
        status = self._process.wait()
        self._stderr.seek(0)
        return f"{self._stderr.read().decode(errors='replace')}\nexit status {status}"
