"""A race on the user's images: the plain Keras recipe against this package.

    splits and limits → for every seed: plain recipe and package, in alternating order → timings

Every training runs in its own process, one at a time, on the same splits, with the same trunk, head
and stages to unfreeze. This package trains as in a run: where it solves the head, the plain recipe
trains it (`contestants.plain_spec`). Stages are wall seconds of everything except imports.
"""

import contextlib
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from keras_transfer.config import check_single_training, override, spec_to_dict
from keras_transfer.devices.subprocess_call import call_in_subprocess
from keras_transfer.errors import SpecError
from keras_transfer.reporting.reporter import Reporter
from keras_transfer.specs import COLOURS, RunSpec
from pipelines.benchmarks.race.contestants import CONTESTANTS, Contestant, Runner, plain_spec
from pipelines.benchmarks.race.plain_recipe import left_out
from pipelines.benchmarks.race.runners import run_ours, run_plain, survey
from pipelines.benchmarks.race.timings import OURS, PLAIN, STAGES, TOTAL, Limits, Timing


@dataclass(frozen=True)
class Race:
    """All timings in the order of the trainings, and the limits of the machine.

    `num_images` is by split and the same for every seed.
    """

    spec: RunSpec
    num_images: dict[str, int]
    timings: tuple[Timing, ...]
    limits: Limits


def race(
    spec: RunSpec, *, num_seeds: int, also: Sequence[str], folder: Path, reporter: Reporter
) -> Race:
    """Train every contestant once for each of the seeds spec.seed, spec.seed + 1 …

    Args:
        also: names in `CONTESTANTS` that are trained as well.
        folder: an existing one for temporary files and the log of the processes.

    Raises:
        SpecError: the plain recipe does not support a setting of the spec.
        DataError, WeightsError: as in a run.
        RunError: a process crashed.
    """
    spec = _raceable(spec)
    missing = left_out(spec.views)
    if missing:
        reporter.info(f"The plain recipe trains without {', '.join(missing)}.")
    log = folder / "run.log"
    with _scratch(folder) as scratch:
        given = {"spec": spec_to_dict(spec), "scratch": scratch}
        reporter.info("Every image is checked once, and the splits of every seed are linked.")
        found = call_in_subprocess(
            survey, title="the preparation of the race", log=log, num_seeds=num_seeds, **given
        )
        runs = _plan_runs(spec, num_seeds=num_seeds, also=also)
        timings: list[Timing] = []
        with reporter.progress("trainings") as count:
            for name, function, run_spec in runs:
                count(len(timings), len(runs))
                given["spec"] = spec_to_dict(run_spec)
                title = f"{name}, seed {run_spec.seed},"
                timing = Timing(
                    **call_in_subprocess(function, title=title, log=log, name=name, **given)
                )
                reporter.info(
                    f"{title} took {timing.seconds:.1f} s: {100 * timing.accuracy:.1f} %."
                )
                timings.append(timing)
    return Race(spec, found["num_images"], tuple(timings), Limits(**found["limits"]))


@contextlib.contextmanager
def _scratch(folder: Path) -> Iterator[str]:
    """A folder for links and empty caches, without the files of an interrupted race."""
    scratch = folder / "scratch"
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir()
    try:
        yield str(scratch)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _raceable(spec: RunSpec) -> RunSpec:
    names = {phase.name for phase in spec.phases} & {*STAGES, TOTAL}
    if names:
        raise SpecError(
            "a phase has the name of a stage of the race",
            expected=f"any name except {', '.join((*STAGES, TOTAL))}",
            received=", ".join(sorted(names)),
            fix="set phases.N.name",
        )
    check_single_training(
        spec,
        "a study of several trainings cannot be raced",
        fix="leave these fields out",
        hint="; --seeds is the number of runs of each",
    )
    if spec.data.channels != COLOURS:
        raise SpecError(
            "the plain recipe reads images in red, green and blue",
            expected="data.channels=3",
            received=f"data.channels={spec.data.channels}",
            fix="leave out data.channels",
        )
    if spec.training.sampling != "natural":
        raise SpecError(
            "the plain recipe cannot sample classes equally often",
            expected="training.sampling=natural",
            received=spec.training.sampling,
            fix="set training.sampling=natural, and training.class_weights=balanced if needed",
        )
    patience = {f"phases.{number}.patience_epochs": 0 for number in range(len(spec.phases))}
    return override(spec, patience)


def _plan_runs(
    spec: RunSpec, *, num_seeds: int, also: Sequence[str]
) -> list[tuple[str, Runner, RunSpec]]:
    """Name, function and spec of every training, in alternating order so that a slow machine
    affects all."""
    contestants = {
        PLAIN: Contestant(run_plain, plain_spec),
        OURS: Contestant(run_ours, lambda spec: spec),
        **{name: CONTESTANTS[name] for name in also},
    }
    runs = []
    for number in range(num_seeds):
        seeded = override(spec, {"seed": spec.seed + number})
        round_ = [(name, one.run, one.spec_of(seeded)) for name, one in contestants.items()]
        runs += round_ if number % 2 == 0 else round_[::-1]
    return runs
