"""Handwritten digits as a TensorFlow Datasets builder that needs no network.

1,797 scans of 8 x 8 px in ten classes, the test part of UCI's "Optical Recognition of Handwritten
Digits" (Alpaydin and Kaynak, 1998, CC BY 4.0), as scikit-learn ships them. Importing this module
makes `tfds.builder("digits")` known.
"""

import io
from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

_SIDE = 8
_INK_LEVELS = 16


class Digits(tfds.core.GeneratorBasedBuilder):
    """One split, 'train': PNG images, grey, ink in white on black, labelled '0' to '9'."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self) -> tfds.core.DatasetInfo:
        image = tfds.features.Image(shape=(_SIDE, _SIDE, 1), encoding_format="png")
        label = tfds.features.ClassLabel(names=[str(digit) for digit in range(10)])
        return tfds.core.DatasetInfo(
            builder=self,
            description="Handwritten digits, 8 x 8 px, as scikit-learn ships them.",
            features=tfds.features.FeaturesDict({"image": image, "label": label}),
            supervised_keys=("image", "label"),
            homepage="https://archive.ics.uci.edu/dataset/80",
            license="CC BY 4.0",
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Any]:  # noqa: ARG002
        return {"train": self._generate_examples()}

    def _generate_examples(self) -> Iterator[tuple[int, dict[str, Any]]]:
        # Imported here, so that listing data sets does not import scikit-learn.
        from sklearn.datasets import load_digits

        scans = load_digits()
        for row, (ink, digit) in enumerate(zip(scans.images, scans.target, strict=True)):
            buffer = io.BytesIO()
            pixels = np.uint8(np.round(ink * (255 / _INK_LEVELS)))
            Image.fromarray(pixels).save(buffer, "PNG")
            buffer.seek(0)
            yield row, {"image": buffer, "label": str(digit)}
