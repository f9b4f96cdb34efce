"""The verbs, each run by `python -m pipelines.<verb>`."""

import importlib.util
import sys


def _check_verb() -> None:
    """End with the nearest verb where `python -m pipelines.<verb>` names none."""
    # Python imports this package before it looks for the module, with "-m" as the first argument.
    words = sys.orig_argv
    module = words[words.index("-m") + 1] if sys.argv[:1] == ["-m"] and "-m" in words[:-1] else ""
    if module.startswith("pipelines.") and importlib.util.find_spec(module) is None:
        from pipelines.cli import refuse_verb

        sys.exit(refuse_verb(module.removeprefix("pipelines.")))


_check_verb()
