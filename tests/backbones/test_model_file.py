"""Whole Keras models as backbones: the trunk in a file, its stages, and the errors of others."""

import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import keras
import numpy as np
import pytest
from keras import layers

from keras_transfer.backbones.graph import only_draws
from keras_transfer.backbones.preprocess import Preprocess
from keras_transfer.backbones.registry import get_backbone
from keras_transfer.backbones.trunk import build_trunk
from keras_transfer.errors import SpecError, WeightsError
from keras_transfer.models.classifier import build_classifier
from keras_transfer.models.cuts import find_cut
from keras_transfer.models.folding import fold
from keras_transfer.specs import ModelSpec
from keras_transfer.storage.model_files import resolve_model
from keras_transfer.tasks.single_label import SingleLabel

SIZE = 16
LAST = "last_features"


def conv(x, width: int, kernel: int = 3, strides: int = 1, **options):
    x = layers.Conv2D(width, kernel, strides, padding="same", use_bias=False, **options)(x)
    return layers.ReLU()(layers.BatchNormalization()(x))


def features_of(x):
    """Two resolutions, a residual block, a shared activation, and layers that act in training."""
    x = conv(x, 4)
    x = layers.SpatialDropout2D(0.1)(layers.Add()([x, conv(x, 4)]))
    x = layers.MaxPooling2D()(x)
    relu = layers.ReLU(name="shared")
    x = relu(layers.Conv2D(6, 3, padding="same", kernel_regularizer="l2")(x))
    return layers.Activation("relu", name=LAST)(layers.Add()([relu(x), conv(x, 6)]))


def classes_of(x):
    x = layers.Dropout(0.5, name="dropout")(layers.GlobalAveragePooling2D()(x))
    return layers.Dense(3, activation="softmax", name="logits")(x)


def network(scale=None, size: int | None = SIZE) -> keras.Model:
    """A trained classifier of someone else: statistics of BatchNormalization are not initial."""
    keras.utils.set_random_seed(1)
    image = keras.Input((size, size, 3), name="image")
    model = keras.Model(image, classes_of(features_of(scale(image) if scale else image)))
    for layer in model.layers:
        if isinstance(layer, layers.BatchNormalization):
            layer.moving_mean.assign(np.linspace(-0.5, 0.5, layer.moving_mean.shape[0]))
            layer.moving_variance.assign(np.linspace(0.5, 2.0, layer.moving_mean.shape[0]))
    return model


def pixels(size: int = SIZE) -> np.ndarray:
    return np.random.default_rng(0).uniform(0, 255, (2, size, size, 3)).astype("float32")


def saved(model: keras.Model, folder: Path, name: str = "net.keras") -> str:
    model.save(folder / name)
    return str(folder / name)


def trunk_of(file: str, *, weights: str = "file", size: int = SIZE, preprocess: str = "", **rest):
    """The trunk and its model."""
    inputs = keras.Input((size, size, 3), name="image")
    row = get_backbone(file, preprocess=preprocess)
    trunk = build_trunk(row, inputs, weights=weights, **rest)
    return trunk, keras.Model(inputs, trunk.output)


def expected_features(model: keras.Model, images: np.ndarray) -> np.ndarray:
    below = keras.Model(model.input, model.get_layer(LAST).output)
    return np.asarray(below(images, training=False))


@pytest.fixture(scope="module")
def model() -> keras.Model:
    return network()


@pytest.fixture(scope="module")
def file(model, tmp_path_factory) -> str:
    """The model, which does not scale pixels, as a file that no test changes."""
    return saved(model, tmp_path_factory.mktemp("models"))


@pytest.mark.parametrize("name", ["net.keras", "net.h5"])
def test_trunk_has_the_files_features_in_stages_with_every_variable_once(tmp_path, model, name):
    trunk, ours = trunk_of(saved(model, tmp_path, name), preprocess="tf")
    expected = expected_features(model, pixels() / 127.5 - 1)
    np.testing.assert_allclose(np.asarray(ours(pixels())), expected, atol=1e-5)
    assert {stage: len(own) for stage, own in trunk.stages.items()} == {"stem": 8, "stage1": 8}
    held = Counter(id(variable) for layer in trunk.layers for variable in layer.variables)
    assert held == Counter(id(variable) for variable in ours.variables)
    assert not any(map(only_draws, ours.layers))
    assert all(layer.trainable for layer in trunk.layers)
    text = " ".join(trunk.backbone.notes)
    assert f"{name} ends with the feature map of {LAST} (6 channels); left out above" in text
    assert "above it: GlobalAveragePooling2D, Dense" in text
    assert "only act in training: SpatialDropout2D, Dropout" in text


def test_classifier_is_cut_folded_and_trained_without_the_files_losses(file):
    spec = ModelSpec(backbone=file, preprocess="none")
    classifier = build_classifier(spec, image_size=SIZE, task=SingleLabel(("a", "b")), seed=0)
    assert list(classifier.stages) == ["stem", "stage1", "head"]
    assert classifier.model.losses == []
    whole = np.asarray(classifier.model(pixels()))
    for layer in classifier.stages["stem"]:
        layer.trainable = False
    cut = find_cut(classifier.model)
    below = keras.Model(classifier.model.input, cut.tensor)
    assert cut.shape == (8, 8, 4)
    np.testing.assert_allclose(np.asarray(cut.tail()(below(pixels()))), whole, atol=1e-5)
    folded = fold(classifier.model)
    assert not any(isinstance(layer, layers.BatchNormalization) for layer in folded.layers)
    np.testing.assert_allclose(np.asarray(folded(pixels())), whole, atol=1e-4)


def test_cached_features_depend_on_the_weights_and_not_on_the_place_of_the_file(
    tmp_path, model, file
):
    moved, other = saved(model, tmp_path, "moved.h5"), keras.models.clone_model(model)
    keys = []
    for place in (file, moved, saved(other, tmp_path)):
        _, ours = trunk_of(place, preprocess="tf")
        ours.trainable = False
        keys.append(find_cut(keras.Model(ours.input, classes_of(ours.output))).fingerprint)
    assert keys[0] == keys[1] != keys[2]


def test_last_stage_cuts_the_trunk(file):
    trunk, ours = trunk_of(file, preprocess="tf", last_stage="stem")
    assert list(trunk.stages) == ["stem"]
    assert ours.output_shape == (None, 8, 8, 4)
    with pytest.raises(SpecError, match=r"not a stage of net\.keras"):
        trunk_of(file, preprocess="tf", last_stage="stage4")


def test_random_weights_depend_on_the_seed_and_not_on_the_file(file, model):
    found = []
    for _ in range(2):
        spec = ModelSpec(backbone=file, weights="none", preprocess="tf", last_stage="stem")
        made = build_classifier(spec, image_size=SIZE, task=SingleLabel(("a", "b")), seed=2)
        found.append([np.array(variable) for variable in made.trunk.layers[0].variables])
    np.testing.assert_array_equal(*found)
    assert np.abs(found[0][0] - model.get_weights()[0]).max() > 0.01


def given():
    return layers.Normalization(mean=[0.4, 0.5, 0.6], variance=[0.2, 0.3, 0.4])


def adapted():
    layer = layers.Normalization()
    layer.adapt(pixels() / 255)
    return layer


@pytest.mark.parametrize("normalize", [given, adapted])
def test_scaling_in_the_file_is_used(tmp_path, normalize):
    scale = [layers.RandomFlip(), layers.Rescaling(1 / 255), normalize()]
    model = network(keras.Sequential(scale))
    trunk, ours = trunk_of(saved(model, tmp_path))
    assert trunk.backbone.preprocessing == "none"
    assert [layer.mode for layer in ours.layers if isinstance(layer, Preprocess)] == ["none"]
    expected = expected_features(model, pixels())
    np.testing.assert_allclose(np.asarray(ours(pixels())), expected, atol=1e-4)
    folded = np.asarray(fold(ours)(pixels()))
    np.testing.assert_allclose(folded, expected, atol=1e-4)


def test_own_preprocess_in_the_file_becomes_that_of_the_trunk(tmp_path):
    model = network(Preprocess("caffe"))
    file = saved(model, tmp_path)
    trunk, ours = trunk_of(file)
    assert trunk.backbone.preprocessing == "caffe"
    assert sum(isinstance(layer, Preprocess) for layer in ours.layers) == 1
    np.testing.assert_allclose(
        np.asarray(ours(pixels())), expected_features(model, pixels()), atol=1e-4
    )
    with pytest.raises(SpecError, match="scales pixels itself, in another way"):
        trunk_of(file, preprocess="tf")


def test_file_without_scaling_needs_a_declared_one(file):
    with pytest.raises(SpecError, match="does not scale pixels") as caught:
        trunk_of(file)
    assert "caffe, tf, torch, lite, none" in caught.value.expected
    assert caught.value.received == "an input into Conv2D"
    with pytest.raises(SpecError, match="not a mode of Preprocess"):
        trunk_of(file, preprocess="imagenet")


def test_models_inside_models_are_flattened_and_names_stay_unique(tmp_path):
    keras.utils.set_random_seed(1)
    inner_image = keras.Input((SIZE, SIZE, 3))
    inner = keras.Model(inner_image, features_of(layers.Conv2D(3, 1, name="twice")(inner_image)))
    block = keras.Sequential([layers.Conv2D(3, 1, name="twice"), layers.Rescaling(2.0)])
    image = keras.Input((SIZE, SIZE, 3))
    x = keras.Sequential([layers.Rescaling(1 / 255), block])(image)
    model = keras.Model(image, classes_of(inner(x, training=False)))
    trunk, ours = trunk_of(saved(model, tmp_path))
    assert not any(isinstance(layer, keras.Model) for layer in trunk.layers)
    below = keras.Sequential(model.layers[1:3])
    np.testing.assert_allclose(np.asarray(ours(pixels())), np.asarray(below(pixels())), atol=1e-4)
    assert {layer.name for layer in trunk.layers} >= {"twice", "twice_2", LAST}


def test_graph_for_any_size_is_built_for_the_images(tmp_path):
    model = network(size=None)
    _, ours = trunk_of(saved(model, tmp_path), preprocess="none", size=24)
    expected = expected_features(model, pixels(24))
    np.testing.assert_allclose(np.asarray(ours(pixels(24))), expected, atol=1e-5)


def test_graph_for_one_size_names_it(file):
    with pytest.raises(SpecError, match="takes images of one size") as caught:
        trunk_of(file, preprocess="none", size=24)
    assert "data.image_size=16" in caught.value.fix


def test_trunk_takes_the_precision_of_the_run(file):
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        trunk, ours = trunk_of(file, preprocess="tf")
    finally:
        keras.config.set_dtype_policy("float32")
    assert trunk.output.dtype == "bfloat16"
    assert {variable.dtype for variable in ours.weights} == {"float32"}


def pooled_blocks(x):
    """As VGG: every block ends with a pooling."""
    for number in (1, 2, 3):
        x = layers.MaxPooling2D(name=f"pool{number}")(conv(conv(x, 4), 4))
    return x


def strided_blocks(x):
    """As a ResNet: a stem with a pooling, then blocks of which each starts with a stride."""
    x = layers.MaxPooling2D(name="pool")(layers.ZeroPadding2D(1)(conv(x, 4, strides=2)))
    x = layers.Add(name="sum1")([x, conv(x, 4)])
    return layers.ReLU(name="top")(conv(conv(x, 8, strides=2), 8))


def inverted_blocks(x):
    """As a MobileNetV2: wide inside blocks, narrow between them."""
    x = conv(x, 8, strides=2)
    x = layers.Conv2D(4, 1, name="narrow1")(x)
    x = layers.DepthwiseConv2D(3, 2, padding="same")(conv(x, 24, 1))
    x = layers.Conv2D(4, 1)(x)
    x = layers.Add(name="narrow2")([x, layers.Conv2D(4, 1)(conv(x, 24, 1))])
    x = layers.DepthwiseConv2D(3, 2, padding="same")(conv(x, 24, 1))
    return layers.ReLU(name="top")(conv(x, 24, 1))


def tangled_blocks(x):
    """As NASNet: every cell has the two cells before it as inputs."""
    before, x = layers.AveragePooling2D(2)(x), conv(x, 4, strides=2)
    for number in range(3):
        before, x = x, layers.Add(name=f"sum{number}")([conv(x, 4), layers.Conv2D(4, 1)(before)])
    return x


@pytest.mark.parametrize(
    ("blocks", "stages"),
    [
        (pooled_blocks, {"stage1": "pool1", "stage2": "pool2", "stage3": "pool3"}),
        (strided_blocks, {"stem": "pool", "stage2": "sum1", "stage3": "top"}),
        (inverted_blocks, {"stage1": "narrow1", "stage2": "narrow2", "stage3": "top"}),
        (tangled_blocks, {"stage1": "sum2"}),
    ],
    ids=["vgg", "resnet", "mobilenet", "nasnet"],
)
def test_stages_end_where_those_of_the_families_do(tmp_path, blocks, stages):
    image = keras.Input((32, 32, 3))
    row = get_backbone(
        saved(keras.Model(image, classes_of(blocks(image))), tmp_path), preprocess="tf"
    )
    assert {stage.name: stage.last_layer for stage in row.stages} == stages


def test_classification_by_convolution_is_left_out(tmp_path):
    image = keras.Input((SIZE, SIZE, 3))
    x = layers.GlobalAveragePooling2D(keepdims=True)(features_of(image))
    model = keras.Model(image, layers.Flatten()(layers.Conv2D(3, 1)(x)))
    trunk, _ = trunk_of(saved(model, tmp_path), preprocess="tf")
    assert trunk.layers[-1].name == LAST
    assert "GlobalAveragePooling2D, Conv2D, Flatten" in trunk.backbone.notes[0]


class Plain(keras.Model):
    """A model whose layers are called in Python."""

    def __init__(self, **options):
        super().__init__(**options)
        self.own = layers.Conv2D(2, 3)

    def call(self, x):
        return self.own(x)


class Custom(layers.Layer):
    """A layer that Keras does not know."""

    def call(self, x):
        return 2 * x


def image_of(*shape: int):
    return keras.Input(shape or (SIZE, SIZE, 3))


def without_map() -> keras.Model:
    return keras.Sequential([image_of(), layers.Flatten(), layers.Dense(2)])


def with_attention() -> keras.Model:
    tokens = layers.Reshape((64, 6))(features_of(image := image_of()))
    attended = layers.MultiHeadAttention(1, 2)(tokens, tokens)
    return keras.Model(image, layers.Dense(2)(layers.GlobalAveragePooling1D()(attended)))


def with_shared_layer() -> keras.Model:
    shared = layers.Conv2D(3, 1, name="both")
    return keras.Model(image := image_of(), shared(shared(image)))


def of_wide() -> keras.Model:
    return keras.Model(image := image_of(SIZE, 2 * SIZE, 3), features_of(image))


def of_vectors() -> keras.Model:
    return keras.Sequential([keras.Input((5,)), layers.Dense(2)])


def with_two_outputs() -> keras.Model:
    features = features_of(image := image_of())
    return keras.Model(image, [features, classes_of(features)])


def with_two_inputs() -> keras.Model:
    image, other = image_of(), image_of()
    return keras.Model([image, other], features_of(image + other))


def with_scaled_positions() -> keras.Model:
    scale = layers.Normalization(axis=(1, 2, 3), mean=pixels()[0], variance=pixels()[1])
    return keras.Sequential([image_of(), scale, layers.Conv2D(3, 1)])


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (without_map, "has no feature map"),
        (with_attention, "more than classification layers"),
        (with_shared_layer, "calls the layer both more than once"),
        (of_wide, "square images to one output"),
        (of_vectors, "square images to one output"),
        (with_two_outputs, "square images to one output"),
        (with_two_inputs, "square images to one output"),
        (with_scaled_positions, "cannot be built again from its settings"),
    ],
)
def test_models_that_are_no_backbone_are_refused(tmp_path, build, message):
    with pytest.raises(SpecError, match=message):
        get_backbone(saved(build(), tmp_path), preprocess="tf")


@pytest.mark.parametrize("name", ["net.keras", "net.h5"])
def test_unknown_layers_are_named_with_the_way_to_register_them(tmp_path, name):
    image = keras.Input((SIZE, SIZE, 3))
    file = saved(keras.Model(image, features_of(Custom()(image))), tmp_path, name)
    with pytest.raises(SpecError, match="Custom, which Keras does not know") as caught:
        get_backbone(file)
    assert "register_keras_serializable" in caught.value.fix
    with keras.saving.custom_object_scope({"Custom": Custom}):
        trunk_of(file, preprocess="tf")


def test_model_without_a_graph_is_refused_also_inside_another(tmp_path):
    alone = Plain()
    alone(pixels())
    inside = keras.Sequential([keras.Input((SIZE, SIZE, 3)), Plain()])
    with keras.saving.custom_object_scope({"Plain": Plain}):
        for model in (alone, inside):
            file = saved(model, tmp_path)
            with pytest.raises(SpecError, match="has no graph of layers"):
                get_backbone(file, preprocess="tf")


def test_code_in_the_file_is_refused(tmp_path):
    image = keras.Input((SIZE, SIZE, 3))
    scaled = layers.Lambda(lambda x: x / 255)(image)
    with pytest.raises(SpecError, match="Lambda layer"):
        get_backbone(saved(keras.Model(image, features_of(scaled)), tmp_path))


def test_files_that_are_no_model_are_refused(tmp_path, model):
    model.save_weights(tmp_path / "only.weights.h5")
    with pytest.raises(SpecError, match="has weights, but no network"):
        get_backbone(str(tmp_path / "only.weights.h5"))
    for name in ("net.keras", "net.h5"):
        part = Path(saved(model, tmp_path, name))
        part.write_bytes(part.read_bytes()[:5000])
        with pytest.raises(WeightsError, match=f"{name} cannot be read as a Keras model"):
            get_backbone(str(part))


@pytest.mark.parametrize(
    ("name", "advice"),
    [
        ("models/resnet5.keras", "did you mean resnet50"),
        ("gone.h5", "correct the path"),
        ("./folder", "correct the path"),
        ("folder", "write ./folder"),
        ("other.pth", "choose one of those names"),
    ],
)
def test_missing_files_are_named_with_the_nearest_backbones(tmp_path, monkeypatch, name, advice):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    with pytest.raises(SpecError, match=advice):
        get_backbone(name)


def test_spec_with_a_file_is_resolved_without_keras(file):
    code = (
        "import sys; from keras_transfer.storage.model_files import resolve_model; "
        "from keras_transfer.backbones.registry import get_backbone; "
        "from keras_transfer.config import override; from keras_transfer.specs import RunSpec; "
        f"spec = override(RunSpec(), {{'model.backbone': {file!r}}}); "
        "print(resolve_model(spec.model).weights, 'keras' in sys.modules)"
    )
    answer = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert answer.stdout.split() == ["file", "False"]


def test_weights_of_a_file_are_its_own_unless_said_otherwise(file):
    assert resolve_model(ModelSpec(backbone=file)).weights == "file"
    assert resolve_model(ModelSpec(backbone=file, weights="")).weights == "file"
    assert resolve_model(ModelSpec(backbone=file, weights="none")).weights == "none"
    with pytest.raises(WeightsError, match=r"names no weights of net\.keras") as caught:
        trunk_of(file, preprocess="tf", weights="imagenet")
    assert caught.value.expected.startswith("file, embedded, none")


def test_file_that_was_changed_is_noticed(tmp_path, file):
    copy = Path(shutil.copy(file, tmp_path))
    resolved = resolve_model(ModelSpec(backbone=str(copy), preprocess="tf"))
    assert resolved.backbone.startswith(f"{copy}#sha256=")
    assert resolve_model(resolved) == resolved
    get_backbone(resolved.backbone, preprocess="tf")
    copy.write_bytes(copy.read_bytes() + b" ")
    with pytest.raises(WeightsError, match="was changed since the spec was written"):
        get_backbone(resolved.backbone)
