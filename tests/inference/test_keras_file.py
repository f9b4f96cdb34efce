"""A run's model.keras in a fresh process with plain Keras."""

import subprocess
import sys
from pathlib import Path

import pytest

LOAD = "keras.models.load_model(sys.argv[1])"


def load(finished: Path, *lines: str) -> subprocess.CompletedProcess:
    code = "; ".join(["import sys", *lines, LOAD])
    command = [sys.executable, "-c", code, str(finished / "model.keras")]
    return subprocess.run(command, capture_output=True, text=True)


@pytest.mark.parametrize(
    "lines",
    [
        ["import keras", "import keras_transfer"],
        ["import keras_transfer", "import keras", "keras_transfer.register()"],
    ],
)
def test_a_model_opens_once_the_package_is_imported_or_registered(finished: Path, lines):
    done = load(finished, *lines)
    assert done.returncode == 0, done.stderr


def test_the_error_without_the_package_names_the_module_to_import(finished: Path):
    error = load(finished, "import keras").stderr
    assert "make sure they are all imported" in error
    assert "'module': 'keras_transfer.backbones.preprocess'" in error


def test_importing_the_package_imports_neither_keras_nor_tensorflow():
    code = "import sys, keras_transfer; print({'keras', 'tensorflow'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "set()"
