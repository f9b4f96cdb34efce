"""Sources of weights: the file for a value of `model.weights`, and its download.

Keras deletes a cached file with another digest when its download fails, and an interrupted
download leaves part of a file under the final name. So this module finds, checks and renames
files, and Keras only downloads. Importing it needs the standard library only.
"""

import difflib
import hashlib
import os
import urllib.request
from pathlib import Path
from typing import NamedTuple

from keras_transfer.backbones.record import Backbone
from keras_transfer.errors import WeightsError
from keras_transfer.storage.model_files import check_digest, find_file

SUFFIXES = (".h5", ".keras", ".npz")
CONNECT_SECONDS = 10.0


def find_source(backbone: Backbone, weights: str, *, last_stage: str) -> Path | None:
    """The file with the weights of the backbone through `last_stage`; None for 'none'.

    `weights` is 'none', 'embedded', a name in `Backbone.weights` such as 'imagenet', or the path of
    a file: `.weights.h5`, or `.h5` in the older layout, of the whole network without its
    classification layers; `.keras` of an earlier run on the same backbone; or an archive `.npz`.
    Raises WeightsError within seconds if there is no such file.
    """
    if weights == "none":
        return None
    if weights in backbone.weights:
        return backbone.weights[weights].find(backbone)
    if weights == "embedded":
        from keras_transfer.backbones.archives import find_embedded

        return find_embedded(backbone, last_stage)
    file = find_file(weights)
    if file.is_file() and file.suffix in SUFFIXES:
        return check_digest(weights)
    names = (*backbone.weights, "embedded", "none")
    nearest = difflib.get_close_matches(weights, names, n=1)
    raise WeightsError(
        f"model.weights names no weights of {backbone.name}, and no weights file",
        expected=f"{', '.join(names)}, or a file of kind .weights.h5, .h5, .keras or .npz",
        received=f"{weights!r}; {'another kind of' if file.is_file() else 'no such'} file: "
        f"{file.absolute()}",
        fix=f"did you mean {nearest[0]}?" if nearest else "correct the path",
    )


class PublishedWeights(NamedTuple):
    """Weights that are downloaded once into Keras's cache (`$KERAS_HOME/models`)."""

    url: str
    file: str
    """Name of the file in Keras's cache."""
    digest: str
    """MD5 (32 digits) or SHA-256 (64) of the file as Keras states it, '' where it states none."""
    origin: str
    """Author and licence of the weights."""

    def find(self, backbone: Backbone, *, embedded: Path | None = None) -> Path:
        """The file in Keras's cache, downloaded if it is missing.

        Archives in the folder `embedded` (default: those of this package) are suggested where that
        fails. Raises WeightsError, within seconds, if the file can neither be found nor
        downloaded, or differs from the published one.
        """
        file = self._cached
        if not file.exists():
            self._download(backbone, file, embedded)
        received = file_digest(file, like=self.digest)
        if received != self.digest:
            raise WeightsError(
                f"{file} is not the file that was published for {backbone.name}",
                expected=f"digest {self.digest}",
                received=f"digest {received}, {file.stat().st_size:,} bytes",
                fix="move it away to have it downloaded again, or, if these are your own weights, "
                "set model.weights to their path",
            )
        return file

    @property
    def _cached(self) -> Path:
        home = Path(os.environ.get("KERAS_HOME") or "~/.keras").expanduser()
        return home / "models" / self.file

    def local(self) -> Path | None:
        """The file in Keras's cache, unchecked; None where it would have to be downloaded."""
        return self._cached if self._cached.is_file() else None

    def unavailable(self) -> str:
        """Why `find` would fail, without a download and within seconds; '' if it would not."""
        if self.local():
            return ""
        try:
            self._connect()
        except OSError as error:
            return _cause(error)
        return ""

    def _connect(self) -> None:
        """Ask the server for the file; OSError within seconds if it does not respond."""
        request = urllib.request.Request(self.url, method="HEAD")
        urllib.request.urlopen(request, timeout=CONNECT_SECONDS).close()

    def _download(self, backbone: Backbone, file: Path, embedded: Path | None) -> None:
        """Download to a temporary name, then rename the file; WeightsError if that fails."""
        import keras

        part = file.with_name(f"{file.name}.{os.getpid()}.part")
        try:
            self._connect()  # Keras has no timeout for a server that does not respond.
            file.parent.mkdir(parents=True, exist_ok=True)
            if not os.access(file.parent, os.W_OK):  # Keras would silently write elsewhere.
                raise PermissionError(f"{file.parent} cannot be written to")
            keras.utils.get_file(
                part.name,
                self.url,
                cache_dir=str(file.parent.parent),
                cache_subdir=file.parent.name,
                file_hash=self.digest or None,
                force_download=True,
            )
            part.replace(file)
        except Exception as error:  # Keras raises a bare Exception for every failure.
            raise self._missing(backbone, file, embedded=embedded, error=error) from error
        finally:
            part.unlink(missing_ok=True)

    def _missing(
        self, backbone: Backbone, file: Path, *, embedded: Path | None, error: Exception
    ) -> WeightsError:
        """The error where the file can neither be found nor downloaded."""
        from keras_transfer.backbones.archives import EMBEDDED, embedded_stages

        embedded = embedded or EMBEDDED
        reached = embedded_stages(backbone, embedded)
        others = sorted(archive.stem for archive in embedded.glob("*.npz"))
        fixes = [
            f"connect to the network once, or copy {file.name} into {file.parent}",
            *(f"set model.weights=embedded model.last_stage={stage}" for stage in reached),
        ]
        if others and not reached:
            name, _, stage = others[0].rpartition("_")
            fixes.append(
                f"set model.weights=embedded model.backbone={name} model.last_stage={stage} "
                f"(embedded are {', '.join(others)})"
            )
        fixes.append("set model.backbone=efficientnet_lite0, whose weights are in a Python package")
        return WeightsError(
            f"the weights of {backbone.name} are not on this machine and cannot be downloaded",
            expected=f"{file}, or a connection to {self.url}",
            received=f"no such file, and no connection: {_cause(error)}",
            fix="; or ".join(fixes),
        )


def _cause(error: Exception) -> str:
    """What an error of `urllib` says, without its 'urlopen error'."""
    return str(getattr(error, "reason", "") or error) or type(error).__name__


def file_digest(file: Path, *, like: str) -> str:
    """The file's digest in hex, of the same kind as `like`; '' for ''."""
    if not like:
        return ""
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256" if len(like) == 64 else "md5").hexdigest()
