"""Joining a cluster: where there is none, the error says why, and soon."""

import importlib.util
import os
import subprocess
import sys

import pytest

JOIN = """
from keras_transfer.errors import RunError
from keras_transfer.scale.cluster import joined
from keras_transfer.reporting.reporter import SilentReporter
try:
    with joined(2, reporter=SilentReporter()):
        print("joined")
except RunError as error:
    print(error)
"""


@pytest.mark.skipif(not importlib.util.find_spec("ray"), reason="[scale] is not installed")
@pytest.mark.parametrize("address", ["127.0.0.1:1", "nonsense", "ray://nowhere"])
def test_an_address_without_a_cluster_is_told(address):
    environment = {**os.environ, "RAY_ADDRESS": address}
    found = subprocess.run(
        [sys.executable, "-c", JOIN], env=environment, capture_output=True, text=True, timeout=60
    )
    assert f"there is no Ray cluster to join at RAY_ADDRESS={address}" in found.stdout
    assert "unset it to work on this machine" in found.stdout
