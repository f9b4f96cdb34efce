"""Batches: the right images, in the right view and order, whenever training starts."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from sklearn.utils.class_weight import compute_class_weight

from keras_transfer.data.datasets import (
    Batching,
    Examples,
    Inputs,
    Views,
    epoch_order,
    evaluation_dataset,
    steps_per_epoch,
    training_dataset,
)
from keras_transfer.data.targets import Targets
from keras_transfer.data.views import strengths, view
from keras_transfer.errors import DataError
from keras_transfer.specs import TrainingSpec, ViewSpec
from keras_transfer.tasks.single_label import SingleLabel

TASK = SingleLabel(("a", "b", "c"))
STRONG = ViewSpec(policy="strong", seed=5)


@pytest.fixture(scope="module")
def examples(tmp_path_factory: pytest.TempPathFactory) -> Examples:
    """29 memory-mapped images of three classes: 20, 6 and 3."""
    generator = np.random.default_rng(0)
    file = tmp_path_factory.mktemp("pixels") / "pixels"
    pixels = np.memmap(file, np.uint8, mode="w+", shape=(29, 12, 12, 3))
    pixels[:] = generator.integers(0, 256, pixels.shape)
    labels = generator.permutation(np.repeat([0, 1, 2], [20, 6, 3]))
    return Examples(pixels, Targets.of_classes(labels, "abc"), generator.integers(0, 2**63, 29))


class Stored:
    """Half-precision vectors [row, view, 1, 2, …], as a cache of features hands them out."""

    shape = (5,)
    dtype = np.dtype(np.float16)

    def read(self, rows: np.ndarray, view_indices: np.ndarray) -> np.ndarray:
        return np.stack([rows, view_indices, *np.tile([[1], [2], [3]], len(rows))], -1).astype("f2")


def training(
    examples: Examples, rows: np.ndarray, inputs: Inputs | None = None, **changes
) -> tf.data.Dataset:
    settings = {"num_views": None, "batching": Batching(size=8), "seed": 3, "epochs": range(3)}
    settings["encode"] = TASK.encode
    return training_dataset(
        examples, rows, inputs or Views(examples, STRONG), **{**settings, **changes}
    )


def order(labels: np.ndarray, epoch: int, **changes) -> tuple[np.ndarray, np.ndarray]:
    settings = {"seed": 3, "sampling": "natural", "num_views": None}
    return epoch_order(Targets.of_classes(labels, "abc").strata, epoch, **{**settings, **changes})


def read(dataset: tf.data.Dataset) -> list[tuple[np.ndarray, ...]]:
    """Every batch without the copies that fill it."""
    batches = dataset.as_numpy_iterator()
    return [tuple(column[batch[2] > 0] for column in batch) for batch in batches]


@pytest.mark.parametrize("num_views", [None, 3])
def test_training_dataset_shows_the_promised_views_in_the_promised_order(examples, num_views):
    rows = np.arange(2, 29)
    batches = read(training(examples, rows, epochs=range(1, 5), num_views=num_views))
    spec = strengths(STRONG)
    expected_images, expected_labels = [], []
    for epoch in range(1, 5):
        places, _ = order(examples.targets.values[rows], epoch)
        index = epoch + 1 if num_views is None else epoch % 3
        for row in rows[places]:
            image, example_id = examples.pixels[row], examples.example_ids[row]
            expected_images.append(view(image, example_id, index, strengths=spec))
            expected_labels.append(examples.targets.values[row])
    images, labels, weights = (np.concatenate(part) for part in zip(*batches, strict=True))
    np.testing.assert_array_equal(images, np.stack(expected_images))
    np.testing.assert_array_equal(labels, np.eye(3, dtype=np.float32)[expected_labels])
    # 27 examples in batches of 8: the last three weigh as much as eight.
    expected = np.tile(np.repeat(np.float32([1, 8 / 3]), [24, 3]), 4)
    np.testing.assert_array_equal(weights, expected)


def test_training_dataset_reads_stored_features_in_the_same_order(examples):
    rows = np.arange(4, 29)
    batches = read(training(examples, rows, Stored(), num_views=2))
    features, labels, _ = (np.concatenate(part) for part in zip(*batches, strict=True))
    assert features.dtype == (np.float16 if keras.backend.backend() == "jax" else np.float32)
    expected = [order(examples.targets.values[rows], epoch, num_views=2) for epoch in range(3)]
    np.testing.assert_array_equal(features[:, 0], np.concatenate([rows[p] for p, _ in expected]))
    np.testing.assert_array_equal(features[:, 1], np.concatenate([v for _, v in expected]))
    np.testing.assert_array_equal(features[:, 2:], np.tile([1, 2, 3], (75, 1)))
    np.testing.assert_array_equal(
        labels.argmax(1), examples.targets.values[np.int64(features[:, 0])]
    )


def test_views_read_the_same_whatever_is_read_with_them(examples):
    views = Views(examples, STRONG)
    rows, indices = np.repeat([4, 0, 17], 4), np.tile([0, 2, 1, 2**33], 3)
    together = views.read(rows, indices)
    assert together.dtype == np.uint8
    assert together.shape[1:] == views.shape == (12, 12, 3)
    for place, pixels in enumerate(together):
        alone = views.read(rows[place : place + 1], indices[place : place + 1])
        np.testing.assert_array_equal(alone[0], pixels)
    np.testing.assert_array_equal(together[::4], examples.pixels[[4, 0, 17]])
    assert len({pixels.tobytes() for pixels in together}) == 12


@pytest.mark.parametrize(("sampling", "num_views"), [("natural", None), ("balanced", 2)])
def test_training_dataset_goes_on_exactly_when_started_later(examples, sampling, num_views):
    changes = {"sampling": sampling, "num_views": num_views}
    whole = read(training(examples, np.arange(29), **changes))
    tail = read(training(examples, np.arange(29), epochs=range(2, 3), **changes))
    assert len(whole) == 3 * len(tail)
    for before, after in zip(whole[-len(tail) :], tail, strict=True):
        for expected, found in zip(before, after, strict=True):
            np.testing.assert_array_equal(found, expected)


def test_training_dataset_fills_the_last_batch_of_every_epoch_with_copies_that_weigh_nothing(
    examples,
):
    dataset = training(examples, np.arange(29))
    assert int(dataset.cardinality()) == 3 * steps_per_epoch(29, 8) == 12
    assert dataset.element_spec[0].shape.as_list() == [8, 12, 12, 3]
    for number, (images, _, weights) in enumerate(dataset.as_numpy_iterator()):
        expected = np.repeat(np.float32([8 / 5, 0]), [5, 3]) if number % 4 == 3 else np.ones(8)
        np.testing.assert_allclose(weights, expected, rtol=1e-6)
        if number % 4 == 3:
            np.testing.assert_array_equal(images[5:], images[:3])


def test_few_examples_make_a_batch_no_larger_than_the_devices_need(examples):
    for num_devices, size in ((1, 5), (2, 6), (4, 8)):
        batching = Batching(size=32, num_devices=num_devices)
        dataset = training(examples, np.arange(5), batching=batching, epochs=range(1))
        assert [len(images) for images, _, _ in dataset] == [size]


@pytest.mark.parametrize("num_hosts", [2, 4])
def test_hosts_together_read_what_one_host_reads(examples, num_hosts):
    def batches(**changes) -> list[tuple[np.ndarray, ...]]:
        batching = Batching(size=8, num_devices=4, **changes)
        training_batches = training(examples, np.arange(29), batching=batching)
        rows = np.arange(3, 22)
        plain = evaluation_dataset(
            examples, rows, Views(examples, STRONG), batching=batching, encode=TASK.encode
        )
        return [*training_batches.as_numpy_iterator(), *plain.as_numpy_iterator()]

    shares = [batches(host=host, num_hosts=num_hosts) for host in range(num_hosts)]
    for whole, *parts in zip(batches(), *shares, strict=True):
        for column, *of_hosts in zip(whole, *parts, strict=True):
            np.testing.assert_array_equal(np.concatenate(of_hosts), column)
            assert {len(part) for part in of_hosts} == {8 // num_hosts}


def test_weights_make_sums_over_filled_batches_means_over_examples(examples):
    batching = Batching(size=8)
    values = np.random.default_rng(0).random(29)
    for batch in training(examples, np.arange(29), batching=batching).as_numpy_iterator():
        assert batch[2].mean() == pytest.approx(1, rel=1e-6)
    rows = np.arange(29)
    plain = evaluation_dataset(
        examples, rows, Views(examples, STRONG), batching=batching, encode=TASK.encode
    )
    weights = np.concatenate([batch[2] for batch in plain.as_numpy_iterator()])
    assert (weights * values[batching.fill(rows).ravel()]).mean() == pytest.approx(values.mean())


def test_training_dataset_changes_order_but_no_view_when_the_seed_differs(examples):
    first, second = (
        np.concatenate([batch[0] for batch in read(training(examples, np.arange(29), seed=seed))])
        for seed in (0, 1)
    )
    assert not np.array_equal(first, second)
    seen = [sorted(image.tobytes() for image in images) for images in (first, second)]
    assert seen[0] == seen[1]


def test_training_dataset_shows_plain_images_when_views_are_off(examples):
    rows = np.arange(29)
    plain = Views(examples, ViewSpec(policy="none"))
    images = np.concatenate([batch[0] for batch in read(training(examples, rows, plain))])
    places = [order(examples.targets.values, epoch)[0] for epoch in range(3)]
    np.testing.assert_array_equal(images, examples.pixels[np.concatenate(places)])


def test_natural_order_is_a_permutation_that_changes_with_the_epoch():
    labels = np.zeros(50, np.int64)
    orders = [order(labels, epoch) for epoch in (0, 1)]
    for epoch, (places, view_indices) in enumerate(orders):
        np.testing.assert_array_equal(np.sort(places), np.arange(50))
        np.testing.assert_array_equal(view_indices, np.full(50, epoch + 1))
    assert (orders[0][0] != orders[1][0]).any()


def test_balanced_sampling_draws_classes_equally_and_never_repeats_a_view():
    labels = np.repeat([0, 1, 2], [70, 10, 3])
    shown = []
    for epoch in range(4):
        places, view_indices = order(labels, epoch, sampling="balanced")
        counts = np.bincount(labels[places], minlength=3)
        assert counts.sum() == 83
        assert counts.max() - counts.min() <= 1
        times = np.bincount(places, minlength=83)
        for number in range(3):
            of_class = times[labels == number]
            assert of_class.max() - of_class.min() <= 1
        shown += zip(places.tolist(), view_indices.tolist(), strict=True)
    assert len(set(shown)) == len(shown)
    assert (np.diff(labels[places]) != 0).sum() > 20


def test_epochs_go_round_the_views_that_there_are():
    labels = np.zeros(50, np.int64)
    for epoch in range(9):
        natural = order(labels, epoch)
        places, view_indices = order(labels, epoch, num_views=4)
        np.testing.assert_array_equal(places, natural[0])
        np.testing.assert_array_equal(view_indices, np.full(50, epoch % 4))


def test_balanced_sampling_goes_round_the_views_of_what_it_repeats():
    labels = np.repeat([0, 1, 2], [70, 10, 3])
    for epoch in range(5):
        places, view_indices = order(labels, epoch, sampling="balanced", num_views=4)
        np.testing.assert_array_equal(places, order(labels, epoch, sampling="balanced")[0])
        for place in np.unique(places):
            shown = view_indices[places == place]
            expected = (epoch + np.arange(len(shown))) % 4
            np.testing.assert_array_equal(np.sort(shown), np.sort(expected))


def test_balanced_sampling_reaches_the_batches(examples):
    batches = read(training(examples, np.arange(29), sampling="balanced", epochs=range(1)))
    counts = np.concatenate([labels for _, labels, _ in batches]).sum(axis=0)
    assert counts.sum() == 29
    assert counts.max() - counts.min() <= 1
    images = np.concatenate([images for images, _, _ in batches])
    assert len({image.tobytes() for image in images}) == 29


def test_class_weights_equal_those_of_scikit_learn(examples):
    rows = np.arange(1, 29)
    balanced = TrainingSpec(class_weights="balanced")
    weights = TASK.example_weights(examples.targets.values[rows], balanced)
    batches = read(training(examples, rows, example_weights=weights, epochs=range(1)))
    labels = np.concatenate([labels for _, labels, _ in batches]).argmax(axis=1)
    weights = np.concatenate([weights for _, _, weights in batches])
    expected = compute_class_weight(
        "balanced", classes=np.arange(3), y=examples.targets.values[rows]
    )
    expected = expected[labels] * np.repeat([1, 2], [24, 4])  # A last batch of four.
    np.testing.assert_allclose(weights, expected, rtol=1e-6)


def test_nothing_is_balanced_when_a_class_has_no_image(examples):
    rows = np.flatnonzero(examples.targets.values != 2)
    with pytest.raises(DataError, match=r"sampling=balanced needs images of every class") as raised:
        training(examples, rows, sampling="balanced")
    assert raised.value.received == "none of c"
    with pytest.raises(DataError, match="class_weights=balanced needs images of every class"):
        TASK.example_weights(examples.targets.values[rows], TrainingSpec(class_weights="balanced"))


def test_evaluation_dataset_gives_plain_images_in_order(examples):
    rows = np.array([5, 3, 28, 0, 11])
    dataset = evaluation_dataset(
        examples, rows, Views(examples, STRONG), batching=Batching(size=2), encode=TASK.encode
    )
    assert int(dataset.cardinality()) == 3
    images, labels, weights = (np.concatenate(part) for part in zip(*read(dataset), strict=True))
    assert images.dtype == (np.uint8 if keras.backend.backend() == "jax" else np.float32)
    np.testing.assert_allclose(weights, 6 / 5)
    np.testing.assert_array_equal(images, examples.pixels[rows])
    np.testing.assert_array_equal(labels.argmax(axis=1), examples.targets.values[rows])


def test_evaluation_dataset_reads_view_zero_of_stored_features(examples):
    dataset = evaluation_dataset(
        examples, np.array([5, 3, 28]), Stored(), batching=Batching(size=2), encode=TASK.encode
    )
    features = np.concatenate([batch for batch, _, _ in read(dataset)])
    np.testing.assert_array_equal(features, [[row, 0, 1, 2, 3] for row in (5, 3, 28)])


def test_datasets_refuse_an_empty_split(examples):
    none = np.array([], np.int64)
    for make in (
        training,
        lambda *of: evaluation_dataset(
            *of, Stored(), batching=Batching(size=2), encode=TASK.encode
        ),
    ):
        with pytest.raises(DataError, match="a split of the data is empty"):
            make(examples, none)


def _marked(inputs, encoded, weights, key):
    """The batch with its key where the inputs were."""
    return np.broadcast_to(np.float32(key), (len(inputs), 3)), encoded * 2, weights + 1


@pytest.mark.parametrize(("num_hosts", "num_parts"), [(1, 1), (2, 2)])
def test_every_batch_is_transformed_by_a_key_of_its_own(examples, num_hosts, num_parts):
    class Triples(Stored):
        shape = (3,)

    def batches(epochs: range, host: int = 0):
        batching = Batching(size=8, num_parts=num_parts, host=host, num_hosts=num_hosts)
        settings = {"batching": batching, "epochs": epochs, "transform": _marked}
        dataset = training(examples, np.arange(29), Triples(), **settings)
        assert dataset.element_spec[0].shape == (8 // num_hosts // num_parts, 3)
        return list(dataset.as_numpy_iterator())

    keys = [
        tuple(inputs[0].tolist())
        for host in range(num_hosts)
        for inputs, _, _ in batches(range(2), host)
    ]
    steps = 4 * num_hosts * num_parts
    assert sorted(keys) == [(3, epoch, step) for epoch in range(2) for step in range(steps)]
    alone, sequence = batches(range(1, 2)), batches(range(2))
    for expected, found in zip(sequence[-len(alone) :], alone, strict=True):
        for one, other in zip(expected, found, strict=True):
            np.testing.assert_array_equal(one, other)
    plain = training(
        examples,
        np.arange(29),
        epochs=range(1),
        batching=Batching(size=8, num_parts=num_parts, num_hosts=num_hosts),
    )
    for (_, encoded, weights), (_, before, unchanged) in zip(
        sequence, plain.as_numpy_iterator(), strict=False
    ):
        np.testing.assert_array_equal(encoded, before * 2)
        np.testing.assert_array_equal(weights, unchanged + 1)
