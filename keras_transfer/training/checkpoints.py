"""The file that an interrupted run goes on from: one phase's state, written whole or not at all."""

import json
from dataclasses import dataclass

import numpy as np

from keras_transfer.delivery.runs import RunFolder
from keras_transfer.training.progress import Arrays, PhaseState

SECTIONS = ("weights", "best", "optimizer")


@dataclass(frozen=True)
class CheckpointFile:
    """State of phase `phase_number` in `checkpoint/state.npz` of a run folder."""

    run: RunFolder
    phase_number: int

    def save(self, state: PhaseState) -> None:
        """Replace the file; a kill in the middle leaves the old one."""
        numbers = {"phase_number": self.phase_number, **state.numbers}
        arrays: Arrays = {"numbers": np.array(json.dumps(numbers))}
        for section in SECTIONS:
            values: Arrays = getattr(state, section)
            arrays.update({f"{section}|{path}": value for path, value in values.items()})
        with self.run.replacing("checkpoint/state.npz") as path, path.open("wb") as file:
            np.savez(file, **arrays)  # type: ignore[arg-type]

    def load(self) -> PhaseState | None:
        """The state, None where the file is of another phase or not there."""
        path = self.run.path / "checkpoint" / "state.npz"
        if not path.is_file():
            return None
        with np.load(path) as file:
            numbers = json.loads(str(file["numbers"]))
            if numbers.pop("phase_number") != self.phase_number:
                return None
            sections: dict[str, Arrays] = {section: {} for section in SECTIONS}
            for key in file.files:
                section, bar, name = key.partition("|")
                if bar:
                    sections[section][name] = file[key]
        return PhaseState(numbers, **sections)
