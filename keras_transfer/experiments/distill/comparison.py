"""Compares distilled students with their teacher and with one that learned from labels alone.

All are evaluated on the run's test split. The student without a teacher is trained by the same
spec, with the phases of distillation replaced by plain ones, for each of several seeds.
"""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from keras_transfer.config import override
from keras_transfer.data.records import counted
from keras_transfer.errors import SpecError
from keras_transfer.evaluation.intervals import Z95
from keras_transfer.evaluation.results import paired_gain
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
from keras_transfer.models.cuts import Cut
from keras_transfer.reporting.reporter import Reporter, SilentReporter
from keras_transfer.specs import RunSpec
from keras_transfer.storage.model_files import find_file, teachers_of
from keras_transfer.tasks.task import Task


@dataclass(frozen=True, eq=False)
class Contender:
    """One network of the comparison, with its outputs [N, K] on the test split of every seed."""

    name: str
    outputs: tuple[np.ndarray, ...]
    num_parameters: int
    num_bytes: int
    speed: Speed


@dataclass(frozen=True, eq=False)
class Comparison:
    """The teacher, the distilled student and the one alone; `values` are those of the test split.

    `earlier` are the generations of students before the distilled one, if there are any.
    `gain` is the mean over seeds of the difference in the task's score between both students, and
    `gain_error` its standard error: that of the images and that of the seeds together.
    """

    run: LoadedRun
    task: Task
    values: np.ndarray
    teacher: Contender
    distilled: Contender
    alone: Contender
    seeds: tuple[int, ...]
    gain: float
    gain_error: float
    earlier: tuple[Contender, ...] = ()

    @property
    def contenders(self) -> tuple[Contender, ...]:
        """In the order of a table."""
        return self.teacher, *self.earlier, self.distilled, self.alone

    @property
    def pays(self) -> bool:
        """Whether the gain is above its 95 % interval."""
        return self.gain > Z95 * self.gain_error


def compare(run_paths: Sequence[Path], *, num_seeds: int, reporter: Reporter) -> Comparison:
    """Train the students of all seeds, and evaluate them and the teacher of finished runs.

    Args:
        run_paths: of generations, each of which has learned from the one before.

    Raises:
        RunError: there is no finished run.
        SpecError: none of its phases distils.
        DataError, WeightsError: images or the teacher have changed since the run.
    """
    *earlier, run = map(load_run, run_paths)
    paths = _teachers_of((*earlier, run)[0].spec)
    with open_session(run.spec, reporter=SilentReporter(), run=run.folder) as session:
        teachers = [load_teacher(path, run.spec.data.image_size) for path in paths]
        data, spec = session.data, session.spec
        values = data.examples.targets.values[data.splits.test]
        seeds = tuple(range(spec.seed, spec.seed + num_seeds))
        words = counted(num_seeds, "seed", "seeds")
        reporter.info(f"Comparing with the student alone, over {words} from {seeds[0]} on …")
        runner = TrialRunner(session, [data.splits])
        taught_by = [_outputs(runner, one.spec, seeds) for one in earlier]
        distilled = _outputs(runner, spec, seeds)
        alone = _outputs(runner, spec_alone(spec), seeds)
        taught = _teacher_outputs(session, teachers)
        cuts = [[one.cut for one in teachers], [Cut(run.model, run.model.output, "student")]]
        speeds = measure(cuts)
    shutil.rmtree(run.folder.checkpoint_folder)
    size = run.folder.model_file.stat().st_size
    student = run.model.count_params(), size, speeds[1]
    gain, error = _gain(run.task, values, alone, distilled)
    *names, name = [f"generation {number}" for number in range(1, len(run_paths) + 1)]
    return Comparison(
        run=run,
        task=run.task,
        values=values,
        teacher=Contender("teacher", (taught,), *_sizes(teachers, paths), speeds[0]),
        earlier=tuple(
            Contender(one, outputs, *student) for one, outputs in zip(names, taught_by, strict=True)
        ),
        distilled=Contender(name if earlier else "distilled", distilled, *student),
        alone=Contender("alone", alone, *student),
        seeds=seeds,
        gain=gain,
        gain_error=error,
    )


def _sizes(teachers: Sequence[Teacher], paths: Sequence[str]) -> tuple[int, int]:
    """Parameters and bytes of all teachers together."""
    parameters = sum(one.cut.model.count_params() for one in teachers)
    return parameters, sum(find_file(path).stat().st_size for path in paths)


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


def _outputs(runner: TrialRunner, spec: RunSpec, seeds: Sequence[int]) -> tuple[np.ndarray, ...]:
    """Outputs on the test split after training with each seed, float32 [N, K]."""
    silent = SilentReporter()
    found = []
    for seed in seeds:
        result = runner.train(override(spec, {"seed": seed}), reporter=silent, predict=True)
        assert result.outputs is not None
        found.append(result.outputs)
    return tuple(found)


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
