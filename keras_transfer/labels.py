"""The label contract: one class list, in one order, with one hash, in every artefact."""

import hashlib
import json
from collections.abc import Sequence

from keras_transfer.errors import DataError


def hash_class_names(class_names: Sequence[str]) -> str:
    """The SHA-256 of the names in their order, in hex."""
    return hashlib.sha256(json.dumps(list(class_names)).encode()).hexdigest()


def model_name(class_names: Sequence[str]) -> str:
    """The name a classifier carries, so that its file remembers the order it was trained on."""
    return f"classifier_{hash_class_names(class_names)[:16]}"


def check_class_order(name_of_model: str, class_names: Sequence[str], where: str) -> None:
    """Raise DataError unless the model was trained on exactly these classes in this order."""
    if name_of_model != model_name(class_names):
        raise DataError(
            f"the model was trained on other classes, or in another order, than {where} lists",
            expected=f"the class list whose model is called {name_of_model}",
            received=f"{len(class_names)} classes, {', '.join(list(class_names)[:5])} …",
            fix="restore the class list that was written together with the model",
        )
