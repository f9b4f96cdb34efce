"""Cache: list, check or remove the features that earlier runs stored.

python -m pipelines.cache list
python -m pipelines.cache verify
python -m pipelines.cache clear 3f2a9c0d11e84b57
python -m pipelines.cache clear --all --folder /fast/features
"""

import argparse
import sys
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Final

from keras_transfer.errors import RunError
from keras_transfer.storage.cache import feature_folder
from pipelines.arguments import main_of, make_parser

if TYPE_CHECKING:
    from keras_transfer.reporting.reporter import TerminalReporter
    from keras_transfer.storage.cache import Cache, EntryInfo

DAMAGED: Final = 1


def _parser() -> argparse.ArgumentParser:
    parser = make_parser("cache", str(__doc__))
    parser.add_argument(
        "task",
        choices=("list", "verify", "clear"),
        help="show the entries; read all and remove what is damaged; or remove entries",
    )
    parser.add_argument("ids", nargs="*", metavar="ID", help="entries, as `list` shows them")
    parser.add_argument("--all", action="store_true", help="clear: remove every entry")
    parser.add_argument(
        "--folder",
        default="",
        metavar="DIR",
        help="the runs' cache.folder; by default features/ below $KERAS_TRANSFER_HOME or "
        "~/.cache/keras_transfer",
    )
    return parser


def _run(argv: Sequence[str] | None) -> int:
    """Run the subcommand; returns 1 if `verify` found damaged files."""
    arguments = _parser().parse_intermixed_args(argv)
    from keras_transfer.reporting.reporter import TerminalReporter
    from keras_transfer.storage.cache import Cache

    terminal = TerminalReporter()
    folder = _checked(feature_folder(arguments.folder), named=bool(arguments.folder))
    cache = Cache(folder, say=terminal.info)
    infos = _chosen(cache, arguments)
    if arguments.task == "list":
        _list(cache, infos, terminal)
    elif arguments.task == "clear":
        _clear(cache, infos, terminal)
    else:
        return DAMAGED if _verify(cache, infos, terminal) else 0
    return 0


def _checked(folder: Path, *, named: bool) -> Path:
    if named and not folder.is_dir():
        raise RunError(
            f"there is no folder {folder}",
            expected="the cache.folder of a run",
            received="no such folder",
            fix="give another --folder, or leave it out for the default one",
        )
    return folder


def _chosen(cache: "Cache", arguments: argparse.Namespace) -> "list[EntryInfo]":
    infos = cache.entries()
    if arguments.task == "clear" and bool(arguments.ids) == arguments.all:
        raise RunError(
            "clear needs the entries to remove",
            expected="ids, or --all",
            received="both" if arguments.all else "neither",
            fix="see `python -m pipelines.cache list` for the ids",
        )
    if unknown := set(arguments.ids) - {info.id for info in infos}:
        raise RunError(
            f"there is no entry {', '.join(sorted(unknown))} in {cache.folder}",
            expected="ids of its entries",
            received=f"{len(unknown)} that it does not have",
            fix="see `python -m pipelines.cache list` for the ids",
        )
    return [info for info in infos if not arguments.ids or info.id in arguments.ids]


def _list(cache: "Cache", infos: "list[EntryInfo]", terminal: "TerminalReporter") -> None:
    if not infos:
        terminal.info(f"Nothing is stored in {cache.folder}")
        return
    terminal.table(
        f"Stored in {cache.folder}",
        ("what", "id", "rows", "MB", "last used"),
        [
            (
                info.title,
                info.id,
                f"{info.rows:,}",
                _megabytes(info),
                datetime.fromtimestamp(info.used).isoformat(" ", "minutes"),
            )
            for info in infos
        ],
        caption=f"{_megabytes(*infos)} MB in all",
    )


def _verify(cache: "Cache", infos: "list[EntryInfo]", terminal: "TerminalReporter") -> int:
    checked, num_damaged = [], 0
    for info in infos:
        found = cache.verify(info.id)
        if found is None:
            terminal.info(f"{info.id} is in use by a run and was not checked")
        else:
            checked.append(info)
            num_damaged += found
    terminal.info(
        f"Checked {len(checked)} of {len(infos)} entries, {_megabytes(*checked)} MB: "
        + (f"{num_damaged} damaged, now removed" if num_damaged else "all as they were written")
    )
    return num_damaged


def _clear(cache: "Cache", infos: "list[EntryInfo]", terminal: "TerminalReporter") -> None:
    removed = []
    for info in infos:
        if cache.remove(info.id):
            removed.append(info)
        else:
            terminal.info(f"{info.id} is in use by a run and stays")
    terminal.info(f"Removed {len(removed)} of {len(infos)} entries, {_megabytes(*removed)} MB")


def _megabytes(*infos: "EntryInfo") -> str:
    return f"{sum(info.num_bytes for info in infos) / 1e6:,.1f}"


main = main_of(_run)

if __name__ == "__main__":
    sys.exit(main())
