"""What adaptation gains on shifted images, and how often its choice without labels is wrong."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import keras
import numpy as np

from keras_transfer.adaptation.batchnorm import norms_of
from keras_transfer.adaptation.domains import Domains
from keras_transfer.adaptation.registry import CHAINS
from keras_transfer.data.datasets import Pixels
from keras_transfer.data.letters import render_letter
from keras_transfer.data.splits import Splits
from keras_transfer.errors import SpecError
from keras_transfer.experiments.adapt.candidates import Comparer
from keras_transfer.experiments.adapt.images import last_dense
from keras_transfer.experiments.session import open_session
from keras_transfer.models.classifier import build_classifier
from keras_transfer.models.forward import forward_pixels
from keras_transfer.reporting.reporter import Reporter
from keras_transfer.specs import RunSpec
from keras_transfer.storage.cache import Cache
from keras_transfer.tasks.task import Task
from pipelines.benchmarks.alignment import PLAIN, Trainer
from pipelines.benchmarks.shifts import SHIFTS, shifted

RENDERED = "rendered"
"""The source is rendered digits, and the target the images of the spec, which must be digits."""

_SOURCE_SHARE, _TARGET_SHARE, _OWN_TEST_SHARE = 0.4, 0.3, 0.15


@dataclass(frozen=True)
class Outcome:
    """Accuracies on unseen target images by chain, and the chain that 'auto' chose."""

    shift: str
    seed: int
    accuracies: dict[str, float]
    chosen: str


class Networks:
    """A classifier, and a copy whose weights are set back for each seed.

    Tracing networks again would take longer than all else.
    """

    def __init__(self, spec: RunSpec, task: Task):
        size, seed = spec.data.image_size, spec.seed
        self.base, self._copy = (
            build_classifier(spec.model, image_size=size, task=task, seed=seed).model
            for _ in range(2)
        )
        self._weights = self._copy.get_weights()
        self._below = {
            model: keras.Model(model.input, last_dense(model).input)
            for model in (self.base, self._copy)
        }

    def copied(self) -> keras.Model:
        """The copy with the weights of the first."""
        self._copy.set_weights(self._weights)
        return self._copy

    def features(self, model: keras.Model, pixels: Pixels) -> np.ndarray:
        """Float64 [N, D] below the last dense layer of one of the two."""
        return forward_pixels(self._below[model], pixels).astype(np.float64)


@dataclass(frozen=True, eq=False)
class Pictures:
    """Images in memory; `known` are features [N, D] of the first of the networks."""

    pixels: Pixels
    labels: np.ndarray
    networks: Networks
    known: np.ndarray

    @classmethod
    def of(cls, pixels: np.ndarray, labels: np.ndarray, networks: Networks) -> "Pictures":
        """With their features computed."""
        return cls(pixels, labels, networks, networks.features(networks.base, pixels))

    def features(self, model: keras.Model, rows: np.ndarray) -> np.ndarray:
        """Float64 [B, D] below the last dense layer."""
        if model is self.networks.base:
            return self.known[rows]
        return self.networks.features(model, self.pixels[rows])

    def part(self, rows: np.ndarray) -> "Pictures":
        """Some of them."""
        return Pictures(self.pixels[rows], self.labels[rows], self.networks, self.known[rows])


def measure_adaptation(
    spec: RunSpec,
    shifts: Sequence[str],
    *,
    seeds: Sequence[int],
    reporter: Reporter,
    aligned: Sequence[str] = (),
) -> Iterator[Outcome]:
    """Accuracies on shifted images, one shift and seed after the other.

    A seed divides the images into labelled source images (40 %), unlabelled target images (30 %)
    and target images for the accuracy (30 %). A head is solved on the source images; the target's
    are shifted. With `RENDERED` the source is as many rendered digits. `aligned` are distances of
    method 'align', by which the phases of the spec are trained as well, and on the source alone.

    Raises:
        DataError, SpecError, WeightsError: as in a run; also for a shift that does not exist.
    """
    if unknown := [name for name in shifts if name not in (*SHIFTS, RENDERED)]:
        raise SpecError(
            "a shift is unknown",
            expected=", ".join([*SHIFTS, RENDERED]),
            received=", ".join(unknown),
            fix="leave it out",
        )
    with open_session(spec, reporter=reporter) as session:
        records, rows, _ = session.read_images()
        pixels, labels = np.asarray(rows[:]), np.asarray(records.targets.values)
    task = session.task
    networks = Networks(spec, task)
    plain = Pictures.of(pixels, labels, networks)
    for name in shifts:
        source, target = plain, plain
        if name == RENDERED:
            source = Pictures.of(*_rendered(spec, len(labels), records.class_names), networks)
        else:
            target = Pictures.of(shifted(pixels, name, seed=0), labels, networks)
        with TemporaryDirectory(prefix="features-") as folder:
            domains = source.pixels, target.pixels
            trainer = Trainer.of(spec, task, Cache(Path(folder)), source.labels, domains)
            for seed in seeds:
                division = Division.of(len(labels), seed)
                accuracies, chosen = _adapt(source, target, networks, division)
                accuracies |= _train(trainer, target, division, aligned)
                yield Outcome(name, seed, accuracies, chosen)


@dataclass(frozen=True, eq=False)
class Division:
    """Splits of the source, and rows of the target without labels and for the accuracy."""

    splits: Splits
    target: np.ndarray
    test: np.ndarray

    @classmethod
    def of(cls, count: int, seed: int) -> "Division":
        """At random."""
        order = np.random.default_rng(seed).permutation(count)
        ends = np.cumsum([_SOURCE_SHARE, _TARGET_SHARE]) * count
        own_rows, target_rows, test_rows = np.split(order, ends.astype(int))
        return cls(_splits(own_rows, seed), target_rows, test_rows)


def _train(
    trainer: Trainer, target: Pictures, division: Division, aligned: Sequence[str]
) -> dict[str, float]:
    """Accuracies of training on the source alone and by each distance; none without one."""
    distances = {PLAIN: "", **{f"align {name}": name for name in aligned}} if aligned else {}
    test, accuracies = target.part(division.test), {}
    for name, distance in distances.items():
        outputs = trainer.outputs(distance, division.splits, division.target, test.pixels)
        accuracies[name] = float(np.mean(outputs.argmax(axis=1) == test.labels))
    return accuracies


def _adapt(
    source: Pictures, target: Pictures, networks: Networks, division: Division
) -> tuple[dict[str, float], str]:
    """Accuracies by chain, and the chosen chain."""
    splits, base = division.splits, networks.base
    _solve(base, source.known[splits.train], source.labels[splits.train])
    comparer = Comparer(
        base,
        copied=networks.copied,
        weights=lambda labels: np.ones(len(labels)),
        own=source,
        splits=splits,
        target=target.part(division.target),
    )
    names = CHAINS if norms_of(base) else [name for name in CHAINS if "adabn" not in name]
    found = comparer.compare(names, is_forced=False)
    test = target.part(division.test)
    models = {one.model for one in found.candidates}
    features = {model: test.features(model, np.arange(len(test.labels))) for model in models}
    accuracies = {}
    for one in found.candidates:
        predicted = (features[one.model] @ one.kernel + one.bias).argmax(axis=1)
        accuracies[one.name] = float(np.mean(predicted == test.labels))
    return accuracies, found.chosen_name


def _splits(rows: np.ndarray, seed: int) -> Splits:
    """Training and test rows of the source."""
    num_test = int(_OWN_TEST_SHARE * len(rows))
    return Splits(
        train=np.sort(rows[num_test:]),
        val=np.zeros(0, np.int64),
        test=np.sort(rows[:num_test]),
        seed=seed,
        val_fraction=0.0,
        test_fraction=_OWN_TEST_SHARE,
    )


def _solve(model: keras.Model, features: np.ndarray, labels: np.ndarray) -> None:
    """Set the head to the optimum on labelled features."""
    dense = last_dense(model)
    weights, bias = np.ones(len(labels)), np.zeros(dense.units)
    empty = np.zeros((features.shape[1], dense.units))
    head = Domains(features, labels, weights, features[:0], empty, bias)
    solved = head.solved(features, labels, weights)
    dense.kernel.assign(solved.kernel)
    dense.bias.assign(solved.bias)


def _rendered(
    spec: RunSpec, count: int, class_names: Sequence[str]
) -> tuple[np.ndarray, np.ndarray]:
    """Rendered digits uint8 [count, S, S, 3] and their class indices."""
    if list(class_names) != [str(digit) for digit in range(10)]:
        raise SpecError(
            f"the shift {RENDERED} is one of digits",
            expected="images of the classes 0 to 9, such as quickstart",
            received=", ".join(class_names),
            fix="leave it out",
        )
    size = spec.data.image_size
    drawn = [
        render_letter(0, row, image_size=size, class_names=class_names) for row in range(count)
    ]
    return np.stack([image for image, _ in drawn]), np.array([label for _, label in drawn])
