"""Kinds of files in a folder of images: by content first, and by names that other programs use.

Importing this module needs the standard library only.
"""

import os
import re
import stat
from pathlib import Path
from typing import Final

from keras_transfer.data.array_files import MAGIC

EXTENSIONS: Final = frozenset({".jpg", ".jpeg", ".png", ".gif", ".bmp", ".webp", ".npy"})
FORMATS: Final = "JPEG, PNG, GIF, BMP, WebP or .npy"
HEAD_BYTES: Final = 12
"""The first bytes of an image, by which `sniff` knows it."""

_HEAD_BYTES: Final = 132

_TOOL_FOLDERS: Final = frozenset(
    {
        *("__macosx", "network trash folder", "temporary items", "system volume information"),
        *("$recycle.bin", "recycler", "recycled", "lost+found", "found.000", "trashbox"),
        *("@eadir", "@tmp", "@sharebin", "@recycle", "@recently-snapshot", "@transcode", "@trash"),
        *("@__thumb", "#recycle", "#snapshot", "~snapshot", "_gsdata_", "captureone"),
        *("__pycache__", "node_modules", "rubbish", "$av_asw", "@actionthumbs"),
        *(".ipynb_checkpoints", ".git", ".svn", ".hg", ".dvc", ".idea", ".vscode", ".cache"),
        *(".trash", ".trashes", ".spotlight-v100", ".fseventsd", ".temporaryitems", ".appledouble"),
        *(
            ".thumbnails",
            ".thumbs",
            ".thumb",
            ".@__thumb",
            ".wdmc",
            ".picasaoriginals",
            ".comments",
        ),
        *(".stfolder", ".stversions", ".sync", ".dropbox.cache", ".tmp.drivedownload", ".debris"),
        *(".tmp.driveupload", ".documentrevisions-v100", ".snapshot", ".snapshots", ".zfs"),
    }
)
"""Folders of file systems, network storage, clients of cloud storage and editors, in lower case."""

_TOOL_FILES: Final = re.compile(
    r"(\._.*|\.ds_store|thumbs\.db|ehthumbs.*\.db|desktop\.ini|\.?picasa\.ini|icon\r"
    r"|\.directory|\.localized|\.nomedia|albumart.*\.jpg|syno(file|photo|video|index)_.*"
    r"|~\$.*|\.~lock\..*#|~syncthing~.*|\.syncthing\..*|\.dropbox.*|\.(own|next)cloudsync.*"
    r"|\._?sync_.*\.db.*|.*\.icloud|.*~|.*\.\w+_original"
    r"|.*\.(xmp|aae|thm|pp3|dop|cos|on1|lrv|bak|orig|old|tmp|temp|part|partial|crdownload|download"
    r"|swp|gdoc|gsheet|lnk|url|torrent|!sync|!ut|bts|filepart|aria2|ini|db|lock))",
    re.IGNORECASE | re.DOTALL,
)
"""Thumbnails, sidecars, backups, placeholders and unfinished downloads: also where an image is in
them, it is a copy of another or not whole."""

_OTHER_SUFFIXES: Final = {
    **dict.fromkeys((".tif", ".tiff"), "TIFF"),
    **dict.fromkeys((".heic", ".heif", ".hif"), "HEIC"),
    **dict.fromkeys((".jp2", ".j2k", ".jpf", ".jpx"), "JPEG 2000"),
    **dict.fromkeys((".dng", ".cr2", ".cr3", ".crw", ".nef", ".nrw", ".arw", ".orf"), "raw"),
    **dict.fromkeys((".raf", ".rw2", ".pef", ".srw", ".raw", ".x3f"), "raw"),
    **dict.fromkeys((".dcm", ".dicom"), "DICOM"),
    **dict.fromkeys((".svg", ".svgz"), "SVG"),
    **dict.fromkeys((".pbm", ".pgm", ".ppm", ".pnm"), "Netpbm"),
    **{".avif": "AVIF", ".jxl": "JPEG XL", ".psd": "PSD", ".ico": "ICO", ".tga": "TGA"},
    **{".exr": "EXR", ".hdr": "HDR", ".dds": "DDS", ".qoi": "QOI", ".pcx": "PCX", ".eps": "EPS"},
}
_OTHER_HEADS: Final = (
    (rb"(II\*\0|MM\0\*|II\+\0|MM\0\+)", "TIFF"),
    (rb"....ftyp(heic|heix|heim|heis|hevc|mif1|msf1)", "HEIC"),
    (rb"....ftyp(avif|avis)", "AVIF"),
    (rb"(....ftypcrx |FUJIFILM|IIRO|IIRS|IIU\0|II\x1a\0)", "raw"),
    (rb"(\0\0\0\x0cJXL |\xff\x0a)", "JPEG XL"),
    (rb"(\0\0\0\x0cjP  |\xff\x4f\xff\x51)", "JPEG 2000"),
    (rb"8BPS", "PSD"),
    (rb"\0\0\x01\0[^\0]", "ICO"),
    (rb"v/1\x01", "EXR"),
    (rb"P[1-6][\s#]", "Netpbm"),
    (rb"DDS ", "DDS"),
    (rb"qoif", "QOI"),
    (rb".{128}DICM", "DICOM"),
    (rb"\s*(<\?xml[^>]*>\s*)?(<!DOCTYPE svg|<svg)", "SVG"),
)
_SPECIAL: Final = {
    stat.S_IFIFO: "named pipe",
    stat.S_IFSOCK: "socket",
    stat.S_IFCHR: "device",
    stat.S_IFBLK: "device",
    stat.S_IFDIR: "folder",
}


def sniff(head: bytes) -> str:
    """The suffix that fits a file's first 12 bytes, such as '.png'; '' if it is not an image."""
    if head.startswith(b"\xff\xd8\xff"):
        return ".jpg"
    if head.startswith(b"\x89PNG\r\n\x1a\n"):
        return ".png"
    if head.startswith((b"GIF87a", b"GIF89a")):
        return ".gif"
    if head.startswith(b"BM"):
        return ".bmp"
    if head.startswith(MAGIC):
        return ".npy"
    return ".webp" if head[:4] == b"RIFF" and head[8:HEAD_BYTES] == b"WEBP" else ""


def is_of_tool(name: str, *, is_folder: bool) -> bool:
    """Whether another program writes files or folders of this name beside a user's images."""
    if is_folder:
        return name.casefold() in _TOOL_FOLDERS
    return _TOOL_FILES.fullmatch(name) is not None


def may_be_image(path: Path) -> bool:
    """Whether a file in a folder is taken for an image: by its suffix or else by its content."""
    if path.name.startswith(".") or is_of_tool(path.name, is_folder=False):
        return False
    if path.suffix.lower() in EXTENSIONS:
        return True
    try:
        return not irregularity(path) and other_format(path) is None
    except OSError:
        return False


def irregularity(path: Path) -> str:
    """Why a path cannot be read like a file, in a few words; '' for a file. Nothing is opened."""
    try:
        mode = path.stat().st_mode
    except ValueError:  # A null character in the path.
        return "no such file or directory"
    except OSError as error:
        if os.path.islink(path):
            return "broken link"
        return (error.strerror or "cannot be read").lower()
    return "" if stat.S_ISREG(mode) else _SPECIAL.get(stat.S_IFMT(mode), "not a regular file")


def other_format(path: Path) -> str | None:
    """None for an image that can be read, else the format of another image, '' for no image.

    A file whose name has an image's suffix counts as one: what is in it is checked by the audit.

    Raises:
        OSError: the file cannot be opened.
    """
    suffix = path.suffix.lower()
    if suffix in EXTENSIONS:
        return None
    # Not waiting for a writer, should the file have become a pipe.
    with open(os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0)), "rb") as stream:
        head = stream.read(_HEAD_BYTES)
    kind = sniff(head[:HEAD_BYTES])
    # Many texts begin with BM; in a bitmap four zeros follow.
    if kind and (kind != ".bmp" or head[6:10] == bytes(4)):
        return None
    if suffix in _OTHER_SUFFIXES:
        return _OTHER_SUFFIXES[suffix]
    return next((name for start, name in _OTHER_HEADS if re.match(start, head, re.DOTALL)), "")
