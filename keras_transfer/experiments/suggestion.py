"""Which images to label next: those of which a run is unsure, spread over all that it has not seen.

The features below the last layer of all new images are clustered by k-means with as many clusters
as images are wanted. Each image weighs the square of its uncertainty, so that clusters lie where
the run is unsure, and of each cluster the image nearest to its centre is suggested. It is the
weighted clustering of Zhdanov 2019 ("Diverse mini-batch Active Learning") over all images, not only
over the most uncertain ones.
"""

import csv
import warnings
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import keras
import numpy as np
from sklearn.cluster import KMeans
from sklearn.exceptions import ConvergenceWarning
from threadpoolctl import threadpool_limits

from keras_transfer.config import override
from keras_transfer.data.audit import pixels_key
from keras_transfer.data.datasets import Examples
from keras_transfer.data.records import counted
from keras_transfer.data.splits import read_manifest
from keras_transfer.data.unlabelled import list_unlabelled
from keras_transfer.devices.strategy import current
from keras_transfer.errors import DataError, SpecError
from keras_transfer.experiments.session import Session, open_session
from keras_transfer.features.host_extraction import extract_together
from keras_transfer.features.source import Request, Source
from keras_transfer.inference.prediction import LoadedRun, Prediction, load_run
from keras_transfer.models.activations import Activation, activate, ranges
from keras_transfer.models.cuts import Cut
from keras_transfer.reporting.reporter import Reporter
from keras_transfer.storage.atomic import replacing

COLUMNS: Final = ("path", "prediction", "uncertainty")
_LEAST_WEIGHT: Final = 1e-6
_BATCH_SIZE: Final = 1024


@dataclass(frozen=True, eq=False, slots=True)
class Suggestion:
    """An image to label next."""

    prediction: Prediction
    """What the run predicts; `prediction.path` is the file."""
    uncertainty: float
    """From 0 to 1: for classes 1 minus the difference of the two highest probabilities."""

    @property
    def row(self) -> list[str]:
        """Path, predicted label and uncertainty as texts."""
        return [self.prediction.path, self.prediction.label, f"{self.uncertainty:.4f}"]


def suggest_images(
    run_path: str | Path, folder: str | Path, *, count: int, reporter: Reporter
) -> list[Suggestion]:
    """The images below a folder that are to be labelled next, the most uncertain first.

    Copies of images that the run has used, in any split, are left out, and so are copies of each
    other. Features are stored in the cache: a second call with other images computes only these.

    Args:
        count: how many; all new images if there are fewer.

    Raises:
        RunError: the folder has no finished run, or features cannot be stored.
        SpecError: `count` is not positive.
        DataError: the folder has no image, none that can be read, or none that is new.
    """
    if count < 1:
        raise SpecError(
            "the number of images to suggest is not positive",
            expected="count of 1 or more",
            received=f"{count}",
            fix="set count=50",
        )
    run = load_run(run_path)
    labelled, splits = read_manifest(run.folder.read_json("splits.json"))
    used = {labelled[row].digest for row in (*splits.train, *splits.val, *splits.test)}
    listed = list_unlabelled(str(folder), run.task.targets(labelled), where="the folder")
    spec = override(run.spec, {"data.on_bad_file": "skip"})
    # A finished run predicts on the current device: those of the spec are not set up.
    with open_session(
        spec, reporter=reporter, devices=current(), task=run.task, records=listed
    ) as session:
        paths, source = _new_images(session, used)
        features, logits = _extract(run, session, source)
    outputs = activate(logits, run.task.activation)
    uncertainties = uncertainties_of(outputs, run.task.activation)
    chosen = choose(features, uncertainties, count, seed=run.spec.seed)
    return [
        Suggestion(Prediction(paths[row], outputs[row], run.task), float(uncertainties[row]))
        for row in chosen
    ]


def _new_images(session: Session, used: Collection[str]) -> tuple[list[str], Source]:
    """Paths and pixels of the images whose digests are not among the `used` ones, each once.

    Raises:
        DataError: there is none.
    """
    records, pixels, _ = session.read_images()
    digests = [record.digest for record in records.items]
    first = {digest: row for row, digest in reversed(list(enumerate(digests)))}
    rows = np.array([row for digest, row in first.items() if digest not in used], np.int64)
    rows.sort()
    num_used = sum(digest in used for digest in digests)
    images = counted(len(rows), "new image", "new images")
    left_out = (
        f"left out are {num_used:,} that the run has used, "
        f"{len(digests) - num_used - len(rows):,} copies of others and "
        f"{len(records.bad_files):,} that cannot be read"
    )
    if not len(rows):
        raise DataError(
            "there is no image to suggest",
            expected="images that are in no split of the run",
            received=f"none; {left_out}",
            fix="give a folder with other images",
        )
    session.reporter.info(f"{images}; {left_out}.")
    ids = np.asarray([record.example_id for record in records.items], np.int64)
    examples = Examples(pixels=pixels, targets=records.targets, example_ids=ids)
    key = pixels_key(session.spec.data)
    source = Source(examples, digests, session.spec.views, key).part(rows)
    return [records.items[row].path for row in rows], source


def _extract(run: LoadedRun, session: Session, source: Source) -> tuple[np.ndarray, np.ndarray]:
    """Features float32 [N, D] below the last dense layer, which are stored, and logits [N, K]."""
    dense = [layer for layer in run.model.layers if isinstance(layer, keras.layers.Dense)][-1]
    cut = Cut(run.model, dense.input, dense.name)
    rows = np.arange(len(source.digests))
    (found,), stats = extract_together(
        [Request(cut, np.stack([rows, np.zeros_like(rows)], axis=1))],
        source,
        # In float32, so that outputs are those of `predict`.
        cache_spec=replace(session.spec.cache, dtype="float32", precision="float32"),
        cache=session.cache,
        reporter=session.reporter,
    )
    session.reporter.info(stats.describe())
    features = found.read(rows, np.zeros_like(rows))
    return features, cut.tail().predict(features, batch_size=_BATCH_SIZE, verbose=0)


def uncertainties_of(outputs: np.ndarray, activation: Activation) -> np.ndarray:
    """Uncertainty [N] of activated outputs [N, K]: of several targets that of the least sure one.

    Targets that are numbers do not count beside others.
    """
    parts = [part for part in ranges(activation, outputs.shape[1]) if part[0] != "linear"]
    each = [UNCERTAINTIES[kind](outputs[:, own]) for kind, own in parts]
    return np.max(each, axis=0) if each else _unknown(outputs)


def write_suggestions(suggestions: Sequence[Suggestion], path: Path) -> None:
    """Write a CSV file with the `COLUMNS`, which appears at once or not at all."""
    with replacing(path) as file, file.open("w", newline="", encoding="utf-8") as opened:
        writer = csv.writer(opened)
        writer.writerow(COLUMNS)
        writer.writerows(one.row for one in suggestions)


def choose(
    features: np.ndarray, uncertainties: np.ndarray, count: int, *, seed: int = 0
) -> np.ndarray:
    """Rows of the images to label, int64 [at most `count`], the most uncertain first.

    Args:
        features: of all candidates, float [N, D].
        uncertainties: from 0 to 1, [N].
        seed: of the first centres of the clusters.
    """
    rows = np.arange(len(features))
    if count < len(features):
        deviations = features.std(axis=0, dtype=np.float64)
        # As heads are solved: standardised by half, see `tasks.linear_head`.
        typical = deviations.mean() or 1.0
        scaled = features / np.sqrt((deviations + 0.1 * typical) * typical)
        weights = np.maximum(uncertainties**2, _LEAST_WEIGHT)
        with warnings.catch_warnings(), threadpool_limits(1, user_api="openmp"):
            # Fewer different images than clusters: `_nearest` gives each cluster an image anyway.
            warnings.simplefilter("ignore", ConvergenceWarning)
            clusters = KMeans(count, n_init=1, random_state=seed).fit(scaled, sample_weight=weights)
        rows = _nearest(clusters.transform(scaled))
    order = np.argsort(-uncertainties[rows], kind="stable")
    return rows[order]


def _nearest(distances: np.ndarray) -> np.ndarray:
    """For each cluster the nearest row that no earlier one has taken; distances are [N, count]."""
    taken: list[int] = []
    for cluster in range(distances.shape[1]):
        own = distances[:, cluster].copy()
        own[taken] = np.inf
        taken.append(int(own.argmin()))
    return np.array(taken)


def _by_margin(outputs: np.ndarray) -> np.ndarray:
    """1 minus the difference of the two highest probabilities."""
    highest = np.sort(outputs, axis=1)[:, -2:]
    return np.asarray(1.0 - (highest[:, 1] - highest[:, 0]))


def _by_label(outputs: np.ndarray) -> np.ndarray:
    """That of the most uncertain label, which is 1 at a probability of a half."""
    return np.asarray((1.0 - np.abs(2.0 * outputs - 1.0)).max(axis=1))


def _unknown(outputs: np.ndarray) -> np.ndarray:
    """1: predicted numbers have no probability, so images are only spread."""
    return np.ones(len(outputs))


UNCERTAINTIES: Final = {"softmax": _by_margin, "sigmoid": _by_label, "linear": _unknown}
"""Uncertainty [N] of activated outputs [N, K], by their activation."""
