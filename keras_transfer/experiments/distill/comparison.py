"""Compares distilled students with their teacher and with one that learned from labels alone.

All are evaluated on the run's test split. The student without a teacher is trained by the same
spec, with the phases of distillation replaced by plain ones, for each of several seeds; so is a
smaller network.
"""

import functools
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from keras_transfer.config import override
from keras_transfer.data.records import counted
from keras_transfer.errors import SpecError
from keras_transfer.evaluation.intervals import Z95
from keras_transfer.evaluation.results import paired_gain
from keras_transfer.experiments.distill.robustness import Attack, find_attack, network_of
from keras_transfer.experiments.distill.settings import DISTILL, spec_alone
from keras_transfer.experiments.session import Session, open_session
from keras_transfer.experiments.speed import Speed, measure
from keras_transfer.experiments.trial_runner import TrialRunner
from keras_transfer.features.extraction import extract
from keras_transfer.features.source import Request
from keras_transfer.inference.prediction import LoadedRun, load_run
from keras_transfer.methods.distillation.soft_targets import mean_logits
from keras_transfer.methods.distillation.teacher import Teacher, load_teacher
from keras_transfer.models.activations import activate
from keras_transfer.models.classifier import Classifier
from keras_transfer.models.cuts import Cut
from keras_transfer.reporting.reporter import Reporter, SilentReporter
from keras_transfer.specs import RunSpec
from keras_transfer.storage.model_files import find_file, teachers_of, title
from keras_transfer.tasks.task import Task


@dataclass(frozen=True, eq=False)
class Contender:
    """One network of the comparison, with its outputs [N, K] on the test split of every seed.

    `attacked` are those [M, K] for its attacked images, none where they were not computed.
    """

    name: str
    outputs: tuple[np.ndarray, ...]
    num_parameters: int
    num_bytes: int
    speed: Speed
    attacked: tuple[np.ndarray, ...] = ()


@dataclass(frozen=True, eq=False)
class Comparison:
    """The teacher, the students and others; `values` are those of the test split.

    `contenders` are in the order of a table: the teacher, the generations of distilled students,
    the student alone and, if there is one, a smaller network alone. `gain` is the mean over seeds
    of the difference in the task's score between the last distilled student and the one alone, and
    `gain_error` its standard error: that of the images and that of the seeds together. `attack` is
    that on all of them, where the student learned from attacked images.
    """

    run: LoadedRun
    task: Task
    values: np.ndarray
    contenders: tuple[Contender, ...]
    seeds: tuple[int, ...]
    gain: float
    gain_error: float
    attack: Attack | None

    @property
    def teacher(self) -> Contender:
        """The first one."""
        return self.contenders[0]

    @property
    def pays(self) -> bool:
        """Whether the gain is above its 95 % interval."""
        return self.gain > Z95 * self.gain_error


def compare(
    run_paths: Sequence[Path],
    *,
    num_seeds: int,
    smaller: RunSpec | None = None,
    reporter: Reporter,
) -> Comparison:
    """Train the students of all seeds, and evaluate them and the teacher of finished runs.

    Args:
        run_paths: of generations, each of which has learned from the one before.
        smaller: the spec of a smaller network, from `settings.spec_smaller`.

    Raises:
        RunError: there is no finished run.
        SpecError: none of its phases distils.
        DataError, WeightsError: images or the teacher have changed since the run.
    """
    runs = [load_run(path) for path in run_paths]
    run, paths = runs[-1], _teachers_of(runs[0].spec)
    with open_session(run.spec, reporter=SilentReporter(), run=run.folder) as session:
        images = run.spec.data
        teachers = [load_teacher(path, images.image_size, images.channels) for path in paths]
        data, spec = session.data, session.spec
        values = data.examples.targets.values[data.splits.test]
        seeds = tuple(range(spec.seed, spec.seed + num_seeds))
        words = counted(num_seeds, "seed", "seeds")
        reporter.info(f"Comparing with the student alone, over {words} from {seeds[0]} on …")
        attack = find_attack(spec, session.task, values)
        runner = TrialRunner(session, [data.splits])
        train = functools.partial(_train, runner, seeds=seeds, attack=attack)
        with reporter.progress("training the students"):
            distilled = [train(one) for one in (*(each.spec for each in runs[:-1]), spec)]
            alone = train(spec_alone(spec))
            least = [train(smaller)] if smaller else []
        with reporter.progress("timing teacher and student"):
            answers = [_of_teachers(session, teachers, attack), *distilled, alone, *least]
            networks = [_sized(teachers, paths), _sized_run(run), *map(_sized_alone, least)]
            speeds = measure([one.cuts for one in networks])
    shutil.rmtree(run.folder.checkpoint_folder)
    # All students have the same layers.
    places = [0, *[1] * (len(runs) + 1), *[2] * len(least)]
    names = _names(len(runs), smaller)
    gain, error = _gain(run.task, values, alone.outputs, distilled[-1].outputs)
    return Comparison(
        run=run,
        task=run.task,
        values=values,
        contenders=tuple(
            _contender(name, one, networks[place], speeds[place])
            for name, one, place in zip(names, answers, places, strict=True)
        ),
        seeds=seeds,
        gain=gain,
        gain_error=error,
        attack=attack,
    )


@dataclass(frozen=True, eq=False)
class _Answers:
    """The outputs of a network, see `Contender`, and the trained one, of the last seed."""

    outputs: tuple[np.ndarray, ...]
    attacked: tuple[np.ndarray, ...]
    classifier: Classifier | None = None


class _Sized(NamedTuple):
    """What is timed, one part after another, and its size."""

    cuts: list[Cut]
    num_parameters: int
    num_bytes: int


def _contender(name: str, answers: _Answers, network: _Sized, speed: Speed) -> Contender:
    return Contender(
        name=name,
        outputs=answers.outputs,
        num_parameters=network.num_parameters,
        num_bytes=network.num_bytes,
        speed=speed,
        attacked=answers.attacked,
    )


def _names(num_students: int, smaller: RunSpec | None) -> list[str]:
    numbered = [f"generation {number}" for number in range(1, num_students + 1)]
    least = [f"{title(smaller.model.backbone)} alone"] if smaller else []
    return ["teacher", *(numbered if num_students > 1 else ["distilled"]), "alone", *least]


def _sized(teachers: Sequence[Teacher], paths: Sequence[str]) -> _Sized:
    """All teachers together."""
    cuts = [one.cut for one in teachers]
    num_parameters = sum(cut.model.count_params() for cut in cuts)
    return _Sized(cuts, num_parameters, sum(find_file(path).stat().st_size for path in paths))


def _sized_run(run: LoadedRun) -> _Sized:
    cut = Cut(run.model, run.model.output, "student")
    return _Sized([cut], run.model.count_params(), run.folder.model_file.stat().st_size)


def _sized_alone(answers: _Answers) -> _Sized:
    """A network that no run keeps."""
    classifier = answers.classifier
    assert classifier
    cut = Cut(classifier.model, classifier.model.output, "student")
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "model.keras")
        classifier.save(file)
        return _Sized([cut], classifier.model.count_params(), file.stat().st_size)


def _teachers_of(spec: RunSpec) -> tuple[str, ...]:
    """The teachers of the last phase that distils; SpecError if there is none."""
    found = [phase.method_options for phase in spec.phases if phase.method == DISTILL]
    if not found:
        raise SpecError(
            "the run was not distilled",
            expected=f"a phase by method {DISTILL!r}",
            received=", ".join(phase.method for phase in spec.phases),
            fix="train it with `python -m pipelines.distill TEACHER IMAGES`",
        )
    return tuple(teachers_of(found[-1]))


def _train(
    runner: TrialRunner, spec: RunSpec, *, seeds: Sequence[int], attack: Attack | None
) -> _Answers:
    """Answers on the test split after training with each seed."""
    data, outputs, attacked = runner.session.data, [], []
    classifiers: list[Classifier] = []

    def observe(classifier: Classifier) -> None:
        classifiers.append(classifier)
        if attack:
            network = functools.partial(classifier.model, training=False)
            pixels = data.examples.pixels[data.splits.test[attack.places]]
            attacked.append(attack.outputs(network, pixels))

    for seed in seeds:
        result = runner.train(
            override(spec, {"seed": seed}), reporter=SilentReporter(), predict=True, observe=observe
        )
        assert result.outputs is not None
        outputs.append(result.outputs)
    return _Answers(tuple(outputs), tuple(attacked), classifiers[-1])


def _of_teachers(session: Session, teachers: Sequence[Teacher], attack: Attack | None) -> _Answers:
    """Answers of the teachers together; attacked are they where all read images of one size."""
    outputs, sizes = _teacher_outputs(session, teachers), {one.image_size for one in teachers}
    if not attack or len(sizes) > 1:
        return _Answers((outputs,), ())
    rows = session.data.splits.test[attack.places]
    pixels = session.source_of(*sizes).examples.pixels[rows]
    return _Answers((outputs,), (attack.outputs(network_of(teachers), pixels),))


def _teacher_outputs(session: Session, teachers: Sequence[Teacher]) -> np.ndarray:
    """Mean outputs of the teachers on the test split, float32 [N, K]."""
    rows = session.data.splits.test
    pairs = np.stack([rows, np.zeros_like(rows)], axis=1)
    each = []
    for teacher in teachers:
        (features,), _ = extract(
            [Request(teacher.cut, pairs)],
            session.source_of(teacher.image_size),
            cache_spec=session.spec.cache,
            cache=session.cache,
            reporter=SilentReporter(),
        )
        each.append(teacher.logits(features.read(rows, np.zeros_like(rows))))
    activation = session.task.activation
    return activate(mean_logits(each, 1.0, activation), activation)


def _gain(
    task: Task, values: np.ndarray, alone: Sequence[np.ndarray], distilled: Sequence[np.ndarray]
) -> tuple[float, float]:
    """Mean difference of scores over seeds and images, and its standard error."""
    scores: list[Any] = [
        np.stack([task.example_scores(values, outputs) for outputs in of_seeds])
        for of_seeds in (alone, distilled)
    ]
    by_image = paired_gain(scores[0].mean(axis=0), scores[1].mean(axis=0))
    by_seed = (scores[1] - scores[0]).mean(axis=1)
    of_seeds = by_seed.std(ddof=1) / np.sqrt(len(by_seed)) if len(by_seed) > 1 else 0.0
    return by_image.difference, float(np.hypot(by_image.standard_error, of_seeds))
