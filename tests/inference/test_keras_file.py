"""A run's model.keras in a fresh process with plain Keras."""

import subprocess
import sys
from pathlib import Path

QUICK = """
import gc, sys
# Keras and TensorFlow import these only where they are installed.
sys.modules.update(dict.fromkeys(("jax", "matplotlib", "sklearn", "pandas", "IPython")))
gc.disable()
"""
IMPORTED = """
import keras
try:
    keras.models.load_model(sys.argv[1])
except Exception as error:
    print(error)
import keras_transfer
keras.models.load_model(sys.argv[1])
"""
REGISTERED = """
import keras_transfer, keras
keras_transfer.register()
keras.models.load_model(sys.argv[1])
"""


def run(script: str, finished: Path) -> str:
    """The output of a process that opens the model."""
    command = [sys.executable, "-c", QUICK + script, str(finished / "model.keras")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_model_opens_once_the_package_is_imported_and_the_error_before_says_so(finished: Path):
    error = run(IMPORTED, finished)
    assert "make sure they are all imported" in error
    assert "'module': 'keras_transfer.backbones.preprocess'" in error


def test_a_model_opens_once_the_package_is_registered(finished: Path):
    run(REGISTERED, finished)


def test_importing_the_package_imports_neither_keras_nor_tensorflow():
    code = "import sys, keras_transfer; print({'keras', 'tensorflow'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "set()"
