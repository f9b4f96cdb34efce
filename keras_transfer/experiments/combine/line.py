"""Line: a network between two runs of one network, such as a solved head and its fine-tuning.

    (1 - share) · weights of the better run  +  share · weights of the other

with the share 0, 0.1, … 1 of the lowest validation loss.

Source: M. Wortsman et al., "Robust fine-tuning of zero-shot models", CVPR 2022.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import keras
import numpy as np

from keras_transfer.errors import SpecError
from keras_transfer.experiments.combine.choice import Choice, choose_point
from keras_transfer.experiments.combine.members import load_members
from keras_transfer.experiments.combine.networks import averaged, mean_weights
from keras_transfer.experiments.evaluation import predict_split
from keras_transfer.reporting.reporter import Reporter

SHARES: Final = tuple(tenth / 10 for tenth in range(11))


def line(paths: Sequence[str | Path], scale: float | None, reporter: Reporter) -> Choice:  # noqa: ARG001
    """The best network on the line between two runs.

    Raises:
        SpecError: there are not two runs; and errors as in `load_members`.
    """
    if len(paths) != 2:
        raise SpecError(
            "a line is between two runs",
            expected="two run folders",
            received=", ".join(map(str, paths)) or "none",
            fix="give two, or average several by how=soup",
        )
    members = load_members(paths, how="line", reporter=reporter)
    best, other = members.items

    def network(share: float) -> keras.Model:
        shares = (1 - share, share)
        weights = mean_weights([best.run.model, other.run.model], shares=shares)
        return averaged(best.run.model, weights)

    def predict(share: float) -> np.ndarray:
        ends = {0.0: best.val, 1.0: other.val}
        if (known := ends.get(share)) is not None:
            return known
        between = dataclasses.replace(best.run, model=network(share))
        return predict_split(between, "val", reporter)[2]

    share, val, points = choose_point(members, SHARES, predict)
    chosen = tuple(one for one, own in ((best, 1 - share), (other, share)) if own)
    title = f"The point at {100 * share:.0f} % of the line from {best.name} to {other.name}"
    return Choice(members, network(share), title, chosen, val, members.val_loss(val), points)
