"""What can be asked for predictions: a finished run, a SavedModel, or a file of any format."""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

from keras_transfer.errors import RunError
from keras_transfer.export.formats.making import files_of
from keras_transfer.export.formats.openers import KINDS, kind_of
from keras_transfer.export.formats.runtimes import Runtime, open_runtime
from keras_transfer.inference.prediction import LoadedRun, load_run


def open_target(path: str | Path) -> LoadedRun | Runtime:
    """Open a run folder, or an artefact with its contract beside it or inside its folder.

    Raises:
        RunError: it is neither, or the run is not whole.
        ExportError: the artefact cannot be opened.
    """
    path = Path(path)
    if (path / "spec.json").is_file():
        return load_run(path)
    if not path.exists() or not kind_of(path):
        raise RunError(
            f"{path} is nothing that can be asked for predictions",
            expected="a run folder, the folder of a SavedModel such as RUN/export/1, or a file "
            f"named {', '.join(sorted(KINDS))} with its contract.json beside it",
            received=_what_is_there(path),
            fix="give the folder that `train` wrote, or what `export` made of it",
        )
    if (path.parent / "spec.json").is_file():
        raise RunError(
            f"{path} has no contract beside it",
            expected="a run folder, or an artefact that `export` wrote",
            received=f"a file of the run in {path.parent}",
            fix=f"give {path.parent}",
        )
    return open_runtime(path)


def identify(target: LoadedRun | Runtime) -> str:
    """A hash of everything that a target's answers depend on, in hex."""
    digest = hashlib.sha256(json.dumps(asdict(target.contract)).encode())
    for file in _weights(target):
        with file.open("rb") as stream:
            digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()


def _weights(target: LoadedRun | Runtime) -> Iterator[Path]:
    if isinstance(target, LoadedRun):
        yield target.folder.model_file
    elif target.path.is_dir():
        yield target.path / "saved_model.pb"
        yield from files_of(target.path / "variables")
    else:
        yield from files_of(target.path)


def _what_is_there(path: Path) -> str:
    if path.is_dir():
        return "a folder without spec.json and saved_model.pb"
    return f"a file named {path.name}" if path.exists() else "nothing"
