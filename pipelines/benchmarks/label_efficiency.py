"""Label efficiency: accuracy by number of labels, for suggested and for random images.

    python -m pipelines.benchmarks.label_efficiency quickstart
    python -m pipelines.benchmarks.label_efficiency my_photos --first 4 --count 20 --rounds 9

A quarter of the images is the test set. From the others, a few of each class are labelled first.
In each round a head is solved on the labelled ones, and `--count` more are labelled: those that
`suggest` would choose, or random ones. Labels are those of the source; nothing else is trained.
"""

import sys
from collections.abc import Sequence

import numpy as np

from keras_transfer.devices import native_log_to
from pipelines.arguments import (
    add_spec_arguments,
    main_of,
    make_parser,
    positive,
    read_spec,
    scratch_log,
)

_TEST_SHARE = 0.25


def _run(argv: Sequence[str] | None) -> None:
    parser = make_parser("benchmarks.label_efficiency", str(__doc__))
    add_spec_arguments(parser)
    parser.add_argument("--first", type=positive, default=4, help="labels of each class at first")
    parser.add_argument("--count", type=positive, default=20, help="labels of each round")
    parser.add_argument("--rounds", type=positive, default=9, help="how many rounds")
    parser.add_argument("--seeds", type=positive, default=5, help="how many draws")
    arguments = parser.parse_intermixed_args(argv)
    spec = read_spec(arguments)
    with native_log_to(scratch_log()):
        from keras_transfer.experiments.session import open_session
        from keras_transfer.reporting.reporter import TerminalReporter
        from pipelines.benchmarks.probe import pooled_features

        terminal = TerminalReporter()
        with open_session(spec, reporter=terminal) as session:
            records, pixels, _ = session.read_images()
            features = pooled_features(spec, session.task, pixels)
        labels = np.asarray(records.targets.values)
        settings = arguments.first, arguments.count, arguments.rounds
        seeds = range(arguments.seeds)
        found = np.array([curves(features, labels, settings, seed) for seed in seeds])
    numbers = arguments.first * (labels.max() + 1) + arguments.count * np.arange(found.shape[-1])
    rows = [
        [name, *(f"{100 * value:.1f}" for value in found[:, index].mean(axis=0))]
        for index, name in enumerate(("random", "suggested"))
    ]
    gains = 100 * (found[:, 1] - found[:, 0])[:, 1:].mean(axis=1)
    error = gains.std(ddof=1) / len(gains) ** 0.5 if len(gains) > 1 else np.nan
    terminal.table(
        "Accuracy by number of labels, %",
        ["labels", *map(str, numbers)],
        rows,
        caption=f"means over {len(found)} draws; suggested images gain {gains.mean():+.1f} ± "
        f"{error:.1f} points (standard error, paired by draw, mean of all rounds)",
    )


def curves(
    features: np.ndarray, labels: np.ndarray, settings: tuple[int, int, int], seed: int
) -> list[list[float]]:
    """Test accuracies after each round, of random and of suggested images."""
    from keras_transfer.experiments.suggestion import UNCERTAINTIES, choose

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
    from keras_transfer.models.activations import activate
    from keras_transfer.tasks.linear_head import HeadFeatures, solve_softmax

    own = features[labelled]
    read = HeadFeatures(lambda rows, _: own[rows], len(own), 1, own.shape[1])
    targets = np.eye(labels.max() + 1)[labels[labelled]]
    head = solve_softmax(read, targets, np.ones(len(own)))
    return activate(features @ head.kernel + head.bias, "softmax")


main = main_of(_run)

if __name__ == "__main__":
    sys.exit(main())
