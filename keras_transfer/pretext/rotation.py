"""Rotation: which of four quarter turns an image was given.

S. Gidaris, P. Singh and N. Komodakis, "Unsupervised representation learning by predicting image
rotations", ICLR 2018.
"""

from dataclasses import dataclass
from typing import ClassVar, Final

import numpy as np

from keras_transfer.data.datasets import Examples, Inputs, Views
from keras_transfer.data.targets import Targets
from keras_transfer.data.views import strengths
from keras_transfer.errors import SpecError
from keras_transfer.models.classifier import build_classifier
from keras_transfer.pretext.kind import Measured, Pretext, PretextData, UnlabelledImages
from keras_transfer.specs import RunSpec, TrainingSpec
from keras_transfer.tasks.single_label import SingleLabel
from keras_transfer.training.phases import PhaseResult

NAMES: Final = ("0", "90", "180", "270")
"""Degrees counter-clockwise, by the number of quarter turns."""

_LARGEST_ANGLE: Final = 45.0
"""From here on a view may be nearer to the next quarter turn."""


@dataclass(frozen=True, eq=False)
class Turned:
    """Every view in four turns: row 4 i + t is image i after t quarter turns."""

    views: Inputs

    @property
    def shape(self) -> tuple[int, ...]:
        """[S, S, 3] of one image."""
        return self.views.shape

    @property
    def dtype(self) -> np.dtype:
        """That of the views."""
        return self.views.dtype

    def read(self, rows: np.ndarray, view_indices: np.ndarray) -> np.ndarray:
        """The turned views, [B, S, S, 3]; the view is drawn before it is turned."""
        images = self.views.read(rows // len(NAMES), view_indices)
        turned = [np.rot90(one, turns) for one, turns in zip(images, _turns(rows), strict=True)]
        return np.stack(turned)


@dataclass(frozen=True)
class Rotation:
    """Classification of the turn; an epoch has every image in all four turns."""

    name: ClassVar[str] = "rotation"

    def check(self, spec: RunSpec) -> None:
        """Raise SpecError if a view could look like another turn."""
        views = strengths(spec.views)
        problems = []
        if views.vertical_flip:
            problems.append("views.vertical_flip=true")
        if views.rotation is not None and views.rotation >= _LARGEST_ANGLE:
            problems.append(f"views.rotation={views.rotation:g}")
        if problems:
            raise SpecError(
                "views turn or flip images, so that the turn cannot be told",
                expected=f"views.vertical_flip=false and views.rotation below {_LARGEST_ANGLE:g}",
                received=", ".join(problems),
                fix="change them, or set kind=simsiam",
            )

    def prepare(self, images: UnlabelledImages, spec: RunSpec) -> Pretext:
        """A classifier of four turns; see `Kind.prepare`."""
        task = SingleLabel(NAMES)
        classifier = build_classifier(
            spec.model,
            image_size=spec.data.image_size,
            channels=spec.data.channels,
            task=task,
            seed=spec.seed,
        )
        plain = images.examples
        rows = np.arange(len(NAMES) * len(plain.example_ids))
        ids = np.repeat(plain.example_ids, len(NAMES))
        examples = Examples(plain.pixels, Targets.of_classes(_turns(rows), NAMES), ids)
        data = PretextData(
            spec,
            examples,
            Turned(Views(plain, spec.views)),
            task.encode,
            _all_turns(images.train),
            _all_turns(images.val),
        )
        smoothing = TrainingSpec(label_smoothing=spec.training.label_smoothing or 0.0)
        return Pretext(classifier, classifier.model, task.loss(smoothing), data)

    def measure(
        self,
        pretext: Pretext,
        images: UnlabelledImages,  # noqa: ARG002
        result: PhaseResult,
    ) -> Measured:
        """The accuracy of the best epoch on images that were not trained on."""
        accuracy = result.best_row[pretext.classifier.task.monitor.log_name]
        sentence = (
            f"The turn of {accuracy:.1%} of new images is found (25 % by chance), after epoch "
            f"{result.best_epoch}."
        )
        return Measured({"accuracy": accuracy}, sentence)


def _turns(rows: np.ndarray) -> np.ndarray:
    """Quarter turns counter-clockwise of rows of `Turned`, int64 [B]."""
    turns: np.ndarray = rows % len(NAMES)
    return turns


def _all_turns(rows: np.ndarray) -> np.ndarray:
    """Rows of `Turned` with all turns of these images."""
    every: np.ndarray = (len(NAMES) * rows[:, None] + np.arange(len(NAMES))).ravel()
    return every
