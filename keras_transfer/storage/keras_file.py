"""Keras model files whose bytes depend on the model alone, so that they can be told by a digest."""

import json
import zipfile
from pathlib import Path
from typing import Final

_METADATA: Final = "metadata.json"
_TIME: Final = "date_saved"


def drop_times(file: Path) -> None:
    """Write a `.keras` file again without the times at which it was saved.

    It is a zip archive. Keras notes the date in metadata.json, which it does not read when it loads
    a model, and the archive has one for each member.
    """
    with zipfile.ZipFile(file) as archive:
        # Times are not copied: those of a new `ZipInfo` are 1980-01-01.
        members = [(zipfile.ZipInfo(name), archive.read(name)) for name in archive.namelist()]
    with zipfile.ZipFile(file, "w") as archive:
        for member, content in members:
            if member.filename == _METADATA:
                kept = {k: v for k, v in json.loads(content).items() if k != _TIME}
                content = json.dumps(kept).encode()
            archive.writestr(member, content)
