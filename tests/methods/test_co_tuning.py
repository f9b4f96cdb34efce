"""Co-Tuning: closed forms of the relation and the loss, sources of all kinds, and whole phases."""

import h5py
import keras
import numpy as np
import pytest
from feature_sources import make_source, make_splits
from fitting_small import fit_small
from listener import Listener
from scipy.special import log_softmax, softmax
from small_models import make_classifier, weights_by_stage

from keras_transfer.config import override
from keras_transfer.errors import SpecError, WeightsError
from keras_transfer.methods.co_tuning import CoTuning, CoTuningOptions, relation_of
from keras_transfer.methods.source_classifier import load_source
from keras_transfer.reporting.reporter import SilentReporter
from keras_transfer.specs import CacheSpec, DataSpec, ModelSpec, PhaseSpec, RunSpec, TrainingSpec
from keras_transfer.storage.run_folder import RunFolder
from keras_transfer.training.objective import PhaseContext

TOGETHER = PhaseSpec(
    name="together", epochs=2, unfreeze="stage2", learning_rate=1e-2, method="co_tuning"
)
SPEC = RunSpec(
    data=DataSpec(image_size=32),
    model=ModelSpec(backbone="small", last_stage="stage2", weights="none"),
    phases=(PhaseSpec(epochs=1), TOGETHER),
    training=TrainingSpec(refit=False, rollback=False),
    cache=CacheSpec(precision="float32"),
)


class Images:
    """Twenty labelled images in two views, whose features are given, and one without a label."""

    train_rows, num_labelled, num_views, test_digests = np.arange(21), 20, 2, ()
    train_values = np.arange(20) % 10

    def __init__(self, features):
        self.features = features

    def read_frozen(self, cuts, image_size):
        return [self]

    def read(self, rows, views):
        return self.features[rows, views]


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """The small network as it is pretrained, with a classifier of its ten source classes."""
    file = tmp_path_factory.mktemp("source") / "net.keras"
    make_classifier("small", seed=SPEC.seed).model.save(file)
    return file


def train(tmp_path, source, changes=None, **arguments):
    own = {"phases.1.method_options.source": str(source), **(changes or {})}
    return fit_small(override(SPEC, own), tmp_path, Listener(), **arguments)


def context_of(classifier, images=None):
    stages = classifier.stages
    return PhaseContext(SPEC, classifier.task, False, SilentReporter(), images, stages)


def features_of(classifier, images):
    pooled = classifier.model.get_layer("pooling").output
    return np.array(keras.Model(classifier.model.input, pooled)(images))


def test_the_relation_is_the_mean_probability_of_each_class(source):
    classifier = make_classifier("small", seed=SPEC.seed)
    found = load_source(str(source), context_of(classifier))
    features = np.random.default_rng(0).normal(size=(21, 2, len(found.kernel))).astype(np.float32)
    relation = relation_of(found, Images(features), num_classes=10)
    assert relation.shape == (10, 10)
    np.testing.assert_allclose(relation.sum(axis=1), 1, rtol=1e-6)
    outputs = softmax(features @ found.kernel + found.bias, axis=-1)
    expected = [outputs[[label, label + 10]].mean(axis=(0, 1)) for label in range(10)]
    np.testing.assert_allclose(relation, expected, rtol=1e-5)


def test_the_loss_of_training_has_the_cross_entropy_of_the_formula(source):
    classifier = make_classifier("small", seed=SPEC.seed)
    width = classifier.last_dense.kernel.shape[0]
    given = np.random.default_rng(0).normal(size=(21, 2, width)).astype(np.float32)
    images = Images(given)
    pixels = np.random.default_rng(1).uniform(0, 255, (4, 32, 32, 3)).astype(np.float32)
    labels = np.array([0, 1, 2, 1])
    encoded, weights = classifier.task.encode(labels), np.float32([2, 2, 0, 0])
    options = CoTuningOptions(source=str(source), strength=0.7)
    model = CoTuning(options).prepare(context_of(classifier, images), TOGETHER, classifier.model)
    model = model.model
    model.compile(loss=classifier.task.loss(TrainingSpec()))
    logits = model(pixels, training=False)
    with_term, plain = (
        float(model.compute_loss(pixels, encoded, logits, weights, is_training))
        for is_training in (True, False)
    )
    found = load_source(str(source), context_of(classifier))
    relation = relation_of(found, images, num_classes=10)[labels]
    logs = log_softmax(features_of(classifier, pixels) @ found.kernel + found.bias, axis=-1)
    expected = 0.7 * np.mean(-(relation * logs).sum(axis=1) * weights)
    assert with_term - plain == pytest.approx(expected, rel=1e-4)
    extra = {v.path for v in model.trainable_variables} - {
        v.path for v in classifier.model.trainable_variables
    }
    assert extra == {"source_logits/kernel", "source_logits/bias"}


def test_a_weights_file_gives_its_last_layer(tmp_path):
    """Of a legacy file, where the last layer with weights is a 1 x 1 convolution."""
    classifier = make_classifier("small", seed=SPEC.seed)
    width = classifier.last_dense.kernel.shape[0]
    kernel = np.random.default_rng(0).normal(size=(1, 1, width, 5)).astype(np.float32)
    with h5py.File(tmp_path / "top.h5", "w") as file:
        file.attrs["layer_names"] = [b"conv", b"top", b"softmax"]
        for name, arrays in {"conv": {"k": np.ones((3, 3, 3, 8))}, "softmax": {}}.items():
            layer = file.create_group(name)
            layer.attrs["weight_names"] = list(arrays)
            for own, value in arrays.items():
                layer[own] = value
        top = file.create_group("top")
        top.attrs["weight_names"] = ["top/kernel", "top/bias"]
        top["top/kernel"], top["top/bias"] = kernel, np.arange(5, dtype=np.float32)
    found = load_source(str(tmp_path / "top.h5"), context_of(classifier))
    np.testing.assert_array_equal(found.kernel, kernel[0, 0])
    np.testing.assert_array_equal(found.bias, np.arange(5))
    pixels = np.random.default_rng(1).uniform(0, 255, (4, 32, 32, 3)).astype(np.float32)
    read = keras.Model(found.cut.model.input, found.cut.tensor)(pixels)
    np.testing.assert_allclose(read, features_of(classifier, pixels), rtol=1e-5)
    with h5py.File(tmp_path / "top.h5", "a") as file:
        del file["top"]["top/kernel"]
        file["top"]["top/kernel"] = kernel[:, :, :3]
    with pytest.raises(SpecError, match="no linear classifier"):
        load_source(str(tmp_path / "top.h5"), context_of(classifier))
    (tmp_path / "broken.h5").write_bytes(b"no weights")
    with pytest.raises(WeightsError, match="cannot be read"):
        load_source(str(tmp_path / "broken.h5"), context_of(classifier))


def test_training_lowers_the_cross_entropy_of_the_source(source):
    """By features and the source's classifier, more than the labels alone do."""
    examples, rows = make_source(views=SPEC.views).examples, make_splits().train
    pixels, labels = np.float32(examples.pixels[rows]), examples.targets.values[rows]
    falls = []
    for strength in (1e-2, 50.0):
        classifier = make_classifier("small", seed=SPEC.seed, dropout=0.0)
        width, encoded = classifier.last_dense.kernel.shape[0], classifier.task.encode(labels)
        images = Images(np.random.default_rng(0).normal(size=(21, 2, width)).astype(np.float32))
        options = CoTuningOptions(source=str(source), strength=strength)
        method, context = CoTuning(options), context_of(classifier, images)
        model = method.prepare(context, TOGETHER, classifier.model).model
        model.compile(
            loss=classifier.task.loss(TrainingSpec()),
            optimizer=keras.optimizers.SGD(0.1 / max(1, strength)),
        )

        def term(model=model, encoded=encoded, strength=strength):
            logits = model(pixels, training=False)
            losses = [
                float(model.compute_loss(pixels, encoded, logits, None, one))
                for one in (True, False)
            ]
            return (losses[0] - losses[1]) / strength

        before = term()
        model.fit(pixels, encoded, batch_size=32, epochs=3, verbose=0)
        falls.append(before - term())
    assert falls[1] > 1.3 * abs(falls[0])


def test_a_resumed_phase_has_the_same_bits(source, tmp_path):
    expected = weights_by_stage(train(tmp_path, source)[0])
    run = RunFolder.create(tmp_path / "run")
    run.checkpoint_folder.mkdir()
    train(tmp_path, source, run=run, num_epochs=2)
    for stage, values in weights_by_stage(train(tmp_path, source, run=run)[0]).items():
        for one, other in zip(values, expected[stage], strict=True):
            np.testing.assert_array_equal(one, other)


def test_phases_without_a_source_are_refused(source, tmp_path):
    with pytest.raises(SpecError, match="classifier is not known"):
        train(tmp_path, "")
    with pytest.raises(SpecError, match="no features"):
        train(tmp_path, source, {"phases.1.unfreeze": "head"})
    with pytest.raises(SpecError, match=r"model\.head=mlp"):
        train(tmp_path, source, {"model.head": "mlp"})
