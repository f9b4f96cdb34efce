"""Letters: a pure function of (seed, index), legible, and endless."""

import numpy as np

from keras_transfer.data.letters import (
    CLASS_NAMES,
    font_files,
    letters_dataset,
    render_letter,
    render_letters,
)


def test_letter_depends_on_seed_and_index_alone():
    first, label = render_letter(3, 17)
    render_letter(3, 18)
    again, same = render_letter(3, 17)
    np.testing.assert_array_equal(first, again)
    assert label == same
    assert not np.array_equal(first, render_letter(4, 17)[0])
    assert not np.array_equal(first, render_letter(3, 18)[0])


def test_all_classes_occur_and_every_image_shows_something():
    pixels, labels = render_letters(0, 600)
    assert pixels.shape == (600, 32, 32, 3)
    assert pixels.dtype == np.uint8
    assert set(labels) == set(range(len(CLASS_NAMES)))
    assert pixels.reshape(600, -1).std(axis=1).min() > 10


def test_fonts_hold_the_alphabet():
    files = font_files()
    assert len(files) >= 15
    assert len({file.stem for file in files}) == len(files)


def test_dataset_taken_up_in_the_middle_goes_on_where_it_stopped():
    whole = list(
        letters_dataset(
            1, image_size=16, batch_size=4, first_batch=0, num_batches=3
        ).as_numpy_iterator()
    )
    tail = list(
        letters_dataset(
            1, image_size=16, batch_size=4, first_batch=2, num_batches=1
        ).as_numpy_iterator()
    )
    np.testing.assert_array_equal(whole[2][0], tail[0][0])
    np.testing.assert_array_equal(whole[2][1], tail[0][1])
    assert whole[0][1].sum(axis=1).tolist() == [1, 1, 1, 1]
