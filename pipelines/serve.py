"""Serve: answer images over HTTP, in TensorFlow Serving's REST protocol.

    python -m pipelines.serve saved_models/flowers
    python -m pipelines.serve saved_models/flowers --port 8080 --max-batch 64
    python -m pipelines.serve saved_models/flowers --measure

Requests are those of https://www.tensorflow.org/tfx/serving/api_rest, so clients move to
TensorFlow Serving as they are:

    curl -d '{"instances": [{"b64": "…"}]}' http://127.0.0.1:8501/v1/models/flowers:predict

Images are checked before they are decoded, and those of concurrent requests go through the
network together. The newest version in the folder answers; a newer one takes over without a failed
request. /healthz, /readyz, /metrics, /card and /openapi.json tell the rest. SIGTERM ends it, once
everything that was begun is answered.
"""

import argparse
import json
import logging
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from keras_transfer.devices import native_log_to
from keras_transfer.serving.settings import Settings, find_export_folder
from pipelines.arguments import main_of, make_parser, positive, scratch_log


def _parser() -> argparse.ArgumentParser:
    parser = make_parser("serve", str(__doc__))
    parser.formatter_class = _Formatter
    parser.add_argument("run", metavar="RUN", help="run folder, or a folder of exported versions")
    add = parser.add_argument
    add("--name", default=Settings.name, help="the model's name in URLs (default: the run's)")
    add("--host", default=Settings.host, help="address to listen on")
    add("--port", type=int, default=Settings.port, help="port to listen on, 0 for any free one")
    add("--max-batch", type=positive, default=Settings.max_batch, help="images in a batch")
    add(
        "--max-wait-ms",
        type=float,
        default=Settings.max_wait_ms,
        help="how long a batch waits for images that are being decoded",
    )
    add("--max-queue", type=positive, default=Settings.max_queue, help="images under way: 429")
    add(
        "--max-instances",
        type=positive,
        default=Settings.max_instances,
        help="images in a request: 422",
    )
    add(
        "--max-body-megabytes",
        type=float,
        default=Settings.max_body_megabytes,
        help="size of a request: 413",
    )
    add("--max-megapixels", type=float, help="size of an image: 422 (default: the run's)")
    add(
        "--request-seconds",
        type=float,
        default=Settings.request_seconds,
        help="for a request to arrive: 408",
    )
    add(
        "--poll-seconds",
        type=float,
        default=Settings.poll_seconds,
        help="how often to look for a newer version",
    )
    add(
        "--grace-seconds",
        type=positive,
        default=Settings.grace_seconds,
        help="to finish what was begun when told to stop",
    )
    add("--measure", action="store_true", help="do not serve: measure, and write serving.json")
    add("--images", metavar="DIR", help="images to measure with (default: the run's test split)")
    add("--seconds", type=float, default=2.0, help="of each of 28 measurements")
    return parser


class _Formatter(argparse.RawDescriptionHelpFormatter, argparse.ArgumentDefaultsHelpFormatter):
    """Keeps the lines of the description, and tells defaults."""


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

        # What goes wrong while nobody looks is said where the server was started.
        logging.getLogger("keras_transfer.serving").addHandler(logging.StreamHandler(sys.stderr))
        serve(settings, say=TerminalReporter().info)


def _measure(run: Path, settings: Settings, images: str | None, seconds: float) -> None:
    from keras_transfer.inference.prediction import expand_paths
    from keras_transfer.reporting.reporter import TerminalReporter
    from keras_transfer.storage.atomic import replacing
    from pipelines.benchmarks.server import describe, find_images, measure

    terminal = TerminalReporter()
    command = [sys.executable, "-m", "pipelines.serve", str(run), "--port", "0"]
    for field in ("max_batch", "max_wait_ms"):
        command += [f"--{field.replace('_', '-')}", str(getattr(settings, field))]
    files = list(expand_paths([images], sys.stdin)) if images else find_images(run)
    measured = measure(command, settings.folder, files, seconds=seconds, say=terminal.info)
    terminal.table("Serving", ["", "", "beside"], describe(measured))
    with replacing(run / "serving.json") as path:
        path.write_text(json.dumps(asdict(measured), indent=2) + "\n", encoding="utf-8")
    terminal.info(f"Figures: {run / 'serving.json'}")


main = main_of(_run)

if __name__ == "__main__":
    sys.exit(main())
