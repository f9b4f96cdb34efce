"""Many workers on one machine: a chief that proposes and processes that train, watched over.

KerasTuner's own chief waits for ever for a worker that was killed. Here such a worker is started
again under its old name and trains the same trial anew.
"""

from keras_transfer.delivery.runs import RunFolder
from keras_transfer.terminal import Narrator


def run_workers(run: RunFolder, num_workers: int, *, narrator: Narrator) -> None:
    raise NotImplementedError
