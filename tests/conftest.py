"""Shared by tests of several packages: a quiet TensorFlow, a private cache, real images."""

import gc
import os
import resource
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")
# The dozens of processes that tests start read what the first of them compiled.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

import numpy as np
import pytest
from checking import PROOF, one_checking_process
from forked_process import STARTED_WITH, forking
from PIL import Image
from small_backbone import SMALL

from keras_transfer.backbones.registry import BACKBONES
from keras_transfer.devices import speed_up_imports, use_onednn

use_onednn()  # Before a test imports TensorFlow.
speed_up_imports()
STARTED_WITH.update(os.environ)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run files with many slow tests first: both processes then end at about the same time."""
    num_slow = Counter(item.path for item in items if item.get_closest_marker("slow"))
    items.sort(key=lambda item: -num_slow[item.path])


SHARED = Path(__file__).resolve().parents[2] / "shared"


@pytest.fixture(autouse=True, scope="session")
def _private_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """No test reads or writes the user's own cache, nor does any fixture that tests share."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KERAS_TRANSFER_HOME", str(tmp_path_factory.getbasetemp() / "cache"))
        yield


@pytest.fixture(autouse=True, scope="module")
def _only_new_garbage() -> None:
    """Garbage collection leaves out what earlier modules and imports have left.

    TensorFlow's objects alone take it a third of a second, and Keras collects with each
    `clear_session`.
    """
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True, scope="session")
def _no_waiting_for_the_disk() -> Iterator[None]:
    """Files are not flushed to the disk, which only matters when a machine loses its power."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)
        yield


@pytest.fixture(autouse=True, scope="module")
def _graphs_as_traced(request: pytest.FixtureRequest) -> None:
    """TensorFlow's graph optimizer is off, except in modules with the mark `graph_optimizer`.

    It rewrites each graph before its first run, which takes longer than small networks run.
    """
    if tf := sys.modules.get("tensorflow"):
        is_off = request.node.get_closest_marker("graph_optimizer") is None
        tf.config.optimizer.set_experimental_options({"disable_meta_optimizer": is_off})


@pytest.fixture(autouse=True, scope="session")
def _small_backbone() -> Iterator[None]:
    """`model.backbone=small` in this process; its weights are 'none' or a file."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(BACKBONES, SMALL.name, SMALL)
        yield


@pytest.fixture(autouse=True, scope="session")
def _one_checking_process() -> Iterator[None]:
    """Exports are checked in one process without Keras, which stays: TensorFlow starts once.

    Only where a module of tests has imported what exports; tests/export/saved_model/test_parity.py
    starts a process of its own, as a user's export does.
    """
    with one_checking_process() if PROOF in sys.modules else nullcontext():
        yield


@pytest.fixture(autouse=True, scope="session")
def _forked_conversions() -> Iterator[None]:
    """The processes that write other formats are forked from one that has imported TensorFlow."""
    with pytest.MonkeyPatch.context() as patch:
        if making := sys.modules.get("keras_transfer.export.formats.making"):
            patch.setattr(making, "subprocess", forking(making))
        yield


@pytest.fixture
def forked_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    """So are those of `SubprocessCall`, in a test that is not about the process itself."""
    from keras_transfer.devices import subprocess_call

    monkeypatch.setattr(subprocess_call, "subprocess", forking(subprocess_call))


@pytest.fixture(scope="session")
def digits_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """300 real handwritten digits as PNG files in ten class folders, 8 x 8 px."""
    from sklearn.datasets import load_digits

    scans = load_digits()
    folder = tmp_path_factory.mktemp("digits")
    for row in range(300):
        target = folder / f"digit_{scans.target[row]}"
        target.mkdir(exist_ok=True)
        pixels = np.uint8(np.round(scans.images[row] * 255 / 16))
        Image.fromarray(pixels).save(target / f"{row:04d}.png")
    return folder


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of real photographs kept outside the project."""
    if not (SHARED / "data").is_dir():
        pytest.skip("the photographs kept outside the project are not on this machine")
    return SHARED / "data"


@pytest.fixture(scope="session")
def shared_weights() -> Path:
    """Folder of real ImageNet weights kept outside the project."""
    if not (SHARED / "weights").is_dir():
        pytest.skip("the ImageNet weights kept outside the project are not on this machine")
    return SHARED / "weights"


@pytest.fixture
def full_disk() -> Callable[[], AbstractContextManager[None]]:
    """`with full_disk():` limits files to 4 kB, which fails like a full disk: mid-write.

    Only around the call under test: the limit holds for pytest's own output file as well.
    """

    @contextmanager
    def limit() -> Iterator[None]:
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    return limit


@pytest.fixture(scope="session")
def flip() -> Callable[[Path, int], None]:
    """Flips one bit of a file, in place."""

    def change(file: Path, bit: int) -> None:
        with file.open("r+b") as opened:
            opened.seek(bit // 8)
            byte = opened.read(1)[0]
            opened.seek(bit // 8)
            opened.write(bytes([byte ^ 1 << bit % 8]))

    return change
