"""A race from the command line to its files, and its words and image on hand-made timings."""

import dataclasses
import json

import numpy as np
import pytest
from PIL import Image

from keras_transfer.config import load_spec, override
from pipelines import arguments, race
from pipelines.benchmarks.race.contestants import CONTESTANTS, HEAD_EPOCHS
from pipelines.benchmarks.race.plot import draw_race
from pipelines.benchmarks.race.report import describe
from pipelines.benchmarks.race.timings import Limits, Timing, compare

WORDS = ["resnet50", "data.image_size=32", "data.train_size=30", "model.weights=none"]
WORDS += ["model.backbone=vgg16", "model.last_stage=stage1", "views.count=1"]
WORDS += [
    "phases.0.epochs=1",
    "phases.1.epochs=1",
    "phases.1.unfreeze=last",
    "phases.1.min_images=0",
]


def _timings(*, ours_frozen: float) -> list[Timing]:
    plain = {"setup": 1.0, "frozen": 40.0, "test": 1.0}
    ours = {"setup": 1.0, "reading images": 2.0, "frozen": ours_frozen, "test": 1.0}
    reached = [(3.0 + ours_frozen, 0.80), (4.0 + ours_frozen, 0.81)]
    return [
        timing
        for seed in range(2)
        for timing in (
            Timing("plain", seed, plain, 0.8, 900.0),
            Timing("ours", seed, ours, 0.81, 800.0, 10.0, reached=reached),
        )
    ]


@pytest.mark.slow
def test_race_writes_its_figures_and_never_over_others(
    forked_calls, digits_folder, capsys, tmp_path
):
    output = tmp_path / "race"
    words = [*WORDS, f"data.path={digits_folder}", "--seeds", "1", "--output", str(output)]
    words += ["--also", "scikit-learn"]
    assert race.main(words) == 0
    files = {file.name for file in output.iterdir()}
    assert files == {"race.json", "race.md", "race.png", "environment.json", "run.log"}
    figures = json.loads((output / "race.json").read_text())
    expected = {"rows", "ratio", "accuracy_difference", "others", "time_to_accuracy", "limits"}
    assert set(figures) == expected
    assert set(figures["others"]) == {"scikit-learn"}
    rows = figures["rows"]
    assert all(row["seconds"] > 0 and row["peak_mb"] > 100 for row in rows)
    assert all(0 <= row["accuracy"] <= 1 and row["seed"] == 0 for row in rows)
    stages = {
        name: [row["stage"] for row in rows if row["name"] == name]
        for name in ("plain", "ours", "scikit-learn")
    }
    assert stages["scikit-learn"] == ["setup", "extraction", "frozen", "test"]
    assert stages["plain"] == ["setup", "frozen", "fine-tune", "test"]
    assert {*stages["plain"], "reading images", "refit"} <= {*stages["ours"]}
    assert set(figures["ratio"]) == {*stages["plain"], "total"}
    assert figures["limits"]["decode_and_resize_per_second"] > 0
    assert figures["limits"]["forward_per_second"] > 0
    shown = " ".join(capsys.readouterr().out.split())  # Lines are broken at any space.
    for part in ("This package took", "one seed, so no interval"):
        assert part in shown
    for part in (
        "30 train, ",
        "frozen solved (by the plain recipe 15 epochs)",
        "| plain / ours |",
        "| total, plain / it |",
    ):
        assert part in (output / "race.md").read_text()
    assert race.main(words) == arguments.USER_ERROR
    assert "race.json" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("word", "part"),
    [("training.sampling=balanced", "cannot sample"), ("phases.0.name=test", "name of a stage")],
)
def test_what_cannot_be_raced_is_refused_and_leaves_no_folder(
    word, part, digits_folder, capsys, tmp_path
):
    words = [*WORDS, f"data.path={digits_folder}", word, "--output", str(tmp_path / "race")]
    assert race.main(words) == arguments.USER_ERROR
    assert part in capsys.readouterr().err
    assert not (tmp_path / "race").exists()


def test_headline_tells_gain_and_loss_and_the_table_agrees():
    timings = _timings(ours_frozen=3.0)
    report = describe(timings, compare(timings, Limits(500.0, 20.0)))
    assert report.headline == (
        "This package took 7.0 s where the plain recipe took 42 s: 6.0 × faster (frozen 13 ×, once "
        "2.0 s were spent on reading and extraction); test accuracy 81.0 % against 80.0 %, "
        "difference +1.0 points (+1.0 to +1.0). It reached the plain recipe's accuracy 7.0 × "
        "sooner."
    )
    assert report.table.header == ["", "plain", "ours", "plain / ours"]
    assert ["reading images, s", "–", "2.0", ""] in report.table.rows
    assert ["frozen, s", "40", "3.0", "13 ×"] in report.table.rows
    assert ["stored, MB", "–", "10.0", ""] in report.table.rows
    timings = _timings(ours_frozen=80.0)
    report = describe(timings, compare(timings, Limits(500.0, 20.0)))
    assert "84 s where the plain recipe took 42 s: 2.0 × slower (frozen 0.5 ×" in report.headline


def test_other_contestants_have_their_own_comparison_with_the_plain_recipe():
    timings = _timings(ours_frozen=3.0)
    timings += [Timing("fast", seed, {"setup": 4.0}, 0.78, 800.0) for seed in range(2)]
    figures = compare(timings, Limits(500.0, 20.0))
    assert figures["others"]["fast"]["ratio"] == pytest.approx(42 / 4)
    assert figures["others"]["fast"]["accuracy_difference"]["mean"] == pytest.approx(-0.02)
    table = describe(timings, figures).table
    assert table.header == ["", "plain", "fast", "ours", "plain / ours"]
    assert ["total, plain / it", "", "10 ×", "6.0 ×", ""] in table.rows


def test_a_phase_that_only_the_plain_recipe_trains_has_a_row_and_no_ratio():
    timings = _timings(ours_frozen=3.0)
    for timing in timings:
        if timing.name == "plain":
            timing.stages["fine-tune"] = 20.0
    table = describe(timings, compare(timings, Limits(500.0, 20.0))).table
    assert [row[0] for row in table.rows][:6] == [
        "setup, s",
        "reading images, s",
        "frozen, s",
        "fine-tune, s",
        "test, s",
        "total, s",
    ]
    assert ["fine-tune, s", "20", "–", ""] in table.rows


def test_presets_as_contestants_keep_images_and_trunk():
    spec = override(load_spec("resnet50"), {"data.path": "photos", "seed": 3})
    best = CONTESTANTS["best"].spec_of(spec)
    assert (best.views.count, best.phases[0].method_options) == (4, {"cross_validate": True})
    assert (best.data, best.model, best.seed) == (spec.data, spec.model, 3)
    assert [phase.name for phase in CONTESTANTS["fast"].spec_of(spec).phases] == ["frozen"]
    trained = CONTESTANTS["mixed_bfloat16"].spec_of(spec)
    assert (trained.devices.precision, trained.phases[0].epochs) == ("mixed_bfloat16", HEAD_EPOCHS)


def test_time_to_the_plain_accuracy_counts_only_seeds_that_reach_it():
    timings = _timings(ours_frozen=3.0)
    timings[3] = dataclasses.replace(timings[3], reached=[(6.0, 0.7)])
    found = compare(timings, Limits(500.0, 20.0))["time_to_accuracy"]
    assert found == {"ratio": pytest.approx(7.0), "num_reached": 1, "num_seeds": 2}
    assert (
        "sooner in 1 of 2 seeds"
        in describe(timings, compare(timings, Limits(500.0, 20.0))).headline
    )


def test_bars_are_as_long_as_their_seconds(tmp_path):
    timings = _timings(ours_frozen=10.0)
    draw_race(timings, "headline", tmp_path / "race.png")
    pixels = np.asarray(Image.open(tmp_path / "race.png").convert("RGB")).astype(int)
    frozen = (np.abs(pixels - (0x3B, 0x6F, 0xB6)).max(axis=2) < 3)[:, : pixels.shape[1] * 2 // 3]
    lengths = np.sort(np.unique(frozen.sum(axis=1)))[::-1]
    assert lengths[0] / lengths[lengths < lengths[0] / 2].max() == pytest.approx(4.0, rel=0.05)
