"""Preprocessing of pixels as each family of networks expects it, in a layer of the model."""

from typing import Any, get_args

import keras
from keras import ops

from keras_transfer.backbones.record import Mode
from keras_transfer.errors import SpecError

CAFFE_MEANS_BGR = (103.939, 116.779, 123.68)
TORCH_MEANS_RGB = (0.485, 0.456, 0.406)
TORCH_STDS_RGB = (0.229, 0.224, 0.225)


@keras.saving.register_keras_serializable("keras_transfer")
class Preprocess(keras.layers.Layer):
    """Raw RGB pixels 0-255 `[..., 3]` of any dtype to the scale a trunk was trained on.

    - 'caffe': BGR order, minus ImageNet's mean of each channel;
    - 'tf': x / 127.5 - 1, so -1 to 1;
    - 'torch': x / 255, minus ImageNet's mean, divided by its standard deviation;
    - 'lite': (x - 127) / 128;
    - 'none': unchanged, for trunks that scale their input themselves.

    Stateless, and built from scalars only: captured constant tensors become extra inputs when
    such a graph is exported to ONNX. Computes in the layer's compute dtype.
    """

    def __init__(self, mode: Mode, **kwargs: Any):
        super().__init__(**kwargs)
        if mode not in get_args(Mode):
            raise SpecError(
                "the mode of Preprocess is unknown",
                expected=f"one of {', '.join(get_args(Mode))}",
                received=repr(mode),
                fix="use one of these",
            )
        self.mode = mode

    def call(self, pixels: Any) -> Any:
        x = ops.cast(pixels, self.compute_dtype)
        if self.mode == "none":
            return x
        if self.mode == "tf":
            return x / 127.5 - 1.0
        if self.mode == "lite":
            return (x - 127.0) / 128.0
        channels = [x[..., index : index + 1] for index in range(3)]
        if self.mode == "caffe":
            shifted = zip(reversed(channels), CAFFE_MEANS_BGR, strict=True)
            return ops.concatenate([channel - mean for channel, mean in shifted], axis=-1)
        scales = zip(channels, TORCH_MEANS_RGB, TORCH_STDS_RGB, strict=True)
        scaled = [(channel / 255.0 - mean) / std for channel, mean, std in scales]
        return ops.concatenate(scaled, axis=-1)

    def compute_output_shape(self, input_shape: tuple[int | None, ...]) -> tuple[int | None, ...]:
        return input_shape

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "mode": self.mode}
