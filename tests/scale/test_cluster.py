"""Joining a cluster: where there is none, the error says why, and soon."""

import importlib.util
import os
import subprocess
import sys

import pytest

JOIN = """
import os, sys
from keras_transfer.errors import RunError
from keras_transfer.scale.cluster import joined
from keras_transfer.reporting.reporter import SilentReporter
for address in sys.argv[1:]:
    os.environ["RAY_ADDRESS"] = address
    try:
        with joined(2, reporter=SilentReporter()):
            print("joined")
    except RunError as error:
        print(error)
"""


@pytest.mark.skipif(not importlib.util.find_spec("ray"), reason="[scale] is not installed")
def test_an_address_without_a_cluster_is_told():
    addresses = ["127.0.0.1:1", "nonsense", "ray://nowhere"]
    environment = {**os.environ, "RAY_ADDRESS": addresses[0]}
    command = [sys.executable, "-c", JOIN, *addresses]
    found = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    for address in addresses:
        assert f"there is no Ray cluster to join at RAY_ADDRESS={address}" in found.stdout
    assert found.stdout.count("unset it to work on this machine") == len(addresses)
