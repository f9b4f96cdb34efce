"""Strategy: the devices of a run, their parts of a batch, and the precision.

TensorFlow uses the CPU or the GPUs of one machine; JAX also TPUs and several hosts. Keras's backend
decides between the two. Like Keras's dtype policy and its distribution, the choice applies to the
whole process until `set_up` is called again.
"""

import contextlib
import functools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

from keras_transfer.devices.hosts import given_host, meet
from keras_transfer.devices.processors import num_processors
from keras_transfer.errors import SpecError
from keras_transfer.specs import DeviceSpec

SINGLE: Final = "single"
"""`Devices.strategy` if one device computes whole batches."""

_TENSOR_CORES: Final = {"mixed_bfloat16": 8, "mixed_float16": 7}
"""Lowest compute capability of NVIDIA GPUs whose tensor cores support a precision."""


@dataclass(frozen=True)
class Devices:
    """The devices found, and their use.

    `kind` is 'cpu', 'gpu' or 'tpu'; `num_devices` counts the devices of all hosts;
    `strategy` is 'single', 'mirrored' or 'data_parallel'; `precision` is Keras's dtype policy.
    """

    backend: str
    kind: str
    num_devices: int
    strategy: str
    precision: str
    host: int = 0
    num_hosts: int = 1

    @property
    def num_replicas(self) -> int:
        """How many losses a step has, one of each replica, whose gradients Keras adds up."""
        return self.num_devices if self.strategy == "mirrored" else 1

    def describe(self, batch_size: int) -> str:
        """One sentence for the terminal."""
        engine = {"tensorflow": "TensorFlow", "jax": "JAX"}.get(self.backend, self.backend)
        what = self.kind.upper() + ("s" if self.num_devices > 1 else "")
        text = f"{engine} computes on {self.num_devices} {what}"
        if self.kind == "cpu" and self.num_devices == 1:
            text += f" ({num_processors()} core{'s' if num_processors() > 1 else ''})"
        text += f" in {self.precision}"
        if self.num_hosts > 1:
            text += f", {self.num_hosts} hosts together"
        if self.num_devices > 1:
            share = batch_size // self.num_devices
            text += f"; of every batch of {batch_size} each has {share} ({self.strategy})"
        return text + "."

    def check_batch_size(self, batch_size: int, at_once: int | None = None) -> None:
        """Raise SpecError if the devices cannot share a batch equally, or not compute it in parts.

        `at_once` is `devices.batch_size`, the number of images of a batch computed at a time.
        """
        if batch_size % self.num_devices:
            fitting = batch_size - batch_size % self.num_devices or self.num_devices
            raise SpecError(
                f"a batch cannot be shared equally by {self.num_devices} devices",
                expected=f"training.batch_size as a multiple of {self.num_devices}",
                received=f"{batch_size}",
                fix=f"set training.batch_size={fitting} or "
                f"{fitting + self.num_devices}, or devices.strategy=cpu",
            )
        if at_once and (batch_size % at_once or at_once % self.num_devices):
            raise SpecError(
                "devices.batch_size does not divide a batch into equal parts",
                expected=f"a divisor of training.batch_size={batch_size}"
                + (f" that {self.num_devices} devices can share" if self.num_devices > 1 else ""),
                received=f"{at_once}",
                fix=f"set devices.batch_size={largest_part(batch_size, self.num_devices, at_once)}",
            )
        if at_once and at_once < batch_size and self.strategy == "mirrored":
            raise SpecError(
                "mirrored devices cannot compute a batch in parts",
                expected="a training.batch_size that fits into memory as a whole",
                received="too little memory, or devices.batch_size below training.batch_size",
                fix="lower training.batch_size, or start with KERAS_BACKEND=jax",
            )


def largest_part(batch_size: int, num_devices: int, limit: int) -> int:
    """The largest divisor of `batch_size` up to `limit` that devices can share equally, or 0."""
    return max(
        (part for part in range(num_devices, limit + 1, num_devices) if batch_size % part == 0),
        default=0,
    )


_current = Devices("tensorflow", "cpu", 1, SINGLE, "float32")
_mirrors: Any = None
"""TensorFlow's MirroredStrategy, if there is one: its scope puts variables on all devices."""


def current() -> Devices:
    """The result of the last `set_up`."""
    return _current


def set_up(spec: DeviceSpec, *, seed: int) -> Devices:
    """Choose devices, strategy and precision, and set Keras's seed; call it before building models.

    `keras.utils.clear_session()` would undo the precision. TensorFlow's setting for determinism
    stays off: on a CPU, runs are bit-reproducible without it, and with it `tf.data` does not map in
    parallel.

    Raises:
        SpecError: the backend does not support the strategy.
    """
    global _current
    import keras

    backend = keras.backend.backend()
    host, num_hosts = _meet(backend)
    kind, devices = (_find_for_jax if backend == "jax" else _find_for_tensorflow)(spec.strategy)
    strategy = _choose_strategy(spec.strategy, backend, kind, len(devices))
    if num_hosts > 1 and strategy == SINGLE:
        raise SpecError(
            f"{num_hosts} hosts train together, and devices.strategy selects a single device",
            expected="devices.strategy=auto or data_parallel",
            received=spec.strategy,
            fix="leave devices.strategy at auto",
        )
    if strategy == SINGLE:
        devices = devices[:1]
    _distribute(strategy, tuple(devices))
    precision = _choose_precision(kind, devices) if spec.precision == "auto" else spec.precision
    keras.config.set_dtype_policy(precision)
    keras.utils.set_random_seed(seed)
    _current = Devices(backend, kind, len(devices), strategy, precision, host, num_hosts)
    return _current


def _meet(backend: str) -> tuple[int, int]:
    if backend != "jax" and given_host()[1] > 1:
        raise SpecError(
            f"the backend {backend} trains on one host only",
            expected="KERAS_BACKEND=jax, which supports several",
            received=f"KERAS_BACKEND={backend}, {given_host()[1]} hosts",
            fix="start every host with KERAS_BACKEND=jax",
        )
    return meet() if backend == "jax" else (0, 1)


def _find_for_tensorflow(strategy: str) -> tuple[str, list[Any]]:
    """Kind and devices: the GPUs, or the processor where there are none or strategy is 'cpu'."""
    import tensorflow as tf

    if strategy == "cpu":
        # TensorFlow raises an error here once GPUs are in use.
        tf.config.set_visible_devices([], "GPU")
    for gpu in tf.config.get_visible_devices("GPU"):
        # By default TensorFlow takes all memory of a GPU at once, and leaves none to the process
        # that checks an export and to a search's other workers.
        with contextlib.suppress(RuntimeError):  # The GPU is in use, so it is set already.
            tf.config.experimental.set_memory_growth(gpu, True)
    if gpus := tf.config.list_logical_devices("GPU"):
        return "gpu", gpus
    return "cpu", tf.config.list_logical_devices("CPU")


def _find_for_jax(strategy: str) -> tuple[str, list[Any]]:
    """Kind and devices; TensorFlow, which reads the images, gets only the CPU."""
    import jax
    import tensorflow as tf

    for kind in ("GPU", "TPU"):
        tf.config.set_visible_devices([], kind)
    if strategy == "cpu":
        processor = jax.local_devices(backend="cpu")[0]
        jax.config.update("jax_default_device", processor)
        return "cpu", [processor]
    jax.config.update("jax_default_device", None)
    devices = jax.devices()
    return devices[0].platform, devices


def _choose_strategy(wanted: str, backend: str, kind: str, num_devices: int) -> str:
    supported = "data_parallel" if backend == "jax" else "mirrored"
    if wanted in ("mirrored", "data_parallel") and wanted != supported:
        other = "tensorflow" if backend == "jax" else "jax"
        raise SpecError(
            f"devices.strategy={wanted} is not supported by the backend {backend}",
            expected=f"auto, cpu or {supported}",
            received=wanted,
            fix=f"set devices.strategy={supported}, or start with KERAS_BACKEND={other}",
        )
    if wanted == "cpu":
        return SINGLE
    if wanted == "auto":
        # Logical CPUs of TensorFlow are one processor; JAX has several only if configured.
        shared = num_devices > 1 and (kind != "cpu" or backend == "jax")
        return supported if shared else SINGLE
    return supported


def _choose_precision(kind: str, devices: list[Any]) -> str:
    """Half precision where the hardware supports it: faster, with nearly equal results."""
    if kind == "tpu":
        return "mixed_bfloat16"
    if kind == "gpu":
        capability = _compute_capability(devices[0])
        for precision, least in _TENSOR_CORES.items():
            if capability >= least:
                return precision
    return "float32"


def _compute_capability(device: Any) -> float:
    if hasattr(device, "compute_capability"):  # JAX
        return float(device.compute_capability)
    import tensorflow as tf

    for gpu in tf.config.get_visible_devices("GPU"):
        details = tf.config.experimental.get_device_details(gpu)
        major, minor = details.get("compute_capability", (0, 0))
        return float(f"{major}.{minor}")
    return 0.0


def _distribute(strategy: str, devices: tuple[Any, ...]) -> None:
    import keras

    if keras.backend.backend() == "jax":
        chosen = _data_parallel(devices) if strategy == "data_parallel" else None
        keras.distribution.set_distribution(chosen)
    global _mirrors
    _mirrors = _mirrored(devices) if strategy == "mirrored" else None


@functools.cache
def _data_parallel(devices: tuple[Any, ...]) -> Any:
    """Cached by devices: all models of one process must use the same object."""
    import keras

    # Each host reads only its part of a batch, so Keras must not divide it again.
    names = [f"{device.platform}:{device.id}" for device in devices]
    return keras.distribution.DataParallel(devices=names, auto_shard_dataset=False)


@functools.cache
def _mirrored(devices: tuple[Any, ...]) -> Any:
    import tensorflow as tf

    return tf.distribute.MirroredStrategy([device.name for device in devices])


def scope() -> contextlib.AbstractContextManager[Any]:
    """The scope to build, compile and change models in: all devices get their variables."""
    return _mirrors.scope() if _mirrors else contextlib.nullcontext()


@contextlib.contextmanager
def on_one_device() -> Iterator[None]:
    """Models built inside have their variables on one device of this host, and run there."""
    import keras

    if keras.backend.backend() != "jax":
        yield  # TensorFlow distributes only what is built inside `scope`.
        return
    before = keras.distribution.distribution()
    keras.distribution.set_distribution(None)
    try:
        yield
    finally:
        keras.distribution.set_distribution(before)


@contextlib.contextmanager
def on_processor() -> Iterator[None]:
    """As `on_one_device`, on a processor of this host: an accelerator's memory is for training."""
    import keras

    with on_one_device():
        if keras.backend.backend() != "jax":
            with keras.device("cpu:0"):
                yield
            return
        import jax

        # The first processor that Keras finds may be that of another host.
        with jax.default_device(jax.local_devices(backend="cpu")[0]):
            yield


def undistributed(model: Any) -> Any:
    """The same network for predictions on one device; the model itself if it is already on one.

    On several devices a prediction would need batches that divide equally; several hosts would all
    have to call it at the same time.
    """
    import keras

    if _current.num_devices == 1:
        return model
    with on_one_device():
        if _current.strategy == "mirrored":
            return keras.Model(model.input, model.output, name=model.name)
        copy = keras.models.clone_model(model)
        copy.set_weights(model.get_weights())
        return copy
