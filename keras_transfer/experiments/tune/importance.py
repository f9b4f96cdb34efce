"""Importance of a search's parameters: permutation importance in a random forest.

A random forest learns scores from parameter values (Hutter, Hoos and Leyton-Brown, ICML 2014).
The importance of a parameter is the R² that predictions for held-out trials lose when its values
are shuffled (Breiman, Machine Learning 45, 2001). Where the forest cannot predict scores, no
importances are given.
"""

from dataclasses import dataclass

import numpy as np
from sklearn.ensemble import RandomForestRegressor
from sklearn.metrics import r2_score
from sklearn.model_selection import KFold

from keras_transfer.experiments.tune.axes import axis_of, score_axis
from keras_transfer.experiments.tune.record import Search

FEWEST_TRIALS = 8
EPOCHS = "epochs trained"
_TREES, _FOLDS, _DRAWS, _SHUFFLES = 40, 5, 4, 5
_WEAK = 0.3


@dataclass(frozen=True)
class Importance:
    """Importances of the parameters that varied, the most important first.

    Args:
        means: R² lost by shuffling a parameter, mean over repetitions.
        spreads: standard deviations of the same.
        r2: of predictions for held-out trials, mean over repetitions; None without predictions.
        explanation: a sentence on the reliability, or why there are no importances.
        is_meaningful: whether importances may be shown.
    """

    names: tuple[str, ...] = ()
    means: tuple[float, ...] = ()
    spreads: tuple[float, ...] = ()
    r2: float | None = None
    explanation: str = ""
    is_meaningful: bool = False


def measure_importance(search: Search) -> Importance:
    """Fit the forest on all scored trials, if there are enough of them. Reproducible.

    The forest's columns are positions on the axes of the figures: logarithmic where these are, and
    the index of a choice, so that a parameter is one column and is shuffled as a whole. Where the
    numbers of epochs differ by two times or more, they are a column, too: in a search that stops
    trials early, their effect would otherwise be attributed to the parameters. Scores are positions
    as well, which limits the effect of outliers.
    """
    trials = search.scored
    if len(trials) < FEWEST_TRIALS:
        return Importance(
            explanation=f"Importances need at least {FEWEST_TRIALS} completed trials; this search "
            f"has {len(trials)}, which is too few."
        )
    columns = {}
    for name in search.scales:
        axis = axis_of(search, name)
        columns[name] = np.array([axis.position(trial.values.get(name)) for trial in trials])
    epochs = np.array([trial.epochs for trial in trials], float)
    if epochs.max() >= 2 * epochs.min():
        columns[EPOCHS] = epochs
    constant = [name for name, column in columns.items() if len(np.unique(column)) == 1]
    varied = {name: column for name, column in columns.items() if name not in constant}
    axis = score_axis(search)
    scores = np.array([axis.position(trial.result) for trial in trials])
    if not varied or np.ptp(scores) == 0:
        what = "All trials have the same score" if varied else "No parameter varied"
        return Importance(explanation=f"{what}, so there are no importances.")
    r2s, costs = _shuffled_costs(np.stack(list(varied.values()), axis=1), scores)
    r2 = float(r2s.mean())
    explanation = _explain(r2, len(trials), constant)
    if r2 <= 0:
        return Importance(r2=r2, explanation=explanation)
    order = np.argsort(-costs.mean(axis=0), kind="stable")
    return Importance(
        tuple(list(varied)[index] for index in order),
        tuple(costs.mean(axis=0)[order].tolist()),
        tuple(costs.std(axis=0)[order].tolist()),
        r2,
        explanation,
        True,
    )


def _shuffled_costs(values: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """R² of held-out trials [draws], and R² lost by shuffling [draws × shuffles, columns].

    Columns are shuffled in held-out trials only: in trials that the forest has memorised, every
    column would look important.
    """
    num_trials, num_columns = values.shape
    r2s, costs = [], []
    for draw in range(_DRAWS):
        random = np.random.default_rng(draw)
        shuffled = np.broadcast_to(values, (num_columns, _SHUFFLES, num_trials, num_columns)).copy()
        for column in range(num_columns):
            for shuffle in range(_SHUFFLES):
                shuffled[column, shuffle, :, column] = random.permutation(values[:, column])
        plain = np.empty(num_trials)
        predictions = np.empty(shuffled.shape[:3])
        for fitted, held in KFold(_FOLDS, shuffle=True, random_state=draw).split(values):
            forest = RandomForestRegressor(_TREES, random_state=draw)
            forest.fit(values[fitted], scores[fitted])
            plain[held] = forest.predict(values[held])
            inputs = shuffled[:, :, held]
            found = forest.predict(inputs.reshape(-1, num_columns))
            predictions[:, :, held] = found.reshape(inputs.shape[:3])
        r2s.append(r2_score(scores, plain))
        losses = [[r2s[-1] - r2_score(scores, found) for found in column] for column in predictions]
        costs.append(np.array(losses).T)
    return np.array(r2s), np.concatenate(costs)


def _explain(r2: float, num_trials: int, constant: list[str]) -> str:
    if r2 <= 0:
        return (
            f"A random forest predicts held-out trials no better than their mean (R² {r2:.2f} over "
            f"{num_trials} trials): importances would be meaningless and are not shown."
        )
    text = (
        f"From {num_trials} trials a random forest explains {100 * r2:.0f} % of the variance of "
        "held-out scores (cross-validated R²)"
    )
    text += ", which is little: importances are not reliable." if r2 < _WEAK else "."
    return f"{text} Never varied: {', '.join(constant)}." if constant else text
