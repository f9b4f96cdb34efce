"""Adaptation: a run whose model is adapted to unlabelled images that look different."""

import shutil
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Final

from keras_transfer.adaptation.registry import AUTO, parse_kind
from keras_transfer.config import load_spec, override
from keras_transfer.data.splits import Splits
from keras_transfer.errors import SpecError
from keras_transfer.experiments.adapt.candidates import (
    Comparer,
    Comparison,
    check_chain,
    check_run,
    weights_of,
)
from keras_transfer.experiments.adapt.images import (
    Images,
    labelled_images,
    own_images,
    target_images,
)
from keras_transfer.experiments.adapt.report import REPORT_FILE, card_sentence, write_adaptation
from keras_transfer.experiments.run_results import as_trained, describe_export, write_results
from keras_transfer.experiments.session import Data
from keras_transfer.export.card import make_card
from keras_transfer.features.cached_logits import predict_cached
from keras_transfer.inference.prediction import LoadedRun, load_run
from keras_transfer.reporting.reporter import Reporter
from keras_transfer.storage.run_folder import RunFolder
from keras_transfer.storage.run_start import start_run, vacated_on_refusal

_COPIED: Final = ("history.csv", "figures/learning_curves.png")


def adapt_run(
    path: str | Path,
    folder: str,
    *,
    kind: str = AUTO,
    labelled: str | None = None,
    moved_to: str | None = None,
    output: str | Path | None,
    resume: bool,
    reporter: Reporter,
) -> tuple[RunFolder, Comparison]:
    """Adapt the model of a finished run to images without labels, as a new run with a report.

    Args:
        folder: with images of the target, at any depth.
        kind: 'auto', or a chain of `adaptation.registry`.
        labelled: a folder of classes, or a CSV file, with a few images of the target by whose log
            loss 'auto' chooses; None chooses without labels.
        moved_to: where the run's own images are now; None is its `data.path`.

    Raises:
        RunError: there is no finished run, or the new one cannot be written.
        SpecError: the kind is unknown, or cannot be applied to the run.
        DataError: images are missing, cannot be used, or are too few.
        ExportError: the exported model does not agree with the adapted one.
    """
    run = load_run(path).at(moved_to)
    check_run(run)
    names = _names(run, kind, reporter)
    spec = override(run.spec, {"name": f"{run.spec.name}-adapted"})
    new = start_run(spec, output=output, resume=resume, suffix="", last=REPORT_FILE)
    with vacated_on_refusal(new), ExitStack() as opened:
        own, splits = opened.enter_context(own_images(run, reporter=reporter))
        target = opened.enter_context(target_images(run, folder, splits, own, reporter=reporter))
        given = labelled and opened.enter_context(labelled_images(run, labelled, reporter=reporter))
        reporter.info("Comparing kinds of adaptation …")
        comparer = Comparer(
            run.model,
            copied=lambda: load_run(path).model,
            weights=partial(weights_of, run),
            own=own,
            splits=splits,
            target=target,
            labelled=given or None,
        )
        found = comparer.compare(names, is_forced=kind != AUTO)
        _write_run(run, new, found, own, splits, Path(folder).name)
    write_adaptation(new, run, found, folder=folder)
    return new, found


def _names(run: LoadedRun, kind: str, reporter: Reporter) -> list[str]:
    """The chains to compare, the run as it is first."""
    names = parse_kind(kind)
    if kind != AUTO and (reason := check_chain(run, kind)):
        raise SpecError(
            f"{run.folder.path} cannot be adapted by {kind}",
            expected="a network with BatchNormalization",
            received=reason,
            fix="leave adabn out: give kind=coral, or kind=auto",
        )
    left_out = {name: reason for name in names if (reason := check_chain(run, name))}
    for reason in dict.fromkeys(left_out.values()):
        those = ", ".join(name for name in left_out if left_out[name] == reason)
        reporter.info(f"Left out because {reason}: {those}.")
    return [name for name in names if name not in left_out]


def _write_run(
    run: LoadedRun,
    new: RunFolder,
    found: Comparison,
    own: Images,
    splits: Splits,
    target: str,
) -> None:
    """All files of an ordinary run, metrics.json last."""
    _copy_training(run.folder, new)
    is_changed = found.chosen is not found.source
    model = found.chosen.applied() if is_changed else run.model
    outputs = predict_cached(
        model,
        [own.source.digests[row] for row in splits.test],
        own.pixels,
        rows=splits.test,
        pixels_key=own.source.pixels,
        cache=own.session.cache,
        reporter=own.session.reporter,
        activation=run.task.activation,
    )
    test = run.task.evaluate(found.own_labels, outputs, seed=run.spec.seed)
    sentence = card_sentence(found, target)
    spec = load_spec(new.path)
    data = Data(own.records, splits, own.source, num_decoded=0)
    limits = [sentence] if sentence else []
    before = run.folder.read_json("metrics.json")
    names = [phase["name"] for phase in before["phases"]]
    proof = write_results(
        replace(own.session, spec=spec, run=new),
        data,
        model,
        run.task,
        test=test,
        outputs=outputs,
        # The file of an unchanged model has the same bits.
        save=model.save if is_changed else partial(shutil.copyfile, run.folder.model_file),
        card=make_card(as_trained(spec, names), model, run.task, test, data.counts, limits=limits),
    )
    metrics = {name: before.get(name) for name in ("phases", "refit")} | {
        "test": test.to_dict(),
        "export": describe_export(proof),
        "adaptation": {"kind": found.chosen.name, "sentence": sentence},
    }
    new.write_json("metrics.json", metrics)


def _copy_training(run: RunFolder, new: RunFolder) -> None:
    """The splits, the classes and the history of the training that the model comes from."""
    new.write_json("splits.json", run.read_json("splits.json"))
    new.write_class_names(run.read_class_names())
    for name in _COPIED:
        if (run.path / name).is_file():
            with new.replacing(name) as file:
                shutil.copyfile(run.path / name, file)
