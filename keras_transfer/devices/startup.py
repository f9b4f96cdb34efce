"""Settings before the import of TensorFlow: kernels, optional packages and the file of its log."""

import contextlib
import gc
import json
import logging
import os
import platform
import sys
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType
from typing import Final

ONEDNN: Final = "TF_ENABLE_ONEDNN_OPTS"
_IMPORTED: Final = ("tensorflow", "keras")


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


def speed_up_imports() -> None:
    """Import TensorFlow and Keras in half the time: without packages and garbage collection.

    Where they are installed, TensorFlow and Keras load JAX to convert its functions, matplotlib for
    `keras.visualization`, scikit-learn for `keras.wrappers`, pandas for tables given to `fit` and
    IPython for `keras.saving.KerasFileEditor`, parts that this package does not use. Importing
    these packages afterwards works as always. JAX is loaded where it is the backend. Nearly all
    objects of an import stay, so that collections only cost time.
    """
    if not any(isinstance(finder, _FastFinder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _FastFinder())


class _FastFinder:
    """A finder for TensorFlow and Keras, which hides optional packages while they are imported."""

    def __init__(self) -> None:
        self._skipped = {"matplotlib", "sklearn", "pandas", "IPython"}
        if _backend() != "jax":
            self._skipped.add("jax")

    def find_spec(self, name: str, *_: object) -> ModuleSpec | None:
        """Leave other packages to the other finders, or raise ModuleNotFoundError."""
        if name in self._skipped and any(map(_is_being_imported, _IMPORTED)):
            raise ModuleNotFoundError(f"{name} is left out of this import", name=name)
        spec = PathFinder.find_spec(name) if name in _IMPORTED else None
        if spec and spec.loader:
            run = spec.loader.exec_module
            spec.loader.exec_module = partial(_run_without_collecting, run)  # type: ignore[method-assign]
        return spec


def _run_without_collecting(run: Callable[[ModuleType], None], module: ModuleType) -> None:
    """Run a module; garbage is collected afterwards if it was before."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        run(module)
    finally:
        if was_enabled:
            gc.enable()


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
    TensorFlow, which takes seconds and is announced on terminals.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "1")
    terminal = os.dup(2)
    handler = logging.FileHandler(log, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    root, saved_stderr = logging.getLogger(), sys.stderr
    with log.open("ab") as file, os.fdopen(terminal, "w", buffering=1) as screen:
        os.dup2(file.fileno(), 2)
        sys.stderr = screen
        if screen.isatty() and "keras" not in sys.modules:
            screen.write(f"Starting {'JAX' if _backend() == 'jax' else 'TensorFlow'} …\n")
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
