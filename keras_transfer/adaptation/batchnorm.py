"""AdaBN: BatchNormalization with the statistics of the target images.

Li et al. 2016, "Revisiting Batch Normalization For Practical Domain Adaptation". All weights stay
as they are. Each layer gets the mean and the variance of its own inputs, while the layers below
normalise with those of the batch: of a single batch these are exactly the moments of all images.
"""

from collections.abc import Iterator
from typing import Any, Final

import keras
import numpy as np
from keras import ops

BATCH_BYTES: Final = 400_000_000
"""Of the largest tensor for one batch, in float32."""


def norms_of(model: keras.Model) -> list[keras.layers.BatchNormalization]:
    """The BatchNormalization layers of a flat model, from the input up."""
    return [x for x in model.layers if isinstance(x, keras.layers.BatchNormalization)]


def adapt_statistics(model: keras.Model, pixels: Any) -> None:
    """Set the moving statistics of all BatchNormalization layers to those of images.

    Of several batches, which are of equal size but for one image, it is the mean of means, and the
    mean of variances plus the variance of means.

    Args:
        pixels: uint8 [M, S, S, C], read batch by batch.
    """
    measure = moments_model(model)
    found = []
    for rows in _batches(len(pixels), model):
        batch = np.asarray(pixels[rows], np.float32)
        found.append([np.asarray(one, np.float64) for one in measure.predict_on_batch(batch)])
    columns = list(zip(*found, strict=True))
    for norm, means, variances in zip(norms_of(model), columns[::2], columns[1::2], strict=True):
        norm.moving_mean.assign(np.mean(means, axis=0)[0])
        norm.moving_variance.assign((np.mean(variances, axis=0) + np.var(means, axis=0))[0])


def _batches(num_images: int, model: keras.Model) -> Iterator[np.ndarray]:
    largest = max(
        int(np.prod([side or 1 for side in tensor.shape[1:]]))
        for operation in model.operations
        for tensor in keras.tree.flatten(operation.output)
    )
    size = max(32, BATCH_BYTES // (4 * largest))
    yield from np.array_split(np.arange(num_images), -(-num_images // size))


def moments_model(model: keras.Model) -> keras.Model:
    """From images to mean and variance, [1, C] each, of the inputs of each BatchNormalization.

    It is a copy, in which these layers normalise with the moments of the batch.
    """
    moments: dict[str, list[keras.KerasTensor]] = {}

    def call(layer: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        if not isinstance(layer, keras.layers.BatchNormalization):
            return layer(inputs, *args, **kwargs)
        norm = model.get_layer(layer.name)  # The copy has no weights before it is called.
        mean, variance = ops.moments(inputs, list(range(len(inputs.shape) - 1)))
        moments[norm.name] = [ops.expand_dims(x, 0) for x in (mean, variance)]
        offset, scale = (
            None if x is None else ops.convert_to_numpy(x) for x in (norm.beta, norm.gamma)
        )
        return ops.batch_normalization(
            inputs, mean, variance, -1, offset=offset, scale=scale, epsilon=norm.epsilon
        )

    copy = keras.models.clone_model(model, call_function=call)
    for layer in copy.layers:
        if layer.weights:
            layer.set_weights(model.get_layer(layer.name).get_weights())
    return keras.Model(copy.input, [x for norm in norms_of(model) for x in moments[norm.name]])
