"""What a worker's process takes over from the one that plans: folder, threads and variables."""

import os
from dataclasses import dataclass
from typing import Final

from keras_transfer.devices.hosts import ADDRESSES, HOST, NUM_HOSTS
from keras_transfer.errors import RunError

_TAKEN_OVER: Final = (
    "KERAS_BACKEND",
    "KERAS_HOME",
    "KERAS_TRANSFER_HOME",
    "TF_ENABLE_ONEDNN_OPTS",
    "TF_CPP_MIN_LOG_LEVEL",
)
_THREADS: Final = ("TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS", "OMP_NUM_THREADS")
_NO_ACCELERATOR: Final = {"CUDA_VISIBLE_DEVICES": "-1", "JAX_PLATFORMS": "cpu"}
_NO_HOSTS: Final = (ADDRESSES, NUM_HOSTS, HOST)


@dataclass(frozen=True)
class Surroundings:
    """Where relative paths begin, how many threads compute, and what the environment says.

    A cluster's machines know nothing of the environment in which a job was started.
    """

    folder: str
    num_threads: int
    variables: dict[str, str]

    @classmethod
    def here(cls, num_threads: int) -> "Surroundings":
        """Those of this process."""
        taken = {name: os.environ[name] for name in _TAKEN_OVER if name in os.environ}
        return cls(os.getcwd(), num_threads, taken)

    def settle_in(self) -> None:
        """Take them over in a worker's process, before it imports TensorFlow or JAX.

        Workers compute on processors: several would get in each other's way on an accelerator.

        Raises:
            RunError: the worker's machine does not have the folder.
        """
        # What is not set there is not to be set here: other kernels would give other digits.
        for name in (*_TAKEN_OVER, *_NO_HOSTS):
            os.environ.pop(name, None)
        os.environ.update(self.variables)
        os.environ.update(dict.fromkeys(_THREADS, str(self.num_threads)), **_NO_ACCELERATOR)
        try:
            os.chdir(self.folder)
        except OSError as error:
            raise RunError(
                f"the worker on {os.uname().nodename} does not see the folder {self.folder}",
                expected="folders that all machines share, under the same paths",
                received=f"{error.strerror}",
                fix="start in a shared folder, and keep images, weights and cache.folder in others",
            ) from error
