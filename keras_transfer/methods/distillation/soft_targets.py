"""Soft targets: a teacher's outputs for each view that a phase trains on, as columns of batches."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import log_expit, logsumexp, softmax

from keras_transfer.data.datasets import Inputs
from keras_transfer.methods.distillation.teacher import Teacher
from keras_transfer.models.activations import Activation, ranges
from keras_transfer.models.cuts import Cut
from keras_transfer.training.objective import PhaseImages

NUM_WEIGHTS = 3
"""Columns before the teacher's logits: whether there is a label, and the weights of both parts."""

_BLOCK = 1024


@dataclass(frozen=True, eq=False)
class SoftTargets:
    """What the teachers say of N images in V views.

    `logits` float32 [N, V, K]: their outputs at `temperature` are the mean of those of the teachers
    at this temperature. `weights` float32 [N, V, 3] are `NUM_WEIGHTS` columns.
    `place` int64 has the index of each row of the source, -1 for rows that do not train. `features`
    are those of the teacher, where they are compared as well.
    """

    logits: np.ndarray
    weights: np.ndarray
    place: np.ndarray
    features: Inputs | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """The number of columns: weights, logits, features."""
        more = self.features.shape[0] if self.features else 0
        return (NUM_WEIGHTS + self.logits.shape[-1] + more,)

    @property
    def dtype(self) -> np.dtype:
        """float32."""
        return np.dtype(np.float32)

    def read(self, rows: np.ndarray, view_indices: np.ndarray) -> np.ndarray:
        """The columns of views, float32 [B, E]."""
        at = self.place[rows], view_indices
        columns = [self.weights[at], self.logits[at]]
        if self.features:
            columns.append(self.features.read(rows, view_indices).astype(np.float32))
        return np.concatenate(columns, axis=1)


def read_logits(
    teachers: Sequence[Teacher],
    images: PhaseImages,
    *,
    temperature: float,
    activation: Activation,
    compared: Cut,
) -> tuple[np.ndarray, Inputs]:
    """Logits of the mean of several teachers' outputs, [N, V, K], and stored features.

    Args:
        compared: the features, a cut of the first teacher.

    Raises:
        SpecError: every epoch has new views.
        RunError: features cannot be stored.
    """
    cuts = [[teacher.cut] for teacher in teachers]
    if compared is not teachers[0].cut:
        cuts[0].append(compared)
    stored = [
        images.read_frozen(some, teacher.image_size)
        for some, teacher in zip(cuts, teachers, strict=True)
    ]
    each = [
        _logits_of(teacher, features[0], images)
        for teacher, features in zip(teachers, stored, strict=True)
    ]
    return mean_logits(each, temperature, activation), stored[0][-1]


def mean_logits(
    each: Sequence[np.ndarray], temperature: float, activation: Activation = "softmax"
) -> np.ndarray:
    """Logits whose outputs at a temperature are the mean of those of several logits.

    Values of a linear activation are the mean themselves.
    """
    if len(each) == 1:
        return each[0]
    if not isinstance(activation, str):
        parts = [
            mean_logits([one[..., own] for one in each], temperature, kind)
            for kind, own in ranges(activation, each[0].shape[-1])
        ]
        return np.concatenate(parts, axis=-1)
    stacked = np.stack(each)
    if activation == "linear":
        mean: np.ndarray = stacked.mean(axis=0)
        return mean.astype(np.float32)
    scaled = stacked / temperature
    if activation == "sigmoid":
        for_label, against = (_log_mean(log_expit(sign * scaled)) for sign in (1, -1))
        mean = temperature * (for_label - against)
    else:
        mean = temperature * _log_mean(scaled - logsumexp(scaled, axis=-1, keepdims=True))
    return mean.astype(np.float32)


def _log_mean(logs: np.ndarray) -> np.ndarray:
    """The logarithm of the mean over the first axis."""
    mean: np.ndarray = logsumexp(logs, axis=0) - np.log(len(logs))
    return mean


def _logits_of(teacher: Teacher, features: Inputs, images: PhaseImages) -> np.ndarray:
    rows, num_views = images.train_rows, images.num_views
    assert num_views is not None, "views without end have no stored features"
    logits = np.empty((len(rows), num_views, teacher.num_outputs), np.float32)
    for start in range(0, len(rows), _BLOCK):
        part = slice(start, start + _BLOCK)
        for view in range(num_views):
            read = features.read(rows[part], np.full(len(rows[part]), view))
            logits[part, view] = teacher.logits(read)
    return logits


def probabilities(logits: np.ndarray, temperature: float = 1.0) -> np.ndarray:
    """Softmax at a temperature, float64."""
    result: np.ndarray = softmax(logits.astype(np.float64) / temperature, axis=-1)
    return result
