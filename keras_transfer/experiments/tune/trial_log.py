"""The book of a search: a folder for each trial, written when it begins and when it ends.

    trials/0007/spec.json      the spec it trains, with the values it was given
    trials/0007/begun.json     its values, who runs it, since when, and how often it was begun
    trials/0007/result.json    how it ended

Several processes write and one shows, so what is in the book is all that anybody knows.
"""

import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from keras_transfer.config import spec_to_dict
from keras_transfer.experiments.tune.record import SearchTrial
from keras_transfer.specs import RunSpec
from keras_transfer.storage.run_folder import RunFolder

_BEGUN, _RESULT, _PROGRESS = "begun.json", "result.json", "progress.txt"
TRIALS: Final = "trials"


@dataclass(frozen=True)
class StartedTrial:
    """A trial as it begins; `attempt` counts from 1, above it somebody was killed in it."""

    name: str
    values: dict[str, Any]
    worker: str
    started: float
    attempt: int


@dataclass(frozen=True)
class TrialLog:
    """The trials below one search's folder."""

    folder: RunFolder

    def begin(
        self, name: str, spec: RunSpec, values: dict[str, Any], *, worker: str
    ) -> StartedTrial:
        """Note that a trial begins, perhaps again."""
        before = self._read(name, _BEGUN)
        attempt = before["attempt"] + 1 if before else 1
        begun = StartedTrial(name, values, worker, time.time(), attempt)
        trial = self.trial(name)
        (trial.path / _RESULT).unlink(missing_ok=True)
        trial.write_json("spec.json", spec_to_dict(spec))
        trial.write_json(_BEGUN, asdict(begun))
        return begun

    def note(self, name: str, progress: str) -> None:
        """Say how far a trial is, for whoever watches; nobody minds if it is lost."""
        (self.trial(name).path / _PROGRESS).write_text(progress, encoding="utf-8")

    def end(self, trial: SearchTrial) -> None:
        """Note how a trial ended."""
        self.trial(trial.name).write_json(_RESULT, asdict(trial))

    def drop(self, name: str) -> None:
        """Forget that a trial was begun: whoever ran it was asked to stop, nothing was wrong."""
        (self.trial(name).path / _BEGUN).unlink(missing_ok=True)

    def trial(self, name: str) -> RunFolder:
        """A trial's folder."""
        return RunFolder(self.folder.path / TRIALS / name)

    def ended(self) -> list[SearchTrial]:
        """All trials that have a result, by name."""
        found = (self.result(name) for name in self._names())
        return [trial for trial in found if trial]

    def result(self, name: str) -> SearchTrial | None:
        """How a trial ended, None if it did not."""
        values = self._read(name, _RESULT)
        return SearchTrial(**values) if values else None

    def running(self) -> list[tuple[StartedTrial, str]]:
        """Trials that have begun and not ended, and how far they are."""
        running = []
        for name in self._names():
            begun = self._read(name, _BEGUN)
            if begun and not self._read(name, _RESULT):
                running.append((StartedTrial(**begun), self._progress(name)))
        return running

    def _progress(self, name: str) -> str:
        path = self.trial(name).path / _PROGRESS
        return path.read_text(encoding="utf-8") if path.is_file() else ""

    def _names(self) -> list[str]:
        folder = self.folder.path / TRIALS
        return sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []

    def _read(self, name: str, file: str) -> Any:
        path: Path = self.trial(name).path / file
        try:
            return json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
