"""The images of an adaptation: the run's own, the target's, and labelled ones of the target."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Final

import keras
import numpy as np

from keras_transfer.config import images_at, override
from keras_transfer.data.audit import pixels_key
from keras_transfer.data.datasets import Examples, Pixels
from keras_transfer.data.listed_images import find_listed
from keras_transfer.data.records import Records
from keras_transfer.data.splits import Splits, read_manifest
from keras_transfer.data.unlabelled import keep_unseen, list_unlabelled
from keras_transfer.devices.strategy import current
from keras_transfer.errors import DataError
from keras_transfer.experiments.session import Session, open_session
from keras_transfer.export.kept_images import spread
from keras_transfer.features.host_extraction import extract_together
from keras_transfer.features.source import Request, Source
from keras_transfer.inference.prediction import LoadedRun
from keras_transfer.models.cuts import Cut
from keras_transfer.reporting.reporter import Reporter
from keras_transfer.specs import RunSpec
from keras_transfer.tasks.registry import read_targets

LEAST_IMAGES: Final = 32
"""Target images: of fewer ones moments and neighbours say too little."""
MOST_IMAGES: Final = 10_000
"""Of a domain, spread evenly: more would hardly change its moments, but fill the memory."""


@dataclass(frozen=True, eq=False)
class Images:
    """Readable images of one source, whose features are computed once and stored.

    `records` are those of `source`, row by row.
    """

    session: Session
    records: Records
    source: Source

    @property
    def pixels(self) -> Pixels:
        """uint8 [N, S, S, C]."""
        return self.source.examples.pixels

    @property
    def labels(self) -> np.ndarray:
        """Class indices, int64 [N]."""
        return np.asarray(self.source.examples.targets.values)

    def features(self, model: keras.Model, rows: np.ndarray) -> np.ndarray:
        """Features float64 [B, D] of plain images below the last dense layer of a classifier.

        Raises:
            RunError: they cannot be stored.
        """
        dense = last_dense(model)
        cut = Cut(model, dense.input, dense.name)
        plain = np.zeros_like(rows)
        cache = replace(self.session.spec.cache, dtype="float32", precision="float32")
        (found,), stats = extract_together(
            [Request(cut, np.stack([rows, plain], axis=1))],
            self.source,
            cache_spec=cache,
            cache=self.session.cache,
            reporter=self.session.reporter,
        )
        self.session.reporter.info(stats.describe())
        return found.read(rows, plain).astype(np.float64)


def last_dense(model: keras.Model) -> keras.layers.Dense:
    """The dense layer of a classifier that gives the logits."""
    return [layer for layer in model.layers if isinstance(layer, keras.layers.Dense)][-1]


def some_rows(rows: np.ndarray) -> np.ndarray:
    """At most `MOST_IMAGES` of the rows."""
    return rows[spread(len(rows), MOST_IMAGES)]


@contextmanager
def own_images(run: LoadedRun, *, reporter: Reporter) -> Iterator[tuple[Images, Splits]]:
    """The images in splits.json of a run, and its splits.

    Raises:
        DataError: they are missing or have changed.
    """
    listed, splits = read_manifest(run.folder.read_json("splits.json"))
    items, root = find_listed(listed, run.spec.data, reporter=reporter)
    records = Records(items, run.task.targets(items), root)
    # They were readable in training, and rows are counted with all of them.
    spec = override(run.spec, {"data.on_bad_file": "error", "data.unlabelled": ""})
    with _opened(run, spec, records, reporter) as images:
        yield images, splits


@contextmanager
def target_images(
    run: LoadedRun, folder: str, splits: Splits, own: Images, *, reporter: Reporter
) -> Iterator[Images]:
    """All images below a folder once, without copies of the run's validation and test images.

    Raises:
        DataError: there are fewer than `LEAST_IMAGES`.
    """
    listed = list_unlabelled(folder, own.records.targets, where="the target folder")
    spec = override(run.spec, {"data.on_bad_file": "skip", "data.unlabelled": ""})
    with _opened(run, spec, listed, reporter) as images:
        digests = own.source.digests
        evaluated = {digests[row] for row in (*splits.val, *splits.test)}
        kept, sentence = keep_unseen(images.records, evaluated)
        if len(kept) < LEAST_IMAGES:
            raise DataError(
                f"the target folder has too few images: {folder}",
                expected=f"{LEAST_IMAGES} or more that are no copies of the run's images",
                received=f"{len(kept)}; {sentence}",
                fix="give a folder with more images of the target; labels are not needed",
            )
        reporter.info(sentence)
        position = {id(record): row for row, record in enumerate(images.records.items)}
        rows = some_rows(np.array([position[id(record)] for record in kept]))
        items = tuple(images.records.items[row] for row in rows)
        targets = images.records.targets.take(rows)
        records = replace(images.records, items=items, targets=targets)
        yield Images(images.session, records, images.source.part(rows))


@contextmanager
def labelled_images(run: LoadedRun, path: str, *, reporter: Reporter) -> Iterator[Images]:
    """Target images with labels, of a folder of classes or a CSV file.

    Raises:
        DataError: they cannot be used, or have classes that the run does not have.
    """
    listed = read_targets(run.task, override(run.spec, images_at(path)).data)
    spec = override(run.spec, {"data.unlabelled": ""})
    with _opened(run, spec, listed, reporter) as images:
        yield images


@contextmanager
def _opened(run: LoadedRun, spec: RunSpec, listed: Records, reporter: Reporter) -> Iterator[Images]:
    # A finished run predicts on the current device: those of the spec are not set up.
    with open_session(
        spec, reporter=reporter, devices=current(), task=run.task, records=listed
    ) as session:
        records, pixels, _ = session.read_images()
        ids = np.asarray([record.example_id for record in records.items], np.int64)
        examples = Examples(pixels=pixels, targets=records.targets, example_ids=ids)
        digests = [record.digest for record in records.items]
        key = pixels_key(spec.data)
        yield Images(session, records, Source(examples, digests, spec.views, key))
