"""Where anything that outlives a run is kept: unpacked data sets and stored features."""

import os
from pathlib import Path


def home() -> Path:
    """$KERAS_TRANSFER_HOME, or ~/.cache/keras_transfer."""
    default = Path.home() / ".cache" / "keras_transfer"
    return Path(os.environ.get("KERAS_TRANSFER_HOME") or default).expanduser().absolute()


def feature_folder(folder: str = "") -> Path:
    """The feature store that `cache.folder` names; '' is features/ below home."""
    return Path(folder).expanduser().absolute() if folder else home() / "features"
