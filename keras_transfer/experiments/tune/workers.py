"""Many workers on one machine: a chief that proposes, processes that train, and who minds them.

KerasTuner's own chief waits for ever for a worker that was killed. Here such a worker is started
again under its old name, and is handed the same trial; the other workers never notice.
"""

import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from keras_transfer.config import load_spec
from keras_transfer.devices.subprocess_call import SubprocessCall, end_with_parent, free_port
from keras_transfer.experiments.tune.worker import take_part
from keras_transfer.reporting.reporter import Reporter, SilentReporter
from keras_transfer.storage.run_folder import RunFolder

_POLL_SECONDS: Final = 0.5
_MOST_RESTARTS: Final = 5
"""How often one worker is started again: it may die of something that no trial is to blame for."""


def run_workers(run: RunFolder, num_workers: int, *, reporter: Reporter) -> None:
    """Search with a chief and `num_workers` processes of this machine; ends when all have ended.

    Raises:
        KerasTransferError: the very error that ended a worker.
        RunError: the chief died, or a worker did again and again.
    """
    address = {"KERASTUNER_ORACLE_IP": "127.0.0.1", "KERASTUNER_ORACLE_PORT": str(free_port())}
    names = [f"tuner{number}" for number in range(num_workers)]
    reporter.info(f"{num_workers} workers train side by side; what they say is in {run.path}.")
    with contextlib.ExitStack() as held:
        chief = held.enter_context(_started("chief", run, address))
        workers = {name: held.enter_context(_started(name, run, address)) for name in names}
        restarts = dict.fromkeys(names, 0)
        while workers:
            time.sleep(_POLL_SECONDS)
            if chief.ended:
                chief.result()
                return
            for name, worker in list(workers.items()):
                if not worker.ended:
                    continue
                if worker.was_killed and restarts[name] < _MOST_RESTARTS:
                    restarts[name] += 1
                    reporter.info(f"Worker {name} was killed ({worker.ending}) and starts again.")
                    workers[name] = held.enter_context(_started(name, run, address))
                else:
                    worker.result()
                    del workers[name]
        # The chief would look around for up to 20 s more; all it knows is on disk.


@contextlib.contextmanager
def _started(name: str, run: RunFolder, address: dict[str, str]) -> Iterator[SubprocessCall]:
    """A process in its role, ended with the block."""
    child = SubprocessCall(
        play_role,
        title=f"{name} of the search",
        log=run.path / f"{name}.log",
        environment={**address, "KERASTUNER_TUNER_ID": name},
        folder=str(run.path),
        parent=os.getpid(),
    )
    try:
        yield child
    finally:
        child.stop()


def play_role(folder: str, parent: int) -> None:
    """What a started process does: take part in the search in a folder while its parent lives."""
    end_with_parent(parent)
    run = RunFolder(Path(folder))
    take_part(load_spec(run.spec_file), run, reporter=SilentReporter())
