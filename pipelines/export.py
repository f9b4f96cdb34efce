"""Export: write a run's model as a SavedModel again, proven like the first one.

    python -m pipelines.export saved_models/flowers

The new version gets the next number under export/; none is overwritten.
"""

import sys
from collections.abc import Sequence

from keras_transfer.devices import chatter_to
from pipelines.arguments import main_of, make_parser, scratch_log


def _run(argv: Sequence[str] | None) -> None:
    parser = make_parser("export", str(__doc__))
    parser.add_argument("run", metavar="RUN", help="run folder, such as saved_models/flowers")
    arguments = parser.parse_args(argv)
    with chatter_to(scratch_log()):
        from keras_transfer.closing import describe_proof
        from keras_transfer.judging import export_run
        from keras_transfer.terminal import Terminal

        terminal = Terminal()
        folder, proof = export_run(arguments.run, narrator=terminal)
        terminal.say(describe_proof(proof))
        terminal.say(f"SavedModel {folder}")


main = main_of(_run)

if __name__ == "__main__":
    sys.exit(main())
