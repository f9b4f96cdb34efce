"""Steps of adaptation against closed forms, and what is known of them without labels."""

from dataclasses import replace

import keras
import numpy as np
import pytest
from keras import layers
from scipy import linalg
from sklearn.datasets import load_digits

from keras_transfer.adaptation import coral, self_training
from keras_transfer.adaptation.batchnorm import adapt_statistics, norms_of
from keras_transfer.adaptation.domains import Domains
from keras_transfer.adaptation.registry import CHAINS, KINDS, UNLABELLED, parse_chain
from keras_transfer.adaptation.scores import (
    Scores,
    choose,
    entropies,
    log_loss,
    nearest_rows,
    neighbour_information,
)
from keras_transfer.errors import SpecError


def domains_of(source, labels, target) -> Domains:
    """With the head solved on the source."""
    num_classes = labels.max() + 1
    empty = np.zeros((source.shape[1], num_classes)), np.zeros(num_classes)
    domains = Domains(source, labels, np.ones(len(labels)), target, *empty)
    head = domains.solved(source, labels, domains.weights)
    return replace(domains, kernel=head.kernel, bias=head.bias)


def accuracy(domains, labels) -> float:
    return float(np.mean(domains.outputs(domains.target).argmax(axis=1) == labels))


@pytest.fixture(scope="module")
def digits():
    """Scanned digits: 500 with labels, 500 others with less contrast, differently by column."""
    scans = load_digits()
    pixels, labels = scans.data[:1000], scans.target[:1000]
    paler = pixels[500:] * np.linspace(0.1, 0.4, 64) + 6
    return pixels[:500], labels[:500], paler, labels[500:]


def test_coral_is_the_identity_where_both_domains_are_the_same(digits):
    source = digits[0]
    np.testing.assert_allclose(coral.align(source, source), source, atol=1e-6)


def test_aligned_features_have_the_targets_mean_and_its_shrunk_covariance():
    random = np.random.default_rng(0)
    source = random.normal(size=(4000, 5)) @ random.normal(size=(5, 5)) + 1
    target = random.normal(size=(4000, 5)) @ random.normal(size=(5, 5)) - 2
    aligned = coral.align(source, target)
    np.testing.assert_allclose(aligned.mean(axis=0), target.mean(axis=0), atol=1e-9)
    expected = np.cov(target.T)
    # Shrinkage is all that keeps it from being exact.
    np.testing.assert_allclose(np.cov(aligned.T), expected, atol=0.03 * np.abs(expected).max())


def test_transport_is_the_product_of_roots_of_shrunk_covariances(digits):
    source, target = digits[0] / 16, digits[2] / 16
    first, second = (coral.ledoit_wolf(part)[0] for part in (source, target))
    found = coral.transport(source, target)
    expected = linalg.inv(linalg.sqrtm(first)) @ linalg.sqrtm(second)
    np.testing.assert_allclose(found, np.real(expected), atol=1e-6)
    np.testing.assert_allclose(found.T @ first @ found, second, atol=1e-8)


def test_coral_recovers_from_another_scale_of_each_feature(digits):
    *parts, labels = digits
    domains = domains_of(*parts)
    assert accuracy(coral.adapt(domains), labels) > accuracy(domains, labels) + 0.3


def test_self_training_takes_the_most_confident_of_each_predicted_class():
    outputs = np.array([[0.9, 0.1], [0.6, 0.4], [0.8, 0.2], [0.45, 0.55], [0.3, 0.7]])
    rows, labels = self_training.pseudo_labels(outputs, 0.5)
    assert rows.tolist() == [0, 2, 4]
    assert labels.tolist() == [0, 0, 1]
    rows, labels = self_training.pseudo_labels(outputs, 0.01)
    assert rows.tolist() == [0, 4], "at least one of each"


def test_self_training_improves_aligned_digits(digits):
    *parts, labels = digits
    aligned = coral.adapt(domains_of(*parts))
    assert accuracy(self_training.adapt(aligned), labels) > accuracy(aligned, labels)


def test_self_training_on_the_sources_own_images_keeps_their_classes(digits):
    source, labels, *_ = digits
    domains = domains_of(source, labels, source)
    assert accuracy(self_training.adapt(domains), labels) >= accuracy(domains, labels) - 0.005


def network() -> keras.Model:
    keras.utils.set_random_seed(0)
    image = keras.Input((8, 8, 3))
    x = layers.Rescaling(1 / 255)(image)
    for number in range(2):
        inner = layers.BatchNormalization(name=f"norm{number}")(
            layers.Conv2D(6, 3, padding="same", name=f"conv{number}")(x)
        )
        x = layers.Concatenate()([x, layers.ReLU()(layers.Dropout(0.5)(inner))])
    x = layers.BatchNormalization(scale=False, center=False, name="last")(x)
    model = keras.Model(image, layers.Dense(3)(layers.GlobalAveragePooling2D()(x)))
    for norm in norms_of(model)[:2]:
        norm.gamma.assign(np.linspace(0.5, 2, 6))
        norm.beta.assign(np.linspace(-1, 1, 6))
    return model


@pytest.fixture
def pixels():
    return np.random.default_rng(0).integers(0, 256, (40, 8, 8, 3)).astype(np.uint8)


def test_statistics_are_the_moments_of_each_layers_inputs_over_all_images(pixels):
    model = network()
    weights = [np.array(v) for layer in model.layers for v in layer.trainable_variables]
    adapt_statistics(model, pixels)
    # With the new statistics each layer normalises its inputs to a mean of 0 and a variance of 1.
    for norm in norms_of(model):
        inputs = np.array(keras.Model(model.input, norm.input)(pixels.astype("float32")))
        np.testing.assert_allclose(norm.moving_mean, inputs.mean(axis=(0, 1, 2)), atol=1e-5)
        np.testing.assert_allclose(norm.moving_variance, inputs.var(axis=(0, 1, 2)), rtol=1e-4)
    after = [v for layer in model.layers for v in layer.trainable_variables]
    for one, other in zip(weights, after, strict=True):
        np.testing.assert_array_equal(one, other)


def test_statistics_of_batches_are_pooled(pixels, monkeypatch):
    monkeypatch.setattr("keras_transfer.adaptation.batchnorm.BATCH_BYTES", 1)
    model = network()
    many = np.concatenate([pixels[:32], 255 - pixels[:32]])
    adapt_statistics(model, many)
    first = norms_of(model)[0]
    inputs = np.array(keras.Model(model.input, first.input)(many.astype("float32")))
    np.testing.assert_allclose(first.moving_mean, inputs.mean(axis=(0, 1, 2)), atol=1e-5)
    np.testing.assert_allclose(first.moving_variance, inputs.var(axis=(0, 1, 2)), rtol=1e-4)


def test_neighbour_information_is_one_for_pure_neighbourhoods_and_zero_for_none():
    labels = np.repeat(np.arange(4), 25)
    own = np.stack([np.roll(np.arange(25), -shift) for shift in range(1, 11)], axis=1)
    pure = np.concatenate([own + 25 * number for number in range(4)])
    assert neighbour_information(labels, pure, 4).mean() == pytest.approx(1)
    assert neighbour_information(np.zeros(100, int), pure, 4).mean() == pytest.approx(0)
    random = np.random.default_rng(0)
    assert abs(neighbour_information(random.permutation(labels), pure, 4).mean()) < 0.05


def test_neighbour_information_is_that_of_a_table_of_pairs(digits):
    labels, nearest = digits[3], nearest_rows(digits[2])
    assert not (nearest == np.arange(500)[:, None]).any()
    table = np.zeros((10, 10))
    for row in range(500):
        for other in nearest[row]:
            table[labels[row], labels[other]] += 1 / 2
            table[labels[other], labels[row]] += 1 / 2
    table /= table.sum()
    shares = table.sum(axis=0)
    expected = sum(
        table[one, two] * np.log(table[one, two] / (shares[one] * shares[two]))
        for one, two in np.argwhere(table)
    )
    found = neighbour_information(labels, nearest, 10).mean()
    assert found == pytest.approx(expected / np.log(10))


def test_entropies_are_shares_of_the_highest():
    assert entropies(np.full((3, 4), 0.25)) == (pytest.approx(1), pytest.approx(1))
    assert entropies(np.eye(4)) == (pytest.approx(0), pytest.approx(1))
    assert entropies(np.eye(4)[[0, 0]]) == (pytest.approx(0), pytest.approx(0))
    assert log_loss(np.array([[0.5, 0.5], [1.0, 0.0]]), np.array([0, 0])) == pytest.approx(
        np.log(2) / 2
    )


def scores(information, **others) -> Scores:
    return Scores(entropy=0, balance=1, agreement=1, information=np.array(information), **others)


def test_another_kind_is_chosen_only_with_clearly_more_information():
    low, noisy = np.full(100, 0.2), 0.21 + np.tile([-0.2, 0.2], 50)
    unsure = {"source": scores(low), "coral": scores(noisy)}
    assert choose(unsure) == "source"
    clear = unsure | {"coral": scores(low + 0.05)}
    assert choose(clear) == "coral"
    better = clear | {"coral+self_training": scores(low + 0.1)}
    assert choose(better) == "coral+self_training"
    assert choose(better | {"adabn": scores(low + 0.5)}) == "coral+self_training"


def chosen_gain(source, labels, target, truth) -> float:
    """What the choice without labels gains over the head of the source."""
    before = domains_of(source, labels, target)
    aligned = coral.adapt(before)
    found = {"source": before, "coral": aligned}
    found["coral+self_training"] = self_training.adapt(aligned)
    nearest = nearest_rows(target)
    information = {
        name: scores(neighbour_information(of.outputs(target).argmax(axis=1), nearest, 10))
        for name, of in found.items()
    }
    return accuracy(found[choose(information)], truth) - accuracy(before, truth)


def test_the_choice_gains_where_columns_are_scaled_and_costs_nothing_elsewhere(digits):
    source, labels, paler, truth = digits
    gains = {"scaled": [], "same": []}
    for seed in range(3):
        first, rest = np.split(np.random.default_rng(seed).permutation(500), 2)
        known = source[first], labels[first]
        gains["scaled"].append(chosen_gain(*known, paler, truth))
        gains["same"].append(chosen_gain(*known, source[rest], labels[rest]))
    assert np.mean(gains["scaled"]) > 0.2, gains
    assert np.mean(gains["same"]) > -0.02, gains


def test_labelled_images_decide_among_all_kinds():
    found = {
        "source": scores([1.0], labelled_loss=0.5),
        "coral": scores([2.0], labelled_loss=0.6),
        "adabn": scores([0.0], labelled_loss=0.4),
    }
    assert choose(found) == "adabn"


def test_chains_are_of_known_steps_in_their_order():
    for name in CHAINS:
        parse_chain(name)
    assert set(UNLABELLED) <= set(CHAINS)
    assert [kind.name for kind in parse_chain("adabn+coral")] == ["adabn", "coral"]
    for wrong in ("coral+adabn", "coral+coral"):
        with pytest.raises(SpecError, match="cannot follow"):
            parse_chain(wrong)
    with pytest.raises(SpecError, match="unknown") as told:
        parse_chain("corral")
    assert all(name in told.value.expected for name in KINDS)
