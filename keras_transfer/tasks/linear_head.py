"""Linear heads solved to their optimum on stored features: softmax and logistic regression.

Features are standardised by half: with the mean mu_j and the deviation sigma_j of feature j over
the first view of the training examples, and m the mean of all sigma_j, they are divided by
s_j = sqrt((sigma_j + 0.1 m) m), the geometric mean of their own deviation, raised a little so that
it is never 0, and of the common one. All computations are in float64.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Final, Protocol

import numpy as np
import scipy
from threadpoolctl import threadpool_limits

from keras_transfer.errors import DataError

MEMORY: Final = 2_000_000_000
"""Bytes of standardised features that are held; more are read again in every pass."""

STRENGTHS: Final = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0)
"""Candidates for C."""

MOST_COLUMNS: Final = 4096
"""Matrices of features by features, or of rows by rows, are no larger."""

_BLOCK_BYTES: Final = 4_000_000
_NUM_FOLDS: Final = 5
_MAX_ITERATIONS: Final = 100


@dataclass(frozen=True, eq=False)
class LinearHead:
    """Kernel [D, K] and bias [K] of the layer of logits, float64, on features as they are.

    `strength` is C; for a ridge regression the penalty, the median of those of its columns.
    `loss` is the mean training loss without the penalty, in nats, of logistic regressions over all
    known labels; for a ridge regression it is the mean squared leave-one-out error of logits.
    `num_iterations` is 0 for a ridge regression. `parts` are the heads of ranges of columns that
    were solved one by one; the other figures are then sums, and `strength` that of the first.
    """

    kernel: np.ndarray
    bias: np.ndarray
    strength: float
    loss: float
    num_iterations: int
    parts: tuple["LinearHead", ...] = ()

    @classmethod
    def joined(cls, parts: Sequence["LinearHead"]) -> "LinearHead":
        """Heads side by side."""
        return cls(
            np.concatenate([part.kernel for part in parts], axis=1),
            np.concatenate([part.bias for part in parts]),
            parts[0].strength,
            sum(part.loss for part in parts),
            sum(part.num_iterations for part in parts),
            tuple(parts),
        )

    @property
    def strengths(self) -> tuple[float, ...]:
        """The strength of each part."""
        return tuple(part.strength for part in self.parts) or (self.strength,)


@dataclass(frozen=True, eq=False)
class HeadFeatures:
    """Features of N examples in V views, read in blocks: what a linear head is solved on.

    `read` gives features [B, D], float16 or float32, of positions int64 [B] within 0 to N - 1 in
    one view.
    """

    read: Callable[[np.ndarray, int], np.ndarray]
    num_examples: int
    num_views: int
    num_columns: int

    def take(self, positions: np.ndarray) -> "HeadFeatures":
        """The features of some examples."""
        return replace(
            self,
            read=lambda rows, view: self.read(positions[rows], view),
            num_examples=len(positions),
        )

    def blocks(self) -> Iterator[tuple[slice, np.ndarray]]:
        """Examples in turn and their features, float64 [B, V, D].

        Raises:
            DataError: a feature is not finite.
        """
        for part in _parts(self.num_examples, self.num_views * self.num_columns):
            positions = np.arange(part.start, part.stop)
            block = np.empty((len(positions), self.num_views, self.num_columns))
            for view in range(self.num_views):
                block[:, view] = self.read(positions, view)
            if not np.isfinite(block).all():
                raise DataError(
                    "features are not finite, so no head can be solved on them",
                    expected="finite features of all training images",
                    received=f"NaN or infinity among images {part.start} to {part.stop - 1}",
                    fix="set cache.dtype=float32: float16 has no numbers above 65,504",
                )
            yield part, block

    def standardisation(self) -> tuple[np.ndarray, np.ndarray]:
        """mu and s of the module's formula, float64 [D]; s is 1 if no feature varies."""
        first = replace(self, num_views=1)
        sums, squares = np.zeros(self.num_columns), np.zeros(self.num_columns)
        for _, block in first.blocks():
            sums += block.sum(axis=(0, 1))
        mean = sums / self.num_examples
        for _, block in first.blocks():
            squares += np.square(block - mean).sum(axis=(0, 1))
        deviations = np.sqrt(squares / self.num_examples)
        typical = deviations.mean()
        if typical == 0:
            return mean, np.ones_like(mean)
        return mean, np.sqrt((deviations + 0.1 * typical) * typical)


@dataclass(frozen=True, eq=False)
class DesignMatrix:
    """Standardised features [N V, D], example by example, read in blocks of whole examples.

    `to_kernel` turns coefficients [D, K] of the columns into a kernel of features as they are.
    """

    blocks: Callable[[], Iterator[tuple[slice, np.ndarray]]]
    num_views: int
    num_columns: int
    mean: np.ndarray
    to_kernel: Callable[[np.ndarray], np.ndarray]

    @classmethod
    def of(cls, features: HeadFeatures, memory: int) -> "DesignMatrix":
        """The matrix of features, held where it has at most `memory` bytes.

        With fewer rows than columns it is replaced by L with L L^T = X X^T: the best kernel is a
        combination X^T A of rows, and L with coefficients L^T A gives the same logits and norm.
        """
        mean, scale = features.standardisation()
        views, columns = features.num_views, features.num_columns

        def standardised() -> Iterator[tuple[slice, np.ndarray]]:
            for part, block in features.blocks():
                yield part, ((block - mean) / scale).reshape(-1, columns)

        matrix = cls(standardised, views, columns, mean, lambda kernel: kernel / scale[:, None])
        num_rows = features.num_examples * views
        if 8 * num_rows * columns > memory:
            return matrix
        rows = np.empty((num_rows, columns))
        for part, block in standardised():
            rows[views * part.start : views * part.stop] = block
        if num_rows >= min(columns, MOST_COLUMNS + 1):
            return replace(matrix, blocks=partial(_blocks, rows, views))
        products = rows @ rows.T
        # Without it rounding could make products of dependent rows indefinite.
        products.flat[:: num_rows + 1] += 1e-12 * (np.trace(products) or 1)
        factor = scipy.linalg.cholesky(products, lower=True)

        def to_kernel(coefficients: np.ndarray) -> np.ndarray:
            weights = scipy.linalg.solve_triangular(factor, coefficients, lower=True, trans="T")
            return matrix.to_kernel(rows.T @ weights)

        return cls(partial(_blocks, factor, views), views, num_rows, mean, to_kernel)

    def moments(self, centre: np.ndarray | float = 0.0) -> np.ndarray:
        """(X - centre)^T (X - centre), [D, D]; above `MOST_COLUMNS` only the diagonal [D]."""
        is_large = self.num_columns > MOST_COLUMNS
        moments = np.zeros(self.num_columns if is_large else 2 * (self.num_columns,))
        for _, block in self.blocks():
            centred = block - centre
            moments += np.square(centred).sum(axis=0) if is_large else centred.T @ centred
        return moments


def _parts(size: int, num_numbers: int) -> Iterator[slice]:
    """Slices of `size` rows with `num_numbers` float64 numbers each, of at most a few MB."""
    step = max(1, _BLOCK_BYTES // (8 * num_numbers))
    for start in range(0, size, step):
        yield slice(start, min(start + step, size))


def _blocks(rows: np.ndarray, num_views: int) -> Iterator[tuple[slice, np.ndarray]]:
    for part in _parts(len(rows) // num_views, num_views * rows.shape[1]):
        yield part, rows[num_views * part.start : num_views * part.stop]


class _Link(Protocol):
    """From logits to a loss. Targets are [B, 1, W], or [B, V, W] where views have their own."""

    def num_outputs(self, width: int) -> int:
        """K, of targets of width W."""

    def curvature(self, num_outputs: int) -> float:
        """The second derivative of the loss at logits of 0."""

    def loss(
        self, logits: np.ndarray, targets: np.ndarray, weights: np.ndarray
    ) -> tuple[float, np.ndarray]:
        """Weighted sum of losses of logits [B, V, K], and its gradient; weights are [B, 1, 1]."""

    def missing(self, targets: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Targets and weights of `loss` for half an example of each kind that there is none of."""


class _Softmax:
    """One distribution over all outputs; targets are probabilities."""

    def num_outputs(self, width: int) -> int:
        return width

    def curvature(self, num_outputs: int) -> float:
        return 1 / num_outputs

    def loss(
        self, logits: np.ndarray, targets: np.ndarray, weights: np.ndarray
    ) -> tuple[float, np.ndarray]:
        losses, gradient = _cross_entropy(logits, targets)
        return float(np.sum(weights * losses)), weights * gradient

    def missing(self, targets: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Of each class."""
        is_missing = (weights * targets).sum(axis=(0, 1)) == 0
        return np.eye(len(is_missing))[:, None], 0.5 * is_missing[:, None, None]


def _cross_entropy(logits: np.ndarray, targets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Losses [B, V, 1] and gradients [B, V, K]; targets that sum to w count as w examples."""
    mass = targets.sum(axis=-1, keepdims=True)
    shifted = logits - logits.max(axis=-1, keepdims=True)
    exponentials = np.exp(shifted)
    totals = exponentials.sum(axis=-1, keepdims=True)
    losses = mass * np.log(totals) - (targets * shifted).sum(axis=-1, keepdims=True)
    return losses, mass * exponentials / totals - targets


@dataclass(frozen=True)
class _Distilled:
    """Two targets side by side, W = 2 K: labels, and a teacher's probabilities at T.

    The loss is CE(labels, z) + T^2 CE(teacher, z / T); each target sums to its weight.
    """

    temperature: float

    def num_outputs(self, width: int) -> int:
        return width // 2

    def curvature(self, num_outputs: int) -> float:
        return 1 / num_outputs

    def loss(
        self, logits: np.ndarray, targets: np.ndarray, weights: np.ndarray
    ) -> tuple[float, np.ndarray]:
        by_labels, teacher = np.split(targets, 2, axis=-1)
        hard, hard_gradient = _cross_entropy(logits, by_labels)
        soft, soft_gradient = _cross_entropy(logits / self.temperature, teacher)
        losses = hard + self.temperature**2 * soft
        gradient = hard_gradient + self.temperature * soft_gradient
        return float(np.sum(weights * losses)), weights * gradient

    def missing(self, targets: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Of each class that neither the labels nor the teacher has."""
        by_labels, teacher = np.split(targets, 2, axis=-1)
        classes, half = _Softmax().missing(by_labels + teacher, weights)
        return np.concatenate([classes, np.zeros_like(classes)], axis=-1), half


class _Logistic:
    """Each output has a probability of its own; weights of its loss are [B, 1, K]."""

    def num_outputs(self, width: int) -> int:
        return width

    def curvature(self, num_outputs: int) -> float:  # noqa: ARG002
        return 0.25

    def loss(
        self, logits: np.ndarray, targets: np.ndarray, weights: np.ndarray
    ) -> tuple[float, np.ndarray]:
        loss = np.sum(weights * (np.logaddexp(0, logits) - targets * logits))
        return float(loss), weights * (scipy.special.expit(logits) - targets)

    def missing(self, targets: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Of negatives and of positives of each output."""
        kinds = np.broadcast_to([[[0.0]], [[1.0]]], (2, 1, targets.shape[-1]))
        counts = [(weights * (targets == kind)).sum(axis=(0, 1)) for kind in kinds]
        return kinds, 0.5 * (np.stack(counts) == 0)[:, None]


@dataclass(frozen=True, eq=False)
class Solution:
    """Coefficients [D, K] of a matrix's columns and bias [K] at an optimum.

    `loss` is the sum of weighted losses without the penalty.
    """

    coefficients: np.ndarray
    bias: np.ndarray
    loss: float
    num_iterations: int


@dataclass(frozen=True, eq=False)
class Preconditioner:
    """From parameters [D, K] to coefficients, and from gradients by these to those by parameters.

    With 1 + H = L L^T the coefficients are L^-T times the parameters. It is a rotation of
    R diag(1 + lambda)^-1/2 with the eigenvectors R of H, under which L-BFGS takes the same steps;
    L takes a small part of the time of R.
    """

    to_coefficients: Callable[[np.ndarray], np.ndarray]
    to_gradient: Callable[[np.ndarray], np.ndarray]

    @classmethod
    def of(cls, moments: np.ndarray) -> "Preconditioner":
        """For H [D, D], which is overwritten, or its diagonal [D]."""
        if moments.ndim == 1:
            scale = ((1 + moments) ** -0.5)[:, None]
            return cls(scale.__mul__, scale.__mul__)
        moments.flat[:: len(moments) + 1] += 1
        factor = scipy.linalg.cholesky(moments, lower=True, overwrite_a=True)
        solve = partial(scipy.linalg.solve_triangular, factor, lower=True, check_finite=False)
        return cls(partial(solve, trans="T"), solve)


@dataclass(frozen=True, eq=False)
class HeadProblem:
    """Minimise C sum_i w_i (mean of loss_iv over views v) + |W|^2 / 2 for W and a free bias.

    `targets` are float64 [N, 1 or V, W], see `_Link`, `weights` [N, 1] or [N, K]; `moments` are
    those of `matrix`.
    """

    matrix: DesignMatrix
    moments: np.ndarray
    link: _Link
    targets: np.ndarray
    weights: np.ndarray

    @property
    def num_outputs(self) -> int:
        """K."""
        return self.link.num_outputs(self.targets.shape[-1])

    def loss(
        self, coefficients: np.ndarray, bias: np.ndarray, weights: np.ndarray
    ) -> tuple[float, np.ndarray, np.ndarray]:
        """Sum of weighted losses with its gradients [D, K] and [K]."""
        views, num_outputs = self.matrix.num_views, len(bias)
        loss, by_coefficients, by_bias = 0.0, np.zeros_like(coefficients), np.zeros_like(bias)
        for part, block in self.matrix.blocks():
            logits = (block @ coefficients + bias).reshape(-1, views, num_outputs)
            part_loss, by_logits = self.link.loss(
                logits, self.targets[part], weights[part, None] / views
            )
            loss += part_loss
            by_coefficients += (by_logits.reshape(-1, num_outputs).T @ block).T
            by_bias += by_logits.sum(axis=(0, 1))
        return loss, by_coefficients, by_bias

    def minimise(
        self,
        strength: float,
        weights: np.ndarray,
        preconditioner: Preconditioner,
        *,
        tolerance: float = 1e-12,
    ) -> Solution:
        """The optimum by L-BFGS, from 0; `tolerance` is the objective's relative change at the end.

        A class without examples, or an output without positives or without negatives, would have
        an infinite bias: half an example of the missing kind, with all features at their mean, is
        added to the sum.
        """
        num_examples, num_outputs = len(self.targets), self.num_outputs
        bias_scale = (strength * self.link.curvature(num_outputs) * num_examples) ** -0.5
        missing = self.link.missing(self.targets, weights[:, None])
        # In this unit the objective is about 1, as the tolerances assume.
        unit = strength * num_examples

        def unpacked(parameters: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            table = parameters.reshape(-1, num_outputs)
            return preconditioner.to_coefficients(table[:-1]), bias_scale * table[-1]

        def objective(parameters: np.ndarray) -> tuple[float, np.ndarray]:
            coefficients, bias = unpacked(parameters)
            loss, by_coefficients, by_bias = self.loss(coefficients, bias, weights)
            at_mean, by_logits = self.link.loss(bias[None, None], *missing)
            by_bias += by_logits.sum(axis=(0, 1))
            by_table = preconditioner.to_gradient(strength * by_coefficients + coefficients)
            gradient = np.vstack([by_table, strength * bias_scale * by_bias]).ravel()
            value = strength * (loss + at_mean) + np.sum(coefficients**2) / 2
            return value / unit, gradient / unit

        start = np.zeros((self.matrix.num_columns + 1) * num_outputs)
        options = {"maxiter": _MAX_ITERATIONS, "ftol": tolerance, "gtol": 1e-8}
        found = scipy.optimize.minimize(
            objective, start, jac=True, method="L-BFGS-B", options=options
        )
        coefficients, bias = unpacked(found.x)
        loss, *_ = self.loss(coefficients, bias, weights)
        return Solution(coefficients, bias, loss, int(found.nit))

    def preconditioner(self, strength: float) -> Preconditioner:
        """Parameters in which the objective's second derivative at 0 is 1."""
        curvature = strength * self.link.curvature(self.num_outputs) / self.matrix.num_views
        return Preconditioner.of(curvature * self.moments)


def folds_of(targets: np.ndarray) -> np.ndarray:
    """The fold of each example, int64 [N] from 0 to 4, drawn with a fixed seed.

    Each fold has about a fifth of the examples of every class, the output with the largest target.
    """
    classes = np.argmax(targets, axis=1)
    order = np.random.default_rng(0).permutation(len(classes))
    order = order[np.argsort(classes[order], kind="stable")]
    folds = np.empty(len(order), np.int64)
    folds[order] = np.arange(len(order)) % _NUM_FOLDS
    return folds


def choose_strength(problem: HeadProblem, strengths: tuple[float, ...]) -> float:
    """The C with the lowest log loss in 5-fold cross-validation; the first of equal ones.

    All views of an example are in one fold, and all folds share the standardisation, for which no
    label is used.
    """
    folds = folds_of(problem.targets.mean(axis=1))[:, None]
    losses = []
    for strength in strengths:
        preconditioner = problem.preconditioner(strength)
        loss = 0.0
        for fold in range(_NUM_FOLDS):
            rest, held_out = problem.weights * (folds != fold), problem.weights * (folds == fold)
            found = problem.minimise(strength, rest, preconditioner, tolerance=1e-6)
            loss += problem.loss(found.coefficients, found.bias, held_out)[0]
        losses.append(loss)
    return strengths[int(np.argmin(losses))]


def solve_softmax(
    features: HeadFeatures,
    targets: np.ndarray,
    weights: np.ndarray,
    *,
    strengths: tuple[float, ...] = (),
    memory: int = MEMORY,
) -> LinearHead:
    """Multinomial logistic regression with an L2 penalty; its C is that of scikit-learn.

    Args:
        targets: probabilities [N, K], such as one-hot labels.
        weights: weights of examples [N].
        strengths: one C, or several to choose from by `choose_strength`; by default C is 0.03, and
            0.1 for fewer than 100 examples.
        memory: bytes of standardised features that may be held.

    Raises:
        DataError: a feature is not finite.
    """
    return _solve(features, _Softmax(), (targets, weights[:, None]), strengths, memory)


def solve_distilled(
    features: HeadFeatures,
    labels: np.ndarray,
    teacher: np.ndarray,
    weights: np.ndarray,
    *,
    temperature: float,
    strengths: tuple[float, ...] = (),
) -> LinearHead:
    """The optimum of CE(labels, z) + T^2 CE(teacher, z / T) for logits z, with an L2 penalty.

    Both targets are probabilities times the weights of their parts, so that with T = 1 it is
    `solve_softmax` of their sum.

    Args:
        labels: [N, K]; zeros for an example without a label.
        teacher: probabilities at T of each view, [N, V, K].
        weights: weights of examples [N].
        strengths: as in `solve_softmax`.

    Raises:
        DataError: a feature is not finite.
    """
    repeated = np.repeat(labels[:, None], teacher.shape[1], axis=1)
    targets = np.concatenate([repeated, teacher], axis=-1)
    link = _Distilled(temperature)
    return _solve(features, link, (targets, weights[:, None]), strengths, MEMORY)


def solve_logistic(
    features: HeadFeatures,
    targets: np.ndarray,
    weights: np.ndarray,
    *,
    strengths: tuple[float, ...] = (),
    memory: int = MEMORY,
) -> LinearHead:
    """A binary logistic regression for each of K labels, with one standardisation and one C.

    For two classes `solve_softmax` with C has the probabilities of this with 2 C: its penalty
    counts the two opposite columns of the kernel.

    Args:
        targets: [N, K] of 0, 1 and NaN for unknown, which is left out.
        weights: weights of targets [N, K].
        strengths: as in `solve_softmax`.
        memory: as in `solve_softmax`.

    Raises:
        DataError: a feature is not finite.
    """
    known = np.where(np.isnan(targets), 0, weights)
    return _solve(features, _Logistic(), (np.nan_to_num(targets), known), strengths, memory)


def _solve(
    features: HeadFeatures,
    link: _Link,
    labels: tuple[np.ndarray, np.ndarray],
    strengths: tuple[float, ...],
    memory: int,
) -> LinearHead:
    matrix = DesignMatrix.of(features, memory)
    targets, weights = (part.astype(np.float64) for part in labels)
    if targets.ndim == 2:
        targets = targets[:, None]
    problem = HeadProblem(matrix, matrix.moments(), link, targets, weights)
    strengths = strengths or (0.1 if features.num_examples < 100 else 0.03,)
    # Threads cost more than they gain in products with few columns: NumPy and SciPy each have their
    # own, and those of one wait busily while the other computes.
    with threadpool_limits(1, user_api="blas"):
        strength = choose_strength(problem, strengths) if len(strengths) > 1 else strengths[0]
        found = problem.minimise(strength, weights, problem.preconditioner(strength))
    kernel = matrix.to_kernel(found.coefficients)
    bias = found.bias - matrix.mean @ kernel
    return LinearHead(kernel, bias, strength, found.loss / weights.sum(), found.num_iterations)
