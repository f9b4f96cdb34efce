"""Label efficiency: accuracy by number of labels, for suggested and for random images."""

import numpy as np

from keras_transfer.experiments.session import open_session
from keras_transfer.experiments.suggestion import UNCERTAINTIES, choose
from keras_transfer.models.activations import activate
from keras_transfer.reporting.reporter import Reporter
from keras_transfer.specs import RunSpec
from keras_transfer.tasks.linear_head import HeadFeatures, solve_softmax
from pipelines.benchmarks.probe import pooled_features

_TEST_SHARE = 0.25


def measure_curves(
    spec: RunSpec, *, first: int, count: int, rounds: int, num_seeds: int, reporter: Reporter
) -> tuple[np.ndarray, np.ndarray]:
    """Numbers of labels int [R + 1], and test accuracies of random and suggested images.

    A quarter of the images is the test set. Of the others, `first` of each class are labelled. In
    each of R rounds a head is solved on the labelled ones, and `count` more are labelled. Labels
    are those of the source; nothing else is trained.

    Returns:
        the numbers, and accuracies [seeds, 2, R + 1].

    Raises:
        DataError, SpecError, WeightsError: as in a run.
    """
    with open_session(spec, reporter=reporter) as session:
        records, pixels, _ = session.read_images()
        features = pooled_features(spec, session.task, pixels)
    labels = np.asarray(records.targets.values)
    settings = first, count, rounds
    found = [curves(features, labels, settings, seed) for seed in range(num_seeds)]
    return first * (labels.max() + 1) + count * np.arange(rounds + 1), np.array(found)


def curves(
    features: np.ndarray, labels: np.ndarray, settings: tuple[int, int, int], seed: int
) -> list[list[float]]:
    """Test accuracies after each round, of random and of suggested images."""
    first, count, rounds = settings
    order = np.random.default_rng(seed).permutation(len(labels))
    num_test = int(_TEST_SHARE * len(labels))
    test, pool = order[:num_test], order[num_test:]
    start = np.concatenate([pool[labels[pool] == k][:first] for k in np.unique(labels)])
    both = []
    for suggests in (False, True):
        labelled, curve = start, []
        for number in range(rounds + 1):
            outputs = _outputs(features, labels, labelled)
            curve.append(float(np.mean(outputs[test].argmax(axis=1) == labels[test])))
            rest = np.setdiff1d(pool, labelled)
            if suggests:
                doubts = UNCERTAINTIES["softmax"](outputs[rest])
                chosen = choose(features[rest], doubts, count, seed=seed)
            else:
                chosen = np.random.default_rng([seed, number]).permutation(len(rest))[:count]
            labelled = np.concatenate([labelled, rest[chosen]])
        both.append(curve)
    return both


def _outputs(features: np.ndarray, labels: np.ndarray, labelled: np.ndarray) -> np.ndarray:
    """Probabilities [N, K] of all images by a head that is solved on some."""
    own = features[labelled]
    read = HeadFeatures(lambda rows, _: own[rows], len(own), 1, own.shape[1])
    targets = np.eye(labels.max() + 1)[labels[labelled]]
    head = solve_softmax(read, targets, np.ones(len(own)))
    return activate(features @ head.kernel + head.bias, "softmax")
