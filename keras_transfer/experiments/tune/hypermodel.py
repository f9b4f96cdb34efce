"""The pipeline as a `keras_tuner.HyperModel`, for tuners that people bring along.

    hypermodel = TransferHyperModel(spec)
    tuner = keras_tuner.Hyperband(hypermodel, objective="val_accuracy", max_epochs=10)
    tuner.search()

Trials train on stored features, in the spec's phases, and never see the test split.
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

from keras_transfer.data.splits import Splits
from keras_transfer.devices import is_out_of_memory, set_up
from keras_transfer.errors import DivergedError, SpecError
from keras_transfer.experiments.run import Data, load_data
from keras_transfer.experiments.session import resolve_cache_mode
from keras_transfer.experiments.trial_runner import TrialRunner
from keras_transfer.experiments.tune.space import check_space, declare, values_of
from keras_transfer.models.classifier import Classifier
from keras_transfer.reporting.reporter import Reporter, SilentReporter, TerminalReporter
from keras_transfer.specs import RunSpec
from keras_transfer.storage.cache import open_cache
from keras_transfer.storage.run_folder import RunFolder
from keras_transfer.tasks.registry import make_task, read_task
from keras_transfer.training.fitting import prepare_classifier


class TransferHyperModel(keras_tuner.HyperModel):
    """Builds and trains what a tuner proposes for the fields in `spec.search.space`.

    `build` gives the whole classifier, float32 pixels [B, S, S, 3] in 0-255 to logits, before any
    training. `fit` trains it through the spec's phases and returns `val_accuracy` and `val_loss`
    (log loss), either of which can be the tuner's objective. Epochs that the tuner hands out
    (Hyperband's `epochs` and `initial_epoch`) count over all phases; a trial that goes on does so
    in the right phase, optimizer state and learning rate.
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
            folder: where trainings are kept until they go on. Workers on several machines must
                share it; by default a temporary one, gone when the hypermodel is.
            reporter: who is told what was read and split; by default the terminal. Of trials the
                tuner tells.

        Raises:
            SpecError: the spec or its space cannot be searched.
            DataError, WeightsError: as a run would.
        """
        super().__init__()
        check_space(spec)
        if spec.num_trials > 1:
            raise SpecError(
                "a hypermodel trains each proposal once",
                expected="folds=1, seeds=1 and halvings=0",
                received=f"folds={spec.folds}, seeds={spec.seeds}, halvings={spec.halvings}",
                fix="leave these fields out, or search with `python -m pipelines.tune`",
            )
        reporter = reporter or TerminalReporter()
        held = ExitStack()
        weakref.finalize(self, held.close)
        folder = folder or held.enter_context(tempfile.TemporaryDirectory())
        set_up(spec.devices, seed=spec.seed)
        _, records = read_task(spec)
        settled = resolve_cache_mode(spec, len(records.items), reporter=reporter)
        cache = held.enter_context(open_cache(settled, reporter=reporter))
        data = load_data(settled, records, cache=cache, reporter=reporter)
        if splits is not None:
            data = dataclasses.replace(data, splits=splits)
        self._runner = TrialRunner(
            settled, data, cache=cache, states=RunFolder(Path(folder)), reporter=reporter
        )
        self._built: tuple[Classifier, RunSpec] | None = None

    @property
    def data(self) -> Data:
        """The images, their classes in the order of the logits, and how they are split."""
        return self._runner.data

    def build(self, hp: keras_tuner.HyperParameters) -> keras.Model:
        """The classifier that the proposed values describe, uncompiled and untrained."""
        declare(hp, self._runner.original)
        spec = self._runner.vary(values_of(self._runner.original, hp.values))
        set_up(spec.devices, seed=spec.seed)
        # Each with a trunk of its own: whoever asks for the best two models gets two.
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
        """Train the model that was built last; its figures on the validation split.

        Args:
            callbacks: told once, after training, of the whole model and its figures.
            epochs: of all phases together; None trains all of them.

        Raises:
            TypeError: data or other arguments of `Model.fit` were given to `search`.
            keras_tuner.errors.FailedTrialError: training diverged, or memory ran out.
            keras_tuner.errors.FatalError: anything else, so that the search stops.
        """
        kwargs.pop("initial_epoch", None)  # Where it goes on is kept with its state.
        kwargs.pop("verbose", None)
        if args or kwargs:
            given = [*(["data"] if args else []), *kwargs]
            raise keras_tuner.errors.FatalTypeError(
                f"search() of a TransferHyperModel takes no {', '.join(given)}: its spec has all"
            )
        if self._built is None or self._built[0].model is not model:
            raise keras_tuner.errors.FatalTypeError("fit takes the model that was built last")
        classifier, spec = self._built
        try:
            fit = self._runner.fit(classifier, spec, SilentReporter(), num_epochs=epochs)
        except Exception as error:
            kind = keras_tuner.errors.FatalError
            if isinstance(error, DivergedError) or is_out_of_memory(error):
                kind = keras_tuner.errors.FailedTrialError
            raise kind(str(error)) from error
        figures = {"val_accuracy": fit.accuracy, "val_loss": fit.loss}
        told = keras.callbacks.CallbackList(list(callbacks), model=model)
        told.on_train_begin()
        told.on_epoch_end(max(fit.epochs - 1, 0), dict(figures))
        told.on_train_end(dict(figures))
        return figures
