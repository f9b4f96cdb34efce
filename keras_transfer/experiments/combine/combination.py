"""Combination: several finished runs become one ordinary run, compared with each of them.

A soup has the mean of the weights of runs of the same network, an ensemble the mean of their
probabilities. Both begin with the run of the lowest validation loss and take each other run, in
this order, only if the loss falls. An ensemble of runs that were trained on validation images as
well takes all of them: its loss is at most the mean of theirs, whatever they are.

Sources: M. Wortsman et al., "Model soups", ICML 2022. R. Caruana et al., "Ensemble selection from
libraries of models", ICML 2004.
"""

import dataclasses
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

import keras
import numpy as np

from keras_transfer.config import override
from keras_transfer.devices.strategy import current
from keras_transfer.errors import SpecError
from keras_transfer.evaluation.results import paired_gain
from keras_transfer.experiments.combine.members import Member, Members, load_members
from keras_transfer.experiments.combine.networks import averaged, joined, mean_weights
from keras_transfer.experiments.combine.report import Combination, write_combination
from keras_transfer.experiments.evaluation import predict_split
from keras_transfer.experiments.run_results import describe_metrics, write_results
from keras_transfer.experiments.session import Session, open_session
from keras_transfer.export.card import make_card
from keras_transfer.fields import nearest
from keras_transfer.inference.prediction import LoadedRun
from keras_transfer.models.classifier import save_model
from keras_transfer.reporting.reporter import Reporter
from keras_transfer.storage.run_start import start_run, vacated_on_refusal

HOWS: Final = ("soup", "ensemble")


@dataclass(frozen=True, eq=False)
class _Choice:
    """The members that were taken; `model` has their mean."""

    model: keras.Model
    chosen: tuple[Member, ...]
    val: np.ndarray | None
    val_loss: float | None


def combine_runs(
    paths: Sequence[str | Path],
    *,
    how: str,
    output: str | Path | None,
    reporter: Reporter,
) -> Combination:
    """Combine finished runs into a new one, which has an export with its proof.

    Raises:
        RunError: there is no finished run, or the new one cannot be written.
        SpecError: `how` is unknown, or the runs do not fit together.
        DataError: the runs have other splits, or their images are missing or have changed.
        ExportError: the exported model does not agree with the combination.
    """
    if how not in HOWS:
        raise SpecError(
            f"there is no combination called {how!r}",
            expected=f"how={' or how='.join(HOWS)}",
            received=how,
            fix=nearest(how, HOWS),
        )
    members = load_members(paths, how=how, reporter=reporter)
    choice = (_soup if how == "soup" else _ensemble)(members, reporter)
    names = ", ".join(member.name for member in choice.chosen)
    reporter.info(f"The {how} has {len(choice.chosen)} of {len(members.items)} runs: {names}.")
    base = members.best.run
    spec = override(base.spec, {"name": f"{base.spec.name}-{how}"})
    run = start_run(spec, output=output, suffix="")
    with vacated_on_refusal(run):
        for name in ("splits.json", "class_names.json"):
            run.write_json(name, base.folder.read_json(name))
        # Finished runs predict on the current device: those of the spec are not set up.
        with open_session(spec, reporter=reporter, run=run, devices=current()) as session:
            found = _finish(session, members, choice, how)
        shutil.rmtree(run.checkpoint_folder)
    return found


def _soup(members: Members, reporter: Reporter) -> _Choice:
    """The greedy mean of weights."""
    best = members.best

    def predict(chosen: Sequence[Member]) -> np.ndarray:
        weights = mean_weights([member.run.model for member in chosen])
        candidate = dataclasses.replace(best.run, model=averaged(best.run.model, weights))
        return predict_split(candidate, "val", reporter)[2]

    chosen, val, loss = _choose(members, predict)
    model = averaged(best.run.model, mean_weights([member.run.model for member in chosen]))
    return _Choice(model, chosen, val, loss)


def _ensemble(members: Members, reporter: Reporter) -> _Choice:
    """The greedy mean of probabilities, or that of all members."""
    if not members.can_choose:
        reporter.info(
            "All runs are taken: some were trained on validation images as well (training.refit), "
            "so that none are left to choose on."
        )
        return _Choice(_network(members.items), members.items, None, None)
    chosen, val, loss = _choose(members, _mean_of_val)
    return _Choice(_network(chosen), chosen, val, loss)


def _mean_of_val(chosen: Sequence[Member]) -> np.ndarray:
    outputs = [member.val for member in chosen if member.val is not None]
    mean: np.ndarray = np.mean(outputs, axis=0)
    return mean


def _network(chosen: Sequence[Member]) -> keras.Model:
    runs: list[LoadedRun] = [member.run for member in chosen]
    return joined(runs) if len(runs) > 1 else runs[0].model


def _choose(
    members: Members, predict: Callable[[Sequence[Member]], np.ndarray]
) -> tuple[tuple[Member, ...], np.ndarray, float]:
    """The best member, and each other one with which the loss on validation falls."""
    task, best = members.best.run.task, members.best
    assert best.val is not None
    assert best.val_loss is not None
    chosen: tuple[Member, ...] = (best,)
    outputs, loss = best.val, best.val_loss
    for member in members.items[1:]:
        tried = predict((*chosen, member))
        new = float(task.example_losses(members.val_values, tried).mean())
        if new < loss:
            chosen, outputs, loss = (*chosen, member), tried, new
    return chosen, outputs, loss


def _finish(session: Session, members: Members, choice: _Choice, how: str) -> Combination:
    """Evaluate the combination, and write all files of its run, metrics.json last."""
    run, base = session.run, members.best.run
    assert run
    task = base.task
    if choice.val is not None and task.needs_fitting:
        task = task.fitted(members.val_values, choice.val)
    combined = dataclasses.replace(base, model=choice.model, task=task)
    _, values, outputs = predict_split(combined, "test", session.reporter)
    test = task.evaluate(values, outputs, seed=base.spec.seed)
    counts = session.data.counts
    card = make_card(session.spec, choice.model, task, test, counts).with_origins(
        [make_card(one.run.spec, choice.model, task, test, counts) for one in choice.chosen]
    )
    proof = write_results(
        session,
        session.data,
        choice.model,
        task,
        test=test,
        outputs=outputs,
        save=partial(save_model, choice.model),
        card=card,
    )
    before, after = (task.example_scores(values, one) for one in (members.best.test, outputs))
    gain = paired_gain(before, after)
    found = Combination(
        how, run, members, choice.chosen, choice.val_loss, outputs, test, gain, proof
    )
    write_combination(found)
    run.write_json("metrics.json", describe_metrics((), None, test, proof, None, None))
    return found
