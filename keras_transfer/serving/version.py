"""One exported version, loaded and warm: its signatures, its contract and its queue."""

import contextlib
import json
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import tensorflow as tf
from tensorflow.core.framework import types_pb2
from tensorflow.core.protobuf import meta_graph_pb2, saved_model_pb2

from keras_transfer.errors import ExportError
from keras_transfer.export.contract import CARD_FILE, Contract
from keras_transfer.export.saved_model.signatures import BYTES, EXPLAIN, PIXELS, RESIZED
from keras_transfer.export.saved_model.writer import MODEL_FILE
from keras_transfer.serving.batching import Batcher, batch_sizes
from keras_transfer.serving.image_rows import ImageRows, Ready
from keras_transfer.serving.settings import Settings

Rows = dict[str, np.ndarray]
"""One image's outputs of `serving_resized` by name."""

_EXPLAINED_AT_ONCE: Final = 8
"""Images in one call of `serving_explain`, whose gradients take memory."""


class Version:
    """A version that answers; `close` it when nobody asks any more.

    Attributes:
        inputs: names of the inputs of each signature it answers to.
        signature_def: its signatures as TensorFlow Serving's metadata lists them.
        card: the content of card.json, or what the contract tells.

    Raises:
        ExportError: the folder holds no complete export, or one of another kind.
    """

    def __init__(
        self, number: int, folder: Path, settings: Settings, *, on_batch: Callable[[int], None]
    ):
        self.number = number
        self.contract = Contract.read(folder)
        limit = settings.max_megapixels or self.contract.max_megapixels
        self.images = ImageRows(self.contract, min(limit, self.contract.max_megapixels))
        graph = _read_graph(folder)
        self.signature_def = {name: _describe(value) for name, value in graph.signature_def.items()}
        # XLA on processors crashed now and then where one program began in two threads at once.
        self._turn: contextlib.AbstractContextManager[Any] = (
            threading.Lock() if _holds_programs(graph) else contextlib.nullcontext()
        )
        self.card = _read_card(folder, number, self.contract)
        # A signature alone does not keep the variables alive that it reads.
        self._loaded = _load(folder)
        known = (BYTES, PIXELS, RESIZED, EXPLAIN)
        self.inputs = {
            name: sorted(content["inputs"])
            for name, content in self.signature_def.items()
            if name in known
        }
        self._check(folder)
        sizes = batch_sizes(settings.max_batch)
        self._warm_up(sizes)
        self.batcher = Batcher(
            self._answer,
            sizes=sizes,
            max_wait=settings.max_wait_ms / 1e3,
            on_batch=on_batch,
        )

    def named(self, rows: Sequence[Rows]) -> dict[str, list[Any]]:
        """What `serving_default` and `serving_pixels` answer, column by column."""
        names = self.contract.class_names
        top = [row["top_class_indices"].tolist() for row in rows]
        return {
            "label": [names[indices[0]] for indices in top],
            "class_names": [names] * len(rows),
            "probabilities": [row["probabilities"].tolist() for row in rows],
            "top_class_names": [[names[index] for index in indices] for indices in top],
            "top_probabilities": [row["top_probabilities"].tolist() for row in rows],
        }

    def explain(self, encoded: Sequence[bytes], class_index: Sequence[int]) -> dict[str, list[Any]]:
        """What `serving_explain` answers about checked images, column by column."""
        columns: dict[str, list[Any]] = {}
        for start in range(0, len(encoded), _EXPLAINED_AT_ONCE):
            rows = slice(start, start + _EXPLAINED_AT_ONCE)
            with self._turn:
                served = self._loaded.signatures[EXPLAIN](
                    image_bytes=tf.constant(encoded[rows]),
                    class_index=tf.constant(class_index[rows], tf.int32),
                )
            for name, values in served.items():
                columns.setdefault(name, []).extend(values.numpy().tolist())
        columns["label"] = [label.decode() for label in columns["label"]]
        return columns

    def close(self) -> None:
        """Let go of the network, once the batches under way are done."""
        self.batcher.close()
        del self._loaded

    def _answer(self, read: list[Callable[[], Ready]]) -> list[Rows | Exception]:
        """Outputs of `serving_resized` for each image, or what became of it instead."""
        squares = self.images.squares(read)
        good = [square for square in squares if not isinstance(square, Exception)]
        answers = iter(self._classify(np.stack(good)) if good else ())
        return [square if isinstance(square, Exception) else next(answers) for square in squares]

    def _classify(self, squares: np.ndarray) -> list[Rows]:
        with self._turn:
            served = self._loaded.signatures[RESIZED](pixels=tf.constant(squares))
        columns = [rows.numpy() for rows in served.values()]
        return [dict(zip(served, row, strict=True)) for row in zip(*columns, strict=True)]

    def _check(self, folder: Path) -> None:
        size, num_classes = self.contract.image_size, len(self.contract.class_names)
        expected = {"pixels": (None, size, size, 3), "probabilities": (None, num_classes)}
        found = {}
        if RESIZED in self._loaded.signatures:
            signature = self._loaded.signatures[RESIZED]
            tensors = signature.structured_input_signature[1] | signature.structured_outputs
            found = {name: tuple(tensors[name].shape) for name in expected if name in tensors}
        if found != expected:
            raise ExportError(
                f"{folder} does not answer as its contract says",
                expected=f"the signature {RESIZED} with {expected}",
                received=str(found or "no such signature"),
                fix="export again",
            )

    def _warm_up(self, sizes: Sequence[int]) -> None:
        """Let TensorFlow build its kernels, so that no request has to wait for them."""
        size = self.contract.image_size
        png = tf.io.encode_png(np.zeros((size, size, 3), np.uint8)).numpy()
        for batch_size in sizes:
            self._answer([lambda: png] * batch_size)
        if EXPLAIN in self.inputs:
            self.explain([png], [-1])


def _load(folder: Path) -> Any:
    try:
        return tf.saved_model.load(str(folder))
    except Exception as error:  # TensorFlow raises many kinds for a damaged export.
        raise _damaged(folder, error) from error


def _read_graph(folder: Path) -> meta_graph_pb2.MetaGraphDef:
    try:
        content = saved_model_pb2.SavedModel()
        content.ParseFromString((folder / MODEL_FILE).read_bytes())
        (graph,) = content.meta_graphs
        return graph
    except Exception as error:  # Protobuf raises kinds of its own.
        raise _damaged(folder, error) from error


def _damaged(folder: Path, error: Exception) -> ExportError:
    return ExportError(
        f"{folder} cannot be loaded",
        expected="a complete SavedModel",
        received=(str(error) or type(error).__name__)[:500],
        fix="export again, or wait until it is copied",
    )


def _holds_programs(graph: meta_graph_pb2.MetaGraphDef) -> bool:
    """Whether it was written by Keras's JAX backend, and XLA runs its network."""
    functions = graph.graph_def.library.function
    return any(node.op == "XlaCallModule" for function in functions for node in function.node_def)


def _describe(signature: meta_graph_pb2.SignatureDef) -> dict[str, Any]:
    return {
        "inputs": {name: _describe_tensor(info) for name, info in signature.inputs.items()},
        "outputs": {name: _describe_tensor(info) for name, info in signature.outputs.items()},
        "method_name": signature.method_name,
    }


def _describe_tensor(info: meta_graph_pb2.TensorInfo) -> dict[str, Any]:
    shape = info.tensor_shape
    # Protobuf's JSON writes 64-bit numbers as strings.
    return {
        "dtype": types_pb2.DataType.Name(info.dtype),
        "tensor_shape": {
            "dim": [{"size": str(dim.size), "name": dim.name} for dim in shape.dim],
            "unknown_rank": shape.unknown_rank,
        },
        "name": info.name,
    }


def _read_card(folder: Path, number: int, contract: Contract) -> dict[str, Any]:
    """card.json, or of an export that has none what its contract tells."""
    try:
        card = json.loads((folder / CARD_FILE).read_text(encoding="utf-8"))
    except FileNotFoundError:
        card = {
            "name": contract.name,
            "version": number,
            "class_names": list(contract.class_names),
            "class_hash": contract.class_hash,
            "image_size": contract.image_size,
            "resize": contract.resize,
            "precision": contract.precision,
        }
    except (OSError, ValueError) as error:
        raise _damaged(folder, error) from error
    if not isinstance(card, dict):
        raise _damaged(folder, ValueError(f"{CARD_FILE} is no JSON object"))
    return card
