"""SavedModels: this package's own, and what Keras's `model.export` writes.

Loaded by path where this package cannot be imported. TensorFlow only.
"""

import re
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

_OUTPUT_NAMES: Final = ("probabilities", "values")
"""Names of the outputs [B, K] in the signatures; a task uses one of them."""

_NUM_FEW: Final = 4
"""Images that also run through the signatures for pixels and for heat maps."""


@dataclass(frozen=True, eq=False)
class OpenedSavedModel:
    """`predict` maps uint8 [B, S, S, C] to float32 [B, K]: outputs, or logits of Keras's export."""

    predict: Callable[[np.ndarray], np.ndarray]
    signatures: Any
    output_name: str
    class_hash: str = ""

    def serve(self, batches: Iterable[list[tuple[bytes, bytes]]]) -> dict[str, np.ndarray]:
        """Outputs of all signatures for encoded images; see `IsolatedArtefact.serve`.

        Each image comes with its conversion, which is used where the image itself is refused.
        """
        import tensorflow as tf

        parts: dict[str, list[Any]] = defaultdict(list)
        for pairs in batches:
            refusals = [self._refusal(image) if other else "" for image, other in pairs]
            batch = [
                other if refusal else image
                for (image, other), refusal in zip(pairs, refusals, strict=True)
            ]
            if not parts:
                self._serve_few(batch[:_NUM_FEW], parts)
            served = self.signatures["serving_default"](image_bytes=tf.constant(batch))
            for name, values in served.items():
                parts[name].append(values.numpy())
            parts["refusals"].append(np.array(refusals, dtype=np.str_))
        joined = {name: np.concatenate(values) for name, values in parts.items()}
        for name in [name for name, values in joined.items() if values.dtype == object]:
            joined[name] = np.char.decode(joined[name].astype(bytes), "utf-8")
        return joined

    def _refusal(self, encoded: bytes) -> str:
        """Why serving_default refuses an image; '' if it does not."""
        import tensorflow as tf

        try:
            self.signatures["serving_default"](image_bytes=tf.constant([encoded]))
        except tf.errors.InvalidArgumentError as error:
            reason = re.search(r"assertion failed: \[(.*?)\]", str(error))
            return reason[1] if reason else "unreadable"
        return ""

    def _serve_few(self, few: list[bytes], parts: dict[str, list[Any]]) -> None:
        import tensorflow as tf

        explained = self.signatures["serving_explain"](
            image_bytes=tf.constant(few), class_index=tf.fill([len(few)], -1)
        )
        parts["heat_map"].append(explained["heat_map"].numpy())
        squares = explained.get("square")
        if squares is None:
            squares = tf.stack([tf.io.decode_png(png) for png in explained["square_bytes"]])
        served = self.signatures["serving_pixels"](pixels=squares)
        parts["pixel_outputs"].append(served[self.output_name].numpy())
        parts["square_outputs"].append(self.predict(squares))


def open_artefact(path: Path, *, num_threads: int | None = None) -> OpenedSavedModel:
    """Open a SavedModel; `num_threads` applies to the whole process."""
    import tensorflow as tf

    if num_threads is not None:
        tf.config.threading.set_intra_op_parallelism_threads(num_threads)
    # `predict` keeps a reference: a signature alone does not keep its variables alive.
    loaded = tf.saved_model.load(str(path))

    if "serving_resized" not in loaded.signatures:

        def predict_logits(pixels: np.ndarray) -> np.ndarray:
            logits: np.ndarray = loaded.serve(tf.constant(pixels.astype(np.float32))).numpy()
            return logits

        return OpenedSavedModel(predict_logits, loaded.signatures, "")
    resized = loaded.signatures["serving_resized"]
    output_name = next(name for name in _OUTPUT_NAMES if name in resized.structured_outputs)

    def predict(pixels: np.ndarray, loaded: Any = loaded) -> np.ndarray:  # noqa: ARG001
        outputs: np.ndarray = resized(pixels=tf.constant(pixels))[output_name].numpy()
        return outputs

    return OpenedSavedModel(predict, loaded.signatures, output_name)
