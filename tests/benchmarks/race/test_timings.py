"""What timings say together, on figures small enough to check by hand."""

import pytest

from pipelines.benchmarks.race.timings import Limits, Timing, compare, estimate


def _timings() -> list[Timing]:
    plain = {"setup": 2.0, "frozen": 40.0, "test": 1.0}
    ours = {"setup": 2.0, "extraction": 3.0, "frozen": 4.0, "test": 1.0}
    return [
        Timing("plain", 5, plain, 0.80, 900.0),
        Timing("ours", 5, ours, 0.81, 800.0, 10.0, 90.0),
        Timing("ours", 6, {**ours, "frozen": 5.0}, 0.82, 700.0, 10.0, 110.0),
        Timing("plain", 6, {**plain, "frozen": 80.0}, 0.78, 900.0),
        Timing("plain", 7, {**plain, "frozen": 50.0}, 0.79, 900.0),
        Timing("ours", 7, {**ours, "frozen": 20.0}, 0.79, 900.0, 10.0, 100.0),
        Timing("plain mixed_bfloat16", 5, plain, 0.10, 1.0),
    ]


def test_ratios_are_of_medians_over_seeds_for_common_stages():
    ratio = compare(_timings(), Limits(500.0, 200.0))["ratio"]
    assert ratio == {"setup": 1.0, "frozen": 50 / 5, "test": 1.0, "total": 53 / 11}


def test_accuracy_difference_is_paired_by_seed_not_by_order():
    difference = compare(_timings(), Limits(500.0, 200.0))["accuracy_difference"]
    # 1, 4 and 0 points: mean 5/3, variance 13/3; 97.5 % point of Student's t with two degrees of
    # freedom: a / sqrt(1 - a^2) * sqrt(2) with a = 0.95.
    half = 0.95 / (1 - 0.95**2) ** 0.5 * 2**0.5 * (13 / 9) ** 0.5
    assert difference["mean"] == pytest.approx(0.05 / 3)
    assert difference["interval"] == pytest.approx(((5 / 3 - half) / 100, (5 / 3 + half) / 100))
    assert difference["num_seeds"] == 3


def test_one_seed_has_no_interval():
    assert estimate([0.5]).interval is None


def test_extraction_is_held_against_the_slower_limit():
    limits = compare(_timings(), Limits(500.0, 200.0))["limits"]
    assert limits == {
        "decode_and_resize_per_second": 500.0,
        "forward_per_second": 200.0,
        "extraction_per_second": 100.0,
        "share_of_slower": 0.5,
    }


def test_rows_have_one_entry_a_lap_and_stage():
    rows = compare(_timings(), Limits(500.0, 200.0))["rows"]
    assert len(rows) == 4 * 3 + 3 * 4
    assert rows[1] == {
        "name": "plain",
        "seed": 5,
        "stage": "frozen",
        "seconds": 40.0,
        "accuracy": 0.80,
        "peak_mb": 900.0,
    }
