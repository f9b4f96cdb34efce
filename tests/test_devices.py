"""Chatter goes to the log, people's text to the terminal, and everything back afterwards."""

import subprocess
import sys

SCRIPT = """
import logging, os, sys, warnings
from pathlib import Path
from keras_transfer.devices import chatter_to
with chatter_to(Path(sys.argv[1])):
    os.write(2, b"native chatter\\n")
    logging.getLogger("absl").warning("logged chatter")
    warnings.warn("warned chatter")
    print("for people", file=sys.stderr)
os.write(2, b"native again\\n")
print("people again", file=sys.stderr)
"""


def test_only_words_for_people_reach_the_terminal(tmp_path):
    log = tmp_path / "run.log"
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(log)], capture_output=True, text=True, check=True
    )
    assert done.stderr.split("\n") == ["for people", "native again", "people again", ""]
    text = log.read_text()
    for chatter in ("native chatter", "logged chatter", "warned chatter"):
        assert chatter in text
