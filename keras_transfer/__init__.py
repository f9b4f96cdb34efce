"""Transfer learning for images: from a folder of photographs to a verified SavedModel.

Names are looked up on first use. Importing the package imports neither Keras nor TensorFlow and
changes no environment variable; `keras_transfer.devices.use_onednn()` chooses faster kernels.
"""

import importlib
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from keras_transfer.config import load_spec as load_spec
    from keras_transfer.config import override as override
    from keras_transfer.data.sources import read_records as read_records
    from keras_transfer.errors import KerasTransferError as KerasTransferError
    from keras_transfer.experiments.run import evaluate_test as evaluate_test
    from keras_transfer.experiments.run import run_transfer as run_transfer
    from keras_transfer.experiments.session import build_model as build_model
    from keras_transfer.experiments.session import load_dataset as load_dataset
    from keras_transfer.experiments.session import open_session as open_session
    from keras_transfer.experiments.tune.hypermodel import TransferHyperModel as TransferHyperModel
    from keras_transfer.export.saved_model.proof import export_proven as export_proven
    from keras_transfer.features.phase_inputs import PhaseInputs as PhaseInputs
    from keras_transfer.inference.prediction import load_run as load_run
    from keras_transfer.inference.prediction import predict_files as predict_files
    from keras_transfer.reporting.reporter import SilentReporter as SilentReporter
    from keras_transfer.reporting.reporter import TerminalReporter as TerminalReporter
    from keras_transfer.specs import DataSpec as DataSpec
    from keras_transfer.specs import DeviceSpec as DeviceSpec
    from keras_transfer.specs import ModelSpec as ModelSpec
    from keras_transfer.specs import PhaseSpec as PhaseSpec
    from keras_transfer.specs import RunSpec as RunSpec
    from keras_transfer.specs import TrainingSpec as TrainingSpec
    from keras_transfer.specs import ViewSpec as ViewSpec
    from keras_transfer.storage.run_start import start_run as start_run
    from keras_transfer.training.fitting import fit_phases as fit_phases

_HOMES = {
    "config": (
        "load_spec",
        "override",
    ),
    "data.sources": ("read_records",),
    "errors": ("KerasTransferError",),
    "experiments.run": (
        "evaluate_test",
        "run_transfer",
    ),
    "experiments.session": (
        "build_model",
        "load_dataset",
        "open_session",
    ),
    "experiments.tune.hypermodel": ("TransferHyperModel",),
    "export.saved_model.proof": ("export_proven",),
    "features.phase_inputs": ("PhaseInputs",),
    "inference.prediction": (
        "load_run",
        "predict_files",
    ),
    "reporting.reporter": (
        "SilentReporter",
        "TerminalReporter",
    ),
    "specs": (
        "DataSpec",
        "DeviceSpec",
        "ModelSpec",
        "PhaseSpec",
        "RunSpec",
        "TrainingSpec",
        "ViewSpec",
    ),
    "storage.run_start": ("start_run",),
    "training.fitting": ("fit_phases",),
}
_HOME_OF = {name: module for module, names in _HOMES.items() for name in names}

__all__ = [
    "DataSpec",
    "DeviceSpec",
    "KerasTransferError",
    "ModelSpec",
    "PhaseInputs",
    "PhaseSpec",
    "RunSpec",
    "SilentReporter",
    "TerminalReporter",
    "TrainingSpec",
    "TransferHyperModel",
    "ViewSpec",
    "build_model",
    "evaluate_test",
    "export_proven",
    "fit_phases",
    "load_dataset",
    "load_run",
    "load_spec",
    "open_session",
    "override",
    "predict_files",
    "read_records",
    "run_transfer",
    "start_run",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module 'keras_transfer' has no attribute {name!r}")
    return getattr(importlib.import_module(f"keras_transfer.{_HOME_OF[name]}"), name)


def register() -> None:
    """Register the package's layers with Keras, for `keras.models.load_model` of a model.keras.

    Importing this package does so itself if Keras has been imported before.
    """
    importlib.import_module("keras_transfer.backbones.preprocess")


if "keras" in sys.modules:
    register()
