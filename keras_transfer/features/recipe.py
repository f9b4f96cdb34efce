"""Recipe: what stored rows are a function of beside their key, and the file that says so."""

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import numpy as np

from keras_transfer.features.shards import read_sealed, write_sealed

DESCRIPTION: Final = "entry.json"
_FORMAT: Final = 1


@dataclass(frozen=True)
class Recipe:
    """What rows are a function of, beside their key.

    `kind` is 'pixels', 'features' or 'logits'. `title` is a few words for people that can follow
    "the stored", and changes nothing. `content` holds JSON values. `shape` and `dtype` (a NumPy
    name) are those of one row.
    """

    kind: str
    title: str
    content: Mapping[str, Any]
    shape: tuple[int, ...]
    dtype: str

    @cached_property
    def digest(self) -> str:
        """SHA-256 in hex over everything but the title."""
        # Once through JSON, so that a recipe read back from disk has the digest it had.
        content = json.loads(json.dumps(dict(self.content), allow_nan=False))
        whole = [_FORMAT, self.kind, content, list(self.shape), self.dtype]
        return hashlib.sha256(json.dumps(whole, sort_keys=True).encode()).hexdigest()

    @property
    def id(self) -> str:
        """The name of the entry's folder: the digest's first 16 digits."""
        return self.digest[:16]

    @property
    def row_bytes(self) -> int:
        """Bytes of one row."""
        return math.prod(self.shape) * np.dtype(self.dtype).itemsize


def write_description(folder: Path, recipe: Recipe, notes: Mapping[str, Any], created: str) -> None:
    """Write the recipe, the notes and the day of birth of the entry in `folder`."""
    described = {
        "kind": recipe.kind,
        "title": recipe.title,
        "content": dict(recipe.content),
        "shape": list(recipe.shape),
        "dtype": recipe.dtype,
    }
    content = {"recipe": described, "notes": dict(notes), "created": created}
    write_sealed(folder / DESCRIPTION, content)


def read_description(folder: Path) -> tuple[Recipe, dict[str, Any], str]:
    """The recipe, the notes and the day of birth of the entry in `folder`.

    Raises:
        ValueError: entry.json is missing or damaged.
    """
    content = read_sealed(folder / DESCRIPTION)
    try:
        recipe = content["recipe"]
        recipe = Recipe(**{**recipe, "shape": tuple(recipe["shape"])})
        return recipe, content["notes"], content["created"]
    except (LookupError, TypeError) as error:
        raise ValueError(f"{DESCRIPTION} describes no entry") from error
