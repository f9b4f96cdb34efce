"""Compares a compressed network with the original one on the same test images."""

import gzip
from dataclasses import dataclass
from functools import cached_property
from typing import Final

import numpy as np

from keras_transfer.errors import DataError
from keras_transfer.evaluation.results import Gain, paired_gain
from keras_transfer.experiments.evaluation import predict_test
from keras_transfer.experiments.speed import Speed, measure
from keras_transfer.inference.prediction import LoadedRun
from keras_transfer.models.cuts import Cut
from keras_transfer.reporting.reporter import Reporter, SilentReporter

REPORT_FILE: Final = "compression.json"
"""Written last: it marks a compression as complete."""


@dataclass(frozen=True, eq=False)
class Contender:
    """The original or the compressed network, with its outputs [N, K] on the test split."""

    name: str
    run: LoadedRun
    outputs: np.ndarray
    speed: Speed

    @property
    def num_parameters(self) -> int:
        """Weights of all layers."""
        return int(self.run.model.count_params())

    @property
    def num_bytes(self) -> int:
        """Size of the Keras file, which has the weights as they are."""
        return self.run.folder.model_file.stat().st_size

    @cached_property
    def num_packed_bytes(self) -> int:
        """Size of the Keras file after gzip, which repeated weights and zeros make smaller."""
        return len(gzip.compress(self.run.folder.model_file.read_bytes(), compresslevel=6))


@dataclass(frozen=True, eq=False)
class Compression:
    """Both networks on the same test images with their true values; `gain` is the paired change."""

    original: Contender
    compressed: Contender
    values: np.ndarray
    gain: Gain

    @property
    def contenders(self) -> tuple[Contender, Contender]:
        """In the order of a table."""
        return self.original, self.compressed


def compare(original: LoadedRun, compressed: LoadedRun, *, reporter: Reporter) -> Compression:
    """Evaluate both runs on the same test images, and time them in turns.

    Raises:
        DataError: they have other test images.
    """
    reporter.info("Comparing with the original network …")
    silent = SilentReporter()
    records, values, before = predict_test(original, silent, all_needed=True)
    others, _, after = predict_test(compressed, silent, all_needed=True)
    if [x.digest for x in records.items] != [x.digest for x in others.items]:
        raise DataError(
            "both runs have other test images",
            expected="the same images, seed and data fields as in the original run",
            received=f"{len(records.items)} and {len(others.items)} test images",
            fix="leave out fields of data, and seed",
        )
    task = original.task
    speeds = measure([[Cut(one.model, one.model.output, "")] for one in (original, compressed)])
    return Compression(
        Contender("original", original, before, speeds[0]),
        Contender("compressed", compressed, after, speeds[1]),
        values,
        paired_gain(task.example_scores(values, before), task.example_scores(values, after)),
    )
