"""Texts of labels: what they look like besides names of classes, and classes with few images."""

import dataclasses
import re
from collections import Counter
from collections.abc import Collection, Sequence
from typing import Final

from keras_transfer.data.records import Record, counted
from keras_transfer.errors import DataError, enumerated
from keras_transfer.specs import DataSpec

OTHER: Final = "other"
"""The class that rare classes are joined into."""

_NUMBER: Final = re.compile(r"[-+]?(\d+([.,]\d*)?|[.,]\d+)(e[-+]?\d+)?", re.IGNORECASE)
_SEVERAL: Final = re.compile(r"\s*[^|;]*[^|;\s]\s*([|;])\s*[^|;\s].*", re.DOTALL)
_MOST_NAMED: Final = 20


def suspect_task(labels: Collection[str]) -> list[str]:
    """A sentence where labels look like several labels, or like numbers."""
    several = [
        (label, found[1]) for label in sorted(labels) if (found := _SEVERAL.fullmatch(label))
    ]
    notes = []
    if several:
        label, separator = several[0]
        option = f" task_options.separator='{separator}'" if separator != "|" else ""
        notes.append(
            f"{label!r} looks like several labels of one image: use task=multi_label{option}; here "
            "it is one class"
        )
    if labels and all(map(_NUMBER.fullmatch, labels)):
        notes.append(
            f"the labels look like numbers, such as {min(labels)}: use task=regression to predict "
            "numbers; here each is a class"
        )
    return notes


def without_rare_classes(
    items: Sequence[Record], spec: DataSpec
) -> tuple[tuple[Record, ...], list[str]]:
    """The records without the classes below `data.min_per_class`, or with these joined; notes.

    Raises:
        DataError: fewer than two classes remain.
    """
    counts = Counter(record.label for record in items)
    rare = sorted(label for label, count in counts.items() if count < spec.min_per_class)
    if not rare:
        return tuple(items), []
    named = enumerated(rare, _MOST_NAMED)
    joins = spec.rare_classes == "join"
    if len(counts) - len(rare) + joins < 2:
        raise DataError(
            f"data.min_per_class={spec.min_per_class} leaves fewer than two classes",
            expected="two classes or more with so many images",
            received=", ".join(f"{label!r}: {counts[label]}" for label in rare[:_MOST_NAMED]),
            fix=f"lower it to {sorted(counts.values())[-2:][0]} or less",
        )
    note = (
        f"{counted(len(rare), 'class', 'classes')} with fewer than {spec.min_per_class} images "
        f"{f'joined into {OTHER!r}' if joins else 'left out'} "
        f"({counted(sum(counts[label] for label in rare), 'image', 'images')}): {named}"
    )
    if not joins:
        return tuple(record for record in items if record.label not in {*rare}), [note]
    joined = (
        dataclasses.replace(record, target=(OTHER,)) if record.label in {*rare} else record
        for record in items
    )
    return tuple(joined), [note]
