"""The console script: `keras-transfer <verb> …` is `python -m pipelines.<verb> …`."""

import importlib
import sys

VERBS = {
    "train": "train a classifier, judge it and export it",
    "tune": "search for better values of a spec's fields",
    "extract": "store what frozen layers make of the images, by many processes",
    "evaluate": "judge a run on its own test split or on other images",
    "predict": "classify files and folders with a run",
    "explain": "show where a run sees the classes in images",
    "export": "write a run as a SavedModel again, and in other formats",
    "serve": "answer images over HTTP, as TensorFlow Serving does",
    "probe": "tell what pretrained weights are worth with few labels",
    "cache": "list, check or remove what earlier runs computed and kept",
    "rank": "tell which pretrained trunk suits these images",
    "rates": "measure how fast the frozen layers of backbones run here",
    "race": "measure what the feature store gains on these images",
    "pretrain": "make the embedded weights of a trunk",
}


def main() -> int:
    """Hand the command line to the verb it names."""
    verb = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if verb in VERBS:
        return int(importlib.import_module(f"pipelines.{verb}").main(sys.argv[2:]))
    lines = ["usage: keras-transfer <verb> …   (keras-transfer <verb> --help tells more)", ""]
    lines += [f"  {name:10} {text}" for name, text in VERBS.items()]
    known = verb in ("--help", "-h")
    (sys.stdout if known else sys.stderr).write("\n".join(lines) + "\n")
    return 0 if known else 2


if __name__ == "__main__":
    sys.exit(main())
