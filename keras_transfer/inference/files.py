"""Prediction from the command line's side: from words to files, one by one."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TextIO

from keras_transfer.data.images import EXTENSIONS
from keras_transfer.errors import DataError


def expand_paths(arguments: Sequence[str], stdin: TextIO) -> Iterator[Path]:
    """The files that a command line means, one by one: millions fit.

    A file stands for itself. A folder stands for all images below it, in the order of their
    names; hidden names and links to folders are left out. '-' stands for a list on `stdin`, one
    path a line. Memory is bounded by the largest single folder's names.

    Raises:
        DataError: at once, if a path does not exist or a folder holds no image.
    """
    for argument in arguments:
        if argument != "-":
            _check_argument(argument)
    return _expand(arguments, stdin)


def _check_argument(argument: str) -> None:
    if not os.path.exists(argument):
        raise DataError(
            f"{argument} does not exist",
            expected="files, folders of images, or - for a list of paths on standard input",
            received=f"a path that leads nowhere from {os.getcwd()}",
            fix="correct the path",
        )
    if os.path.isdir(argument) and next(_images(argument)) == Path(argument):
        raise DataError(
            f"the folder {argument} holds no image",
            expected=f"files named {', '.join(sorted(EXTENSIONS))} in it or in its sub-folders",
            received="none",
            fix="give the folder that holds the images",
        )


def _expand(arguments: Sequence[str], stdin: TextIO) -> Iterator[Path]:
    for argument in arguments:
        if argument != "-":
            yield from _images(argument)
            continue
        for line in stdin:
            if path := line.rstrip("\r\n"):
                yield from _images(path)


def _images(path: str) -> Iterator[Path]:
    """The images below a folder, or the path itself.

    A folder that is empty or cannot be listed is passed on like a file, to end as a bad one:
    an endless list must neither stop for it nor swallow it.
    """
    if not os.path.isdir(path):
        yield Path(path)
        return
    unlisted: list[OSError] = []
    found = False
    for parent, folders, files in os.walk(path, onerror=unlisted.append):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(files):
            if Path(name).suffix.lower() in EXTENSIONS and not name.startswith("."):
                found = True
                yield Path(parent, name)
    unread = [Path(error.filename) for error in unlisted]
    yield from unread if found or unread else [Path(path)]
