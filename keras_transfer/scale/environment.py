"""The environment of a worker's process: folder, threads and variables of the main process."""

import os
from dataclasses import dataclass
from typing import Final

from keras_transfer.devices import speed_up_imports
from keras_transfer.devices.hosts import ADDRESSES, HOST, NUM_HOSTS
from keras_transfer.errors import RunError

_COPIED: Final = (
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
class Environment:
    """The working folder, number of threads and environment variables of the main process.

    Ray does not pass them on to the machines of a cluster.
    """

    folder: str
    num_threads: int
    variables: dict[str, str]

    @classmethod
    def here(cls, num_threads: int) -> "Environment":
        """The environment of this process."""
        copied = {name: os.environ[name] for name in _COPIED if name in os.environ}
        return cls(os.getcwd(), num_threads, copied)

    def apply(self) -> None:
        """Apply it in a worker's process, before TensorFlow or JAX are imported.

        Workers compute on CPUs: several of them cannot share an accelerator.

        Raises:
            RunError: the worker's machine does not have the folder.
        """
        # Variables that the main process has not set are removed: other kernels give other last
        # digits.
        for name in (*_COPIED, *_NO_HOSTS):
            os.environ.pop(name, None)
        os.environ.update(self.variables)
        os.environ.update(dict.fromkeys(_THREADS, str(self.num_threads)), **_NO_ACCELERATOR)
        speed_up_imports()
        try:
            os.chdir(self.folder)
        except OSError as error:
            raise RunError(
                f"the worker on {os.uname().nodename} cannot open the folder {self.folder}",
                expected="folders that all machines share, under the same paths",
                received=f"{error.strerror}",
                fix="start in a shared folder, and share the images, the weights and the cache",
            ) from error
