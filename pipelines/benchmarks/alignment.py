"""What training by method 'align' gains on shifted images, beside the closed forms."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from keras_transfer.config import override
from keras_transfer.data.audit import pixels_key
from keras_transfer.data.datasets import Examples, Pixels
from keras_transfer.data.splits import Splits
from keras_transfer.data.targets import Targets
from keras_transfer.data.unlabelled import placeholders
from keras_transfer.features.phase_inputs import NO_ROWS, PhaseInputs
from keras_transfer.features.source import Source
from keras_transfer.methods.networks import prepare_classifier
from keras_transfer.methods.registry import make_methods
from keras_transfer.models.forward import forward_pixels
from keras_transfer.reporting.reporter import SilentReporter
from keras_transfer.specs import RunSpec
from keras_transfer.storage.cache import Cache
from keras_transfer.tasks.task import Task
from keras_transfer.training.fitting import fit_phases

PLAIN: Final = "fine-tuned"
"""The same phases on the source alone."""


@dataclass(frozen=True, eq=False)
class Trainer:
    """Trains the phases of a spec on a source, the last by alignment with a target.

    Images with and without labels are rows of `source`; target images follow those of the domain
    with labels.
    """

    spec: RunSpec
    task: Task
    cache: Cache
    source: Source

    @classmethod
    def of(
        cls, spec: RunSpec, task: Task, cache: Cache, labels: np.ndarray, domains: Sequence[Pixels]
    ) -> "Trainer":
        """Of the images of both domains and the labels of the first."""
        pixels = np.concatenate([np.asarray(domain[:]) for domain in domains])
        digests = [hashlib.sha256(image.tobytes()).hexdigest() for image in pixels]
        ids = np.asarray([int(digest[:16], 16) >> 1 for digest in digests], np.int64)
        targets = Targets.of_classes(labels, task.names)
        targets = targets.joined(placeholders(targets, len(pixels) - len(labels)))
        examples = Examples(pixels, targets, ids)
        return cls(spec, task, cache, Source(examples, digests, spec.views, pixels_key(spec.data)))

    def outputs(
        self, distance: str, splits: Splits, target: np.ndarray, test: Pixels
    ) -> np.ndarray:
        """Outputs [N, K] of the `test` images.

        Args:
            distance: of alignment; none, '', trains on the source alone.
            splits: of the source, whose test images validate.
            target: rows of the target to align with.
        """
        spec = self._spec(distance)
        splits = replace(splits, val=splits.test, test=NO_ROWS)
        unlabelled = target + len(self.source.digests) // 2 if distance else NO_ROWS
        inputs = PhaseInputs(
            spec,
            self.source,
            splits,
            methods=make_methods(spec),
            cache=self.cache,
            reporter=SilentReporter(),
            unlabelled=unlabelled,
        )
        classifier = prepare_classifier(spec, self.task)
        fit_phases(classifier, inputs, reporter=SilentReporter())
        return forward_pixels(classifier.model, test)

    def _spec(self, distance: str) -> RunSpec:
        last = f"phases.{len(self.spec.phases) - 1}"
        if not distance:
            return override(self.spec, {f"{last}.min_images": 0, "data.unlabelled": ""})
        return override(
            self.spec,
            {
                f"{last}.min_images": 0,
                f"{last}.method": "align",
                f"{last}.method_options": {"distance": distance},
                "data.unlabelled": "target",
            },
        )
