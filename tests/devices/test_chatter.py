"""What is set before TensorFlow starts: the native log and the choice of kernels."""

import os
import platform
import subprocess
import sys

import pytest

SCRIPT = """
import logging, os, sys, warnings
from pathlib import Path
from keras_transfer.devices import chatter_to
with chatter_to(Path(sys.argv[1])):
    os.write(2, b"native native log output\\n")
    logging.getLogger("absl").warning("logged native log output")
    warnings.warn("warned native log output")
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
    for chatter in (
        "native native log output",
        "logged native log output",
        "warned native log output",
    ):
        assert chatter in text


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="not an x86 processor")
@pytest.mark.parametrize(("given", "expected"), [(None, "1"), ("0", "0")])
def test_onednn_is_asked_for_unless_the_user_has_decided(given, expected):
    environment = {key: value for key, value in os.environ.items() if "ONEDNN" not in key}
    if given:
        environment["TF_ENABLE_ONEDNN_OPTS"] = given
    script = (
        "import keras_transfer, tensorflow\n"
        "from tensorflow.python.util import _pywrap_util_port as port\n"
        "print(int(port.IsMklEnabled()))"
    )
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    assert done.stdout.split() == [expected]


def test_whoever_has_imported_tensorflow_first_has_decided():
    environment = {key: value for key, value in os.environ.items() if "ONEDNN" not in key}
    script = (
        "import os, tensorflow, keras_transfer\n"
        "print([name for name in os.environ if 'ONEDNN' in name])"
    )
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    assert done.stdout.split() == ["[]"]
