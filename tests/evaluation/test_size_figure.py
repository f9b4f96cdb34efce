"""The learning curve of a study is drawn for any number of sizes and seeds."""

import pytest
from PIL import Image

from keras_transfer.evaluation.plots import SizePoint, draw_accuracy_by_size

SEVERAL = [
    SizePoint(
        size, accuracy, (accuracy - 0.05, accuracy + 0.02), (accuracy - 0.05, accuracy + 0.02)
    )
    for size, accuracy in ((1234, 0.97), (617, 0.9), (308, 0.8), (154, 0.5))
]
PERFECT = [SizePoint(100, 1.0, (1.0, 1.0), (1.0,))]


@pytest.mark.parametrize("points", [SEVERAL, PERFECT], ids=["several", "one, without spread"])
def test_curve_is_drawn_and_repeats(points, tmp_path):
    files = [tmp_path / "one.png", tmp_path / "two.png"]
    draw_accuracy_by_size(points, files[0], caption="median, minimum and maximum over 2 seeds")
    draw_accuracy_by_size(
        points[::-1], files[1], caption="median, minimum and maximum over 2 seeds"
    )
    assert files[0].read_bytes() == files[1].read_bytes()
    with Image.open(files[0]) as image:
        assert min(image.size) > 400
        assert len(image.convert("RGB").getcolors(100_000)) > 20
