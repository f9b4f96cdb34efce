"""The console script: `keras-transfer <verb> …` is `python -m pipelines.<verb> …`."""

import importlib
import sys

from keras_transfer import __version__
from keras_transfer.errors import SpecError
from keras_transfer.fields import nearest
from pipelines.arguments import refuse

VERBS = {
    "init": "write a commented file with the settings for your images",
    "auto": "find the best model within a time budget",
    "train": "train a model, evaluate it and export it",
    "distill": "train a small model to follow a larger one",
    "compress": "make the network of a run smaller and faster",
    "extend": "add images or classes to a finished run",
    "adapt": "adapt a run to unlabelled images that look different",
    "combine": "combine finished runs into one, by their weights or their probabilities",
    "tune": "search for better values of a spec's fields",
    "extract": "compute and store the features of frozen layers, with many processes",
    "evaluate": "evaluate a run on its own test split or on other images",
    "predict": "predict the images in files and folders with a run",
    "suggest": "choose which new images to label next",
    "explain": "show which parts of images a prediction depends on",
    "export": "export a run as a SavedModel again, and in other formats",
    "serve": "serve predictions over HTTP, with TensorFlow Serving's protocol",
    "probe": "measure what pretrained weights gain with few labels",
    "cache": "list, check or remove the features that earlier runs stored",
    "rank": "rank pretrained backbones for these images",
    "label_efficiency": "measure what suggested labels gain over random ones",
    "domain_shifts": "measure what adaptation gains on shifted images",
    "rates": "measure how fast the frozen layers of backbones run here",
    "race": "measure how much time stored features save on these images",
    "pretrain": "train a backbone on images without labels, or on rendered letters",
}


def main() -> int:
    """Run the verb that the command line names."""
    verb = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if verb in VERBS:
        return int(importlib.import_module(f"pipelines.{verb}").main(sys.argv[2:]))
    if verb == "--version":
        sys.stdout.write(f"keras_transfer {__version__}\n")
        return 0
    if verb not in ("--help", "-h"):
        return refuse_verb(verb)
    lines = ["usage: keras-transfer <verb> …   (details: keras-transfer <verb> --help)", ""]
    lines += [f"  {name:16} {text}" for name, text in VERBS.items()]
    sys.stdout.write("\n".join(lines) + "\n")
    return 0


def refuse_verb(verb: str) -> int:
    """Print that there is no such verb, with the nearest one; the exit status."""
    return refuse(
        SpecError(
            f"there is no verb {verb!r}",
            expected=f"one of {', '.join(VERBS)}",
            received=verb,
            fix=nearest(verb, list(VERBS), otherwise="keras-transfer --help lists them"),
        )
    )


if __name__ == "__main__":
    sys.exit(main())
