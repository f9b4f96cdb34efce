"""Rotation: turned pixels and their labels are exact, and ambiguous views are refused."""

import numpy as np
import pytest

from keras_transfer.config import override
from keras_transfer.data.datasets import Examples, Views
from keras_transfer.data.targets import Targets
from keras_transfer.data.views import strengths, view
from keras_transfer.errors import SpecError
from keras_transfer.pretext.kind import UnlabelledImages
from keras_transfer.pretext.rotation import Rotation, Turned
from keras_transfer.specs import RunSpec

SPEC = override(
    RunSpec(),
    {
        "model.backbone": "small",
        "model.weights": "none",
        "data.image_size": 8,
        "training.batch_size": 6,
        "views.policy": "strong",
        "views.count": None,
    },
)


def examples_of(count: int) -> Examples:
    pixels = np.random.default_rng(0).integers(0, 256, (count, 8, 8, 3), np.uint8)
    targets = Targets.of_classes(np.zeros(count, int), ("image",))
    return Examples(pixels, targets, np.arange(count) + 100)


def test_a_row_is_an_image_in_one_of_four_turns():
    examples = examples_of(2)
    read = Turned(Views(examples, SPEC.views)).read(np.arange(8), np.zeros(8, np.int64))
    for row in range(8):
        np.testing.assert_array_equal(read[row], np.rot90(examples.pixels[row // 4], row % 4))


def test_a_view_is_turned_after_it_is_drawn():
    examples = examples_of(2)
    read = Turned(Views(examples, SPEC.views)).read(np.array([5]), np.array([3]))
    drawn = view(examples.pixels[1], 101, 3, strengths=strengths(SPEC.views))
    np.testing.assert_array_equal(read[0], np.rot90(drawn))


def test_an_epoch_has_every_turn_of_the_training_images_with_its_label():
    spec = override(SPEC, {"views.policy": "none"})
    examples = examples_of(4)
    images = UnlabelledImages(examples, np.array([0, 2, 3]), np.array([1]))
    data = Rotation().prepare(images, spec).data
    turned = {
        np.rot90(examples.pixels[image], turn).tobytes(): (image, turn)
        for image in range(4)
        for turn in range(4)
    }
    found = [
        (*turned[np.uint8(pixels).tobytes()], int(np.argmax(label)))
        for batch, labels, _ in data.training(range(1))
        for pixels, label in zip(batch.numpy(), labels.numpy(), strict=True)
    ]
    assert sorted(found) == [(image, turn, turn) for image in (0, 2, 3) for turn in range(4)]
    assert data.steps_per_epoch == 2
    measured = [pixels for batch, _, _ in data.validation() for pixels in np.uint8(batch)]
    assert [turned[pixels.tobytes()] for pixels in measured[:4]] == [(1, t) for t in range(4)]


@pytest.mark.parametrize("field", [{"views.vertical_flip": True}, {"views.rotation": 90.0}])
def test_views_that_turn_images_themselves_are_refused(field):
    with pytest.raises(SpecError, match="the turn cannot be told") as raised:
        Rotation().check(override(SPEC, field))
    assert next(iter(field)) in raised.value.received
