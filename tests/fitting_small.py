"""Trains the small classifier on made images, by the phases of a spec."""

import keras
from feature_sources import make_source, make_splits
from small_models import make_classifier

from keras_transfer.features.phase_inputs import PhaseInputs
from keras_transfer.methods.networks import adapters_of
from keras_transfer.methods.registry import make_methods
from keras_transfer.storage.cache import Cache
from keras_transfer.training.fitting import fit_phases


def fit_small(spec, folder, reporter, *, run=None, num_epochs=None):
    """The classifier and the outcomes of its phases; features are cached in `folder`."""
    keras.utils.clear_session()
    methods = make_methods(spec)
    phase_inputs = PhaseInputs(
        spec,
        make_source(views=spec.views),
        make_splits(),
        methods=methods,
        cache=Cache(folder / "cache"),
        reporter=reporter,
    )
    adapters = adapters_of(methods, spec.phases)
    classifier = make_classifier("small", seed=spec.seed, adapters=adapters)
    outcomes = fit_phases(
        classifier, phase_inputs, reporter=reporter, run=run, num_epochs=num_epochs
    )
    return classifier, outcomes
