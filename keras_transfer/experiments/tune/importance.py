"""Which parameters mattered in a search: permutation importance in a forest, or that none can tell.

A random forest learns scores from values (Hutter, Hoos and Leyton-Brown, ICML 2014). What it says
of trials that it has not seen is compared with what it says once one parameter's values are
shuffled (Breiman, Machine Learning 45, 2001): the more of R² that costs, the more the parameter
mattered. A forest that predicts nothing has no importances, which is said and not drawn.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from sklearn.ensemble import RandomForestRegressor
from sklearn.metrics import r2_score
from sklearn.model_selection import KFold

from keras_transfer.experiments.tune.axes import Axis, axis_of, quiet, score_axis
from keras_transfer.experiments.tune.record import Search, SearchTrial
from keras_transfer.reporting.figures import FAINT, INK, TRAIN, broken, inline_svg, new_figure

FEWEST_TRIALS = 8
EPOCHS = "epochs trained"
_TREES, _FOLDS, _DRAWS, _SHUFFLES = 40, 5, 4, 5
_WEAK = 0.3


@dataclass(frozen=True)
class Importance:
    """Of every parameter that varied, the most important first.

    Args:
        means: what shuffling a parameter costs of R², mean over draws of folds and shuffles.
        spreads: standard deviations of the same.
        r2: of predictions for held-out trials, mean over draws; None where none were made.
        verdict: a sentence on what this is worth.
        is_meaningful: whether importances may be shown at all.
    """

    names: tuple[str, ...] = ()
    means: tuple[float, ...] = ()
    spreads: tuple[float, ...] = ()
    r2: float | None = None
    verdict: str = ""
    is_meaningful: bool = False


def measure_importance(search: Search) -> Importance:
    """Fit the forest on all scored trials, if there are enough of them. Repeatable.

    Numbers are taken as they are, or in decades where their axis is logarithmic. Choices are taken
    by their place in the list: with one column a parameter, shuffling asks for all of it at once,
    and trees can cut any value out of an order. Where trials trained for epochs that differ by
    two times or more, these are a column, too: a search that stops trials early would otherwise
    look as if the parameters had made the difference. Scores are taken as drawn, where a training
    that collapsed is no further off than the foot of the axis: its square would outweigh all.
    """
    trials = search.scored
    if len(trials) < FEWEST_TRIALS:
        count = "One completed trial is" if len(trials) == 1 else f"{len(trials)} completed trials"
        return Importance(
            verdict=f"{count}{'' if len(trials) == 1 else ' are'} too few to tell which parameter "
            f"mattered: that takes at least {FEWEST_TRIALS}."
        )
    axes = [axis_of(search, name) for name in search.scales]
    columns = {axis.name: _column(axis, trials) for axis in axes}
    epochs = np.array([trial.epochs for trial in trials], float)
    if epochs.max() >= 2 * epochs.min():
        columns[EPOCHS] = epochs
    constant = [name for name, column in columns.items() if len(np.unique(column)) == 1]
    varied = {name: column for name, column in columns.items() if name not in constant}
    shown = score_axis(search)
    scores = np.array([shown.place(trial.result) for trial in trials])
    if not varied or np.ptp(scores) == 0:
        what = "All trials have the same score" if varied else "No parameter varied"
        return Importance(verdict=f"{what}, so that none can have mattered more than another.")
    r2s, costs = _shuffled_costs(np.stack(list(varied.values()), axis=1), scores)
    return _judge(list(varied), r2s, costs, constant, len(trials))


def _column(axis: Axis, trials: Sequence[SearchTrial]) -> np.ndarray:
    """Places on the axis: decades where it is logarithmic, ordinal for choices."""
    return np.array([axis.place(trial.values.get(axis.name)) for trial in trials])


def _shuffled_costs(values: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """R² of held-out trials [draws], and what shuffling costs of it [draws × shuffles, columns].

    Shuffled are trials that the forest has not seen: on those it has learnt by heart, every
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
        guesses = np.empty(shuffled.shape[:3])
        for seen, held in KFold(_FOLDS, shuffle=True, random_state=draw).split(values):
            forest = RandomForestRegressor(_TREES, random_state=draw).fit(
                values[seen], scores[seen]
            )
            plain[held] = forest.predict(values[held])
            asked = shuffled[:, :, held]
            guesses[:, :, held] = forest.predict(asked.reshape(-1, num_columns)).reshape(
                asked.shape[:3]
            )
        r2s.append(r2_score(scores, plain))
        losses = [[r2s[-1] - r2_score(scores, guess) for guess in column] for column in guesses]
        costs.append(np.array(losses).T)
    return np.array(r2s), np.concatenate(costs)


def _judge(
    names: Sequence[str], r2s: np.ndarray, costs: np.ndarray, constant: list[str], num_trials: int
) -> Importance:
    r2 = float(r2s.mean())
    if r2 <= 0:
        verdict = (
            f"A random forest predicts held-out trials no better than their mean does (R² {r2:.2f} "
            f"over {num_trials} trials), so importances would mean nothing and are not shown."
        )
        return Importance(r2=r2, verdict=verdict)
    verdict = (
        f"From {num_trials} trials a random forest explains {100 * r2:.0f} % of the variance of "
        "held-out scores (cross-validated R²)"
    )
    verdict += ", which is little: take this as a hint." if r2 < _WEAK else "."
    if constant:
        verdict += f" Never varied: {', '.join(constant)}."
    order = np.argsort(-costs.mean(axis=0), kind="stable")
    return Importance(
        tuple(names[index] for index in order),
        tuple(costs.mean(axis=0)[order].tolist()),
        tuple(costs.std(axis=0)[order].tolist()),
        r2,
        verdict,
        True,
    )


def draw_importance(importance: Importance) -> str:
    """Bars with standard deviations as SVG; pale ones lie within two of none.

    Raises:
        ValueError: there is nothing meaningful to draw.
    """
    if not importance.is_meaningful:
        raise ValueError(f"no importances to draw: {importance.verdict}")
    names, means, spreads = importance.names, importance.means, importance.spreads
    figure = new_figure(9, 0.8 + 0.4 * len(names))
    axes = figure.subplots()
    colours = [
        FAINT if name == EPOCHS else TRAIN if mean > 2 * spread else "#b9cde6"
        for name, mean, spread in zip(names, means, spreads, strict=True)
    ]
    rows = range(len(names))
    axes.barh(rows, means, 0.62, color=colours, zorder=2)
    axes.hlines(
        rows,
        np.subtract(means, spreads),
        np.add(means, spreads),
        color=INK,
        linewidth=1.4,
        zorder=3,
    )
    axes.axvline(0, color=INK, linewidth=0.8, zorder=1)
    axes.set_yticks(rows, [broken(name, 38) for name in names])
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.set_xlabel("R² lost by shuffling the parameter", color=INK, fontsize=9)
    quiet(axes, grid="x")
    axes.spines["left"].set_visible(False)
    return inline_svg(figure, "importance", description="Importance of each parameter")
