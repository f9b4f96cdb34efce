"""What is set before TensorFlow is imported: its kernels, and where its log output goes."""

import contextlib
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

    By itself TensorFlow does so only on processors with AVX-512 VNNI. Those with AVX2 gain as well:
    convolutions run up to 1.5 times as fast, the gradients of their inputs three times. A value of
    TF_ENABLE_ONEDNN_OPTS that is set already is kept. Processes started later inherit the choice.

    Warns:
        RuntimeWarning: TensorFlow is imported already and has read the variable. Nothing is
            changed: other kernels in subprocesses would give other last digits.
    """
    if platform.machine() not in ("x86_64", "AMD64") or ONEDNN in os.environ:
        return
    if "tensorflow" in sys.modules:
        warnings.warn(
            "use_onednn() has no effect: TensorFlow is imported already. Call it first, or set "
            f"{ONEDNN}=1 (or 0 to do without) before Python starts.",
            RuntimeWarning,
            stacklevel=2,
        )
        return
    os.environ[ONEDNN] = "1"


@contextlib.contextmanager
def native_log_to(log: Path) -> Iterator[None]:
    """Send the output of native code and of loggers to a file, and keep the terminal readable.

    TensorFlow's C++ part writes to file descriptor 2 itself, so the descriptor is redirected;
    Python's `sys.stderr` still goes to the terminal. Must be entered before TensorFlow is imported.
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
