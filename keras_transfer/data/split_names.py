"""Names of splits: those of the spec, and for a default name its usual synonyms in any case."""

import re
from collections.abc import Iterable
from typing import Final

from keras_transfer.errors import DataError
from keras_transfer.specs import DataSpec

_SYNONYMS: Final = {
    "train": ("train", "training", "trn", "trainval"),
    "val": ("val", "valid", "validate", "validation", "dev", "development"),
    "test": ("test", "tests", "testing", "tst", "holdout", "hold out"),
}
_ENDING: Final = re.compile(r"( ?(set|split|data|dataset|images|folder))?( ?\d{4})?$")
"""What may follow a synonym: 'train_set', 'TestImages', 'val2017'."""


def field_of(role: str) -> str:
    """The field that names the folder or the cells of 'train', 'val' or 'test'."""
    return f"data.{role}_split"


def find_roles(names: Iterable[str], spec: DataSpec) -> dict[str, str]:
    """'train', 'val' or 'test' for each of the names that means a split, in their order.

    A name of the spec means its split in any case. A split with its default name has synonyms.
    """
    own = {getattr(spec, f"{role}_split").casefold(): role for role in _SYNONYMS}
    known = {
        synonym: role
        for role, synonyms in _SYNONYMS.items()
        if getattr(spec, f"{role}_split") == role
        for synonym in synonyms
    }
    found = (
        (name, own.get(name.casefold()) or known.get(_plain(name)) or known.get(_stem(name)))
        for name in names
    )
    return {name: role for name, role in found if role}


def check_one_name_each(roles: dict[str, str], where: str) -> None:
    """Raise DataError where two names mean the same split."""
    for role in _SYNONYMS:
        names = [name for name, of_name in roles.items() if of_name == role]
        if len(names) > 1:
            raise DataError(
                f"{where} has more than one name for the {role} split",
                expected="one name for each split",
                received=", ".join(map(repr, names)),
                fix=f"join them, or name the right one by {field_of(role)}={names[0]}",
            )


def describe_synonyms(roles: dict[str, str], spec: DataSpec) -> list[str]:
    """A sentence on the names that are not those of the spec."""
    pairs = [
        f"{name} as {role}"
        for name, role in roles.items()
        if name != getattr(spec, f"{role}_split")
    ]
    return [f"splits are recognised by their names: {', '.join(pairs)}"] if pairs else []


def _plain(name: str) -> str:
    """Words in lower case, without punctuation: 'Hold-Out' and 'holdOut' are 'hold out'."""
    words = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name)
    return re.sub(r"[\W_]+", " ", words).strip().casefold()


def _stem(name: str) -> str:
    return _ENDING.sub("", _plain(name))
