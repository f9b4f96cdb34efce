"""Source head: the head that a trunk was pretrained with, applied to stored features.

Trunks come without their top. Given a file of the whole network, the layers above its global
pooling are applied to the pooled features of a ranking, so that the trunk does not run again.
"""

import warnings
from dataclasses import dataclass
from pathlib import Path

import keras
import numpy as np

from keras_transfer.backbones.applications import Application
from keras_transfer.backbones.record import Backbone
from keras_transfer.errors import SpecError, WeightsError
from keras_transfer.models.classifier import Classifier
from keras_transfer.specs import COLOURS, ModelSpec

_BATCH_SIZE = 256


@dataclass(frozen=True, eq=False)
class SourceHead:
    """Maps mean-pooled features to the probabilities of the source's classes."""

    model: keras.Model

    def predict(self, features: np.ndarray) -> np.ndarray:
        """Probabilities float32 [N, Z] for features [N, D]."""
        shaped = np.asarray(features, np.float32).reshape(-1, *self.model.input_shape[1:])
        starts = range(0, len(shaped), _BATCH_SIZE)
        return np.concatenate(
            [self.model.predict_on_batch(shaped[at : at + _BATCH_SIZE]) for at in starts]
        )


def load_source_head(classifier: Classifier, spec: ModelSpec, file: Path) -> SourceHead:
    """Build the whole network of a trunk, load it, and take the layers above its global pooling.

    Args:
        classifier: its trunk must have the same weights as the file below the pooling.
        spec: the spec of the classifier.
        file: HDF5 weights of the `keras.applications` network with its top, for 1,000 classes.

    Raises:
        SpecError: the network's top does not start with a global mean, or the features of `spec`
            are not those that it was trained on.
        WeightsError: the file is missing, damaged or of another network.
    """
    backbone = classifier.trunk.backbone
    _check_features(classifier, spec)
    network = _whole_network(backbone)
    pooling = _find_pooling(network, backbone)
    if not file.is_file():
        raise WeightsError(
            f"the source_weights of {backbone.name} do not exist",
            expected="an HDF5 file of the network with its top (include_top=True)",
            received=f"no such file: {file.absolute()}",
            fix="correct the path, or leave source_weights out to do without LEEP and NCE",
        )
    _load(network, backbone, file)
    _check_same_trunk(keras.Model(network.input, pooling.input), classifier, file)
    return SourceHead(keras.Model(pooling.output, network.output))


def _whole_network(backbone: Backbone) -> keras.Model:
    if isinstance(backbone.builder, Application):
        return backbone.builder.network(include_top=True)
    raise SpecError(
        f"{backbone.name} has no classification layers that source_weights could fill",
        expected="a backbone of keras.applications",
        received=backbone.name,
        fix="leave source_weights out to do without LEEP and NCE",
    )


def _check_features(classifier: Classifier, spec: ModelSpec) -> None:
    backbone = classifier.trunk.backbone
    whole = classifier.trunk.last_stage == backbone.stage_names[-1]
    channels = classifier.model.input_shape[-1]
    if whole and spec.pooling == "avg" and channels == COLOURS:
        return
    raise SpecError(
        f"source_weights of {backbone.name} do not fit these features",
        expected="the mean of the whole backbone's output, which its top was trained on "
        "(model.pooling=avg, no last_stage, data.channels=3)",
        received=f"model.pooling={spec.pooling}, last_stage={classifier.trunk.last_stage}, "
        f"data.channels={channels}",
        fix="leave source_weights out to do without LEEP and NCE, or last_stage to keep the "
        "backbone whole",
    )


def _load(network: keras.Model, backbone: Backbone, file: Path) -> None:
    try:
        with warnings.catch_warnings():
            # Keras only warns if layers keep their random weights.
            warnings.simplefilter("error", UserWarning)
            network.load_weights(file)
    except (OSError, ValueError, KeyError, IndexError, RuntimeError, UserWarning) as error:
        raise WeightsError(
            f"{file} does not contain {backbone.name} with its top",
            expected=f"{network.count_params():,} numbers in {len(network.weights)} arrays, saved "
            "with include_top=True for 1,000 classes",
            received=str(error).splitlines()[0][:200],
            fix="give a file of the same network, or leave source_weights out",
        ) from error


def _find_pooling(network: keras.Model, backbone: Backbone) -> keras.layers.Layer:
    """The last global mean pooling, which connects the top to the trunk."""
    for layer in reversed(network.layers):
        if isinstance(layer, keras.layers.GlobalAveragePooling2D):
            return layer
    raise SpecError(
        f"the top of {backbone.name} does not start with a global mean",
        expected="a network that pools its last feature map, such as a ResNet or a MobileNet",
        received=f"{backbone.name}, whose first dense layer takes the whole map",
        fix="leave source_weights out to do without LEEP and NCE",
    )


def _check_same_trunk(below: keras.Model, classifier: Classifier, file: Path) -> None:
    """Raise WeightsError unless the file's trunk is the candidate's, number by number."""
    backbone = classifier.trunk.backbone
    expected = [
        np.asarray(variable)
        for layer in below.layers
        if type(layer).__name__ not in backbone.leave_out
        for variable in layer.variables
    ]
    own = [np.asarray(v) for layer in classifier.trunk.layers for v in layer.variables]
    same = len(own) == len(expected) and all(map(np.array_equal, own, expected))
    if not same:
        raise WeightsError(
            f"{file} was not trained with the weights of this {backbone.name}",
            expected="a file whose backbone has the candidate's weights",
            received="a backbone with other weights, whose top was trained on other features",
            fix="give the files with and without the top that were published together",
        )
