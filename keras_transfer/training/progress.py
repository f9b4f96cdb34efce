"""The state of a phase after each epoch: best weights, patience, checkpoints to resume from.

Checkpoint files are written atomically.
"""

import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import keras
import numpy as np

from keras_transfer.backbones.graph import is_random_state
from keras_transfer.devices.strategy import current, scope
from keras_transfer.errors import DivergedError
from keras_transfer.models.classifier import Classifier
from keras_transfer.specs import PhaseSpec
from keras_transfer.storage.run_folder import RunFolder

_GATHERING = "gradient_accumulator"

Arrays = dict[str, np.ndarray]


@dataclass(frozen=True)
class State:
    """The state that an interrupted run resumes from: JSON values, arrays by section and name."""

    numbers: dict[str, Any]
    arrays: dict[str, Arrays]


class Saver(Protocol):
    """Saves and loads one state."""

    def save(self, state: State) -> None:
        """Replace the saved state, atomically."""

    def load(self) -> State | None:
        """The saved state, None where there is none."""


def changing_variables(classifier: Classifier, phase: PhaseSpec) -> list[keras.Variable]:
    """Every variable that the phase can change, including statistics of BatchNormalization."""
    return [
        variable
        for stage in classifier.from_stage(phase.unfreeze)
        for variable in classifier.variables_of(stage)
        if not is_random_state(variable)
    ]


def _added(classifier: Classifier, model: keras.Model) -> list[keras.Variable]:
    """The variables of layers that a method or a loss added to the classifier's own."""
    own = {id(variable) for variable in classifier.model.variables}
    added = [variable for variable in model.variables if id(variable) not in own]
    return [variable for variable in added if not is_random_state(variable)]


def read_weights(variables: list[keras.Variable]) -> Arrays:
    """Copies of the values by the variables' paths."""
    return {variable.path: np.array(variable) for variable in variables}


def assign_weights(variables: list[keras.Variable], values: Arrays) -> None:
    """Set every variable to the value kept under its path."""
    with scope():
        for variable in variables:
            variable.assign(values[variable.path])


def _check_finite(row: dict[str, float], phase: PhaseSpec, epoch: int) -> None:
    losses = {name: row[name] for name in ("loss", "val_loss") if name in row}
    if not np.isfinite([*losses.values()]).all():
        raise DivergedError(
            f"training diverged in epoch {epoch + 1} of phase {phase.name!r}",
            expected="a finite loss",
            received=", ".join(f"{name} {value}" for name, value in losses.items()),
            fix=f"lower its learning_rate ({phase.learning_rate:g}) or lengthen its warm-up",
        )


class Progress(keras.callbacks.Callback):
    """Callback of one phase: keeps the best weights, stops early, saves checkpoints."""

    def __init__(
        self,
        classifier: Classifier,
        phase: PhaseSpec,
        model: keras.Model,
        *,
        saver: Saver | None,
        save_seconds: float = 0.0,
    ):
        """`model` is the compiled part of the classifier that will be fitted.

        The state is saved after the last epoch, and after every epoch that ends at least
        `save_seconds` after the previous save.
        """
        super().__init__()
        self.phase, self.saver = phase, saver
        self.variables = changing_variables(classifier, phase) + _added(classifier, model)
        self.history: list[dict[str, float]] = []
        self.best: Arrays = read_weights(self.variables)
        self.best_epoch = -1
        self.best_score = (float("-inf"), float("-inf"))
        self._monitor = classifier.task.monitor
        self.stopped = False
        self.seconds_before = 0.0
        self.num_parts, self.least_epochs = 1, 0
        self._last: State | None = None
        self._epoch_started = 0.0
        self._save_seconds, self._saved_at = save_seconds, time.perf_counter()
        self.set_model(model)

    @property
    def first_weights(self) -> Arrays:
        """Keep the initial state of the phase, if no epoch has ended."""
        assert not self.history
        return self.best

    def load(self) -> None:
        """Load the saved state of an interrupted phase, if any; `resume` continues from it."""
        self._last = self.saver.load() if self.saver else None
        if self._last:
            self.num_parts = self._last.numbers.get("num_parts", 1)

    def resume(self) -> int:
        """Restore the compiled model after the last epoch; returns the next epoch, from 0.

        Before the first epoch it restores the initial state.
        """
        state = self._last
        if state is None:
            assign_weights(self.variables, self.first_weights)
            return 0
        numbers = state.numbers
        self.history = [dict(row) for row in numbers["history"]]
        self.best_epoch, self.stopped = numbers["best_epoch"], numbers["stopped"]
        self.best_score = tuple(numbers["best_score"])
        self.seconds_before = sum(row["seconds"] for row in self.history)
        self.best = state.arrays["best"]
        assign_weights(self.variables, state.arrays["weights"])
        self._restore_optimizer(state.arrays["optimizer"], numbers.get("num_parts", 1))
        return len(self.history)

    def _restore_optimizer(self, values: Arrays, num_parts: int) -> None:
        """Restore the state of an optimizer that accumulated `num_parts` batches per step."""
        for number, variable in enumerate(self._optimizer_variables()):
            value = values[str(number)]
            if variable.name == "iteration":  # Keras counts batches, not steps.
                value = value // num_parts * self.num_parts
            variable.assign(value)

    def _optimizer_variables(self) -> list[keras.Variable]:
        """All variables but the accumulated gradients, which are zero between two steps."""
        return [v for v in self.model.optimizer.variables if _GATHERING not in v.name]

    def on_epoch_begin(self, epoch: int, logs: dict[str, float] | None = None) -> None:  # noqa: ARG002
        """Set the random state of dropout from the epoch alone, so that resuming is exact."""
        self._epoch_started = time.perf_counter()
        for layer in self.model.layers:
            if isinstance(layer, keras.layers.Dropout) and layer.rate > 0:
                layer.seed_generator.state.assign([layer.seed or 0, epoch])

    def on_epoch_end(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        """Record the epoch, keep its weights if they are the best so far, and save."""
        row = {name: float(value) for name, value in (logs or {}).items()}
        _check_finite(row, self.phase, epoch)
        row["learning_rate"] = self._learning_rate()
        row["seconds"] = time.perf_counter() - self._epoch_started
        self.history.append(row)
        score = self._score(row, epoch)
        if score > self.best_score:
            self.best_score, self.best_epoch = score, epoch
            self.best = read_weights(self.variables)
        patience = self.phase.patience_epochs
        self.stopped = 0 < patience <= epoch - self.best_epoch
        if self.stopped:
            self.model.stop_training = True
        self._last = self._state()
        if self.saver and self._is_due(epoch):
            self.saver.save(self._last)
            self._saved_at = time.perf_counter()

    def _score(self, row: dict[str, float], epoch: int) -> tuple[float, float]:
        """By the metric, then the loss; without validation the last epoch is the best.

        Of the epochs before the least number, too, each is better than the one before.
        """
        if epoch + 1 < self.least_epochs:
            return float("-inf"), float(epoch)
        if "val_loss" not in row:
            return float(epoch), 0.0
        return self._monitor.rank(row[self._monitor.log_name]), -row["val_loss"]

    def _is_due(self, epoch: int) -> bool:
        is_last = self.stopped or epoch + 1 == self.params["epochs"]
        return is_last or time.perf_counter() - self._saved_at >= self._save_seconds

    def _learning_rate(self) -> float:
        optimizer = self.model.optimizer
        if isinstance(optimizer, keras.optimizers.MultiOptimizer):
            # The head's optimizer is the last one: its rate is the phase's.
            optimizer = optimizer.optimizers[-1]
        return float(optimizer.learning_rate)

    def _state(self) -> State:
        numbers = {
            "history": list(self.history),
            "best_epoch": self.best_epoch,
            "best_score": list(self.best_score),
            "stopped": self.stopped,
            "num_parts": self.num_parts,
        }
        optimizer = {str(n): np.array(v) for n, v in enumerate(self._optimizer_variables())}
        weights = read_weights(self.variables)
        return State(numbers, {"weights": weights, "best": self.best, "optimizer": optimizer})

    def restore_best(self) -> None:
        """Set the classifier to the best epoch's weights."""
        assign_weights(self.variables, self.best)


@dataclass(frozen=True)
class Checkpoint:
    """The last state, in `checkpoint/<name>.npz` of a run folder, and the one before it.

    `say` is called with a sentence about a damaged file.
    """

    run: RunFolder
    name: str
    say: Callable[[str], None]

    @property
    def path(self) -> Path:
        """Path of the file, which may not exist."""
        return self.run.checkpoint_folder / f"{self.name}.npz"

    @property
    def previous(self) -> Path:
        """Path of the state before the last one, for the case that the last one is damaged."""
        return self.run.checkpoint_folder / f"{self.name}.previous.npz"

    def save(self, state: State) -> None:
        """Replace the file atomically. Only host 0 writes."""
        if current().host:
            return
        arrays: Arrays = {"numbers": np.array(json.dumps(state.numbers))}
        for section, values in state.arrays.items():
            arrays.update({f"{section}|{name}": value for name, value in values.items()})
        if self.path.is_file():
            os.replace(self.path, self.previous)
        with self.run.replacing(f"checkpoint/{self.name}.npz") as path, path.open("wb") as file:
            np.savez(file, **arrays)  # type: ignore[arg-type]

    def load(self) -> State | None:
        """The last whole state, None where there is none; damaged files are removed."""
        damaged = False
        for path in (self.path, self.previous):
            if not path.is_file():
                continue
            try:
                state = _read_state(path)
            except Exception as error:  # Damaged archives raise many types of errors.
                damaged = True
                reason = str(error) or type(error).__name__
                self.say(f"{path} is damaged and is not used: {reason}")
                if not current().host:
                    path.unlink(missing_ok=True)
                continue
            if damaged:
                self.say(f"The last whole checkpoint is {_describe(state, self.name)}.")
            return state
        if damaged:
            self.say(f"There is no older checkpoint of {self.name}, which starts again.")
        return None

    def discard(self) -> None:
        """Remove the files."""
        if current().host:
            return
        self.path.unlink(missing_ok=True)
        self.previous.unlink(missing_ok=True)


def _describe(state: State, name: str) -> str:
    if "outcomes" in state.numbers:
        return f"the end of phase {state.numbers['outcomes'][-1]['name']!r}"
    return f"epoch {len(state.numbers['history'])} of {name}"


def _read_state(path: Path) -> State:
    arrays: dict[str, Arrays] = {}
    # numpy does not close a damaged file that it opened.
    with path.open("rb") as stream, np.load(stream) as file:
        numbers = json.loads(str(file["numbers"]))
        for key in file.files:
            section, bar, name = key.partition("|")
            if bar:
                arrays.setdefault(section, {})[name] = file[key]
    return State(numbers, arrays)
