"""Pretrain: train the embedded weights of a trunk from scratch, on rendered letters.

    python -m pipelines.pretrain letters_resnet50
    python -m pipelines.pretrain letters_vgg16 phase.epochs=12 --output my_weights

Writes <backbone>_<last stage>.npz (float16) and its record; by default into the package, where
model.weights=embedded reads them. An interrupted pretraining continues with --resume.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from keras_transfer.config import PRESETS, load, override, parse_assignments, spec_to_dict
from keras_transfer.devices import native_log_to
from keras_transfer.specs import PretrainSpec
from keras_transfer.storage.run_folder import RunFolder, latest, next_free
from keras_transfer.storage.run_start import DEFAULT_PARENT, check_same_spec
from pipelines.arguments import RESUMABLE, main_of, make_parser


def _parser() -> argparse.ArgumentParser:
    parser = make_parser("pretrain", str(__doc__))
    parser.add_argument("preset", help="letters_resnet50, letters_vgg16 or a .toml file")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="fields to change")
    parser.add_argument("--output", metavar="DIR", help="folder for the weights")
    parser.add_argument("--resume", action="store_true", help="continue an interrupted pretraining")
    return parser


def _run(argv: Sequence[str] | None) -> None:
    arguments = _parser().parse_intermixed_args(argv)
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
