"""Transfer learning for images: from a folder of photographs to a verified SavedModel.

    import keras_transfer as kt

    run = kt.fine_tune("my_images", backbone="resnet50")
    run.predict(["a.jpg"])

Names are looked up on first use. Importing the package imports neither Keras nor TensorFlow and
changes no environment variable; `keras_transfer.devices.use_onednn()` chooses faster kernels.
"""

import importlib
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from keras_transfer.api import auto as auto
    from keras_transfer.api import combine as combine
    from keras_transfer.api import distill as distill
    from keras_transfer.api import fine_tune as fine_tune
    from keras_transfer.api import pretrain as pretrain
    from keras_transfer.api import rank_backbones as rank_backbones
    from keras_transfer.api import tune as tune
    from keras_transfer.backbones.record import Backbone
    from keras_transfer.backbones.registry import list_backbones as list_backbones
    from keras_transfer.config import load_spec as load_spec
    from keras_transfer.config import override as override
    from keras_transfer.errors import KerasTransferError as KerasTransferError
    from keras_transfer.experiments.finished_run import Run as Run
    from keras_transfer.experiments.finished_run import load_run as load_run
    from keras_transfer.experiments.session import build_model as build_model
    from keras_transfer.experiments.session import load_dataset as load_dataset
    from keras_transfer.specs import RunSpec as RunSpec

__version__ = "0.2.0"

_MODULES = {
    "KerasTransferError": "errors",
    "Run": "experiments.finished_run",
    "RunSpec": "specs",
    "auto": "api",
    "build_model": "experiments.session",
    "combine": "api",
    "distill": "api",
    "fine_tune": "api",
    "list_backbones": "backbones.registry",
    "load_dataset": "experiments.session",
    "load_run": "experiments.finished_run",
    "load_spec": "config",
    "override": "config",
    "pretrain": "api",
    "rank_backbones": "api",
    "tune": "api",
}

__all__ = [
    "KerasTransferError",
    "Run",
    "RunSpec",
    "auto",
    "build_model",
    "combine",
    "distill",
    "fine_tune",
    "list_backbones",
    "load_dataset",
    "load_run",
    "load_spec",
    "override",
    "pretrain",
    "rank_backbones",
    "register",
    "tune",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'keras_transfer' has no attribute {name!r}")
    return getattr(importlib.import_module(f"keras_transfer.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*__all__, *(name for name in globals() if name.startswith("__"))})


def register(*backbones: "Backbone") -> None:
    """Register the package's layers with Keras, and backbones of your own under their names.

    The layers are for `keras.models.load_model` of a model.keras. Registering them is needed only
    where Keras is imported after this package: importing the package later than Keras does the
    same. Backbones (`keras_transfer.backbones.record.Backbone`) are known in this process only.

    Raises:
        SpecError: the name of a backbone is taken, or would be read as a path.
    """
    importlib.import_module("keras_transfer.backbones.preprocess")
    for backbone in backbones:
        importlib.import_module("keras_transfer.backbones.registry").register_backbone(backbone)


if "keras" in sys.modules:
    register()
