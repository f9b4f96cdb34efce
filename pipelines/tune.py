"""Tune: search for better values of a spec's fields, at about the cost of one training.

the default space, or that of a preset or TOML file:
    python -m pipelines.tune my_photos
fields and values of your own:
    python -m pipelines.tune my_photos min_images=0 'search.space.dropout={values=[0.0,0.3]}' \\
        'search.space.lr={low=1e-4,high=1e-2,sampling="log"}'
at most so many trials, and none started after so long:
    python -m pipelines.tune my_photos trials=10 time_budget=20m
continue an interrupted search:
    python -m pipelines.tune saved_models/my_photos-search --resume
train the best trial again; its finished run is in saved_models/my_photos-search/winner:
    python -m pipelines.train saved_models/my_photos-search/best.toml

Before the first trial the command says which fields vary, which are left out because they would
change nothing with these images and settings, and on which images trials are compared. At the end
it recommends the best trial or the original spec, with the next command.

Trials are compared on the validation split; only the best one is evaluated on the test split. It
becomes a run in the folder `winner`, next to best.toml (its spec), search.html and search.json.
A preset's own space is extended by search.space.FIELD=…, and replaced by search.space={…}.
For several machines see the documentation: they share a disk, --output and three variables.
"""

import argparse
import contextlib
import json
import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from keras_transfer.backbones.early_checks import check_early
from keras_transfer.config import spec_to_dict, with_dotted_space, with_search_space
from keras_transfer.devices import native_log_to
from keras_transfer.errors import SpecError
from keras_transfer.experiments.tune.worker_roles import is_worker, wait_for_chief
from keras_transfer.specs import RunSpec
from keras_transfer.storage.run_folder import RunFolder
from keras_transfer.storage.run_start import start_run
from pipelines.arguments import (
    RESUMABLE,
    add_spec_arguments,
    main_of,
    make_parser,
    positive,
    read_spec,
    say,
)

_NUM_PLAIN = 2


def _parser() -> argparse.ArgumentParser:
    parser = make_parser("tune", str(__doc__), fields=True, also=("search.",))
    add_spec_arguments(parser)
    parser.add_argument(
        "--output", metavar="DIR", help="folder to write to (default: saved_models/<name>-search)"
    )
    parser.add_argument("--resume", action="store_true", help="continue an interrupted search")
    parser.add_argument(
        "--workers", type=positive, default=1, metavar="N", help="processes that train (default: 1)"
    )
    parser.add_argument(
        "--against-plain",
        action="store_true",
        help="start with an empty cache, and also time one plain Keras training and two trials of "
        "a plain KerasTuner search",
    )
    parser.add_argument("--print-spec", action="store_true", help="print the resolved spec as JSON")
    return parser


def _run(argv: Sequence[str] | None) -> None:
    arguments = _parser().parse_intermixed_args(argv)
    spec = with_search_space(with_dotted_space(read_spec(arguments), say))
    if arguments.against_plain and spec.cache.folder:
        raise SpecError(
            "--against-plain starts with an empty cache of its own",
            expected="no cache.folder",
            received=f"cache.folder={spec.cache.folder}",
            fix="leave cache.folder out",
        )
    if arguments.print_spec:
        sys.stdout.write(json.dumps(spec_to_dict(spec), indent=2) + "\n")
        return
    check_early(spec, arguments.output)
    # A run folder given as the preset is the folder to resume.
    named = arguments.source if arguments.resume and Path(arguments.source).is_dir() else None
    output = arguments.output or named
    if is_worker():
        run = wait_for_chief(spec, output)
        with native_log_to(run.path / f"{os.environ['KERASTUNER_TUNER_ID']}.log"):
            _work(spec, run)
        return
    run = start_run(spec, output=output, resume=arguments.resume, suffix="-search")
    num_plain = _NUM_PLAIN if arguments.against_plain else 0
    cache = _empty_cache(run) if arguments.against_plain else contextlib.nullcontext()
    with native_log_to(run.log_file), cache:
        _search(spec, run, num_workers=arguments.workers, num_plain=num_plain)


@contextlib.contextmanager
def _empty_cache(run: RunFolder) -> Iterator[None]:
    """Use an empty cache; workers inherit the variable."""
    before = os.environ.get("KERAS_TRANSFER_HOME")
    with tempfile.TemporaryDirectory(dir=run.path) as home:
        os.environ["KERAS_TRANSFER_HOME"] = home
        try:
            yield
        finally:
            os.environ.pop("KERAS_TRANSFER_HOME")
            if before is not None:
                os.environ["KERAS_TRANSFER_HOME"] = before


# These functions import TensorFlow when they run, so that its start-up output goes to the log.
def _work(spec: RunSpec, run: RunFolder) -> None:
    from keras_transfer.experiments.tune.workers import take_part
    from keras_transfer.reporting.reporter import TerminalReporter

    take_part(spec, run, reporter=TerminalReporter())


def _search(spec: RunSpec, run: RunFolder, *, num_workers: int, num_plain: int) -> None:
    from keras_transfer.experiments.tune.report import (
        describe_against_plain,
        show_search,
        write_search,
    )
    from keras_transfer.experiments.tune.search import run_search
    from keras_transfer.reporting.reporter import TerminalReporter
    from pipelines.benchmarks.plain_search import measure_plain

    terminal = TerminalReporter()
    found = run_search(spec, run, num_workers=num_workers, reporter=terminal)
    plain = (
        measure_plain(found.spec, run, num_trials=num_plain, reporter=terminal)
        if num_plain
        else None
    )
    write_search(found, against_plain=plain)
    show_search(found, terminal)
    if plain:
        terminal.info(describe_against_plain(found, plain))


main = main_of(_run, stopped=RESUMABLE)

if __name__ == "__main__":
    sys.exit(main())
