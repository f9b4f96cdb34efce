"""The exported model: pictures in, class names and probabilities out, with TensorFlow alone.

    serving_default   image_bytes: string [B]         encoded pictures, any mix of JPEG, PNG …
    serving_pixels    pixels:      uint8 [B, H, W, 3] RGB 0-255 of any size, one size a batch

Both return, row by row, as TensorFlow Serving's row format wants it:

    label             string [B]       name of the most probable class
    class_names       string [B, C]    all names, in the order of the probabilities
    probabilities     float32 [B, C]

Pixels are uint8 because only integers say by themselves that they run to 255: floats of 0-1, the
commonest mistake of a client, are refused instead of being answered with nonsense. One picture that
cannot be decoded fails its whole batch.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import keras
import tensorflow as tf

from keras_transfer.data.images import decode_and_resize, resize_pixels
from keras_transfer.delivery.atomic import replacing
from keras_transfer.delivery.class_list import write_label_files
from keras_transfer.errors import ExportError
from keras_transfer.labels import check_class_order

Served = dict[str, tf.Tensor]


def export_saved_model(
    model: keras.Model, folder: Path, *, class_names: Sequence[str], image_size: int, resize: str
) -> None:
    """Write a SavedModel, with labels.txt and class_names.json beside it.

    The folder appears complete or not at all. To let it appear only once it is proven, export into
    `with replacing(folder) as path` and call `parity.check_parity(path, …)` inside the block.

    Args:
        model: float32 [B, S, S, 3] in 0-255 to logits [B, C].
        folder: an earlier export there is replaced.
        class_names: in the order of the logits.
        image_size: S, px.
        resize: 'crop', 'pad' or 'squash', as in training.

    Raises:
        DataError: the model was trained on other classes or in another order.
        ExportError: Keras runs on another backend, the folder holds other things, or a class name
            does not fit into labels.txt.
        RunError: the disk is full, or the folder cannot be written.
    """
    check_class_order(model.name, class_names, "the export")
    _check_backend()
    _check_replaceable(folder)
    # A plain module over the weights: `Model.export` and tracked archives write each weight twice.
    module = tf.Module()
    module.weights = [weight.value for weight in model.weights]
    classify = _classifier(model, class_names)
    with replacing(folder) as path:
        tf.saved_model.save(module, str(path), signatures=_signatures(classify, image_size, resize))
        write_label_files(path, class_names)


def _classifier(model: keras.Model, class_names: Sequence[str]) -> Callable[[tf.Tensor], Served]:
    @tf.function(autograph=False)
    def classify(pixels: tf.Tensor) -> Served:
        logits = model(tf.cast(pixels, tf.float32), training=False)
        probabilities = tf.nn.softmax(tf.cast(logits, tf.float32))
        names = tf.constant(list(class_names))
        return {
            "label": tf.gather(names, tf.argmax(probabilities, axis=-1)),
            "class_names": tf.tile(names[tf.newaxis], [tf.shape(probabilities)[0], 1]),
            "probabilities": probabilities,
        }

    return classify


def _signatures(
    classify: Callable[[tf.Tensor], Served], image_size: int, resize: str
) -> dict[str, tf.types.experimental.ConcreteFunction]:
    square = tf.TensorSpec([image_size, image_size, 3], tf.uint8)

    @tf.function(autograph=False)
    def serve_bytes(image_bytes: tf.Tensor) -> Served:
        def decode(encoded: tf.Tensor) -> tf.Tensor:
            return decode_and_resize(encoded, image_size=image_size, resize=resize)

        return classify(tf.map_fn(decode, image_bytes, fn_output_signature=square))

    @tf.function(autograph=False)
    def serve_pixels(pixels: tf.Tensor) -> Served:
        return classify(resize_pixels(pixels, image_size=image_size, resize=resize))

    return {
        "serving_default": serve_bytes.get_concrete_function(
            tf.TensorSpec([None], tf.string, name="image_bytes")
        ),
        "serving_pixels": serve_pixels.get_concrete_function(
            tf.TensorSpec([None, None, None, 3], tf.uint8, name="pixels")
        ),
    }


def _check_backend() -> None:
    if keras.backend.backend() != "tensorflow":
        raise ExportError(
            "a SavedModel can be written by Keras's TensorFlow backend only",
            expected="KERAS_BACKEND=tensorflow",
            received=keras.backend.backend(),
            fix="export the run's model.keras again with KERAS_BACKEND=tensorflow",
        )


def _check_replaceable(folder: Path) -> None:
    is_export = (folder / "saved_model.pb").is_file()
    if folder.is_dir() and not is_export and any(folder.iterdir()):
        raise ExportError(
            f"{folder} holds other files than an exported model's",
            expected="a new or empty folder, or an earlier export",
            received=", ".join(sorted(entry.name for entry in folder.iterdir())[:5]),
            fix="give another folder",
        )
