"""Serve an exported model as a stranger would: TensorFlow alone, no Keras, nothing of ours.

Run by path, never imported: `python -P serve_check.py EXPORT RESULT.npz`. Encoded pictures come in
on standard input, each as eight bytes of length (big endian) and the bytes themselves.
"""

import struct
import sys
from collections.abc import Iterator
from typing import Any, BinaryIO, Final

_BLOCKED: Final = ("keras", "tf_keras", "keras_transfer")
_BATCH_SIZE: Final = 32
_NUM_AS_PIXELS: Final = 4
"""How many pictures also go, decoded, through the signature for pixels."""


def main(export_folder: str, result_file: str) -> None:
    """Serve all pictures and write labels, class_names, probabilities and pixel_probabilities."""
    # `import tensorflow` imports Keras where it is installed, which would hide that it is needed.
    for name in _BLOCKED:
        sys.modules[name] = None  # type: ignore[assignment]
    import numpy as np
    import tensorflow as tf

    signatures = tf.saved_model.load(export_folder).signatures
    answers: list[dict[str, Any]] = []
    as_pixels: list[Any] = []
    for batch in _batches(_pictures(sys.stdin.buffer)):
        answers.append(signatures["serving_default"](image_bytes=tf.constant(batch)))
        for encoded in batch[: _NUM_AS_PIXELS - len(as_pixels)]:
            pixels = tf.io.decode_image(encoded, channels=3, expand_animations=False)
            answer = signatures["serving_pixels"](pixels=pixels[tf.newaxis])
            as_pixels.append(answer["probabilities"][0])
    joined = {name: np.concatenate([x[name].numpy() for x in answers]) for name in answers[0]}
    np.savez(
        result_file,
        labels=np.char.decode(joined["label"].astype(bytes), "utf-8"),
        class_names=np.char.decode(joined["class_names"].astype(bytes), "utf-8"),
        probabilities=joined["probabilities"],
        pixel_probabilities=np.stack(as_pixels),
    )


def _pictures(stream: BinaryIO) -> Iterator[bytes]:
    while header := stream.read(8):
        yield stream.read(struct.unpack(">Q", header)[0])


def _batches(pictures: Iterator[bytes]) -> Iterator[list[bytes]]:
    batch: list[bytes] = []
    for picture in pictures:
        batch.append(picture)
        if len(batch) == _BATCH_SIZE:
            yield batch
            batch = []
    if batch:
        yield batch


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
