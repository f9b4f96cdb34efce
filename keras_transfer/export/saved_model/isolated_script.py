"""Serve exported models as a stranger would: TensorFlow alone, no Keras, no JAX, nothing of ours.

Run by path, never imported: `python -P serve_check.py RESULT_FOLDER EXPORT…`. Encoded images come
in on standard input, each as eight bytes of length (big endian) and the bytes themselves.

For export number n it leaves n.npz with its answers, or n.txt with the error that it ended with;
of several exports also seconds.json, where seconds[batch size][n] are those of each round, one
export after the other in every round.
"""

import json
import sys
import time
import traceback
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, Final

_BLOCKED: Final = ("keras", "tf_keras", "jax", "keras_transfer")
_BATCH_SIZE: Final = 32
_NUM_AS_PIXELS: Final = 4
"""How many images also go through the signatures for pixels and for heat maps."""

_TIMED_BATCHES: Final = (1, 8)
_LEAST_ROUNDS, _MOST_ROUNDS = 3, 15
_ENOUGH_SECONDS: Final = 4.0


class _Export:
    """A loaded export, and what it answered so far."""

    def __init__(self, folder: str):
        import tensorflow as tf

        # A signature alone does not keep the variables alive that it reads.
        self._loaded = tf.saved_model.load(folder)
        self._answers: dict[str, list[Any]] = defaultdict(list)

    def answer(self, batch: list[bytes]) -> None:
        """Ask for a batch; of the very first one a few images go through all signatures."""
        import tensorflow as tf

        if not self._answers:
            self._ask_all(batch[:_NUM_AS_PIXELS])
        served = self._loaded.signatures["serving_default"](image_bytes=tf.constant(batch))
        for name, rows in served.items():
            self._answers[name].append(rows.numpy())

    def _ask_all(self, few: list[bytes]) -> None:
        import tensorflow as tf

        serve = self._loaded.signatures
        for encoded in few:
            pixels = tf.io.decode_image(encoded, channels=3, expand_animations=False)
            answer = serve["serving_pixels"](pixels=pixels[tf.newaxis])
            self._answers["pixel_probabilities"].append(answer["probabilities"].numpy())
        likeliest = tf.fill([len(few)], -1)
        explained = serve["serving_explain"](image_bytes=tf.constant(few), class_index=likeliest)
        self._answers["heat_map"].append(explained["heat_map"].numpy())
        squares = tf.stack([tf.io.decode_png(png) for png in explained["square_bytes"]])
        self._answers["square_probabilities"].append(self.classify(squares))

    def classify(self, squares: Any) -> Any:
        """Probabilities of images that have the network's size already."""
        return self._loaded.signatures["serving_resized"](pixels=squares)["probabilities"].numpy()

    @property
    def image_size(self) -> int:
        """Side of the square the network sees, px."""
        return int(self._loaded.signatures["serving_resized"].inputs[0].shape[1])

    def write(self, file: Path) -> None:
        """Everything that was answered, row by row, strings as text."""
        import numpy as np

        joined: dict[str, Any] = {
            name: np.concatenate(parts) for name, parts in self._answers.items()
        }
        for name in ("label", "class_names", "top_class_names"):
            joined[name] = np.char.decode(joined[name].astype(bytes), "utf-8")
        np.savez(file, **joined)


def main(result_folder: str, *export_folders: str) -> None:
    """Let every export answer all images, and time those that could against each other."""
    # `import tensorflow` imports Keras where it is installed, which would hide that it is needed.
    for name in _BLOCKED:
        sys.modules[name] = None  # type: ignore[assignment]
    results = Path(result_folder)
    exports: dict[int, _Export] = {}

    def attempt(number: int, step: Callable[[], None]) -> None:
        try:
            step()
        except Exception:  # Any failure is a result; the others are asked all the same.
            exports.pop(number, None)
            words = traceback.format_exc()
            (results / f"{number}.txt").write_text(words, encoding="utf-8")

    for number, folder in enumerate(export_folders):
        attempt(number, lambda: exports.update({number: _Export(folder)}))  # noqa: B023
    for batch in _batches(_images(sys.stdin.buffer)):
        for number, export in list(exports.items()):
            attempt(number, lambda: export.answer(batch))  # noqa: B023
    for number, export in exports.items():
        export.write(results / f"{number}.npz")
    if len(export_folders) > 1:
        seconds = {size: _time(exports, size) for size in _TIMED_BATCHES}
        (results / "seconds.json").write_text(json.dumps(seconds), encoding="utf-8")


def _time(exports: dict[int, _Export], batch_size: int) -> dict[int, list[float]]:
    """Seconds of each export, in turns: what slows one down slows all."""
    import tensorflow as tf

    seconds: dict[int, list[float]] = {number: [] for number in exports}
    started = time.perf_counter()
    # The first round builds the kernels.
    for rounds in range(_MOST_ROUNDS + 1):
        if rounds > _LEAST_ROUNDS and time.perf_counter() - started > _ENOUGH_SECONDS:
            break
        for number, export in exports.items():
            batch = tf.zeros([batch_size, export.image_size, export.image_size, 3], tf.uint8)
            begun = time.perf_counter()
            export.classify(batch)
            seconds[number].append(time.perf_counter() - begun)
    return {number: rounds[1:] for number, rounds in seconds.items()}


def _images(stream: BinaryIO) -> Iterator[bytes]:
    while header := stream.read(8):
        yield stream.read(int.from_bytes(header, "big"))


def _batches(images: Iterator[bytes]) -> Iterator[list[bytes]]:
    batch: list[bytes] = []
    for image in images:
        batch.append(image)
        if len(batch) == _BATCH_SIZE:
            yield batch
            batch = []
    if batch:
        yield batch


if __name__ == "__main__":
    main(*sys.argv[1:])
