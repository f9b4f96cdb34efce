"""Soup: the mean of the weights of runs of one network.

It begins with the run of the lowest validation loss and takes each other run, in this order, only
if the loss falls.

Source: M. Wortsman et al., "Model soups", ICML 2022, their greedy soup.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from keras_transfer.experiments.combine.choice import Choice, choose_members, count_of
from keras_transfer.experiments.combine.members import Member, load_members
from keras_transfer.experiments.combine.networks import averaged, mean_weights
from keras_transfer.experiments.evaluation import predict_split
from keras_transfer.reporting.reporter import Reporter


def soup(paths: Sequence[str | Path], scale: float | None, reporter: Reporter) -> Choice:  # noqa: ARG001
    """The greedy mean of weights; errors as in `load_members`."""
    members = load_members(paths, how="soup", reporter=reporter)
    best = members.best

    def predict(chosen: Sequence[Member]) -> np.ndarray:
        weights = mean_weights([member.run.model for member in chosen])
        candidate = dataclasses.replace(best.run, model=averaged(best.run.model, weights))
        return predict_split(candidate, "val", reporter)[2]

    chosen, val, loss = choose_members(members, predict)
    model = averaged(best.run.model, mean_weights([member.run.model for member in chosen]))
    return Choice(members, model, count_of("soup", chosen, members), chosen, val, loss)
