"""Model files without times: equal models have equal bytes, and Keras reads them as before."""

import time

import keras
import numpy as np

from keras_transfer.storage.keras_file import drop_times


def test_files_that_were_saved_at_different_times_are_equal_and_load(tmp_path, monkeypatch):
    image = keras.Input((4, 4, 3), name="image")
    model = keras.Model(image, keras.layers.Conv2D(2, 3, name="conv")(image), name="net")
    model.save(tmp_path / "first.keras")
    now = time.localtime(time.time() + 3600)
    monkeypatch.setattr(time, "localtime", lambda *_: now)  # Of the members of the archive.
    model.save(tmp_path / "second.keras")
    files = [tmp_path / "first.keras", tmp_path / "second.keras"]
    assert files[0].read_bytes() != files[1].read_bytes()
    for file in files:
        drop_times(file)
    assert files[0].read_bytes() == files[1].read_bytes()
    pixels = np.ones((1, 4, 4, 3), "float32")
    np.testing.assert_array_equal(keras.models.load_model(files[1])(pixels), model(pixels))
