"""Prefixes compute what the frozen layers compute, and are chosen by what was measured."""

import keras
import numpy as np
import pytest
from feature_sources import cut_at, make_source
from small_models import make_classifier

from keras_transfer.features import prefix as prefix_module
from keras_transfer.features.prefix import AGREEMENT, BATCH_SIZE, Prefix, choose

PIXELS = make_source(32).examples.pixels


@pytest.fixture(scope="module")
def cuts():
    classifier = make_classifier()
    return [cut_at(classifier, "head"), cut_at(classifier, "stage2")]


def test_a_batch_that_is_filled_up_gives_the_rows_of_the_full_one(cuts):
    prefix = Prefix(cuts, precision="float32")
    whole, part = prefix(PIXELS, 32), prefix(PIXELS[:5], 32)
    for cut, many, few in zip(cuts, whole, part, strict=True):
        expected = keras.Model(cut.model.input, cut.tensor)(PIXELS.astype(np.float32))
        np.testing.assert_allclose(many, expected, atol=2e-6 * np.abs(expected).max())
        np.testing.assert_array_equal(many[:5], few)


def test_a_given_precision_is_taken_whatever_the_clock_says(cuts):
    for precision in ("float32", "bfloat16"):
        choice, prefix = choose(cuts, PIXELS, precision=precision, num_views=10**9)
        assert choice.way == (precision, BATCH_SIZE)
        assert choice.agreement is None
        pooled, _ = prefix(PIXELS[:3], BATCH_SIZE)
        assert pooled.shape == (3, 8)
        assert pooled.dtype == np.float32


def test_a_job_of_seconds_is_done_in_float32_without_comparing(cuts):
    choice, _ = choose(cuts, PIXELS, precision="auto", num_views=10)
    assert choice.way == ("float32", BATCH_SIZE)
    assert [name.split()[0] for name in choice.rates] == ["float32"]
    assert "too few views to compare" in choice.describe()


@pytest.fixture
def with_half_units(monkeypatch):
    """A processor whose chunks make half precision worth a comparison, whichever is at hand."""
    monkeypatch.setattr(prefix_module, "_speedup", lambda half: 8.0)


@pytest.mark.usefixtures("with_half_units")
def test_a_long_job_takes_what_was_fastest_and_agrees(cuts):
    choice, _ = choose(cuts, PIXELS, precision="auto", num_views=10**9)
    rates = choice.rates
    assert {"float32 × 16", "bfloat16 × 16"} <= rates.keys()
    assert 0.9 < choice.agreement <= 1
    half_pays = rates["bfloat16 × 16"] > rates["float32 × 16"] and choice.agreement >= AGREEMENT
    assert choice.precision == ("bfloat16" if half_pays else "float32")
    assert rates[f"{choice.precision} × {choice.batch_size}"] >= rates[f"{choice.precision} × 32"]
    assert "agrees to a cosine of" in choice.describe()


def test_batch_sizes_are_tried_where_many_views_repay_it(cuts):
    for num_views, tried in ((10**9, {16, 32, 64}), (2_000, {16})):
        # So slow that 2,000 views are a long job.
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(prefix_module, "_TOO_SHORT_TO_MEASURE_SECONDS", 0.0)
            choice, _ = choose(cuts, PIXELS, precision="auto", num_views=num_views)
        sizes = [int(name.split()[-1]) for name in choice.rates if choice.precision in name.split()]
        assert set(sizes) == tried, choice.rates


def test_half_precision_is_not_compared_on_a_processor_that_is_slow_at_it(cuts, monkeypatch):
    monkeypatch.setattr(prefix_module, "_speedup", lambda half: 0.94)
    choice, _ = choose(cuts, PIXELS, precision="auto", num_views=10**9)
    assert choice.precision == "float32"
    assert choice.agreement is None
    assert {name.split()[0] for name in choice.rates} == {"float32"}
    assert "multiplies matrices 0.9 times as fast in bfloat16" in choice.describe()


def test_a_speedup_is_measured():
    prefix_module._speedup.cache_clear()
    assert 0.3 < prefix_module._speedup("float32") < 3
    assert 0.001 < prefix_module._speedup("bfloat16") < 100


@pytest.mark.usefixtures("with_half_units")
def test_features_without_a_direction_agree_only_if_both_vanish():
    classifier = make_classifier("vgg16")
    for variable in classifier.variables_of("stage1"):
        variable.assign(variable * 0)
    choice, _ = choose([cut_at(classifier, "head")], PIXELS, precision="auto", num_views=10**9)
    assert choice.agreement == 1.0
