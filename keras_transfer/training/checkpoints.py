"""The files that an interrupted run goes on from, each written whole or not at all."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from keras_transfer.delivery.runs import RunFolder
from keras_transfer.devices.strategy import current
from keras_transfer.training.progress import Arrays, State


@dataclass(frozen=True)
class Checkpoint:
    """One state, in `checkpoint/<name>.npz` of a run folder."""

    run: RunFolder
    name: str

    @property
    def path(self) -> Path:
        """The file, which may not exist."""
        return self.run.checkpoint_folder / f"{self.name}.npz"

    def save(self, state: State) -> None:
        """Replace the file; a kill in the middle leaves the old one. Host 0 writes for all."""
        if current().host:
            return
        arrays: Arrays = {"numbers": np.array(json.dumps(state.numbers))}
        for section, values in state.arrays.items():
            arrays.update({f"{section}|{name}": value for name, value in values.items()})
        with self.run.replacing(f"checkpoint/{self.name}.npz") as path, path.open("wb") as file:
            np.savez(file, **arrays)  # type: ignore[arg-type]

    def load(self) -> State | None:
        """The state, None where there is no file."""
        if not self.path.is_file():
            return None
        arrays: dict[str, Arrays] = {}
        with np.load(self.path) as file:
            numbers = json.loads(str(file["numbers"]))
            for key in file.files:
                section, bar, name = key.partition("|")
                if bar:
                    arrays.setdefault(section, {})[name] = file[key]
        return State(numbers, arrays)

    def discard(self) -> None:
        """Remove the file."""
        if current().host:
            return
        self.path.unlink(missing_ok=True)
