"""A small real search: a trunk of random weights, a head that trains in a second, real digits."""

import pytest
from searches import make_spec


@pytest.fixture(scope="session")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("search-cache")


@pytest.fixture(scope="session")
def small_spec(digits_folder, cache):
    return make_spec(digits_folder, cache)
