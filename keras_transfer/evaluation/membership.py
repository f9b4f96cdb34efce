"""How well the loss of an image tells whether the model was trained on it.

Sources: S. Yeom et al., "Privacy risk in machine learning: analyzing the connection to
overfitting", CSF 2018, on the attack. E. DeLong et al., "Comparing the areas under two or more
correlated receiver operating characteristic curves", Biometrics 44 (1988), on the interval.
"""

import math
from dataclasses import dataclass

import numpy as np
from scipy.stats import rankdata

from keras_transfer.evaluation.intervals import Z95, Interval


@dataclass(frozen=True, kw_only=True)
class Membership:
    """The loss as a sign of membership: 0.5 is as good as guessing, in both figures.

    `auc` is the chance that a member has a lower loss than another image, with a 95 % interval.
    `balanced_accuracy` is that of an attacker who takes for members all images whose loss is at
    most the mean loss of the members.
    """

    auc: float
    auc_interval: Interval
    balanced_accuracy: float
    num_members: int
    num_others: int

    @classmethod
    def of(cls, members: np.ndarray, others: np.ndarray) -> "Membership":
        """From the losses of at least two members [M] and two other images [N]."""
        num_members, num_others = len(members), len(others)
        ranks = rankdata(np.concatenate([members, others]))
        # For each image, the share of the other group that it is ordered right against.
        below = 1 - (ranks[:num_members] - rankdata(members)) / num_others
        above = (ranks[num_members:] - rankdata(others)) / num_members
        auc = float(below.mean())
        half = Z95 * math.sqrt(below.var(ddof=1) / num_members + above.var(ddof=1) / num_others)
        threshold = members.mean()
        found, kept = (members <= threshold).mean(), (others > threshold).mean()
        return cls(
            auc=auc,
            auc_interval=(max(0.0, auc - half), min(1.0, auc + half)),
            balanced_accuracy=float(found + kept) / 2,
            num_members=num_members,
            num_others=num_others,
        )
