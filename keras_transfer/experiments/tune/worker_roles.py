"""The role of this process in a search, by KerasTuner's variables. Nothing heavy is imported.

KERASTUNER_TUNER_ID=chief      proposes trials, selects the best and reports
KERASTUNER_TUNER_ID=tuner7     trains what the chief proposes; every worker has its own name
KERASTUNER_ORACLE_IP=10.0.0.1  the chief's address, KERASTUNER_ORACLE_PORT=8000 its port
"""

import os
import time
from pathlib import Path
from typing import Final

from keras_transfer.config import load_spec
from keras_transfer.errors import RunError
from keras_transfer.specs import RunSpec
from keras_transfer.storage.model_files import resolve
from keras_transfer.storage.run_folder import RunFolder
from keras_transfer.storage.run_start import check_same_spec

_POLL_SECONDS: Final = 0.5


def is_worker() -> bool:
    """Whether this process only runs trials that a chief proposes."""
    has_chief = "KERASTUNER_ORACLE_IP" in os.environ
    return has_chief and "chief" not in os.environ.get("KERASTUNER_TUNER_ID", "")


def wait_for_chief(
    spec: RunSpec, output: str | Path | None, *, seconds: float = 3600.0
) -> RunFolder:
    """The folder of the chief's search, once the chief has split the images.

    Args:
        output: the folder, on a disk that chief and workers share.
        seconds: how long to wait.

    Raises:
        RunError: no folder is given, no search starts there in time, or its spec differs.
    """
    if output is None:
        raise RunError(
            "a worker needs the folder of its search",
            expected="the chief's folder, on a disk that both share",
            received="no --output",
            fix="give chief and workers the same --output",
        )
    run, until = RunFolder(Path(output)), time.monotonic() + seconds
    while not (run.path / "splits.json").is_file():
        if time.monotonic() > until:
            raise RunError(
                f"no search was started in {run.path}",
                expected=f"one within {seconds:g} s",
                received="no splits.json there",
                fix="start the process with KERASTUNER_TUNER_ID=chief, on the same --output",
            )
        time.sleep(_POLL_SECONDS)
    check_same_spec(load_spec(run.spec_file), resolve(spec), run)
    return run
