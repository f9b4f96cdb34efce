"""Workers of a Ray cluster. Each imports large packages and builds its network for its first task.

A worker raises an error if its network differs from that of the main process: on another machine,
weights, files and versions may differ.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from keras_transfer.errors import RunError
from keras_transfer.scale.environment import Environment
from keras_transfer.specs import RunSpec

if TYPE_CHECKING:
    import numpy as np

    from keras_transfer.features.chunks import Chunk, FeatureWriter
    from keras_transfer.features.source import Source
    from keras_transfer.inference.writers import Row
    from keras_transfer.tasks.task import Task


class Extractor:
    """Computes the features of chunks with the classifier of a spec."""

    def __init__(self, spec: RunSpec, task: "Task", environment: Environment):
        """Store the arguments; `compute` and `predict` do the work."""
        self._spec, self._task = spec, task
        self._environment = environment
        self._feature_writer: FeatureWriter | None = None

    def compute(self, chunk: "Chunk", source: "Source") -> None:
        """Write the chunk's shards; `source` has only its images.

        Raises:
            RunError: the classifier, a version or the cache differs on this machine.
        """
        if self._feature_writer is None:
            self._environment.apply()
            self._feature_writer = self._open(source)
        for cache_key in chunk.cache_keys:
            if cache_key.digest not in self._feature_writer.cuts:
                raise _different("classifier", f"other layers for {cache_key.title}")
            if not (chunk.folder / cache_key.id).is_dir():
                raise _different("cache", f"there is no {chunk.folder / cache_key.id}")
        feature_writer = dataclasses.replace(self._feature_writer, source=source)
        for _ in feature_writer.compute([chunk]):
            pass

    def _open(self, source: "Source") -> "FeatureWriter":
        from keras_transfer.data.audit import pixels_key
        from keras_transfer.devices import set_up
        from keras_transfer.features.chunks import FeatureWriter
        from keras_transfer.features.phase_inputs import find_cuts
        from keras_transfer.features.source import features_key
        from keras_transfer.methods.networks import prepare_classifier

        spec = self._spec
        if source.pixels.digest != pixels_key(spec.data).digest:
            raise _different("version of TensorFlow", "one that decodes images differently")
        set_up(spec.devices, seed=spec.seed)
        classifier = prepare_classifier(spec, self._task)
        whole = find_cuts(classifier, spec.phases, 0).values()
        cuts = [part for cut in whole for part in cut.stored]
        by_digest = {features_key(cut, source, spec.cache).digest: cut for cut in cuts}
        return FeatureWriter(by_digest, source)


class Predictor:
    """Predicts files with a target that all machines can open.

    `identity` is the hash of the target that the main process opened; `known` has probabilities
    that are not computed again, by the digests of files.
    """

    def __init__(
        self,
        target: str,
        identity: str,
        known: "Mapping[str, np.ndarray]",
        batch_size: int,
        environment: Environment,
    ):
        """Store the arguments; `compute` and `predict` do the work."""
        self._path, self._identity, self._known = target, identity, known
        self._batch_size = batch_size
        self._environment = environment

    def predict(self, files: Sequence[Path]) -> "list[Row]":
        """One row per file, in order.

        Raises:
            RunError: the target differs on this machine.
        """
        target = self._target  # Applies the environment before TensorFlow is imported.
        from keras_transfer.inference.prediction import predict_files

        return list(predict_files(target, files, known=self._known, batch_size=self._batch_size))

    @cached_property
    def _target(self) -> Any:
        self._environment.apply()
        from keras_transfer.inference.prediction import identify, open_target

        target = open_target(self._path)
        if identify(target) != self._identity:
            raise _different("model", f"{self._path} with other weights or another contract")
        return target


def _different(what: str, received: str) -> RunError:
    import os

    return RunError(
        f"the worker on {os.uname().nodename} has another {what} than the main process",
        expected="the same package, libraries, weights and folders on all machines",
        received=received,
        fix="install the same versions everywhere, and share the folders of the spec",
    )
