"""Transfer learning as a `keras_tuner.HyperModel`, for any tuner of KerasTuner.

    hypermodel = TransferHyperModel(spec)
    tuner = keras_tuner.Hyperband(hypermodel, objective="val_accuracy", max_epochs=10)
    tuner.search()

Trials train on stored features, in the spec's phases, and never use the test split.
"""

import dataclasses
import tempfile
import weakref
from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import keras
import keras_tuner

from keras_transfer.config import check_single_training
from keras_transfer.data.splits import Splits
from keras_transfer.devices import is_out_of_memory, set_up
from keras_transfer.errors import DivergedError
from keras_transfer.experiments.session import open_session
from keras_transfer.experiments.trial_runner import TrialRunner, without_test
from keras_transfer.experiments.tune.space import check_space, declare, values_of
from keras_transfer.methods.networks import prepare_classifier
from keras_transfer.models.classifier import Classifier
from keras_transfer.reporting.reporter import Reporter, TerminalReporter
from keras_transfer.specs import RunSpec
from keras_transfer.storage.run_folder import RunFolder
from keras_transfer.tasks.registry import make_task


class TransferHyperModel(keras_tuner.HyperModel):
    """Builds and trains the classifiers of a tuner's values for the fields in `spec.search.space`.

    `build` gives the whole classifier, float32 pixels [B, S, S, C] in 0-255 to logits, before any
    training. `fit` trains it through the spec's phases and returns `val_loss` and the task's
    metric, such as `val_accuracy`, either of which can be the tuner's objective. Epochs that the
    tuner sets (Hyperband's `epochs` and `initial_epoch`) count over all phases; a continued trial
    has the right phase, optimizer state and learning rate.
    """

    def __init__(
        self,
        spec: RunSpec,
        splits: Splits | None = None,
        *,
        folder: str | Path | None = None,
        reporter: Reporter | None = None,
    ):
        """Read and split the images.

        Args:
            splits: which rows train and validate; by default drawn as a run of the spec would.
            folder: folder for checkpoints of trials. Workers on several machines must share it;
                by default a temporary one, removed with the hypermodel.
            reporter: shows what was read and split; by default on the terminal. Trials are shown
                by the tuner.

        Raises:
            SpecError: the spec or its space cannot be searched.
            DataError, WeightsError: as a run would.
        """
        super().__init__()
        check_space(spec)
        check_single_training(
            spec,
            "a hypermodel trains each trial once",
            fix="leave these fields out, or search with `python -m pipelines.tune`",
        )
        reporter = reporter or TerminalReporter()
        held = ExitStack()
        weakref.finalize(self, held.close)
        folder = folder or held.enter_context(tempfile.TemporaryDirectory())
        session = held.enter_context(open_session(spec, reporter=reporter))
        self.data = dataclasses.replace(session.data, splits=splits or session.data.splits)
        """The images, their classes in the order of the logits, and their splits."""
        own = without_test(self.data.splits)
        self._runner = TrialRunner(session, [own], states=RunFolder(Path(folder)))
        self._built: tuple[Classifier, RunSpec] | None = None

    def build(self, hp: keras_tuner.HyperParameters) -> keras.Model:
        """The classifier that the proposed values describe, uncompiled and untrained."""
        original = self._runner.session.spec
        declare(hp, original)
        spec = self._runner.vary(values_of(original, hp.values))
        set_up(spec.devices, seed=spec.seed)
        # Each has its own trunk, so that get_best_models(2) returns two different models.
        classifier = prepare_classifier(spec, make_task(spec, self.data.records.items))
        self._built = classifier, spec
        return classifier.model

    def fit(
        self,
        hp: keras_tuner.HyperParameters,  # noqa: ARG002
        model: keras.Model,
        *args: Any,
        callbacks: Iterable[keras.callbacks.Callback] = (),
        epochs: int | None = None,
        **kwargs: Any,
    ) -> dict[str, float]:
        """Train the model that was built last and return its figures on the validation split.

        Args:
            callbacks: called once, after training, with the whole model and its figures.
            epochs: where to stop, counted over all phases; None trains all of them.

        Raises:
            TypeError: data or other arguments of `Model.fit` were given to `search`.
            keras_tuner.errors.FailedTrialError: training diverged, or memory ran out.
            keras_tuner.errors.FatalError: anything else, so that the search stops.
        """
        kwargs.pop("initial_epoch", None)  # The saved state has the epoch to resume from.
        kwargs.pop("verbose", None)
        if args or kwargs:
            given = [*(["data"] if args else []), *kwargs]
            raise keras_tuner.errors.FatalTypeError(
                f"search() of a TransferHyperModel takes no {', '.join(given)}: its spec has them"
            )
        if self._built is None or self._built[0].model is not model:
            raise keras_tuner.errors.FatalTypeError("fit takes the model that was built last")
        classifier, spec = self._built
        try:
            result = self._runner.fit(classifier, spec, num_epochs=epochs)
        except Exception as error:
            kind = keras_tuner.errors.FatalError
            if isinstance(error, DivergedError) or is_out_of_memory(error):
                kind = keras_tuner.errors.FailedTrialError
            raise kind(str(error)) from error
        figures = {classifier.task.monitor.log_name: result.val_score, "val_loss": result.val_loss}
        listeners = keras.callbacks.CallbackList(list(callbacks), model=model)
        listeners.on_train_begin()
        listeners.on_epoch_end(max(result.epochs - 1, 0), dict(figures))
        listeners.on_train_end(dict(figures))
        return figures
