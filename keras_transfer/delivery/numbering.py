"""Numbered versions of an export: which there are, and which number comes next."""

from pathlib import Path


def version_folders(folder: Path) -> dict[int, Path]:
    """The versions in a folder by number; whatever is no plain number is none."""
    found = {}
    for path in folder.iterdir() if folder.is_dir() else ():
        # 'isdecimal' accepts other alphabets' digits, and '007' would be a second name for '7'.
        if path.name.isascii() and path.name.isdecimal() and str(int(path.name)) == path.name:
            found[int(path.name)] = path
    return found


def next_version(export_folder: Path) -> Path:
    """The folder of the next version: one more than the highest that is there."""
    return export_folder / str(max(version_folders(export_folder), default=0) + 1)
