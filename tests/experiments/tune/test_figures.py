"""Figures of a search show what is known of it, and say so where nothing is."""

import dataclasses
import random
from xml.etree import ElementTree

import pytest
from made_search import (
    CHOICES,
    DROPOUT,
    RATE,
    SCALES,
    STAGE,
    made_search,
    made_trial,
    made_values,
    stage_decides,
)
from matplotlib.figure import Figure

from keras_transfer.experiments.tune.axes import axis_of, positions, score_axis
from keras_transfer.experiments.tune.importance import EPOCHS, measure_importance
from keras_transfer.experiments.tune.plots import (
    draw_importance,
    draw_panels,
    draw_parallel,
    draw_timeline,
)
from keras_transfer.experiments.tune.record import best_so_far, ranked
from keras_transfer.reporting.figures import ALARM, VALIDATION, inline_svg, wrapped
from keras_transfer.reporting.numbers import short

DRAWINGS = (draw_parallel, draw_panels, draw_timeline)
SVG = "{http://www.w3.org/2000/svg}"
LONG = "augmentation.strength_of_brightness_and_of_contrast<&>$x_1$"


def _texts(svg: str) -> list[str]:
    return ["".join(text.itertext()) for text in ElementTree.fromstring(svg).iter(f"{SVG}text")]


def _values(number: int) -> dict:
    return made_values(random.Random(number))


def _several(scores) -> list:
    return [made_trial(index, _values(index), score) for index, score in enumerate(scores)]


def _searches():
    yield "several with failures", made_search(_several([0.8, None, 0.85, 0.9, None, 0.7]))
    yield "a single trial", made_search(_several([0.8]))
    yield "equal scores", made_search(_several([0.8, 0.8, 0.8]))
    yield "losses", made_search(_several([0.01, 0.5, 9.0]), objective="val_loss")
    yield "no numbers", made_search(_several([0.8, float("nan"), 0.7]))
    one = [made_trial(0, {LONG: 3}, 0.8), made_trial(1, {}, 0.7, seconds=0.0)]
    yield "one parameter that one trial lacks", made_search(one, scales={LONG: "linear"})
    flags = [made_trial(index, {"views.flip": bool(index)}, 0.8 + index / 10) for index in range(2)]
    yield (
        "flags",
        made_search(flags, scales={"views.flip": "choice"}, choices={"views.flip": [True, False]}),
    )


SEARCHES = dict(_searches())


@pytest.mark.parametrize("name", SEARCHES)
def test_figures_are_well_formed_name_everything(name):
    search = SEARCHES[name]
    drawn = {draw: draw(search) for draw in DRAWINGS}
    for svg in drawn.values():
        assert ElementTree.fromstring(svg).tag == f"{SVG}svg"
    for draw in DRAWINGS[:2]:
        told = "".join(_texts(drawn[draw])).replace(" ", "")
        for parameter in search.scales:
            shown = wrapped(parameter, 15 if draw is draw_parallel else 36).replace("\\$", "$")
            assert shown.replace("\n", "").replace(" ", "") in told
    assert any(search.winner in text for text in _texts(drawn[draw_parallel]))


def test_figures_repeat_and_names_in_two_of_a_page_are_never_the_same():
    search = SEARCHES["several with failures"]
    found = []
    for draw in DRAWINGS:
        root = ElementTree.fromstring(draw(search))
        assert draw(search) == draw(search)
        names = {element.get("id") for element in root.iter() if element.get("id")}
        found.extend(names)
        for element in root.iter():
            for key, value in element.attrib.items():
                if "url(#" in value:
                    assert value.split("url(#")[1].split(")")[0] in names
                if key.endswith("href"):
                    assert value.removeprefix("#") in names
    assert len(found) == len(set(found)) > 9


def test_an_inlined_figure_tells_no_date_and_has_room_to_shrink():
    figure = Figure(figsize=(5, 2))
    figure.text(0.5, 0.5, "a < b & 北")
    svg = inline_svg(figure, "some", description='what "it" shows')
    root = ElementTree.fromstring(svg)
    assert "width" not in root.attrib
    assert root.get("viewBox") == "0 0 360 144"
    assert root.get("aria-label") == 'what "it" shows'
    assert _texts(svg) == ["a < b & 北"]
    assert "metadata" not in svg


def test_only_the_winner_and_only_failed_trials_have_their_colours():
    whole = SEARCHES["several with failures"]
    assert VALIDATION in draw_parallel(whole)
    assert ALARM in draw_timeline(whole)
    assert "stroke-dasharray" in draw_parallel(whole)
    well = dataclasses.replace(whole, trials=whole.scored)
    assert ALARM not in draw_timeline(well) + draw_panels(well)
    assert "stroke-dasharray" not in draw_parallel(well)


def test_axes_are_in_decades_where_logarithmic_and_choices_are_evenly_spaced():
    trials = [made_trial(0, {RATE: 1e-5, STAGE: "stage3", DROPOUT: 0.0}, 0.8)]
    trials += [made_trial(1, {RATE: 1e-4, STAGE: "stage5", DROPOUT: 0.1}, 0.8)]
    trials += [made_trial(2, {RATE: 1e-3, STAGE: "stage5", DROPOUT: 0.4}, None)]
    search = made_search(trials)
    rates = positions(axis_of(search, RATE), trials)
    assert rates[1] - rates[0] == pytest.approx(rates[2] - rates[1])
    dropouts = positions(axis_of(search, DROPOUT), trials)
    assert dropouts[2] - dropouts[0] == pytest.approx(4 * (dropouts[1] - dropouts[0]))
    stages = positions(axis_of(search, STAGE), trials)
    assert 0 < stages[0] < 1 / 3 < 2 / 3 < stages[1] < 1
    assert stages[1] != stages[2]
    assert [text for _, text in axis_of(search, RATE).ticks] == ["1e-5", "1e-4", "1e-3"]
    assert [text for _, text in axis_of(search, STAGE).ticks] == CHOICES[STAGE]


def test_the_best_score_is_up_and_one_that_collapsed_lies_at_the_foot():
    search = made_search(_several([0.9, 0.91, 0.92, 0.93, 0.1]))
    axis = score_axis(search)
    found = [axis.position(score) for score in (0.93, 0.92, 0.9, 0.1)]
    assert found[0] > 0.9 > found[1] > found[2] > 0.2 > found[3] == 0
    axis = score_axis(made_search(_several([0.3, 0.4, 0.5]), objective="val_loss"))
    assert axis.position(0.3) > axis.position(0.5)


@pytest.mark.parametrize(
    ("value", "text"),
    [(3e-5, "3e-5"), (0.25, "0.25"), (0, "0"), (0.0, "0"), (1e5, "1e5"), (1200, "1200")]
    + [(True, "true"), (None, "none"), ("stage5", "stage5"), (-2.5e-4, "-2.5e-4")],
)
def test_values_are_told_in_few_characters(value, text):
    assert short(value) == text


def test_importance_finds_the_one_parameter_that_matters():
    importance = measure_importance(made_search(stage_decides(30)))
    assert importance.is_meaningful
    assert importance.r2 > 0.6
    assert importance.names[0] == STAGE
    first, second = importance.means[:2]
    assert first - importance.spreads[0] > second + importance.spreads[1]
    assert abs(second) < 0.2 * first
    svg = draw_importance(importance)
    assert _texts(svg)[-4:].count("R² lost by shuffling the parameter") == 1


@pytest.mark.parametrize("count", [1, 7])
def test_too_few_trials_are_said_to_be_too_few(count):
    importance = measure_importance(made_search(stage_decides(count)))
    assert not importance.is_meaningful
    assert "too few" in importance.explanation
    with pytest.raises(ValueError, match="too few"):
        draw_importance(importance)


def test_scores_of_mere_chance_have_no_importances():
    draw = random.Random(3)
    importance = measure_importance(made_search(_several([draw.random() for _ in range(16)])))
    assert importance.r2 <= 0
    assert not importance.is_meaningful
    assert "meaningless" in importance.explanation
    assert not importance.names


def test_parameters_that_never_varied_are_named_and_not_ranked():
    trials = [
        made_trial(index, {**trial.values, DROPOUT: 0.2}, trial.score)
        for index, trial in enumerate(stage_decides(20))
    ]
    importance = measure_importance(made_search(trials))
    assert DROPOUT not in importance.names
    assert f"Never varied: {DROPOUT}" in importance.explanation
    fixed = [made_trial(index, _values(0), 0.5 + index / 50) for index in range(9)]
    assert "No parameter varied" in measure_importance(made_search(fixed)).explanation
    same = measure_importance(made_search(_several([0.5] * 9)))
    assert "same score" in same.explanation


def test_epochs_take_the_blame_where_they_made_the_difference():
    draw = random.Random(5)
    trials = []
    for index in range(24):
        epochs = draw.choice([2, 6, 20])
        trials.append(made_trial(index, made_values(draw), 0.5 + epochs / 50, epochs=epochs))
    assert measure_importance(made_search(trials)).names[0] == EPOCHS


def test_trials_that_lack_a_value_are_no_obstacle():
    trials = stage_decides(12)
    del trials[3].values[DROPOUT]
    importance = measure_importance(made_search(trials))
    assert set(importance.names) == set(SCALES)
    assert importance == measure_importance(made_search(trials))


def test_best_so_far_follows_the_order_of_ends():
    trials = [
        made_trial(0, {}, 0.5, started=0.0, seconds=100.0),
        made_trial(1, {}, 0.8, started=10.0, seconds=20.0),
        made_trial(2, {}, None, started=30.0, seconds=5.0),
        made_trial(3, {}, 0.9, started=40.0, seconds=100.0),
    ]
    assert best_so_far(trials, higher_is_better=True) == [(30, 0.8), (100, 0.8), (140, 0.9)]
    assert best_so_far(trials, higher_is_better=False) == [(30, 0.8), (100, 0.5), (140, 0.5)]
    assert [trial.name for trial in ranked(trials, higher_is_better=True)] == [
        "0003",
        "0001",
        "0000",
    ]
