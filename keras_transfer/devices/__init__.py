"""Devices of a run, for TensorFlow and JAX."""

from keras_transfer.devices.memory import forgetting_graphs, is_out_of_memory
from keras_transfer.devices.startup import native_log_to, speed_up_imports, use_onednn
from keras_transfer.devices.strategy import Devices, set_up

__all__ = [
    "Devices",
    "forgetting_graphs",
    "is_out_of_memory",
    "native_log_to",
    "set_up",
    "speed_up_imports",
    "use_onednn",
]
