"""What the processes of a worker pool do. Large packages are imported with the first task.

Networks are built once and kept. A worker refuses to work with another network than the one that
the process which plans has: on another machine, weights, files and versions may be others.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from keras_transfer.errors import RunError
from keras_transfer.scale.environment import Surroundings
from keras_transfer.specs import RunSpec

if TYPE_CHECKING:
    import numpy as np

    from keras_transfer.features.chunks import Chunk, FeatureWriter
    from keras_transfer.features.source import Source
    from keras_transfer.inference.writers import Row
    from keras_transfer.tasks.task import Task


class Extractor:
    """Computes chunks of an extraction, by the classifier that a spec describes."""

    def __init__(self, spec: RunSpec, task: "Task", surroundings: Surroundings):
        """Take note of everything."""
        self._spec, self._task = spec, task
        self._surroundings = surroundings
        self._workshop: FeatureWriter | None = None

    def compute(self, chunk: "Chunk", source: "Source") -> None:
        """Write the chunk's shards; `source` has its images alone.

        Raises:
            RunError: the classifier, a version or the cache is another one here.
        """
        if self._workshop is None:
            self._surroundings.settle_in()
            self._workshop = self._open(source)
        for cache_key in chunk.cache_keys:
            if cache_key.digest not in self._workshop.cuts:
                raise _another("classifier", f"layers of {cache_key.title} are others")
            if not (chunk.folder / cache_key.id).is_dir():
                raise _another("store", f"there is no {chunk.folder / cache_key.id}")
        feature_writer = dataclasses.replace(self._workshop, source=source)
        for _ in feature_writer.compute([chunk]):
            pass

    def _open(self, source: "Source") -> "FeatureWriter":
        from keras_transfer.data.audit import pixels_key
        from keras_transfer.devices import set_up
        from keras_transfer.features.chunks import FeatureWriter
        from keras_transfer.features.phase_inputs import find_cuts
        from keras_transfer.features.source import features_key
        from keras_transfer.training.fitting import prepare_classifier

        spec = self._spec
        if source.pixels.digest != pixels_key(spec.data).digest:
            raise _another("version of TensorFlow", "it would make other pixels")
        set_up(spec.devices, seed=spec.seed)
        classifier = prepare_classifier(spec, self._task)
        cuts = find_cuts(classifier, spec.phases, 0).values()
        by_digest = {features_key(cut, source, spec.cache).digest: cut for cut in cuts}
        return FeatureWriter(by_digest, source)


class Predictor:
    """Answers for files, by a target that all machines can open.

    `identity` is the hash of what the planning process opened; `known` are answers that need no
    network, by the digests of files.
    """

    def __init__(
        self,
        target: str,
        identity: str,
        known: "Mapping[str, np.ndarray]",
        batch_size: int,
        surroundings: Surroundings,
    ):
        """Take note of everything."""
        self._path, self._identity, self._known = target, identity, known
        self._batch_size = batch_size
        self._surroundings = surroundings

    def predict(self, files: Sequence[Path]) -> "list[Row]":
        """One row a file, in order.

        Raises:
            RunError: the target is another one here.
        """
        target = self._target  # Before TensorFlow is imported: it settles in.
        from keras_transfer.inference.prediction import predict_files

        return list(predict_files(target, files, known=self._known, batch_size=self._batch_size))

    @cached_property
    def _target(self) -> Any:
        self._surroundings.settle_in()
        from keras_transfer.inference.prediction import identify, open_target

        target = open_target(self._path)
        if identify(target) != self._identity:
            raise _another("model", f"{self._path} has other weights or terms")
        return target


def _another(what: str, received: str) -> RunError:
    import os

    return RunError(
        f"the worker on {os.uname().nodename} has another {what} than the process that plans",
        expected="the same package, libraries, weights and folders on all machines",
        received=received,
        fix="install the same versions everywhere, and share the folders that the spec names",
    )
