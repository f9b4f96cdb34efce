"""Compares kinds of adaptation on stored features of both domains."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import keras
import numpy as np
from keras import ops

from keras_transfer.adaptation.batchnorm import norms_of
from keras_transfer.adaptation.domains import Domains
from keras_transfer.adaptation.registry import KINDS, SEPARATOR, Kind, function_of, parse_chain
from keras_transfer.adaptation.scores import (
    Scores,
    choose,
    entropies,
    log_loss,
    nearest_rows,
    neighbour_information,
)
from keras_transfer.data.datasets import Pixels
from keras_transfer.data.splits import Splits
from keras_transfer.errors import SpecError
from keras_transfer.evaluation.results import Gain, paired_gain
from keras_transfer.experiments.adapt.images import last_dense, some_rows
from keras_transfer.inference.prediction import LoadedRun
from keras_transfer.methods.registry import check_repeatable, make_methods
from keras_transfer.tasks.task import Task


class Featured(Protocol):
    """Images with labels, which are placeholders for those of the target."""

    @property
    def pixels(self) -> Pixels:
        """uint8 [N, S, S, C]."""

    @property
    def labels(self) -> np.ndarray:
        """Class indices, int64 [N]."""

    def features(self, model: keras.Model, rows: np.ndarray) -> np.ndarray:
        """Features float64 [B, D] below the last dense layer of a classifier."""


@dataclass(frozen=True, eq=False)
class Candidate:
    """An adapted classifier: `model` is one of the two trunks, whose head is `kernel` and `bias`.

    `own_outputs` are probabilities [T, K] of the run's own test split.
    """

    name: str
    model: keras.Model
    kernel: np.ndarray
    bias: np.ndarray
    scores: Scores
    own_outputs: np.ndarray

    def applied(self) -> keras.Model:
        """The model with this head."""
        dense = last_dense(self.model)
        dense.kernel.assign(self.kernel)
        dense.bias.assign(self.bias)
        return self.model


@dataclass(frozen=True, eq=False)
class Comparison:
    """All candidates, the run as it is first, and the name of the chosen one.

    `is_forced`: it was chosen whatever the scores are.
    `own_labels` are those of the run's own test split, `num_target` and `num_labelled` the numbers
    of target images without and with labels.
    """

    candidates: tuple[Candidate, ...]
    chosen_name: str
    is_forced: bool
    own_labels: np.ndarray
    num_target: int
    num_labelled: int

    @property
    def source(self) -> Candidate:
        """The run as it is."""
        return self.candidates[0]

    @property
    def chosen(self) -> Candidate:
        """The candidate that is delivered."""
        return next(one for one in self.candidates if one.name == self.chosen_name)

    def own_gain(self, task: Task) -> Gain:
        """What the choice changes on the run's own test images."""
        before, after = (
            task.example_scores(self.own_labels, one.own_outputs)
            for one in (self.source, self.chosen)
        )
        return paired_gain(before, after)


@dataclass(frozen=True, eq=False)
class _Trunk:
    """A model and the features of all images that it is applied to."""

    model: keras.Model
    target: np.ndarray
    own_test: np.ndarray
    labelled: np.ndarray | None


class Comparer:
    """Makes candidates of a classifier, one chain of steps after another.

    Args:
        model: the classifier, which stays as it is.
        copied: makes another one like it.
        weights: of the loss, for class indices [N].
        own: all images of the run, with their `splits`.
        target: without labels.
        labelled: more images of the target, or None.
    """

    def __init__(
        self,
        model: keras.Model,
        *,
        copied: Callable[[], keras.Model],
        weights: Callable[[np.ndarray], np.ndarray],
        own: Featured,
        splits: Splits,
        target: Featured,
        labelled: Featured | None = None,
    ):
        self._model, self._copied, self._weights = model, copied, weights
        self._own, self._splits = own, splits
        self._target, self._labelled = target, labelled
        self._trunks: dict[str, _Trunk] = {}
        self._found: dict[str, Domains] = {}
        self._nearest = nearest_rows(self._trunk("").target)

    def compare(self, names: Sequence[str], *, is_forced: bool) -> Comparison:
        """Candidates of chains, of which the first is the run as it is.

        Args:
            is_forced: whether the last one is chosen, whatever the scores are.
        """
        candidates = tuple(self._candidate(name) for name in names)
        scores = {one.name: one.scores for one in candidates}
        return Comparison(
            candidates,
            names[-1] if is_forced else choose(scores),
            is_forced,
            self._own.labels[self._splits.test],
            len(self._target.labels),
            len(self._labelled.labels) if self._labelled else 0,
        )

    def _candidate(self, name: str) -> Candidate:
        chain = parse_chain(name)
        domains = self._domains(chain)
        trunk = self._trunk(_trunk_step(chain))
        outputs = domains.outputs(trunk.target)
        labels = outputs.argmax(axis=1)
        before = self._domains(())
        entropy, balance = entropies(outputs)
        scores = Scores(
            entropy=entropy,
            balance=balance,
            agreement=float(np.mean(labels == before.outputs(before.target).argmax(axis=1))),
            information=neighbour_information(labels, self._nearest, domains.num_classes),
            labelled_loss=self._labelled_loss(domains, trunk),
        )
        return Candidate(
            name, trunk.model, domains.kernel, domains.bias, scores, domains.outputs(trunk.own_test)
        )

    def _labelled_loss(self, domains: Domains, trunk: _Trunk) -> float | None:
        if trunk.labelled is None or self._labelled is None:
            return None
        return log_loss(domains.outputs(trunk.labelled), self._labelled.labels)

    def _domains(self, chain: tuple[Kind, ...]) -> Domains:
        """Features and head after the steps; those of shorter chains are kept."""
        name = SEPARATOR.join(kind.name for kind in chain)
        if name not in self._found:
            self._found[name] = self._made(chain)
        return self._found[name]

    def _made(self, chain: tuple[Kind, ...]) -> Domains:
        if not chain:
            return self._unchanged()
        if chain[-1].changes_trunk:
            trunk = self._trunk(chain[-1].name)
            return replace(self._domains(()), target=trunk.target)
        made: Domains = function_of(chain[-1])(self._domains(chain[:-1]))
        return made

    def _unchanged(self) -> Domains:
        rows = some_rows(np.sort(np.concatenate([self._splits.train, self._splits.val])))
        labels = self._own.labels[rows]
        kernel, bias = (ops.convert_to_numpy(x) for x in last_dense(self._model).weights)
        return Domains(
            source=self._own.features(self._model, rows),
            labels=labels,
            weights=self._weights(labels),
            target=self._trunk("").target,
            kernel=kernel.astype(np.float64),
            bias=bias.astype(np.float64),
        )

    def _trunk(self, step: str) -> _Trunk:
        """The run's trunk, or a copy with other weights."""
        if step not in self._trunks:
            model = self._copied() if step else self._model
            if step:
                function_of(KINDS[step])(model, self._target.pixels)
            labelled = None
            if self._labelled:
                labelled = self._labelled.features(model, np.arange(len(self._labelled.labels)))
            target = self._target.features(model, np.arange(len(self._target.labels)))
            own_test = self._own.features(model, self._splits.test)
            self._trunks[step] = _Trunk(model, target, own_test, labelled)
        return self._trunks[step]


def check_chain(run: LoadedRun, name: str) -> str:
    """Why a chain cannot be taken with a run's network; '' if it can."""
    if _trunk_step(parse_chain(name)) and not norms_of(run.model):
        return "the network has no BatchNormalization"
    return ""


def check_run(run: LoadedRun) -> None:
    """Raise SpecError unless the run can be adapted: heads are solved on its images again."""
    check_repeatable(make_methods(run.spec))
    if run.task.name != "single_label":
        raise SpecError(
            f"{run.folder.path} cannot be adapted",
            expected="a run with task=single_label",
            received=f"task={run.task.name}",
            fix="label some images of the target and train on them as well",
        )
    dense = last_dense(run.model)
    if dense.output is not run.model.output:
        raise SpecError(
            f"{run.folder.path} cannot be adapted",
            expected="a network whose last layer is dense",
            received=f"one that ends with {run.model.layers[-1].name}",
            fix="train a run with the default head",
        )


def _trunk_step(chain: tuple[Kind, ...]) -> str:
    return chain[0].name if chain and chain[0].changes_trunk else ""


def weights_of(run: LoadedRun, labels: np.ndarray) -> np.ndarray:
    """Weights of the loss [N] of class indices, as where the heads of a run are solved."""
    training = run.spec.training
    if training.sampling == "balanced":
        training = replace(training, class_weights="balanced")
    return run.task.example_weights(labels, training).astype(np.float64)
