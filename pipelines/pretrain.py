"""Pretrain: train a trunk on images without labels, or from scratch on rendered letters.

    python -m pipelines.pretrain my_photos model.backbone=mobilenet
    python -m pipelines.pretrain my_photos kind=rotation phases.0.epochs=20
    python -m pipelines.pretrain my_photos model.weights=none
    python -m pipelines.pretrain letters_resnet50
    python -m pipelines.pretrain letters_vgg16 phase.epochs=12 --output my_weights

Of a folder, all images at any depth are used without their labels, from the weights in
model.weights on; the result is a folder that model.backbone takes: saved_models/my_photos-simsiam.
Rendered letters give <backbone>_<last stage>.npz (float16) and its record; by default in the
package, where model.weights=embedded reads them. An interrupted pretraining continues with
--resume.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from keras_transfer.backbones.choice import choose_backbone
from keras_transfer.backbones.early_checks import check_early
from keras_transfer.config import (
    PRESETS,
    dotted_fields,
    is_images,
    load,
    override,
    parse_assignments,
    spec_to_dict,
)
from keras_transfer.devices import native_log_to
from keras_transfer.pretext.registry import DEFAULT, KINDS, check_kind
from keras_transfer.pretext.settings import BASE, pretraining_spec
from keras_transfer.specs import PretrainSpec, RunSpec
from keras_transfer.storage.run_folder import RunFolder, latest, next_free
from keras_transfer.storage.run_start import DEFAULT_PARENT, check_same_spec, start_run
from pipelines.arguments import RESUMABLE, main_of, make_parser, read_source, say


def _parser() -> argparse.ArgumentParser:
    parser = make_parser("pretrain", str(__doc__), fields=True)
    parser.add_argument(
        "preset",
        metavar="source",
        help="a folder of images; or letters_resnet50, letters_vgg16 or a .toml file",
    )
    parser.add_argument(
        "overrides",
        nargs="*",
        metavar="key=value",
        help=f"for a folder kind={' or '.join(KINDS)} (default: {DEFAULT}) and fields of a run; "
        "for letters fields of their pretraining",
    )
    parser.add_argument("--output", metavar="DIR", help="folder for the result")
    parser.add_argument("--resume", action="store_true", help="continue an interrupted pretraining")
    return parser


def _run(argv: Sequence[str] | None) -> None:
    arguments = _parser().parse_intermixed_args(argv)
    if names_images(arguments.preset):
        _pretrain_on_images(arguments)
    else:
        _pretrain_on_letters(arguments)


def names_images(source: str) -> bool:
    """Whether a source is a folder of images, and not a pretraining of letters."""
    return Path(source).is_dir() and is_images(Path(source))


def read_words(source: str, words: Sequence[str]) -> RunSpec:
    """The spec of a pretraining on a folder, whose only phase is called like its kind.

    Raises:
        SpecError: the kind is unknown, or a field is wrong.
    """
    changes = parse_assignments(words)
    kind = str(changes.pop("kind", DEFAULT))
    check_kind(kind)
    spec = read_source(source, changes, base=BASE)
    given = dotted_fields(changes, BASE)
    if names_images(source):
        spec = choose_backbone(spec, given, say)
    return pretraining_spec(spec, given, kind=kind)


def _pretrain_on_images(arguments: argparse.Namespace) -> None:
    spec = read_words(arguments.preset, arguments.overrides)
    check_early(spec, arguments.output)
    run = start_run(spec, output=arguments.output, resume=arguments.resume, suffix="")
    with native_log_to(run.log_file):
        from keras_transfer.experiments.self_supervision import run_pretraining
        from keras_transfer.reporting.reporter import TerminalReporter

        terminal = TerminalReporter()
        run_pretraining(spec, run, reporter=terminal)
        # A path with a separator, because a name without one is that of a backbone.
        path = run.path if len(run.path.parts) > 1 else f"./{run.path}"
        terminal.info(f"Pretrained backbone: model.backbone={path}")


def _pretrain_on_letters(arguments: argparse.Namespace) -> None:
    presets = PRESETS / "pretraining"
    spec = load(PretrainSpec, arguments.preset, presets=presets)
    spec = override(spec, parse_assignments(arguments.overrides))
    run = _enter(spec, resume=arguments.resume)
    with native_log_to(run.log_file):
        from keras_transfer.backbones.archives import EMBEDDED
        from keras_transfer.experiments.pretraining import embed, pretrain
        from keras_transfer.reporting.reporter import TerminalReporter
        from keras_transfer.training.progress import Checkpoint

        terminal = TerminalReporter()
        steps = spec.num_letters // spec.batch_size
        with terminal.training_progress(spec.name, spec.phase.epochs, steps) as callbacks:
            saver = Checkpoint(run, "phase-0", terminal.info)
            classifier, result = pretrain(spec, saver=saver, callbacks=callbacks)
        monitor = classifier.task.monitor
        score = monitor.format(result.best_row[monitor.log_name])
        command = " ".join(["python -m pipelines.pretrain", arguments.preset, *arguments.overrides])
        folder = Path(arguments.output) if arguments.output else EMBEDDED
        file = embed(classifier, result, spec, command=command, folder=folder)
        terminal.info(
            f"Validation {monitor.metric} on new letters: {score}, after {result.seconds:.0f} s."
        )
        terminal.info(f"Weights: {file}")


def _enter(spec: PretrainSpec, *, resume: bool) -> RunFolder:
    """The folder of the checkpoint: a new one, or that of the latest pretraining of the name."""
    if resume:
        run = RunFolder.create(latest(DEFAULT_PARENT, spec.name), resume=True)
        check_same_spec(load(PretrainSpec, run.spec_file), spec, run)
        return run
    run = RunFolder.create(next_free(DEFAULT_PARENT, spec.name))
    run.write_json("spec.json", spec_to_dict(spec))
    return run


main = main_of(_run, stopped=RESUMABLE)

if __name__ == "__main__":
    sys.exit(main())
