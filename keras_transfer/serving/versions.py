"""The versions of one exported model: the newest that loads is served and replaced at run time.

A thread checks the folder every few seconds. A newer version is loaded and warmed up while the
current one serves, and replaces it between two requests. The old version is closed after its last
request. A version that fails to load is reported once, and tried again when its files change.
"""

import contextlib
import functools
import gc
import json
import logging
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any, Final

import numpy as np
import tensorflow as tf
from google.protobuf.json_format import MessageToDict
from tensorflow.core.protobuf import meta_graph_pb2, saved_model_pb2

from keras_transfer.data.images import encode_array
from keras_transfer.devices.processors import num_processors
from keras_transfer.errors import ExportError, KerasTransferError
from keras_transfer.export.contract import CARD_FILE, Contract
from keras_transfer.export.saved_model.signatures import BYTES, EXPLAIN, PIXELS, RESIZED, SQUARE
from keras_transfer.export.saved_model.writer import MODEL_FILE
from keras_transfer.serving.batching import Batcher, batch_sizes
from keras_transfer.serving.images import ImageRows, Input
from keras_transfer.serving.networks import choose_network
from keras_transfer.serving.protocol import (
    PER_OUTPUT,
    RefusedError,
    add_class_names,
    version_status,
)
from keras_transfer.serving.settings import Settings
from keras_transfer.specs import COLOURS
from keras_transfer.storage.checksums import verify_checksums
from keras_transfer.storage.run_folder import version_folders

_log = logging.getLogger(__name__)

Outputs = dict[str, np.ndarray]
"""Outputs of `serving_resized` by name, of one image or of several."""

_EXPLAIN_BATCH: Final = 8
"""Images in one call of `serving_explain`, whose gradients need memory."""
NOT_LOADED: Final = "No version is loaded yet"
RETRY: Final = {"Retry-After": "1"}
"""Of responses with the status 503, in seconds."""

BULK_PIXELS: Final = 4_000_000
"""Requests with more pixels take turns on a part of the processor, so that others do not wait."""
_BATCH_PIXELS: Final = 4 * BULK_PIXELS
_NUM_WORKERS: Final = 2
"""Batches running at once: one is decoded while the network computes the other."""
_NUM_BULK_WORKERS: Final = max(1, num_processors() // 2)
_DRAIN_SECONDS: Final = 60.0
"""How long the requests of a replaced version may take before it is closed."""


class Version:
    """One loaded and warmed-up version; `close` it after the last request.

    Attributes:
        inputs: input names of each supported signature.
        signature_def: signatures as in TensorFlow Serving's metadata.
        card: the content of card.json, or fields of the contract without that file.
        network: what computes the outputs, and why.

    Raises:
        ExportError: the folder is not a complete export, was changed after it was verified, or
            does not match its contract; or the format that `settings.runtime` names cannot serve.
    """

    def __init__(
        self, number: int, folder: Path, settings: Settings, *, on_batch: Callable[[int], None]
    ):
        self.number = number
        self.num_requests = 0
        verify_checksums(folder)
        self.contract = Contract.read(folder)
        limit = settings.max_megapixels or self.contract.max_megapixels
        self.images = ImageRows(self.contract, min(limit, self.contract.max_megapixels))
        self.card = _read_card(folder, number, self.contract)
        # A signature alone does not keep its variables alive.
        graph, self._loaded = _load(folder)
        self.signature_def = {name: _describe(value) for name, value in graph.signature_def.items()}
        # XLA on CPUs can crash if one program starts in two threads at once.
        self._turn: contextlib.AbstractContextManager[Any] = (
            threading.Lock() if _runs_xla(graph) else contextlib.nullcontext()
        )
        self.inputs = {
            name: sorted(content["inputs"])
            for name, content in self.signature_def.items()
            if name in (BYTES, PIXELS, RESIZED, EXPLAIN)
        }
        self._check(folder)
        self.network = choose_network(
            self._classify, settings.runtime, _formats_of(folder), self.contract
        )
        sizes = batch_sizes(settings.max_batch)
        self._warm_up(sizes)
        # One large image, or several small ones, on each bulk worker.
        self.bulk_slots = threading.Semaphore(_NUM_BULK_WORKERS)
        batcher = functools.partial(
            Batcher, sizes=sizes, max_wait=settings.max_wait_ms / 1e3, on_batch=on_batch
        )
        self._batcher = batcher(self._run, max_pixels=_BATCH_PIXELS, num_workers=_NUM_WORKERS)
        self._bulk_batcher = batcher(
            self._run_bulk, max_pixels=BULK_PIXELS, num_workers=_NUM_BULK_WORKERS
        )

    def submit(
        self, read: Sequence[Callable[[], Input]], *, num_pixels: Sequence[int]
    ) -> list[Future[Outputs]]:
        """Queue the images of a request, with the pixels of each: the outputs of each image."""
        is_bulk = sum(num_pixels) > BULK_PIXELS
        batcher = self._bulk_batcher if is_bulk else self._batcher
        return batcher.submit(read, num_pixels=num_pixels)

    def explain(self, encoded: Sequence[bytes], class_index: Sequence[int]) -> dict[str, list[Any]]:
        """Outputs of `serving_explain` for checked images, one column per output."""
        columns: dict[str, list[Any]] = {}
        for start in range(0, len(encoded), _EXPLAIN_BATCH):
            rows = slice(start, start + _EXPLAIN_BATCH)
            with self._turn:
                served = self._loaded.signatures[EXPLAIN](
                    image_bytes=tf.constant(encoded[rows]),
                    class_index=tf.constant(class_index[rows], tf.int32),
                )
            for name, tensor in served.items():
                if name != SQUARE:  # `square_bytes` shows it, in a fraction of the bytes.
                    columns.setdefault(name, []).extend(_as_lists(name, tensor))
        return columns

    def named(self, columns: dict[str, list[Any]]) -> dict[str, list[Any]]:
        """Outputs of `serving_default` and `serving_pixels` from those of `serving_resized`."""
        task = self.contract.restored_task
        if task.name == "single_label":
            # The usual case; faster than with tensors.
            return add_class_names(columns, task.names)
        served = {name: tf.constant(values) for name, values in columns.items()}
        named = task.served_names(served)
        return {name: _as_lists(name, tensor) for name, tensor in named.items()}

    def close(self) -> None:
        """Finish the running batches and release the network."""
        self._batcher.close()
        self._bulk_batcher.close()
        del self._loaded, self.network

    def _run(self, read: list[Callable[[], Input]]) -> list[Outputs | Exception]:
        """Outputs of `serving_resized` for each image, or its error."""
        images = self.images.decode_all(read)
        valid = [pixels for pixels in images if not isinstance(pixels, Exception)]
        outputs = iter(_rows(self.network.classify(np.stack(valid))) if valid else ())
        return [pixels if isinstance(pixels, Exception) else next(outputs) for pixels in images]

    def _run_bulk(self, read: list[Callable[[], Input]]) -> list[Outputs | Exception]:
        with self.bulk_slots:
            return self._run(read)

    def _classify(self, pixels: np.ndarray) -> Outputs:
        with self._turn:
            served = self._loaded.signatures[RESIZED](pixels=tf.constant(pixels))
        return {name: tensor.numpy() for name, tensor in served.items()}

    def _check(self, folder: Path) -> None:
        num_classes = len(self.contract.class_names)
        expected: dict[str, tuple[int | None, ...]] = {"pixels": (None, *self.contract.input_shape)}
        found = {}
        if RESIZED in self._loaded.signatures:
            signature = self._loaded.signatures[RESIZED]
            outputs = signature.structured_outputs
            expected |= {name: (None, num_classes) for name in PER_OUTPUT if name in outputs}
            tensors = signature.structured_input_signature[1] | outputs
            found = {name: tuple(tensors[name].shape) for name in expected if name in tensors}
        if found != expected:
            raise ExportError(
                f"{folder} does not match its contract",
                expected=f"the signature {RESIZED} with {expected}",
                received=str(found or "no such signature"),
                fix="export again",
            )

    def _warm_up(self, sizes: Sequence[int]) -> None:
        """Make TensorFlow build its kernels, so that no request waits for them."""
        shape = self.contract.input_shape
        is_rgb = shape[-1] == COLOURS
        blank = np.zeros(shape, np.uint8)
        image = tf.io.encode_png(blank).numpy() if is_rgb else encode_array(blank)
        for batch_size in sizes:
            self._run([lambda: image] * batch_size)
        if EXPLAIN in self.inputs:
            self.explain([image], [-1])


def _rows(columns: Mapping[str, np.ndarray]) -> list[Outputs]:
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def _formats_of(folder: Path) -> Path:
    """Where the other formats of a version are: formats/<version> beside export/<version>."""
    return folder.parent.parent / "formats" / folder.name


def _load(folder: Path) -> tuple[meta_graph_pb2.MetaGraphDef, Any]:
    """The graph in the file, and the loaded SavedModel."""
    try:
        content = saved_model_pb2.SavedModel()
        content.ParseFromString((folder / MODEL_FILE).read_bytes())
        (graph,) = content.meta_graphs
        return graph, tf.saved_model.load(str(folder))
    except Exception as error:  # Damaged exports raise many types of errors.
        raise _damaged(folder, error) from error


def _damaged(folder: Path, error: Exception) -> ExportError:
    return ExportError(
        f"{folder} cannot be loaded",
        expected="a complete SavedModel",
        received=(str(error) or type(error).__name__)[:500],
        fix="export again, or wait until it is copied",
    )


def _runs_xla(graph: meta_graph_pb2.MetaGraphDef) -> bool:
    """Whether the network is an XLA program, as exports of Keras's JAX backend are."""
    functions = graph.graph_def.library.function
    return any(node.op == "XlaCallModule" for function in functions for node in function.node_def)


def _describe(signature: meta_graph_pb2.SignatureDef) -> dict[str, Any]:
    content = MessageToDict(
        signature, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
    )
    for side in ("inputs", "outputs"):
        for name, info in content[side].items():
            info["tensor_shape"] = dict(sorted(info["tensor_shape"].items()))
            content[side][name] = {key: info[key] for key in ("dtype", "tensor_shape", "name")}
    return {key: content[key] for key in ("inputs", "outputs", "method_name")}


def _as_lists(name: str, tensor: tf.Tensor) -> list[Any]:
    """Plain values; text outputs are decoded, outputs of bytes are not."""
    values = tensor.numpy()
    if tensor.dtype == tf.string and not name.endswith("_bytes"):
        values = np.char.decode(values.astype(bytes), "utf-8")
    return values.tolist()


def _read_card(folder: Path, number: int, contract: Contract) -> dict[str, Any]:
    """The content of card.json; without that file, fields of the contract."""
    try:
        card = json.loads((folder / CARD_FILE).read_text(encoding="utf-8"))
    except FileNotFoundError:
        keys = ("class_names", "class_hash", "image_size", "resize", "precision")
        about = {key: getattr(contract, key) for key in keys}
        return {"name": contract.name, "version": number, **about}
    except (OSError, ValueError) as error:
        raise _damaged(folder, error) from error
    if not isinstance(card, dict):
        raise _damaged(folder, ValueError(f"{CARD_FILE} is not a JSON object"))
    return card


class Versions:
    """The versions in `settings.folder`; `start` begins to watch the folder.

    Args:
        report: called with a sentence for each change.
        on_batch: called with the number of images of each batch.
    """

    def __init__(
        self, settings: Settings, *, report: Callable[[str], None], on_batch: Callable[[int], None]
    ):
        self.name = settings.name
        self._settings, self._report, self._on_batch = settings, report, on_batch
        self._current: Version | None = None
        self._states: dict[int, dict[str, Any]] = {}
        self._failed: dict[int, list[tuple[str, int, int]]] = {}
        self._changed = threading.Condition()
        self._stop = threading.Event()
        self._watcher = threading.Thread(target=self._watch, name="versions", daemon=True)

    def start(self) -> None:
        """Load the newest version and watch the folder, in a thread."""
        self._watcher.start()

    def stop(self) -> None:
        """Stop watching and close the current version."""
        self._stop.set()
        if self._watcher.is_alive():
            self._watcher.join()
        if self._current is not None:
            self._current.close()

    @property
    def number(self) -> int | None:
        """Number of the served version; None if no version is loaded."""
        current = self._current
        return None if current is None else current.number

    def states(self) -> dict[int, dict[str, Any]]:
        """The status of each version as in TensorFlow Serving's protocol, the newest first."""
        return dict(sorted(self._states.items(), reverse=True))

    @contextlib.contextmanager
    def use(self, name: str, number: int | None = None) -> Iterator[Version]:
        """The served version, kept loaded while the block runs.

        Raises:
            RefusedError: 404 for another name or number, 503 if no version is loaded.
        """
        with self._changed:
            current = self._current
            if current is None:
                found = [f"version {key}: {state['state']}" for key, state in self.states().items()]
                raise RefusedError(503, "; ".join([NOT_LOADED, *found]), headers=RETRY)
            if name != self.name or number not in (None, current.number):
                wanted = f"Latest({name})" if number is None else f"Specific({name}, {number})"
                raise RefusedError(
                    404,
                    f"Servable not found for request: {wanted}; this server has version "
                    f"{current.number} of the model {self.name}",
                )
            current.num_requests += 1
        try:
            yield current
        finally:
            with self._changed:
                current.num_requests -= 1
                self._changed.notify_all()

    def refresh(self) -> None:
        """Load the newest version that has not failed, unless it is loaded already."""
        folders = version_folders(self._settings.folder)
        for number in [number for number in self._states if number not in folders]:
            if number != self.number:
                del self._states[number]
                self._failed.pop(number, None)
        for number in sorted(folders, reverse=True):
            if number == self.number or self._stop.is_set():
                return
            stamp = [*_stamp(folders[number]), *_stamp(_formats_of(folders[number]))]
            if self._failed.get(number) == stamp:
                continue
            if self._load(number, folders[number]):
                return
            self._failed[number] = stamp

    def _watch(self) -> None:
        while True:
            try:
                self.refresh()
            except Exception:  # The thread must continue: the next check may succeed.
                _log.exception("%s cannot be watched", self._settings.folder)
            if self._stop.wait(self._settings.poll_seconds):
                return

    def _load(self, number: int, folder: Path) -> bool:
        self._set_state(number, "LOADING")
        try:
            version = Version(number, folder, self._settings, on_batch=self._on_batch)
        except Exception as error:  # After any error the current version keeps serving.
            # The state is public: paths and contents of files are only written to the log.
            kind = type(error).__name__
            self._set_state(number, "END", f"{kind}: cannot be loaded; see the server's log")
            if not isinstance(error, KerasTransferError):
                _log.error("version %d does not load", number, exc_info=error)
            self._report(f"Version {number} is not served: {error}")
            return False
        with self._changed:
            old, self._current = self._current, version
            self.name = self.name or version.contract.name
        self._set_state(number, "AVAILABLE")
        self._failed.pop(number, None)
        self._report(f"Serving version {number} of {self.name}{_describe_network(version)}")
        if old is not None:
            self._release(old)
            gc.unfreeze()
            gc.collect()
        # A full collection visits all of TensorFlow's objects, which takes longer than a request
        # may: what is loaded now is exempt from later ones.
        gc.freeze()
        return True

    def _release(self, old: Version) -> None:
        self._set_state(old.number, "UNLOADING")
        with self._changed:
            self._changed.wait_for(lambda: old.num_requests == 0, timeout=_DRAIN_SECONDS)
        old.close()
        self._set_state(old.number, "END")

    def _set_state(self, number: int, state: str, error: str = "") -> None:
        self._states[number] = version_status(number, state, error)


def _describe_network(version: Version) -> str:
    network = version.network
    return f", with {network.name}: {network.reason}" if network.reason else ""


def _stamp(folder: Path) -> list[tuple[str, int, int]]:
    """Names, sizes and times of all files, which change while a version is still being copied."""
    found = []
    for path in sorted(folder.rglob("*")):
        with contextlib.suppress(OSError):
            status = path.stat()
            found.append((str(path.relative_to(folder)), status.st_size, status.st_mtime_ns))
    return found
