"""Plain datasets: batches without the copies that fill a last batch, for Keras's own `fit`."""

import itertools
from collections.abc import Callable, Iterator

import numpy as np
import tensorflow as tf


def make_plain(batches_of: Callable[[int], tf.data.Dataset]) -> tf.data.Dataset:
    """A dataset whose n-th iteration, from 0, gives the real examples of `batches_of(n)`.

    Args:
        batches_of: makes a dataset of (inputs, targets, weights), each [B, …], in which copies
            have weight 0 and the real examples of a filled batch have larger weights in turn.

    Yields:
        Inputs in float32, targets, and the weights of the real examples as without copies.
    """
    numbers = itertools.count()

    def read() -> Iterator[tuple[np.ndarray, ...]]:
        for inputs, targets, weights in batches_of(next(numbers)).as_numpy_iterator():
            real = weights > 0
            share = np.float32(real.mean())
            yield inputs[real].astype(np.float32), targets[real], weights[real] * share

    padded = batches_of(0)
    inputs, targets, weights = padded.element_spec
    signature = (
        tf.TensorSpec([None, *inputs.shape[1:]], tf.float32),
        tf.TensorSpec([None, *targets.shape[1:]], targets.dtype),
        tf.TensorSpec([None], weights.dtype),
    )
    plain = tf.data.Dataset.from_generator(read, output_signature=signature)
    # Otherwise Keras warns that the data ran out at the end of the first epoch.
    plain = plain.apply(tf.data.experimental.assert_cardinality(padded.cardinality()))
    return plain.prefetch(2)
