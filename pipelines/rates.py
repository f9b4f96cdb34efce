"""Rates: how fast the frozen layers of backbones run on this machine, in each variant.

    python -m pipelines.rates resnet50 mobilenet_0.25
    python -m pipelines.rates vgg16 --image-size 96 --batch-size 16

Prints images per second of the layers in Keras, of the folded layers in float32 that compute
features, and of the same in half precision. With `cache.precision=auto` a run uses the faster of
the folded variants, if both agree.
"""

import sys
from collections.abc import Sequence

from keras_transfer.devices import native_log_to
from pipelines.arguments import main_of, make_parser, positive, scratch_log


def _run(argv: Sequence[str] | None) -> None:
    parser = make_parser("rates", str(__doc__))
    parser.add_argument("backbones", nargs="+", metavar="BACKBONE", help="as model.backbone")
    parser.add_argument("--image-size", type=positive, default=224, metavar="PIXELS")
    parser.add_argument("--batch-size", type=positive, default=32, metavar="N")
    arguments = parser.parse_args(argv)
    with native_log_to(scratch_log()):
        from keras_transfer.features.prefix import half_precision
        from keras_transfer.reporting.reporter import TerminalReporter
        from pipelines.benchmarks.rates import NUM_ROUNDS, measure_rates

        rows = []
        for backbone in arguments.backbones:
            sizes = {"image_size": arguments.image_size, "batch_size": arguments.batch_size}
            rates = measure_rates(backbone, **sizes)
            figures = (rates.keras, rates.folded, rates.half)
            rows.append([backbone, *(f"{figure:,.3g}" for figure in figures)])
        header = ["images/s", "Keras", "folded float32", f"folded {half_precision()}"]
        size = f"{arguments.image_size} px, batches of {arguments.batch_size}"
        TerminalReporter().table(
            "Frozen layers", header, rows, caption=f"{size}, medians of {NUM_ROUNDS} rounds or more"
        )


main = main_of(_run)

if __name__ == "__main__":
    sys.exit(main())
