"""The signatures of an exported model, which need TensorFlow only.

    serving_default    image_bytes: string [B]         encoded images, any mix of JPEG, PNG …
    serving_pixels     pixels:      uint8 [B, H, W, C] 0-255 of any size, one size per batch
    serving_resized    pixels:      uint8 [B, S, S, C] the network's square input
    serving_explain    image_bytes: string [B], class_index: int32 [B], -1 for the highest output

C is 3, RGB, unless the contract has other `channels`. Encoded images with other channels than 1 and
3 are .npy files.

For single labels the first two return one row per image, as in TensorFlow Serving's row format:

    label              string [B]       name of the most probable class
    class_names        string [B, C]    all names, in the order of the probabilities
    probabilities      float32 [B, C]
    top_class_names    string [B, K]    of the K = min(5, C) most probable classes, best first
    top_probabilities  float32 [B, K]

`serving_resized` is for accelerators: it has no strings, and only the batch size varies. It returns
probabilities, top_class_indices int32 [B, K] and top_probabilities. `serving_explain` returns
label, probabilities, heat_map float32 [B, h, w] in 0-1 (Grad-CAM) and square_bytes string [B], the
network's square input as a PNG. Where C is not 1 or 3, the PNG shows the first three channels, or
the first, and `square` uint8 [B, S, S, C] has all.

Pixels are uint8 because the range of integers is unambiguous: floats of 0-1, the most common
mistake of clients, are refused instead of giving wrong predictions. One image that cannot be
decoded fails its whole batch. Other tasks return the outputs of their `served`
and `served_names`.
"""

import functools
from collections.abc import Callable
from typing import Final

import tensorflow as tf

from keras_transfer.data.images import decode_and_resize, decoding_of, resize_pixels
from keras_transfer.export.contract import Contract
from keras_transfer.export.saved_model.network import Network, activate_in_graph, grad_cam, heat_map
from keras_transfer.specs import COLOURS

Served = dict[str, tf.Tensor]

BYTES: Final = "serving_default"
PIXELS: Final = "serving_pixels"
RESIZED: Final = "serving_resized"
EXPLAIN: Final = "serving_explain"
SQUARE: Final = "square"
"""Output of `serving_explain` for channels that no PNG shows."""
ACCELERATOR_ALIAS: Final = "classify_on_accelerator"
"""Alias of the function inside `serving_resized`, which converters for TPUs need."""


class Signatures(tf.Module):
    """The signatures of a network with its contract, for saving.

    `classify` maps uint8 [B, S, S, C] to numbers only, no strings.
    """

    def __init__(self, network: Network, contract: Contract):
        super().__init__()
        self.weights = network.variables
        self.classify = tf.function(self._classify, autograph=False)
        self._network, self._contract, self._task = network, contract, contract.restored_task

    def concrete(self) -> dict[str, tf.types.experimental.ConcreteFunction]:
        """By name, as in the arguments of `tf.saved_model.save`."""
        shape = self._contract.input_shape
        any_size = tf.TensorSpec([None, None, None, shape[-1]], tf.uint8, name="pixels")
        strings = tf.TensorSpec([None], tf.string, name="image_bytes")
        return {
            BYTES: _traced(self._serve_bytes, strings),
            PIXELS: _traced(self._serve_pixels, any_size),
            RESIZED: self.classify.get_concrete_function(
                tf.TensorSpec([None, *shape], tf.uint8, name="pixels")
            ),
            EXPLAIN: _traced(
                self._serve_explain, strings, tf.TensorSpec([None], tf.int32, name="class_index")
            ),
        }

    def _classify(self, pixels: tf.Tensor) -> Served:
        logits = self._network.logits(pixels)
        return self._task.served(activate_in_graph(logits, self._task.activation))

    def _serve_bytes(self, image_bytes: tf.Tensor) -> Served:
        return self._task.served_names(self.classify(self._squares(image_bytes)))

    def _serve_pixels(self, pixels: tf.Tensor) -> Served:
        size, resize = self._contract.image_size, self._contract.resize
        squares = resize_pixels(pixels, image_size=size, resize=resize)
        return self._task.served_names(self.classify(squares))

    def _serve_explain(self, image_bytes: tf.Tensor, class_index: tf.Tensor) -> Served:
        squares = self._squares(image_bytes)
        # Mixed precision makes half-precision features, whose gradient would be imprecise.
        features = tf.cast(self._network.trunk(tf.cast(squares, tf.float32)), tf.float32)
        logits = self._network.head(features)
        outputs = activate_in_graph(logits, self._task.activation)
        signed = grad_cam(self._network, features, logits, class_index)
        return {
            "label": self._task.decision(outputs),
            self._task.output_name: outputs,
            "heat_map": heat_map(signed),
            **self._shown(squares),
        }

    def _shown(self, squares: tf.Tensor) -> Served:
        channels = self._contract.channels
        is_shown_whole = channels in (1, COLOURS)
        shown = squares if is_shown_whole else squares[..., : 1 if channels < COLOURS else COLOURS]
        png = tf.map_fn(tf.io.encode_png, shown, fn_output_signature=tf.string)
        return {"square_bytes": png} | ({} if is_shown_whole else {SQUARE: squares})

    def _squares(self, image_bytes: tf.Tensor) -> tf.Tensor:
        decode = functools.partial(decode_and_resize, **decoding_of(self._contract))
        square = tf.TensorSpec(self._contract.input_shape, tf.uint8)
        return tf.map_fn(decode, image_bytes, fn_output_signature=square)


def _traced(
    function: Callable[..., Served], *inputs: tf.TensorSpec
) -> tf.types.experimental.ConcreteFunction:
    return tf.function(function, autograph=False).get_concrete_function(*inputs)
