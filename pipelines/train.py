"""Train: from a folder of images to a fine-tuned, verified SavedModel in a run folder.

    python -m pipelines.train quickstart
    python -m pipelines.train my_photos model.backbone=mobilenet_0.25
    python -m pipelines.train saved_models/my_photos --output saved_models/my_photos --resume

A study is many trainings of one spec that share all stored features; it exports nothing:

    python -m pipelines.train quickstart folds=5
    python -m pipelines.train quickstart seeds=5
    python -m pipelines.train quickstart halvings=4 seeds=3
"""

import argparse
import json
import sys
from collections.abc import Sequence

from keras_transfer.backbones.early_checks import check_early
from keras_transfer.config import spec_to_dict
from keras_transfer.devices import native_log_to
from keras_transfer.devices.hosts import check_one_host, given_host, num_hosts_of
from keras_transfer.errors import SpecError
from keras_transfer.specs import RunSpec
from keras_transfer.storage.run_folder import RunFolder
from keras_transfer.storage.run_start import await_run, start_run
from pipelines.arguments import (
    RESUMABLE,
    STARTED,
    add_spec_arguments,
    main_of,
    make_parser,
    read_spec,
    scratch_log,
)


def _parser() -> argparse.ArgumentParser:
    parser = make_parser("train", str(__doc__), fields=True)
    add_spec_arguments(parser)
    parser.add_argument(
        "--output",
        metavar="DIR",
        help="run folder (default: saved_models/<name>, <name>-study for a study)",
    )
    parser.add_argument("--resume", action="store_true", help="continue an interrupted run")
    parser.add_argument("--dry-run", action="store_true", help="only try one batch of every phase")
    parser.add_argument(
        "--profile", action="store_true", help="trace some steps of every phase for TensorBoard"
    )
    parser.add_argument("--print-spec", action="store_true", help="print the resolved spec as JSON")
    return parser


def _run(argv: Sequence[str] | None) -> None:
    arguments = _parser().parse_intermixed_args(argv)
    spec = read_spec(arguments)
    if arguments.print_spec:
        sys.stdout.write(json.dumps(spec_to_dict(spec), indent=2) + "\n")
        return
    check_early(spec, arguments.output)
    if arguments.dry_run:
        with native_log_to(scratch_log()):
            _try(spec)
        return
    if spec.num_trials > 1:
        _check_study(spec, profile=arguments.profile)
    num_hosts = num_hosts_of(spec.devices)
    if (host := given_host()[0]) > 0:
        run = _await_run(spec, host, arguments.output)
    else:
        run = start_run(spec, output=arguments.output, resume=arguments.resume)
    with native_log_to(run.log_file):
        if spec.num_trials == 1:
            _train(spec, run, num_hosts=num_hosts, profile=arguments.profile)
        else:
            _study(spec, run)


def _check_study(spec: RunSpec, *, profile: bool) -> None:
    """Raise SpecError for options that apply to a single training only."""
    if profile:
        raise SpecError(
            "--profile traces a single training, not a study",
            expected="one training",
            received=f"{spec.num_trials} trainings",
            fix="leave out folds, seeds and halvings, or --profile",
        )
    check_one_host(spec.devices, "a study")


def _await_run(spec: RunSpec, host: int, output: str | None) -> RunFolder:
    from keras_transfer.reporting.reporter import TerminalReporter

    TerminalReporter().info(f"Host {host} waits for host 0 to start the run in {output}.")
    return await_run(spec, output=output)


# These functions import TensorFlow when they run, so that its start-up output goes to the log.
def _try(spec: RunSpec) -> None:
    from keras_transfer.experiments.dry_run import dry_run
    from keras_transfer.reporting.reporter import TerminalReporter

    terminal = TerminalReporter()
    dry_run(spec, terminal)
    if spec.num_trials > 1:
        terminal.info(f"Up to {spec.num_trials} trials would train like this.")


def _train(spec: RunSpec, run: RunFolder, *, num_hosts: int, profile: bool) -> None:
    from keras_transfer.experiments.run import run_transfer
    from keras_transfer.experiments.summary import show_next, show_result
    from keras_transfer.reporting.reporter import TerminalReporter
    from keras_transfer.scale.host_launcher import run_hosts

    terminal = TerminalReporter()
    if num_hosts > 1:
        run_hosts(spec, run, reporter=terminal, profile=profile)
    else:
        result = run_transfer(spec, run, reporter=terminal, profile=profile)
        show_result(result, terminal, started=STARTED)
        show_next(run.path, terminal)


def _study(spec: RunSpec, run: RunFolder) -> None:
    from keras_transfer.experiments.study.report import show_study
    from keras_transfer.experiments.study.run import run_study
    from keras_transfer.reporting.reporter import TerminalReporter

    terminal = TerminalReporter()
    show_study(run_study(spec, run, reporter=terminal), terminal)


main = main_of(_run, stopped=RESUMABLE)

if __name__ == "__main__":
    sys.exit(main())
