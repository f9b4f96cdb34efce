"""Generations of students: each one is a run, and the teacher of the next.

The last one is the run in the given folder, and the earlier ones are in its folder generations/.
Source: T. Furlanello et al., "Born again neural networks", ICML 2018.
"""

import contextlib
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from keras_transfer.errors import KerasTransferError
from keras_transfer.experiments.distill.settings import REPORT_FILE, distillation_spec
from keras_transfer.specs import DistillSpec, RunSpec
from keras_transfer.storage.run_folder import EARLIER, RunFolder, latest, next_free
from keras_transfer.storage.run_start import DEFAULT_PARENT, start_run

_FIRST: Final = f"{EARLIER}/1"


@dataclass(frozen=True)
class Generations:
    """The runs of `count` students; numbers start at 1.

    `spec` is that of the first one, from `settings.distillation_spec`, and `folder` that of the
    last; None for a single one leaves the choice of the folder to `start_run`.
    """

    spec: RunSpec
    folder: Path | None
    count: int
    resume: bool

    @classmethod
    def of(
        cls, spec: RunSpec, count: int, *, output: str | Path | None, resume: bool
    ) -> "Generations":
        """Choose the folder where none is given, as `start_run` does.

        Raises:
            RunError: there is none to resume.
        """
        if output or count == 1:
            folder = Path(output) if output else None
        elif resume:
            folder = latest(DEFAULT_PARENT, spec.name, f"{_FIRST}/spec.json")
        else:
            folder = next_free(DEFAULT_PARENT, spec.name)
        return cls(spec, folder, count, resume)

    def spec_of(self, number: int) -> RunSpec:
        """The first one learns from the given teacher, any other from the one before."""
        if number == 1:
            return self.spec
        return distillation_spec(self.spec, str(self._place(number - 1)), DistillSpec())

    def start(self, number: int) -> RunFolder:
        """The run of a student: new, to be resumed, or of an earlier one also finished.

        Raises:
            SpecError, RunError: as of `start_run`.
        """
        if number == 1 and self.folder and not self.resume:
            # The last one starts there, after the trainings of all the others.
            RunFolder(self.folder).check_is_vacant()
        place, is_last = self._place(number), number == self.count
        has_begun = place is not None and (place / "spec.json").is_file()
        if place and self.resume and has_begun and not is_last:
            run = RunFolder.open(place)
            if run.is_complete:
                return run
        try:
            return start_run(
                self.spec_of(number),
                output=place,
                resume=self.resume and (number == 1 or has_begun),
                suffix="",
                last=REPORT_FILE if is_last else "",
            )
        except KerasTransferError:
            self.vacate()
            raise

    def vacate(self) -> None:
        """Remove the folders above the first run where it is gone, because it was refused."""
        if self.folder and self.count > 1:
            with contextlib.suppress(OSError):
                (self.folder / EARLIER).rmdir()
                self.folder.rmdir()

    def _place(self, number: int) -> Path | None:
        if number == self.count or not self.folder:
            return self.folder
        return self.folder.absolute() / EARLIER / str(number)
