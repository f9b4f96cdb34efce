"""Preprocessing of pixels as each family of networks expects it, in a layer of the model."""

from typing import Any

import keras
from keras import ops

from keras_transfer.backbones.scaling import LUMA, MODES
from keras_transfer.errors import SpecError


@keras.saving.register_keras_serializable("keras_transfer")
class Preprocess(keras.layers.Layer):
    """Raw RGB pixels 0-255 `[..., 3]` of any dtype to the scale a trunk was trained on.

    `mode` is a row of `MODES`; 'none' is for trunks that scale their input themselves.
    Stateless, and built from scalars only: captured constant tensors become extra inputs when
    such a graph is exported to ONNX. Computes in the layer's compute dtype.
    """

    def __init__(self, mode: str, **kwargs: Any):
        super().__init__(**kwargs)
        if mode not in MODES:
            raise SpecError(
                "the mode of Preprocess is unknown",
                expected=f"one of {', '.join(MODES)}",
                received=repr(mode),
                fix="use one of these",
            )
        self.mode = mode

    def call(self, pixels: Any) -> Any:
        x, scaling = ops.cast(pixels, self.compute_dtype), MODES[self.mode]
        if scaling.is_grey:
            weighed = [weight * x[..., n : n + 1] for n, weight in enumerate(LUMA)]
            x = ops.concatenate([sum(weighed[1:], weighed[0])] * 3, axis=-1)
        if len(scaling.means) == 1:
            return _scaled(x, scaling.divisor, scaling.means[0], scaling.deviations[0])
        channels = [x[..., index : index + 1] for index in range(3)]
        if scaling.is_bgr:
            channels.reverse()
        steps = zip(channels, scaling.means, scaling.deviations, strict=True)
        scaled = [_scaled(channel, scaling.divisor, *step) for channel, *step in steps]
        return ops.concatenate(scaled, axis=-1)

    def compute_output_shape(self, input_shape: tuple[int | None, ...]) -> tuple[int | None, ...]:
        return input_shape

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "mode": self.mode}


def _scaled(x: Any, divisor: float, mean: float, deviation: float) -> Any:
    """Steps that change nothing are left out of the graph."""
    x = x / divisor if divisor != 1 else x
    x = x - mean if mean else x
    return x / deviation if deviation != 1 else x
