"""How far a student's logits are from a teacher's, by the activation of their task.

Source of both divergences: G. Hinton et al., "Distilling the knowledge in a neural network", 2015.
"""

from typing import Any

from keras import ops


def class_divergences(teacher: Any, student: Any, temperature: float) -> Any:
    """T² KL(softmax(teacher / T) || softmax(student / T)) of logits [B, K], [B].

    Its gradient by the student's logits is T (p_s - p_t) with the softmaxes at T.
    """
    return temperature**2 * divergence(teacher / temperature, student / temperature)


def label_divergences(teacher: Any, student: Any, temperature: float) -> Any:
    """T² times the mean over labels of KL((p, 1 - p) of the teacher || that of the student), [B].

    The probabilities p are sigmoid(logits / T) of logits [B, K]. The gradient by the student's
    logits is T (p_s - p_t) / K.
    """
    theirs, ours = teacher / temperature, student / temperature
    share = ops.sigmoid(theirs)
    for_label = share * (ops.log_sigmoid(theirs) - ops.log_sigmoid(ours))
    against = (1 - share) * (ops.log_sigmoid(-theirs) - ops.log_sigmoid(-ours))
    return temperature**2 * ops.mean(for_label + against, axis=-1)


def squared_differences(teacher: Any, student: Any, scale: Any) -> Any:
    """Half the mean square of differences of values [B, K] divided by scale [K], [B]."""
    return 0.5 * ops.mean(ops.square((student - teacher) / scale), axis=-1)


def divergence(one: Any, other: Any) -> Any:
    """KL(softmax(one) || softmax(other)) of logits [B, K], [B]."""
    logs = ops.log_softmax(one, axis=-1)
    return ops.sum(ops.exp(logs) * (logs - ops.log_softmax(other, axis=-1)), axis=-1)
