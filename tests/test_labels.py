"""The label contract."""

import pytest

from keras_transfer.errors import DataError
from keras_transfer.storage.class_names import check_class_order, hash_class_names, model_name


def test_hash_depends_on_names_and_their_order():
    names = ("ants", "bees")
    assert hash_class_names(names) == hash_class_names(list(names))
    assert hash_class_names(names) != hash_class_names(names[::-1])
    assert hash_class_names(("a", "b,c")) != hash_class_names(("a,b", "c"))


def test_another_order_is_refused_and_the_same_accepted():
    check_class_order(model_name(("ants", "bees")), ("ants", "bees"), "the list")
    with pytest.raises(DataError, match="another order"):
        check_class_order(model_name(("ants", "bees")), ("bees", "ants"), "the list")
