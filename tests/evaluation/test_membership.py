"""The attack by loss against its definitions, and against data without any sign of membership."""

import numpy as np
import pytest
from sklearn.metrics import balanced_accuracy_score, roc_auc_score

from keras_transfer.evaluation.membership import Membership


def losses(seed, *, shift=0.0):
    generator = np.random.default_rng(seed)
    return generator.exponential(size=80).round(1), (generator.exponential(size=50) + shift).round(
        1
    )


@pytest.mark.parametrize("seed", range(3))
def test_figures_are_those_of_scikit_learn(seed):
    members, others = losses(seed, shift=0.3)
    found = Membership.of(members, others)
    is_member = np.repeat([1, 0], [80, 50])
    every = np.concatenate([members, others])
    assert found.auc == pytest.approx(roc_auc_score(is_member, -every))
    guess = every <= members.mean()
    assert found.balanced_accuracy == pytest.approx(balanced_accuracy_score(is_member, guess))
    assert (found.num_members, found.num_others) == (80, 50)


def test_the_interval_has_one_half_in_19_of_20_cases_without_a_difference():
    intervals = [Membership.of(*losses(seed)).auc_interval for seed in range(400)]
    share = np.mean([low <= 0.5 <= high for low, high in intervals])
    assert 0.92 < share < 0.98


def test_losses_without_overlap_are_told_apart_with_certainty():
    found = Membership.of(np.zeros(5), np.ones(4))
    assert (found.auc, found.auc_interval, found.balanced_accuracy) == (1, (1, 1), 1)
