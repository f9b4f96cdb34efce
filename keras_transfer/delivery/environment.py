"""What a run was made with: enough to ask, a year later, why its numbers differ."""

import datetime
import importlib.metadata
import os
import platform
import sys
from typing import Any, Final

_PACKAGES: Final = (
    "keras_transfer",
    "keras",
    "tensorflow",
    "tensorflow-cpu",
    "jax",
    "numpy",
    "h5py",
    "pillow",
    "scikit-learn",
    "tensorflow-datasets",
    "matplotlib",
    "onnx",
    "onnxruntime",
    "tf2onnx",
    "ai-edge-litert",
    "openvino",
)


def describe_environment() -> dict[str, Any]:
    """The content of environment.json: time (UTC), command line, machine and versions.

    Packages that are not installed are left out.
    """
    return {
        "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": sys.argv,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processors": os.cpu_count(),
        "packages": _versions(),
    }


def _versions() -> dict[str, str]:
    versions = {}
    for name in _PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions
