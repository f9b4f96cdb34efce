"""The default head: pooling, an optional hidden layer, dropout and logits."""

import keras

from keras_transfer.specs import ModelSpec


def head_layers(spec: ModelSpec, *, num_outputs: int, seed: int) -> list[keras.layers.Layer]:
    """Layers above the trunk, bottom to top; the last is called 'logits'.

    Args:
        seed: seed of dropout.
    """
    layers = keras.layers
    pooling = {
        "avg": layers.GlobalAveragePooling2D,
        "max": layers.GlobalMaxPooling2D,
        "flatten": layers.Flatten,
    }
    head: list[keras.layers.Layer] = [pooling[spec.pooling](name="pooling")]
    if spec.head == "mlp":
        head.append(layers.Dense(spec.hidden_units, activation="relu", name="hidden"))
    if spec.dropout > 0:
        head.append(layers.Dropout(spec.dropout, seed=seed, name="dropout"))
    # float32 under every precision policy: half-precision logits lose digits in softmax and loss.
    head.append(layers.Dense(num_outputs, dtype="float32", name="logits"))
    return head
