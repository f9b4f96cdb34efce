"""Real digits to train small trunks on."""

import keras
import numpy as np
import pytest
from sklearn.datasets import load_digits

from keras_transfer.data.datasets import Examples
from keras_transfer.data.splits import Splits
from keras_transfer.data.targets import Targets
from keras_transfer.features.phase_inputs import SplitData
from keras_transfer.specs import RunSpec
from keras_transfer.tasks.single_label import SingleLabel

TASK = SingleLabel(tuple("0123456789"))


@pytest.fixture(scope="session")
def examples() -> Examples:
    """160 scans of handwritten digits, enlarged to 32 px."""
    scans = load_digits()
    pixels = np.kron(scans.images[:160], np.ones((4, 4))) * (255 / 16)
    pixels = np.repeat(np.uint8(pixels)[..., None], 3, axis=-1)
    targets = Targets.of_classes(scans.target[:160], "0123456789")
    return Examples(pixels, targets, np.arange(160, dtype=np.int64))


@pytest.fixture
def split_data(examples):
    """Makes the data of a run: 96 training, 32 validation and 32 test images."""

    def make(spec: RunSpec) -> SplitData:
        rows = np.arange(160, dtype=np.int64)
        splits = Splits(
            train=rows[:96],
            val=rows[96:128],
            test=rows[128:],
            seed=0,
            val_fraction=0.2,
            test_fraction=0.2,
        )
        return SplitData.of_images(spec, TASK, examples, splits)

    return make


@pytest.fixture(autouse=True)
def _fresh_names():
    """Layer names must not depend on the tests that ran before."""
    keras.utils.clear_session()
