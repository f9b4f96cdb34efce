"""Starting and resuming runs: the choice of the folder, and a check that the spec is the same."""

import contextlib
import dataclasses
import hashlib
import itertools
import json
import shutil
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from keras_transfer.config import load_spec, spec_to_dict
from keras_transfer.errors import KerasTransferError, RunError
from keras_transfer.specs import PretrainSpec, RunSpec
from keras_transfer.storage.model_files import (
    check_sources,
    check_teachers,
    resolve,
    sources_of,
    teachers_of,
)
from keras_transfer.storage.run_folder import RunFolder, describe_environment, latest, next_free

DEFAULT_PARENT = Path("saved_models")
SPEC_HASH = "spec_hash"
"""In environment.json: `hash_spec` of spec.json."""
_PLACE = ("data.path",)
"""Fields that may change after the start of a run: images are found by their content."""
_HOSTS_WAIT_SECONDS = 300.0
_POLL_SECONDS = 0.2


def start_run(
    spec: RunSpec,
    *,
    output: str | Path | None = None,
    resume: bool = False,
    suffix: str | None = None,
    last: str = "",
) -> RunFolder:
    """Create the folder of a run, a study or a search, or open the one to resume.

    Args:
        output: the folder; by default the next free `saved_models/<name>`, `<name>-2` … for a new
            run, and the latest of them to resume.
        suffix: appended to the name of the default folder; None is '-study' for a study and nothing
            for a run.
        last: the file that marks it as finished, where something follows the run; by default that
            of the run, the study or the search.

    Raises:
        SpecError: a teacher of a phase does not exist.
        RunError: the folder cannot be used, or the run to resume is finished or was started with
            another spec.
    """
    if suffix is None:
        suffix = "-study" if spec.num_trials > 1 else ""
    name = f"{spec.name}{suffix}"
    spec = _settled(spec)
    if resume:
        run = RunFolder.create(output or latest(DEFAULT_PARENT, name), resume=True)
        saved = load_spec(run.spec_file)
        check_spec_hash(run)
        check_same_spec(saved, spec, run)
        if (run.path / last).is_file() if last else run.is_complete:
            raise RunError(
                f"{run.path} is finished",
                expected="an interrupted run",
                received="a finished run",
                fix="use its results, or leave out --resume to train again in another folder",
            )
        if saved != spec:
            _write_place(run, spec)
        return run
    folder = Path(output or next_free(DEFAULT_PARENT, name))
    _check_outside_images(folder, spec)
    run = RunFolder.create(folder)
    write_spec(run, spec)
    return run


def _check_outside_images(folder: Path, spec: RunSpec) -> None:
    """Raise RunError if a run would be written among the classes of its images."""
    images = spec.data.path
    if spec.data.source == "folder" and images and _is_below(folder, Path(images)):
        raise RunError(
            f"the run {folder} would be inside the folder of its images, and be taken for a class",
            expected=f"a place outside {images}",
            received=str(folder.absolute()),
            fix="give another --output, or start the command in another folder",
        )


def _is_below(path: Path, folder: Path) -> bool:
    return path.resolve().is_relative_to(folder.resolve())


def write_spec(run: RunFolder, spec: RunSpec) -> None:
    """Write environment.json, with the hash of the spec, and then spec.json."""
    values = spec_to_dict(spec)
    run.write_json("environment.json", describe_environment() | {SPEC_HASH: hash_spec(values)})
    run.write_json("spec.json", values)


def _write_place(run: RunFolder, spec: RunSpec) -> None:
    """Write where the images are now; all other fields stay as they were written."""
    values = run.read_json("spec.json")
    run.write_json("spec.json", values | {"data": values["data"] | {"path": spec.data.path}})


def hash_spec(values: Mapping[str, Any]) -> str:
    """The SHA-256 in hex of the content of spec.json, whatever the place of its images is."""
    fields = {name: value for name, value in _flat(values) if name not in _PLACE}
    return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()


def check_spec_hash(run: RunFolder) -> None:
    """Raise RunError if spec.json was changed since the run was started.

    The file itself is compared: fields that a later version adds are not in it. Runs of earlier
    versions have no hash, and are not checked.
    """
    name = "environment.json"
    recorded = run.read_json(name).get(SPEC_HASH) if (run.path / name).is_file() else None
    if recorded not in (None, received := hash_spec(run.read_json("spec.json"))):
        raise RunError(
            f"{run.spec_file} was changed since the run was started",
            expected=f"the spec with the SHA-256 {recorded}; only data.path may be changed",
            received=f"one with {received}",
            fix="restore the file, or train a new run with the changed one: give the file "
            "instead of a preset, and another --output",
        )


def _settled(spec: RunSpec) -> RunSpec:
    """The spec as a run keeps it: with model files resolved and absolute paths of images."""
    path, unlabelled = (
        str(Path(place).expanduser().absolute()) if place else ""
        for place in (spec.data.path, spec.data.unlabelled)
    )
    data = dataclasses.replace(spec.data, path=path, unlabelled=unlabelled)
    for phase in spec.phases:
        check_teachers(teachers_of(phase.method_options))
        check_sources(sources_of(phase.method_options))
    return dataclasses.replace(resolve(spec), data=data)


def await_run(
    spec: RunSpec, *, output: str | Path | None, seconds: float = _HOSTS_WAIT_SECONDS
) -> RunFolder:
    """Wait until host 0 has created the folder of the run.

    Raises:
        RunError: it does not appear, or has another run.
    """
    if output is None:
        raise RunError(
            "hosts that train together need one shared folder",
            expected="--output DIR, the same on every host",
            received="no folder",
            fix="give a folder on shared storage",
        )
    run = RunFolder(Path(output))
    deadline = time.monotonic() + seconds
    while not run.spec_file.is_file():
        if time.monotonic() > deadline:
            raise RunError(
                f"host 0 has not started its run in {run.path}",
                expected=f"{run.spec_file} within {seconds:g} seconds",
                received="no such file",
                fix="start host 0 as well, with a folder that all hosts can open",
            )
        time.sleep(_POLL_SECONDS)
    check_same_spec(load_spec(run.spec_file), _settled(spec), run)
    return run


@contextlib.contextmanager
def vacated_on_refusal(run: RunFolder) -> Iterator[None]:
    """Remove the folder of a new run that fails with an error before it has split its images.

    It holds no results yet, and the corrected command could not use the folder. A folder that an
    earlier command has begun stays as it is.
    """
    try:
        yield
    except KerasTransferError:
        if run.is_new and not (run.path / "splits.json").exists():
            names = ("spec.json", "environment.json", "run.log", "host-*.log")
            for file in itertools.chain.from_iterable(map(run.path.glob, names)):
                file.unlink(missing_ok=True)
            shutil.rmtree(run.checkpoint_folder, ignore_errors=True)
            with contextlib.suppress(OSError):
                run.path.rmdir()
        raise


def check_same_spec(
    saved: RunSpec | PretrainSpec, given: RunSpec | PretrainSpec, run: RunFolder
) -> None:
    """Raise RunError with the different fields unless the specs agree in all but the place."""
    before, now = dict(_flat(spec_to_dict(saved))), dict(_flat(spec_to_dict(given)))
    changed = sorted(
        name for name in before | now if before.get(name) != now.get(name) and name not in _PLACE
    )
    if changed:
        raise RunError(
            f"{run.path} was started with another spec",
            expected="; ".join(f"{name}={before.get(name)}" for name in changed),
            received="; ".join(f"{name}={now.get(name)}" for name in changed),
            fix=f"resume with the spec of the run (give {run.path} instead of a preset and leave "
            "out overrides), or start a new run without --resume",
        )


def _flat(values: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    pairs = values.items() if isinstance(values, dict) else enumerate(values)
    for name, value in pairs:
        if isinstance(value, dict | list):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value
