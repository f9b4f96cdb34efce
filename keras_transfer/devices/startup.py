"""Settings before the import of TensorFlow: kernels, optional packages and the file of its log."""

import contextlib
import json
import logging
import os
import platform
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Final

ONEDNN: Final = "TF_ENABLE_ONEDNN_OPTS"


def use_onednn() -> None:
    """Let TensorFlow use oneDNN's kernels on every x86 processor; call it before importing it.

    By default TensorFlow uses them only on processors with AVX-512 VNNI. Processors with AVX2 are
    also faster with them: convolutions up to 1.5 times, the gradients of their inputs three times.
    An existing value of TF_ENABLE_ONEDNN_OPTS is kept. Subprocesses inherit the setting.

    Warns:
        RuntimeWarning: TensorFlow is imported already and has read the variable. Nothing is
            changed: other kernels in subprocesses would give other last digits.
    """
    if platform.machine() not in ("x86_64", "AMD64") or ONEDNN in os.environ:
        return
    if "tensorflow" in sys.modules:
        warnings.warn(
            "use_onednn() has no effect: TensorFlow is imported already. Call it first, or set "
            f"{ONEDNN}=1 (or 0 for no oneDNN) before Python starts.",
            RuntimeWarning,
            stacklevel=2,
        )
        return
    os.environ[ONEDNN] = "1"


def skip_optional_imports() -> None:
    """Import TensorFlow and Keras without three packages that they load where these are installed.

    They load JAX to convert its functions, matplotlib for `keras.visualization` and scikit-learn
    for `keras.wrappers`: a third of the time of the import, for parts that this package does not
    use. Importing the three afterwards works as always. JAX is loaded where it is the backend.
    """
    if not any(isinstance(finder, _OptionalPackages) for finder in sys.meta_path):
        sys.meta_path.insert(0, _OptionalPackages())


class _OptionalPackages:
    """A finder that does not find optional packages while TensorFlow or Keras is being imported."""

    def __init__(self) -> None:
        self._skipped = {"matplotlib", "sklearn"} | ({"jax"} if _backend() != "jax" else set())

    def find_spec(self, name: str, *_: object) -> None:
        """Leave every package to the other finders, or raise ModuleNotFoundError."""
        if name in self._skipped and any(map(_is_being_imported, ("tensorflow", "keras"))):
            raise ModuleNotFoundError(f"{name} is left out of this import", name=name)


def _is_being_imported(name: str) -> bool:
    return bool(getattr(getattr(sys.modules.get(name), "__spec__", None), "_initializing", False))


def _backend() -> str:
    """The backend that Keras will choose."""
    with contextlib.suppress(OSError, ValueError):
        home = Path(os.environ.get("KERAS_HOME") or Path.home() / ".keras")
        configured = json.loads((home / "keras.json").read_text()).get("backend")
        return os.environ.get("KERAS_BACKEND") or str(configured)
    return os.environ.get("KERAS_BACKEND") or "tensorflow"


@contextlib.contextmanager
def native_log_to(log: Path) -> Iterator[None]:
    """Write the output of native code and of loggers to a file instead of the terminal.

    TensorFlow's C++ code writes to file descriptor 2 directly, so the descriptor is redirected;
    Python's `sys.stderr` still goes to the terminal. Must be entered before the import of
    TensorFlow.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "1")
    terminal = os.dup(2)
    handler = logging.FileHandler(log, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    root, saved_stderr = logging.getLogger(), sys.stderr
    with log.open("ab") as file, os.fdopen(terminal, "w", buffering=1) as screen:
        os.dup2(file.fileno(), 2)
        sys.stderr = screen
        root.addHandler(handler)
        logging.captureWarnings(True)
        warnings.simplefilter("default")
        try:
            yield
        finally:
            logging.captureWarnings(False)
            root.removeHandler(handler)
            handler.close()
            sys.stderr = saved_stderr
            os.dup2(terminal, 2)
