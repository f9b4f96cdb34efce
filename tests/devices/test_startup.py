"""What is set before TensorFlow starts: the log of native code, and oneDNN's kernels."""

import importlib.util
import json
import os
import platform
import subprocess
import sys
import types

import pytest

from keras_transfer.devices import speed_up_imports

X86 = platform.machine() in ("x86_64", "AMD64")
LOGGING = """
import logging, os, sys, warnings
from pathlib import Path
from keras_transfer.devices import native_log_to
with native_log_to(Path(sys.argv[1])):
    os.write(2, b"native output\\n")
    logging.getLogger("absl").warning("logged output")
    warnings.warn("warned output")
    print("for people", file=sys.stderr)
os.write(2, b"native again\\n")
print("people again", file=sys.stderr)
"""
ON_A_TERMINAL = """
import os, pty, sys
from pathlib import Path
from keras_transfer.devices import native_log_to
terminal, inner = pty.openpty()
os.dup2(inner, 2)
with native_log_to(Path(sys.argv[1])):
    pass
print(os.read(terminal, 1000))
"""
IMPORTING = """
import json, os, sys
before = dict(os.environ)
import keras_transfer, keras_transfer.devices, pipelines.train
loaded = [name for name in ("tensorflow", "keras", "jax", "numpy") if name in sys.modules]
print(json.dumps([before == dict(os.environ), loaded]))
"""
STARTING = """
import gc, sys
from keras_transfer.devices import speed_up_imports, use_onednn
use_onednn()
speed_up_imports()
collected = gc.get_stats()[2]
import tensorflow, keras
print(gc.get_stats()[2] == collected, gc.isenabled())
keras.Sequential([keras.layers.Dense(1)]).build((None, 2))
optional = "jax", "matplotlib", "sklearn", "pandas", "IPython"
print([name for name in optional if name in sys.modules])
import sklearn.base, matplotlib.pyplot, IPython, pandas
print(keras.backend.backend(), "jax" in sys.modules)
from tensorflow.python.util import _pywrap_util_port as port
print(int(port.IsMklEnabled()))
"""
TOO_LATE = """
import os, sys, types, warnings
sys.modules["tensorflow"] = types.ModuleType("tensorflow")
from keras_transfer.devices import use_onednn
with warnings.catch_warnings(record=True) as caught:
    use_onednn()
print([str(warning.category.__name__) for warning in caught])
print([name for name in os.environ if "ONEDNN" in name])
"""


def run(script: str, *arguments: str, **variables: str) -> subprocess.CompletedProcess:
    """Run a script in a process whose user has not chosen the kernels."""
    environment = {key: value for key, value in os.environ.items() if "ONEDNN" not in key}
    command = [sys.executable, "-c", script, *arguments]
    return subprocess.run(
        command, capture_output=True, text=True, check=True, env=environment | variables
    )


def test_only_output_for_people_reaches_the_terminal(tmp_path):
    log = tmp_path / "run.log"
    done = run(LOGGING, str(log))
    assert done.stderr.split("\n") == ["for people", "native again", "people again", ""]
    text = log.read_text()
    for part in ("native output", "logged output", "warned output"):
        assert part in text


def test_a_terminal_is_told_that_tensorflow_starts(tmp_path):
    assert run(ON_A_TERMINAL, str(tmp_path / "native.log")).stdout.startswith(
        "b'Starting TensorFlow \\xe2\\x80\\xa6\\r\\n'"
    )


def test_importing_the_package_has_no_side_effects():
    unchanged, loaded = json.loads(run(IMPORTING).stdout)
    assert unchanged
    assert loaded == []


@pytest.fixture(scope="module")
def started() -> list[str]:
    """What a process says that is set up before it imports TensorFlow."""
    return run(STARTING).stdout.splitlines()


@pytest.mark.skipif(not X86, reason="not an x86 processor")
def test_onednn_is_used_when_called_before_tensorflow_is_imported(started):
    assert started[3] == "1"


def test_optional_packages_of_tensorflow_and_keras_are_imported_only_when_asked_for(started):
    assert started[1:3] == ["[]", "tensorflow False"]


def test_no_garbage_is_collected_while_tensorflow_and_keras_are_imported(started):
    # The oldest generation, which takes longest.
    assert started[0] == "True True"


@pytest.mark.parametrize(
    ("variable", "content", "skipped"),
    [
        ("", None, True),
        ("", '{"backend": "tensorflow"}', True),
        ("", '{"backend": "jax"}', False),
        ("", "{", True),
        ("jax", '{"backend": "tensorflow"}', False),
        ("tensorflow", '{"backend": "jax"}', True),
    ],
)
def test_jax_is_imported_where_it_is_the_backend(tmp_path, monkeypatch, variable, content, skipped):
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    monkeypatch.setenv("KERAS_BACKEND", variable)
    monkeypatch.setattr(sys, "meta_path", list(sys.meta_path))
    sys.meta_path[:] = [f for f in sys.meta_path if "FastFinder" not in type(f).__name__]
    if content:
        (tmp_path / "keras.json").write_text(content)
    being_imported = types.ModuleType("tensorflow")
    being_imported.__spec__ = types.SimpleNamespace(_initializing=True)
    monkeypatch.setitem(sys.modules, "tensorflow", being_imported)
    monkeypatch.delitem(sys.modules, "jax", raising=False)
    speed_up_imports()
    if skipped:
        with pytest.raises(ModuleNotFoundError, match="jax"):
            importlib.util.find_spec("jax")
    else:
        assert importlib.util.find_spec("jax")


@pytest.mark.skipif(not X86, reason="not an x86 processor")
def test_onednn_stays_off_where_the_user_has_switched_it_off(monkeypatch):
    from keras_transfer.devices import use_onednn

    monkeypatch.setenv("TF_ENABLE_ONEDNN_OPTS", "0")
    use_onednn()
    assert os.environ["TF_ENABLE_ONEDNN_OPTS"] == "0"


@pytest.mark.skipif(not X86, reason="not an x86 processor")
def test_onednn_after_the_import_of_tensorflow_warns_and_changes_nothing():
    assert run(TOO_LATE).stdout.splitlines() == ["['RuntimeWarning']", "[]"]


@pytest.mark.skipif(not X86, reason="not an x86 processor")
def test_verbs_use_onednn():
    script = (
        "import os; from pipelines import train\n"
        "train.main(['quickstart', 'seed=none'])\n"
        "print(os.environ.get('TF_ENABLE_ONEDNN_OPTS'))"
    )
    assert run(script).stdout.split() == ["1"]
