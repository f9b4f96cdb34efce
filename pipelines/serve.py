r"""Serve: predict images over HTTP with TensorFlow Serving's REST protocol.

    python -m pipelines.serve saved_models/my_photos
    python -m pipelines.serve saved_models/my_photos --port 8080 --max-batch 64
    python -m pipelines.serve saved_models/my_photos --measure --runtime auto

Requests follow https://www.tensorflow.org/tfx/serving/api_rest, so the same clients work with
TensorFlow Serving:

    { printf '{"instances": [{"b64": "'; base64 < rose.jpg | tr -d '\n'; printf '"}]}'; } |
        curl -d @- http://127.0.0.1:8501/v1/models/my_photos:predict

Images are checked before they are decoded, and images of concurrent requests share a batch. The
newest version in the folder is served, and a newer one replaces it without a failed request. Other
endpoints: /healthz, /readyz, /metrics, /card and /openapi.json. Shuts down gracefully on SIGINT and
SIGTERM. docs/serving_limits.md lists the limits, and what a reverse proxy must do.
"""

import argparse
import dataclasses
import json
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from keras_transfer.devices import native_log_to
from keras_transfer.serving.settings import Settings, find_export_folder
from pipelines.arguments import main_of, make_parser, scratch_log


def _parser() -> argparse.ArgumentParser:
    parser = make_parser("serve", str(__doc__))
    parser.formatter_class = _Formatter
    parser.add_argument("run", metavar="RUN", help="run folder, or a folder of exported versions")
    for field in dataclasses.fields(Settings):
        if field.name != "folder":
            parser.add_argument(
                f"--{field.name.replace('_', '-')}",
                type=float if field.default is None else type(field.default),
                default=field.default,
                help=field.metadata["help"],
            )
    add = parser.add_argument
    add("--measure", action="store_true", help="measure instead of serving; writes serving.json")
    add("--images", metavar="DIR", help="images to measure with (default: the run's test split)")
    add("--seconds", type=float, default=2.0, help="of each of 35 measurements")
    return parser


class _Formatter(argparse.RawDescriptionHelpFormatter, argparse.ArgumentDefaultsHelpFormatter):
    """Keeps the lines of the description, and shows defaults."""


def _run(argv: Sequence[str] | None) -> None:
    given = vars(_parser().parse_args(argv))
    run, images, seconds = (given.pop(name) for name in ("run", "images", "seconds"))
    is_measured = given.pop("measure")
    settings = Settings(folder=find_export_folder(Path(run)), **given)
    with native_log_to(scratch_log()):
        if is_measured:
            _measure(Path(run), settings, images, seconds)
            return
        from keras_transfer.reporting.reporter import TerminalReporter
        from keras_transfer.serving.server import serve

        # Errors while serving go to the terminal that started the server.
        logging.getLogger("keras_transfer.serving").addHandler(logging.StreamHandler(sys.stderr))
        serve(settings, report=TerminalReporter().info)


def _measure(run: Path, settings: Settings, images: str | None, seconds: float) -> None:
    from keras_transfer.inference.paths import expand_paths
    from keras_transfer.inference.prediction import load_run
    from keras_transfer.reporting.reporter import TerminalReporter
    from keras_transfer.storage.atomic import replacing
    from pipelines.benchmarks.server import describe, find_images, measure

    terminal = TerminalReporter()
    files = list(expand_paths([images], sys.stdin)) if images else find_images(run)
    # A folder of exported versions has no model to compare with.
    loaded = load_run(run) if settings.folder != run else None
    measured = measure(settings, files, run=loaded, seconds=seconds, report=terminal.info)
    title = f"Serving, computed by {measured.network}"
    terminal.table(title, ["", "", "compared"], describe(measured))
    with replacing(run / "serving.json") as path:
        path.write_text(json.dumps(dataclasses.asdict(measured), indent=2) + "\n", encoding="utf-8")
    terminal.info(f"Figures: {run / 'serving.json'}")


main = main_of(_run)

if __name__ == "__main__":
    sys.exit(main())
