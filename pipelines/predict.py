"""Predict: classify files, folders or a list on standard input with a finished run.

python -m pipelines.predict saved_models/flowers photo.jpg more_photos/ --output predictions.csv
find / -name '*.jpg' | python -m pipelines.predict saved_models/flowers - --output all.csv
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from keras_transfer.delivery.atomic import check_vacant
from keras_transfer.devices import chatter_to
from pipelines.arguments import main_of, make_parser, scratch_log


def _run(argv: Sequence[str] | None) -> None:
    parser = make_parser("predict", str(__doc__))
    parser.add_argument("run", metavar="RUN", help="run folder, such as saved_models/flowers")
    parser.add_argument("paths", metavar="PATH", nargs="+", help="file, folder or - for stdin")
    parser.add_argument(
        "--output", metavar="FILE", default="predictions.csv", help="CSV file to write"
    )
    parser.add_argument("--batch-size", type=int, default=32, help="pictures per forward pass")
    arguments = parser.parse_args(argv)
    check_vacant(Path(arguments.output))
    with chatter_to(scratch_log()):
        from keras_transfer.answers import known_answers
        from keras_transfer.data.audit import pixels_recipe
        from keras_transfer.delivery.prediction import load_run, predict_files
        from keras_transfer.delivery.prediction_files import expand_paths, write_predictions
        from keras_transfer.shelf import open_store
        from keras_transfer.terminal import Terminal

        terminal = Terminal()
        files = expand_paths(arguments.paths, sys.stdin)
        loaded = load_run(arguments.run)
        pixels = pixels_recipe(loaded.spec.data)
        with open_store(loaded.spec, narrator=terminal) as store:
            known = known_answers(loaded.model, pixels=pixels, store=store)
        with terminal.counting("predicting") as count:
            rows = predict_files(loaded, files, known=known, batch_size=arguments.batch_size)
            summary = write_predictions(
                terminal.counted(rows, count),
                Path(arguments.output),
                class_names=loaded.class_names,
            )
        labels = [[name, f"{number:,}"] for name, number in summary.num_by_label.items()]
        terminal.table(f"Pictures: {summary.num_predicted:,}", ["label", "pictures"], labels)
        if summary.num_bad:
            terminal.say(f"{summary.num_bad:,} files could not be read: see the error column.")
        terminal.say(f"Predictions: {arguments.output}")


main = main_of(_run)

if __name__ == "__main__":
    sys.exit(main())
