"""Made-up searches of which one knows what matters."""

import random
from typing import Any

from keras_transfer.experiments.tune.record import Search, SearchTrial, ranked
from keras_transfer.tasks.task import Monitor

RATE, DROPOUT, STAGE = "phases.0.learning_rate", "model.dropout", "phases.1.unfreeze"
SCALES = {RATE: "log", DROPOUT: "linear", STAGE: "choice"}
CHOICES = {STAGE: ["stage3", "stage4", "stage5"]}


def made_trial(number: int, values: dict[str, Any], score: float | None, **changes: Any):
    """A trial of 30 seconds on one of two workers; failed if it has no score."""
    entries: dict[str, Any] = {
        "name": f"{number:04}",
        "values": values,
        "status": "failed" if score is None else "completed",
        "score": score,
        "val_score": score,
        "val_loss": None if score is None else 1 - score,
        "epochs": 5,
        "seconds": 30.0,
        "started": 1.7e9 + 30 * (number // 2),
        "worker": f"tuner{number % 2}",
        "cause": "out of memory" if score is None else "",
    }
    return SearchTrial(**{**entries, **changes})


def made_values(draw: random.Random) -> dict[str, Any]:
    rate, dropout = 10 ** draw.uniform(-5, -2), draw.uniform(0, 0.5)
    return {RATE: rate, DROPOUT: dropout, STAGE: draw.choice(CHOICES[STAGE])}


def made_search(trials, *, scales=SCALES, choices=CHOICES, objective="val_score") -> Search:
    """A search whose winner is the best of its trials."""
    monitor = Monitor("accuracy", "max", is_share=True)
    higher = objective == "val_score"
    best = ranked(trials, higher_is_better=higher)[0].name
    return Search(trials, scales, choices, objective, monitor, best)


def stage_decides(count: int) -> list[SearchTrial]:
    """Only the choice matters, and of it only the middle: no order of choices would show that."""
    draw = random.Random(0)
    trials = []
    for number in range(count):
        values = made_values(draw)
        score = 0.9 - 0.2 * (values[STAGE] != "stage4") + draw.gauss(0, 0.005)
        trials.append(made_trial(number, values, score))
    return trials
