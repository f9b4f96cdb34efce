"""Sentences about a run."""

from keras_transfer.experiments.summary import describe_saving


def test_time_is_only_said_to_be_saved_at_a_rate_of_many_views():
    cache = {"passes": [{"views_per_second": 50.0}], "views_trained_on": 1_100}
    assert describe_saving(cache | {"views_computed": 600}).endswith("saved 10.0 s at 50 views/s.")
    few = describe_saving(cache | {"views_computed": 3})
    assert few == (
        "The cache of features: training used 1,100 views, and the frozen layers computed 3 of "
        "them."
    )
