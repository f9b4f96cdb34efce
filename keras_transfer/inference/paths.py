"""Paths of a command line: what predicts, and the images it predicts.

Importing this module needs the standard library only, so that a wrong path is refused at once.
"""

import importlib.util
import io
import os
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TextIO

from keras_transfer.data.file_kinds import FORMATS, is_of_tool, may_be_image
from keras_transfer.errors import DataError, RunError, check_all
from keras_transfer.export.formats.registry import SUFFIXES, kind_of
from keras_transfer.fields import similar_path


def check_target(path: str | Path) -> Path:
    """The path of a run folder, or of an artefact with its contract next to it or in its folder.

    Raises:
        RunError: it is neither, or it is the folder of a search.
    """
    path = Path(path)
    refuse_search(path)
    if (path / "spec.json").is_file():
        return path
    if not path.exists() or not kind_of(path):
        raise RunError(
            f"{path} is not a run folder or an exported model",
            expected="a run folder, the folder of a SavedModel such as RUN/export/1, or a file "
            f"named {', '.join(sorted(SUFFIXES))} next to its contract.json",
            received=_what_is_there(path),
            fix=f"{similar_path(path)}give a folder written by `train`, or an artefact written by "
            "`export`",
        )
    if (path.parent / "spec.json").is_file():
        raise RunError(
            f"{path} has no contract next to it",
            expected="a run folder, or an artefact written by `export`",
            received=f"a file of the run in {path.parent}",
            fix=f"give {path.parent}",
        )
    return path


def refuse_search(path: Path) -> None:
    """Raise RunError if a path is the folder of a finished search, whose run is below it."""
    if (path / "search.json").is_file():
        raise RunError(
            f"{path} is a search folder; its run is {path / 'winner'}",
            expected="the folder of a single run",
            received="search.json",
            fix=f"give {path / 'winner'}, the run of the best trial",
        )


def check_table(output: Path) -> None:
    """Raise RunError unless predictions can be written to a file of this name."""
    suffix = output.suffix.lower()
    if suffix not in (".csv", ".parquet"):
        raise RunError(
            f"--output {output} is not a supported table",
            expected="a name that ends in .csv or .parquet",
            received=output.name,
            fix=f"give --output {output.with_suffix('.csv')}",
        )
    if suffix == ".parquet" and importlib.util.find_spec("pyarrow") is None:
        raise RunError(
            "Parquet cannot be written",
            expected="the library of the extra [parquet]",
            received="no pyarrow",
            fix='pip install -e ".[parquet]", or give an --output that ends in .csv',
        )


def expand_paths(arguments: Sequence[str], stdin: TextIO) -> Iterator[Path]:
    """The files in the arguments of a command line, one by one.

    An argument is a file, a folder or '-'. A folder means all images below it, in the order of
    their names, without hidden ones, those of other programs and links to folders. '-' means the
    paths on `stdin`, one per line. Only the names of one folder at a time are in memory.

    Raises:
        DataError: at once, if paths do not exist or folders have no image.
    """
    check_all(*path_checks(arguments))
    return _expand(arguments, stdin)


def path_checks(arguments: Sequence[str]) -> list[Callable[[], None]]:
    """A check of each argument of `expand_paths`, for `check_all`."""
    return [partial(_check_argument, argument) for argument in arguments if argument != "-"]


def _what_is_there(path: Path) -> str:
    if path.is_dir():
        return "a folder without spec.json and saved_model.pb"
    return f"a file named {path.name}" if path.exists() else "nothing"


def _check_argument(argument: str) -> None:
    if not os.path.exists(argument):
        raise DataError(
            f"{argument} does not exist",
            expected="files, folders of images, or - for a list of paths on standard input",
            received=f"no such path from {os.getcwd()}",
            fix="correct the path",
        )
    if os.path.isdir(argument) and next(_images(argument)) == Path(argument):
        raise DataError(
            f"the folder {argument} has no image",
            expected=f"{FORMATS} files in it or in its sub-folders",
            received="none",
            fix="give a folder with images",
        )


def _expand(arguments: Sequence[str], stdin: TextIO) -> Iterator[Path]:
    for argument in arguments:
        if argument != "-":
            yield from _images(argument)
            continue
        if isinstance(stdin, io.TextIOWrapper):  # Names of files need not be text.
            stdin.reconfigure(errors="surrogateescape")
        for line in stdin:
            if path := line.rstrip("\r\n"):
                yield from _images(path)


def _images(path: str) -> Iterator[Path]:
    """The images below a folder, or the path itself.

    A folder that is empty or cannot be listed is yielded like a file and becomes a `BadFile`, so
    that a long list is not stopped by it.
    """
    if not os.path.isdir(path):
        yield Path(path)
        return
    unlisted: list[OSError] = []
    found = False
    for parent, folders, files in os.walk(path, onerror=unlisted.append):
        folders[:] = sorted(
            name
            for name in folders
            if not name.startswith(".") and not is_of_tool(name, is_folder=True)
        )
        for name in sorted(files):
            if may_be_image(Path(parent, name)):
                found = True
                yield Path(parent, name)
    unread = [Path(error.filename) for error in unlisted]
    yield from unread if found or unread else [Path(path)]
