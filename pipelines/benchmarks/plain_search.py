"""A search without this package: one plain training, and KerasTuner with plain trainings.

A plain training decodes, augments and runs the frozen trunk in every epoch of every trial, so that
a search of n trials takes n times as long. A few trials are enough to measure that.
"""

import tempfile
import time
from pathlib import Path
from typing import Any

import keras
import keras_tuner

from keras_transfer.config import override, spec_from_dict, spec_to_dict
from keras_transfer.devices import set_up
from keras_transfer.devices.subprocess_call import call_in_subprocess
from keras_transfer.experiments.tune.space import declare, values_of
from keras_transfer.reporting.reporter import Reporter
from keras_transfer.specs import RunSpec
from keras_transfer.storage.run_folder import RunFolder
from pipelines.benchmarks.race.plain_recipe import PlainRecipe, build_plain, fit_plain, read_split
from pipelines.benchmarks.race.runners import lay_out, run_plain, splits_folder


def measure_plain(
    spec: RunSpec, run: RunFolder, *, num_trials: int, reporter: Reporter
) -> dict[str, Any]:
    """Time one plain training of the spec, then some trials of a stock random search over it.

    Each runs in its own process; import time is not counted. The recipe has no early stopping.

    Returns:
        `run_seconds` of the training, `trial_seconds` of each trial.

    Raises:
        DataError, WeightsError: as in a run.
        RunError: a process crashed.
    """
    with tempfile.TemporaryDirectory(dir=run.path) as scratch:
        given: dict[str, Any] = {"spec": spec_to_dict(spec), "scratch": scratch}
        log = run.log_file
        reporter.info("One plain training of the spec, in its own process.")
        call_in_subprocess(lay_out_splits, title="laying out the splits", log=log, **given)
        timing = call_in_subprocess(
            run_plain, title="the plain training", log=log, name="plain", **given
        )
        run_seconds = sum(timing["stages"].values())
        reporter.info(f"It took {run_seconds:.0f} s. {num_trials} trials of a plain search.")
        trial_seconds = call_in_subprocess(
            search_plainly, title="the plain search", log=log, num_trials=num_trials, **given
        )
    return {"run_seconds": run_seconds, "trial_seconds": trial_seconds}


def lay_out_splits(spec: dict[str, Any], scratch: str) -> None:
    """Link the splits' images into folders, the input of the plain recipe."""
    lay_out(spec_from_dict(spec), scratch, 1)


def search_plainly(spec: dict[str, Any], scratch: str, num_trials: int) -> list[float]:
    """Seconds of every trial of KerasTuner's random search around the plain recipe."""
    hypermodel = _PlainHyperModel(spec_from_dict(spec), scratch)
    tuner = keras_tuner.RandomSearch(
        hypermodel,
        objective="val_accuracy",
        max_trials=num_trials,
        seed=1,
        directory=str(Path(scratch) / "plain-search"),
        max_consecutive_failed_trials=1,
    )
    tuner.search(verbose=0)
    return hypermodel.seconds


class _PlainHyperModel(keras_tuner.HyperModel):
    """A KerasTuner model of the plain recipe."""

    def __init__(self, spec: RunSpec, scratch: str):
        super().__init__()
        self._spec, self._folder = spec, splits_folder(scratch, spec.seed)
        self._built: tuple[RunSpec, PlainRecipe] | None = None
        self.seconds: list[float] = []

    def build(self, hp: keras_tuner.HyperParameters) -> keras.Model:
        declare(hp, self._spec)
        spec = override(self._spec, values_of(self._spec, hp.values))
        set_up(spec.devices, seed=spec.seed)
        recipe = build_plain(spec, read_split(self._folder, "train", spec).class_names)
        self._built = spec, recipe
        return recipe.model

    def fit(
        self,
        hp: keras_tuner.HyperParameters,  # noqa: ARG002
        model: keras.Model,
        **kwargs: Any,  # noqa: ARG002
    ) -> dict[str, float]:
        assert self._built
        spec, recipe = self._built
        started = time.perf_counter()
        training, validation = (read_split(self._folder, split, spec) for split in ("train", "val"))
        for phase in spec.phases:
            fit_plain(recipe, phase, spec, training=training, validation=validation)
        figures = model.evaluate(validation, return_dict=True, verbose=0)
        self.seconds.append(time.perf_counter() - started)
        return {"val_accuracy": figures["accuracy"]}
