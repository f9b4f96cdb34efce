"""Ensemble: the mean of the probabilities of runs, in one graph.

It begins with the run of the lowest validation loss and takes each other run, in this order, only
if the loss falls. Of runs that were trained on validation images as well it takes all: its loss is
at most the mean of theirs, whatever they are.

Source: R. Caruana et al., "Ensemble selection from libraries of models", ICML 2004.
"""

from collections.abc import Sequence
from pathlib import Path

import keras
import numpy as np

from keras_transfer.experiments.combine.choice import Choice, choose_members, count_of
from keras_transfer.experiments.combine.members import Member, load_members
from keras_transfer.experiments.combine.networks import joined
from keras_transfer.inference.prediction import LoadedRun
from keras_transfer.reporting.reporter import Reporter


def ensemble(paths: Sequence[str | Path], scale: float | None, reporter: Reporter) -> Choice:  # noqa: ARG001
    """The greedy mean of probabilities, or that of all members; errors as in `load_members`."""
    members = load_members(paths, how="ensemble", reporter=reporter)
    if members.can_choose:
        chosen, val, loss = choose_members(members, _mean_of_val)
        title = count_of("ensemble", chosen, members)
        return Choice(members, _network(chosen), title, chosen, val, loss)
    reporter.info(
        "All runs are taken: some were trained on validation images as well (training.refit), "
        "so that none are left to choose on."
    )
    chosen = members.items
    title = count_of("ensemble", chosen, members)
    return Choice(members, _network(chosen), title, chosen, None, None)


def _mean_of_val(chosen: Sequence[Member]) -> np.ndarray:
    outputs = [member.val for member in chosen if member.val is not None]
    mean: np.ndarray = np.mean(outputs, axis=0)
    return mean


def _network(chosen: Sequence[Member]) -> keras.Model:
    runs: list[LoadedRun] = [member.run for member in chosen]
    return joined(runs) if len(runs) > 1 else runs[0].model
