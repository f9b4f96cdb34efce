"""A network of Keras's JAX backend as graph functions that XLA runs, without JAX."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final

import jax
import keras
import tensorflow as tf
from jax.experimental import jax2tf

PLATFORMS: Final = ("cpu", "cuda", "tpu")
"""Target platforms of the compiled programs: the server is often another machine."""

_Function = Callable[..., tf.Tensor]
_Infer = Callable[[Sequence[Any], Any], Any]


def compiled(
    trunk: keras.Model, head: keras.Model
) -> tuple[_Function, _Function, _Function, list[tf.Variable]]:
    """The fields of `network.Network`: trunk, head, gradient and variables.

    Each function is one TensorFlow operation that contains a program for any batch size. XLA
    compiles it at the first batch of each size.
    """
    infer_trunk, infer_head = _inference(trunk), _inference(head)
    in_trunk, in_head = (
        [tf.Variable(keras.ops.convert_to_numpy(weight)) for weight in half.weights]
        for half in (trunk, head)
    )

    def gradient(values: Sequence[Any], features: Any, weights: Any) -> Any:
        _, pull_back = jax.vjp(lambda x: infer_head(values, x), features)
        return pull_back(weights)[0]

    pixels, features = _spec(trunk.input), _spec(head.input)
    run_head = _graph(infer_head, in_head, features)
    run_gradient = _graph(gradient, in_head, features, _spec(head.output))
    return (
        _graph(infer_trunk, in_trunk, pixels),
        lambda values: run_head(tf.cast(values, tf.float32)),
        run_gradient,
        in_trunk + in_head,
    )


def _inference(model: keras.Model) -> _Infer:
    """The model as a pure function of the values of its weights and of its input."""

    def infer(values: Sequence[Any], inputs: Any) -> Any:
        # Part of the program: accelerators would round the factors of float32 products.
        with (
            keras.StatelessScope(zip(model.weights, values, strict=True)),
            jax.default_matmul_precision("float32"),
        ):
            return keras.ops.cast(model(inputs, training=False), "float32")

    return infer


def _graph(
    function: Callable[..., Any], variables: list[tf.Variable], *specs: tf.TensorSpec
) -> Any:
    """A JAX function of variables and tensors as a TensorFlow function of the tensors."""
    converted = jax2tf.convert(
        function,
        polymorphic_shapes=[None, *("batch, ..." for _ in specs)],
        with_gradient=False,
        native_serialization_platforms=PLATFORMS,
    )

    def run(*tensors: tf.Tensor) -> tf.Tensor:
        return converted(list(variables), *tensors)

    # Traced once: otherwise every signature that calls it would contain a copy of the program.
    with _without_source_files():
        return tf.function(run, autograph=False).get_concrete_function(*specs)


@contextlib.contextmanager
def _without_source_files() -> Iterator[None]:
    """Leave source file names out of programs."""
    before = jax.config.values["jax_traceback_in_locations_limit"]
    jax.config.update("jax_traceback_in_locations_limit", 0)
    try:
        yield
    finally:
        jax.config.update("jax_traceback_in_locations_limit", before)


def _spec(tensor: keras.KerasTensor) -> tf.TensorSpec:
    return tf.TensorSpec(tensor.shape, tf.float32)
