"""ImageNet weights: found in Keras's cache or fetched into it, and never deleted.

Keras deletes a cached file of another digest when its download fails, and a download that is
killed leaves half a file under the final name. So the looking, checking and renaming are done
here, and Keras only fetches.
"""

import hashlib
import os
import urllib.request
from pathlib import Path

import keras

from keras_transfer.backbones import archives
from keras_transfer.backbones.record import Backbone
from keras_transfer.errors import WeightsError

CONNECT_SECONDS = 10.0


def find_weights(backbone: Backbone, *, embedded: Path = archives.EMBEDDED) -> Path:
    """The backbone's file in Keras's cache, fetched there if it is missing.

    Archives in `embedded` are offered instead of it. Raises WeightsError, within seconds,
    if the file can neither be found nor fetched, or is another than Keras published.
    """
    home = Path(os.environ.get("KERAS_HOME") or "~/.keras").expanduser()
    file = home / "models" / backbone.imagenet.file
    if not file.exists():
        _fetch(backbone, file, embedded=embedded)
    received = _file_digest(file, like=backbone.imagenet.digest)
    if received != backbone.imagenet.digest:
        raise WeightsError(
            f"{file} is not the file that Keras published for {backbone.name}",
            expected=f"digest {backbone.imagenet.digest}",
            received=f"digest {received}, {file.stat().st_size:,} bytes",
            fix="move it away to have it downloaded again, or, if these are weights of your own, "
            "set model.weights to their path",
        )
    return file


def _file_digest(file: Path, *, like: str) -> str:
    """The file's digest in hex, of the same kind as `like`; '' for ''."""
    if not like:
        return ""
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256" if len(like) == 64 else "md5").hexdigest()


def _fetch(backbone: Backbone, file: Path, *, embedded: Path) -> None:
    """Download the file beside its place and rename it; WeightsError if that fails."""
    part = file.with_name(f"{file.name}.{os.getpid()}.part")
    try:
        # Keras waits without end for a source that does not answer.
        request = urllib.request.Request(backbone.imagenet.url, method="HEAD")
        urllib.request.urlopen(request, timeout=CONNECT_SECONDS).close()
        file.parent.mkdir(parents=True, exist_ok=True)
        if not os.access(file.parent, os.W_OK):  # Keras would quietly write elsewhere
            raise PermissionError(f"{file.parent} cannot be written to")
        keras.utils.get_file(
            part.name,
            backbone.imagenet.url,
            cache_dir=str(file.parent.parent),
            cache_subdir=file.parent.name,
            file_hash=backbone.imagenet.digest or None,
            force_download=True,
        )
        part.replace(file)
    except Exception as error:  # Keras puts every failure into a bare Exception
        raise _missing(backbone, file, embedded=embedded, error=error) from error
    finally:
        part.unlink(missing_ok=True)


def _missing(backbone: Backbone, file: Path, *, embedded: Path, error: Exception) -> WeightsError:
    """What to say and to advise where the file can neither be found nor fetched."""
    reached = archives.embedded_stages(backbone, embedded)
    others = sorted(archive.stem for archive in embedded.glob("*.npz"))
    ways = [
        f"connect to the network once, or copy {file.name} into {file.parent}",
        *(f"set model.weights=embedded model.last_stage={stage}" for stage in reached),
    ]
    if others and not reached:
        name, _, stage = others[0].rpartition("_")
        ways.append(
            f"set model.weights=embedded model.backbone={name} model.last_stage={stage} (embedded "
            f"are {', '.join(others)})"
        )
    return WeightsError(
        f"the ImageNet weights of {backbone.name} are not on this machine and cannot be fetched",
        expected=f"{file}, or a connection to {backbone.imagenet.url}",
        received=f"no such file; {error}",
        fix="; or ".join(ways),
    )
