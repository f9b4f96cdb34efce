"""What pretraining is worth on a target: linear probes on the same trunk with different weights.

The weights are those of the spec, of self-supervised pretrainings, of runs on other images, which
are supervised pretrainings, and of archives. A draw of labelled images is the same for all of
them, so that differences are paired.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from keras_transfer.backbones.archives import read_record
from keras_transfer.errors import DataError, SpecError
from keras_transfer.experiments.self_supervision import IMAGES_FILE
from keras_transfer.experiments.session import open_session
from keras_transfer.reporting.numbers import percent, three_digits
from keras_transfer.reporting.reporter import Reporter
from keras_transfer.specs import ModelSpec, RunSpec
from keras_transfer.storage.model_files import names_file, resolve_model, title
from keras_transfer.storage.run_folder import RunFolder
from pipelines.benchmarks.probe import draw_labelled, pooled_features, score
from pipelines.benchmarks.race.timings import estimate


@dataclass(frozen=True)
class Weights:
    """Weights of a trunk, and where they come from.

    `source` is the figure of the task that they were trained on, '' for those of the spec, and
    `seconds` the time of that training. `seen` are digests of the images that were used.
    """

    name: str
    model: ModelSpec
    source: str = ""
    seconds: float | None = None
    seen: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Transfer:
    """Accuracies on the target with some weights, by number of labels one per draw."""

    weights: Weights
    accuracies: dict[int, tuple[float, ...]]


def read_weights(path: str, base: ModelSpec) -> Weights:
    """The weights of a pretraining's folder, a run's folder or an archive, for the base's trunk.

    Raises:
        SpecError: the path is none of these, or has another trunk.
        RunError, WeightsError: its files cannot be read, or were changed.
    """
    folder, name = Path(path), title(path.rstrip("/"))
    if folder.suffix == ".npz" and folder.is_file():
        record = read_record(folder)
        source = f"{record['source_task']}\naccuracy {record['source_accuracy']:.3f}"
        return Weights(name, replace(base, weights=path), source, record["seconds"])
    if not (folder / "model.keras").is_file():
        raise SpecError(
            f"there are no pretrained weights in {path}",
            expected="the folder of a finished pretraining or run, or an archive .npz",
            received="a folder without model.keras" if folder.is_dir() else "no such folder",
            fix="correct the path, or finish the pretraining with --resume",
        )
    # A path with a separator, because a name without one is that of a backbone.
    plain = ModelSpec(backbone=str(folder.absolute()), pooling=base.pooling, head=base.head)
    model = resolve_model(plain)
    _check_same_trunk(path, model, resolve_model(base))
    return _of_folder(RunFolder(folder), name, model)


def _check_same_trunk(path: str, model: ModelSpec, base: ModelSpec) -> None:
    """Raise SpecError if the trunks differ; those of model files cannot be compared by name."""
    own, other = ((one.backbone, one.last_stage) for one in (model, base))
    if own != other and not (names_file(own[0]) or names_file(other[0])):
        raise SpecError(
            f"{path} has another backbone, so that a gain would not be that of the pretraining",
            expected=f"model.backbone={other[0]} model.last_stage={other[1]}",
            received=f"model.backbone={own[0]} model.last_stage={own[1]}",
            fix="set these fields to those of the pretraining",
        )


def _of_folder(run: RunFolder, name: str, model: ModelSpec) -> Weights:
    if run.pretraining_file.is_file():
        report = run.read_json(run.pretraining_file.name)
        images = run.read_json(IMAGES_FILE)
        figures = ", ".join(f"{key} {value:.3f}" for key, value in report["figures"].items())
        seen = frozenset((*images["trained"], *images["measured"]))
        return Weights(name, model, f"{report['kind']}\n{figures}", report["seconds"], seen)
    metrics, splits = run.read_json("metrics.json"), run.read_json("splits.json")
    metric, value = next((k, v) for k, v in metrics["test"].items() if isinstance(v, float))
    seconds = sum(phase["seconds"] for phase in metrics["phases"])
    seen = frozenset(entry["digest"] for rows in splits["rows"].values() for entry in rows)
    source = f"run\n{metric.replace('_', ' ')} {value:.3f}"
    return Weights(name, model, source, seconds, seen)


def measure_transfer(
    spec: RunSpec,
    paths: Sequence[str],
    label_counts: Sequence[int],
    *,
    num_draws: int,
    reporter: Reporter,
) -> list[Transfer]:
    """Accuracies of logistic regressions on pooled features, first with the spec's own weights.

    They are evaluated on the images that no pretraining has seen and that are not labelled.

    Args:
        spec: the target's, whose head, phases and views are not used.
        paths: as of `read_weights`.

    Raises:
        DataError: there is no image that no pretraining has seen; or as in a run.
        SpecError, WeightsError: as of `read_weights`, or as in a run.
    """
    own = Weights(title(spec.model.weights), spec.model)
    every = [own, *(read_weights(path, spec.model) for path in paths)]
    with open_session(spec, reporter=reporter) as session:
        records, pixels, _ = session.read_images()
        labels = np.asarray(records.targets.values)
        seen = frozenset().union(*(one.seen for one in every))
        is_new = np.array([item.digest not in seen for item in records.items])
        _check_new(is_new)
        reporter.info(
            f"{is_new.sum():,} of {len(labels):,} images were not seen by any pretraining: the "
            "accuracy is that of those among them that are not labelled."
        )
        result = []
        for one in every:
            found = pooled_features(replace(spec, model=one.model), session.task, pixels)
            accuracies = {
                count: tuple(
                    _accuracy(found, labels, is_new, count, seed) for seed in range(num_draws)
                )
                for count in label_counts
            }
            result.append(Transfer(one, accuracies))
            reporter.info(f"{one.name} is done.")
    return result


def _check_new(is_new: np.ndarray) -> None:
    if not is_new.any():
        raise DataError(
            "every image of the target was seen in a pretraining",
            expected="some that were not, to evaluate on",
            received=f"{len(is_new):,} that were",
            fix="pretrain with a larger data.test_fraction, such as 0.5",
        )


def _accuracy(
    features: np.ndarray, labels: np.ndarray, is_new: np.ndarray, count: int, seed: int
) -> float:
    train, others = draw_labelled(labels, count, seed)
    return score(features, labels, train, others[is_new[others]])


def tabulate(found: Sequence[Transfer]) -> tuple[list[str], list[list[str]]]:
    """Header and rows: accuracy and paired gain over the first weights, with 95 % intervals."""
    counts = list(found[0].accuracies)
    header = ["weights", "source task", "time"]
    header += [text for count in counts for text in (f"{count} labels", "gain")]
    return header, [_row(one, found[0], counts) for one in found]


def _row(one: Transfer, first: Transfer, counts: Sequence[int]) -> list[str]:
    weights = one.weights
    seconds = "" if weights.seconds is None else f"{three_digits(weights.seconds)} s"
    cells: list[str] = [weights.name, weights.source, seconds]
    for count in counts:
        cells.append(_with_interval(one.accuracies[count]))
        pairs = zip(one.accuracies[count], first.accuracies[count], strict=True)
        gains = [after - before for after, before in pairs]
        cells.append("" if one is first else _with_interval(gains, signed=True))
    return cells


def _with_interval(values: Sequence[float], *, signed: bool = False) -> str:
    found: Any = estimate(values)
    text = percent(found.mean, signed=signed)
    if found.interval is None:
        return text
    return f"{text} ± {percent(found.interval[1] - found.mean)}"
