"""Weights of a first convolution for images with other channels than red, green and blue.

With W the pretrained kernel [k, k, 3, F], m and d the means and deviations by which its planes are
scaled, and M [N, 3] the shares of the colours in the N channels, whose columns sum to N / 3:

    K_n = (3 / N) sum_i M_ni W_i d' / d_i       of each channel, which is scaled by m' and d'
    K_1 = sum_i W_i (m' - m_i) / d_i            of a plane of ones, where the m or d differ

m' and d' are the means of m and d. On an image whose N channels are equal, the convolution then
gives what W gives on the grey image in red, green and blue, also where zeros surround the image:
for those W reads zeros after the scaling, so that a bias could not make up for different means.
"""

import json
import zipfile
from collections.abc import Sequence
from pathlib import Path

import keras
import numpy as np

from keras_transfer.backbones.preprocess import num_planes
from keras_transfer.backbones.record import Trunk
from keras_transfer.backbones.scaling import MODES
from keras_transfer.errors import SpecError
from keras_transfer.specs import COLOURS


def carry_over(original: Trunk, trunk: Trunk, *, channels: int, weighting: str) -> None:
    """Give a trunk for `channels` channels the weights of one for red, green and blue.

    Args:
        original, trunk: the same layers in the same order.
        weighting: as `model.channel_weights`.

    Raises:
        SpecError: other layers than convolutions depend on the number of channels.
    """
    pairs = [
        (old, new)
        for old, new in zip(original.layers, trunk.layers, strict=True)
        if old.weights or new.weights
    ]
    others = [old for old, new in pairs if not (_is_alike(old, new) or _is_first(old, new))]
    if others:
        raise SpecError(
            f"{original.backbone.name} cannot be adapted to data.channels={channels}",
            expected="convolutions as the first layers with weights",
            received=", ".join(f"{layer.name}, a {type(layer).__name__}" for layer in others),
            fix="choose another model.backbone, or train it from scratch: model.weights=none",
        )
    shares = _shares(channels, weighting)
    for old, new in pairs:
        kernel, *rest = old.get_weights()
        if not _is_alike(old, new):
            kernel = adapted_kernel(kernel, original.backbone.preprocessing, shares)
        new.set_weights([kernel, *rest])


def adapted_kernel(kernel: np.ndarray, mode: str, shares: np.ndarray) -> np.ndarray:
    """The kernel for planes as `Preprocess` makes them of N channels, [k, k, N or N + 1, F].

    Args:
        kernel: [k, k, 3, F], for planes that are scaled by `mode`.
        shares: [N, 3] of red, green and blue in each channel; columns sum to N / 3.
    """
    scaling, channels = MODES[mode], len(shares)
    means, deviations = (
        np.resize(np.asarray(values), COLOURS) for values in (scaling.means, scaling.deviations)
    )
    shares = shares[:, ::-1] if scaling.is_bgr else shares
    slopes = kernel.astype(np.float64) / deviations[:, np.newaxis]
    alike = COLOURS / channels * deviations.mean() * np.einsum("ni,hwif->hwnf", shares, slopes)
    if num_planes(mode, channels) == channels:
        return alike.astype(kernel.dtype)
    ones = np.einsum("i,hwif->hwf", means.mean() - means, slopes)
    return np.concatenate([alike, ones[:, :, np.newaxis]], axis=2).astype(kernel.dtype)


def describe_weights(channels: int, weighting: str) -> str:
    """A sentence for the user on the adapted convolution."""
    text = f"The first convolution reads {channels} channel{'s' if channels > 1 else ''}"
    if weighting == "rgb":
        return f"{text}: three by the weights of red, green and blue, others by their mean."
    if channels == 1:
        return f"{text} by the sum of the weights of red, green and blue."
    return (
        f"{text} by the mean weights of red, green and blue: while it is frozen, it sees only the "
        "mean of the channels; see model.channel_weights."
    )


def channels_in(file: Path) -> int | None:
    """Channels of the images that the model in a `.keras` file takes; None for other files."""
    if file.suffix != ".keras":
        return None
    try:
        with zipfile.ZipFile(file) as archive:
            layers = json.loads(archive.read("config.json"))["config"]["layers"]
        return int(layers[0]["config"]["batch_shape"][-1])
    except (OSError, zipfile.BadZipFile, ValueError, LookupError, TypeError):
        return None  # Where it is loaded, the error says what is wrong.


def _shares(channels: int, weighting: str) -> np.ndarray:
    """[N, 3], as `adapted_kernel` takes them."""
    shares = np.full((channels, COLOURS), 1 / COLOURS)
    if weighting == "rgb":
        shares[:COLOURS] = np.eye(COLOURS)
    return shares


def _shapes(layer: keras.layers.Layer) -> Sequence[tuple[int, ...]]:
    return [tuple(variable.shape) for variable in layer.weights]


def _is_alike(old: keras.layers.Layer, new: keras.layers.Layer) -> bool:
    return _shapes(old) == _shapes(new)


def _is_first(old: keras.layers.Layer, new: keras.layers.Layer) -> bool:
    """Whether they are convolutions that read the image: their kernels differ in its channels.

    ConvNeXt has its first convolution in a Sequential.
    """
    first = old.layers[0] if isinstance(old, keras.Sequential) else old
    (kernel, *rest), (other, *others) = _shapes(old), _shapes(new)
    return (
        type(first) is keras.layers.Conv2D
        and first.groups == 1
        and kernel[2] == COLOURS
        and (kernel[:2], kernel[3:], rest) == (other[:2], other[3:], others)
    )
