"""The table of scalings of pixels, by the mode of `Preprocess`. Standard library only."""

from typing import Final, NamedTuple

from keras_transfer.specs import COLOURS


class Scaling(NamedTuple):
    """From pixels x in 0-255 to (x / divisor - mean) / deviation.

    `text` completes "Pixels are …" in a model card. Means and deviations are one for all channels,
    or one for each of three, which `is_bgr` puts in the order blue, green, red. With `is_grey` all
    three channels are the grey level first.
    """

    text: str
    divisor: float = 1.0
    means: tuple[float, ...] = (0.0,)
    deviations: tuple[float, ...] = (1.0,)
    is_bgr: bool = False
    is_grey: bool = False


GREY: Final = "grey"
"""The name in `model.preprocess` for the backbone's own mode, of the image in grey."""

LUMA: Final = (0.299, 0.587, 0.114)
"""Weights of red, green and blue in the grey level, of ITU-R BT.601."""

_COLOUR: Final = {
    "caffe": Scaling(
        "channels in the order BGR, minus ImageNet's mean of each channel",
        means=(103.939, 116.779, 123.68),
        deviations=(1.0, 1.0, 1.0),
        is_bgr=True,
    ),
    "tf": Scaling("scaled to −1…1", divisor=127.5, means=(1.0,)),
    "torch": Scaling(
        "scaled to 0…1, minus ImageNet's mean of each channel, divided by its deviation",
        divisor=255.0,
        means=(0.485, 0.456, 0.406),
        deviations=(0.229, 0.224, 0.225),
    ),
    "lite": Scaling("minus 127, divided by 128", means=(127.0,), deviations=(128.0,)),
    "none": Scaling("not scaled; the first layers of the network scale it"),
}

MODES: Final = _COLOUR | {
    f"{GREY}_{mode}": row._replace(text=f"turned grey, then {row.text}", is_grey=True)
    for mode, row in _COLOUR.items()
}


def describe_scaling(mode: str, channels: int) -> str:
    """What completes "Pixels are …" for images with so many channels."""
    row = MODES[mode]
    if channels == COLOURS or len(row.means) == 1:
        return row.text
    mean, deviation = (sum(values) / len(values) for values in (row.means, row.deviations))
    return f"scaled alike in all channels, to (x / {row.divisor:g} − {mean:.4g}) / {deviation:.4g}"


def in_grey(mode: str) -> str:
    """The mode that turns images grey, and then is the given one."""
    return mode if MODES[mode].is_grey else f"{GREY}_{mode}"
