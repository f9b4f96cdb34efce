"""Sentences about a run."""

from keras_transfer.experiments.summary import describe_saving


def test_time_is_only_said_to_be_saved_at_a_rate_of_many_views():
    cache = {"passes": [{"views_per_second": 50.0}], "views_trained_on": 1_100}
    assert describe_saving(cache | {"views_computed": 600}).endswith("10.0 s saved at 50 views/s.")
    few = describe_saving(cache | {"views_computed": 3})
    assert few == "Frozen layers ran on 3 views instead of 1,100 in all epochs."
