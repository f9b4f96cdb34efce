"""Preprocessing of pixels as each family of networks expects it, in a layer of the model."""

from typing import Any

import keras
from keras import ops

from keras_transfer.backbones.scaling import LUMA, MODES
from keras_transfer.errors import SpecError
from keras_transfer.specs import COLOURS


@keras.saving.register_keras_serializable("keras_transfer")
class Preprocess(keras.layers.Layer):
    """Raw RGB pixels 0-255 `[..., 3]` of any dtype to the scale a trunk was trained on.

    `mode` is a row of `MODES`; 'none' is for trunks that scale their input themselves. Of pixels
    with other channels, all are scaled alike, by the mean over the colours of means and deviations.
    Where these differ a plane of ones is added, by whose weights a first convolution makes up for
    the differences, also where it reads zeros around the image; see `channels`.
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
        if x.shape[-1] != COLOURS:
            return self._scale_alike(x)
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

    def _scale_alike(self, x: Any) -> Any:
        scaling = MODES[self.mode]
        mean, deviation = (
            sum(values) / len(values) for values in (scaling.means, scaling.deviations)
        )
        scaled = _scaled(x, scaling.divisor, mean, deviation)
        if num_planes(self.mode, x.shape[-1]) == x.shape[-1]:
            return scaled
        return ops.concatenate([scaled, ops.ones_like(x[..., :1])], axis=-1)

    def compute_output_shape(self, input_shape: tuple[int | None, ...]) -> tuple[int | None, ...]:
        *others, channels = input_shape
        assert channels is not None
        return *others, num_planes(self.mode, channels)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "mode": self.mode}


def num_planes(mode: str, channels: int) -> int:
    """How many planes `Preprocess` makes of images with so many channels."""
    return channels + (channels != COLOURS and len(MODES[mode].means) > 1)


def _scaled(x: Any, divisor: float, mean: float, deviation: float) -> Any:
    """Steps that change nothing are left out of the graph."""
    x = x / divisor if divisor != 1 else x
    x = x - mean if mean else x
    return x / deviation if deviation != 1 else x
