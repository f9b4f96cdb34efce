"""A quiet terminal: what native code says goes to a log."""

import contextlib
import logging
import os
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def native_log_to(log: Path) -> Iterator[None]:
    """Send what native code and loggers say to a file, and keep the terminal for people.

    TensorFlow's C++ part writes to file descriptor 2 itself, so the descriptor is redirected;
    Python's `sys.stderr` goes on to the terminal. Must be entered before TensorFlow is imported.
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
