"""Combination: several finished runs become one ordinary run, compared with each of them.

The kinds of combination are rows of `registry`.
"""

import dataclasses
import shutil
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from keras_transfer.config import override
from keras_transfer.devices.strategy import current
from keras_transfer.evaluation.results import paired_gain
from keras_transfer.experiments.combine.choice import Choice
from keras_transfer.experiments.combine.registry import get_kind
from keras_transfer.experiments.combine.report import Combination, write_combination
from keras_transfer.experiments.evaluation import predict_split
from keras_transfer.experiments.run_results import describe_metrics, write_results
from keras_transfer.experiments.session import Session, open_session
from keras_transfer.export.card import make_card
from keras_transfer.models.classifier import save_model
from keras_transfer.reporting.reporter import Reporter
from keras_transfer.storage.run_start import start_run, vacated_on_refusal


def combine_runs(
    paths: Sequence[str | Path],
    *,
    how: str,
    scale: float | None = None,
    output: str | Path | None,
    reporter: Reporter,
) -> Combination:
    """Combine finished runs into a new one, which has an export with its proof.

    Raises:
        RunError: there is no finished run, or the new one cannot be written.
        SpecError: `how` or `scale` cannot be used, or the runs do not fit together.
        DataError: the runs have other splits, or their images are missing or have changed.
        ExportError: the exported model does not agree with the combination.
    """
    choice = get_kind(how, scale)(paths, scale, reporter)
    names = ", ".join(member.name for member in choice.chosen)
    reporter.info(f"{choice.title} was chosen: {names}.")
    base = choice.members.best.run
    spec = override(base.spec, {"name": f"{base.spec.name}-{how}"})
    run = start_run(spec, output=output, suffix="")
    with vacated_on_refusal(run):
        for name in ("splits.json", "class_names.json"):
            run.write_json(name, base.folder.read_json(name))
        # Finished runs predict on the current device: those of the spec are not set up.
        with open_session(spec, reporter=reporter, run=run, devices=current()) as session:
            found = _finish(session, choice, how)
        shutil.rmtree(run.checkpoint_folder)
    return found


def _finish(session: Session, choice: Choice, how: str) -> Combination:
    """Evaluate the combination, and write all files of its run, metrics.json last."""
    run, members = session.run, choice.members
    base = members.best.run
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
    found = Combination(how, run, choice, outputs, test, gain, proof)
    write_combination(found)
    run.write_json("metrics.json", describe_metrics((), None, test, proof, None, None))
    return found
