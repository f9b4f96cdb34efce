"""Answers for attacked images: bounds, the worst attack of a linear network, teachers, reports."""

import keras
import numpy as np
import pytest
from distilling import save_backbone, save_teacher
from scipy import special
from searches import read_json

import keras_transfer as kt
from keras_transfer.config import override
from keras_transfer.errors import SpecError
from keras_transfer.experiments.distill.robustness import (
    MOST_IMAGES,
    Attack,
    find_attack,
    network_of,
)
from keras_transfer.methods.distillation.adversarial import AdversarialOptions
from keras_transfer.methods.distillation.soft_targets import mean_logits
from keras_transfer.methods.distillation.teacher import load_teacher
from keras_transfer.models.activations import activate
from keras_transfer.reporting.reporter import SilentReporter
from keras_transfer.specs import CacheSpec, DataSpec, ModelSpec, PhaseSpec, RunSpec, ViewSpec
from keras_transfer.tasks.single_label import SingleLabel

GENERATOR = np.random.default_rng(0)
NAMES = tuple(f"digit_{number}" for number in range(10))
BOUNDS = {"epsilon": 48.0, "step": 16.0, "steps": 4}
ATTACKED = {"kind": "adversarial", "kind_options": BOUNDS}


def distil(**options):
    return PhaseSpec(method="distill", method_options={"teacher": "x", **options})


def test_the_attack_is_the_worst_one_of_a_linear_network_and_none_leaves_the_images():
    kernel = GENERATOR.normal(size=(12, 2)).astype(np.float32) / 500
    images = GENERATOR.integers(0, 256, size=(37, 2, 2, 3)).astype(np.uint8)
    targets = np.eye(2, dtype=np.float32)[np.arange(37) % 2]

    def network(some):
        return keras.ops.reshape(some, (-1, 12)) @ kernel

    options = AdversarialOptions(epsilon=8.0, step=3.0, steps=4)
    found = Attack(options, np.arange(37), targets).outputs(network, images)
    away = (kernel[:, 1] - kernel[:, 0]) * np.where(targets[:, :1] == 1, 1, -1)
    worst = np.clip(images + 8 * np.sign(away).reshape(images.shape), 0, 255)
    np.testing.assert_allclose(
        found, special.softmax(worst.reshape(-1, 12) @ kernel, axis=1), atol=1e-5
    )
    none = Attack(AdversarialOptions(epsilon=0.0), np.arange(37), targets)
    expected = special.softmax(images.reshape(-1, 12) @ kernel, axis=1)
    np.testing.assert_allclose(none.outputs(network, images), expected, atol=1e-5)


def test_the_attack_is_that_of_the_last_adversarial_phase_on_some_images_of_the_whole_split():
    task, labels = SingleLabel(("a", "b", "c")), np.arange(1000) % 3
    phases = (distil(), distil(**ATTACKED), distil(kind="logits"))
    spec = RunSpec(phases=phases)
    attack = find_attack(spec, task, labels)
    assert (attack.options.epsilon, attack.options.steps) == (48.0, 4)
    assert len(attack.places) == len(attack.targets) == MOST_IMAGES
    assert (attack.places[0], attack.places[-1]) == (0, 999)
    np.testing.assert_array_equal(attack.targets, np.eye(3)[labels[attack.places]])
    assert len(find_attack(spec, task, labels[:7]).places) == 7
    assert find_attack(RunSpec(phases=(distil(), distil(kind="logits"))), task, labels) is None
    assert find_attack(spec, task, labels[:0]) is None


def test_teachers_are_attacked_as_one_network_with_their_mean_probabilities(tmp_path):
    folders = [
        save_teacher(tmp_path / top, NAMES, top=top, weight=weight)
        for top, weight in (("linear", 0.3), ("softmax", 0.2))
    ]
    product = keras.models.load_model(folders[0] / "model.keras")
    keras.Model(product.input, keras.ops.softmax(product.output)).save(tmp_path / "x.keras")
    teachers = [load_teacher(str(path), 32) for path in (*folders, tmp_path / "x.keras")]
    assert [one.kernel is None for one in teachers] == [False, False, True]
    pixels = GENERATOR.integers(0, 256, (4, 32, 32, 3)).astype(np.float32)
    each = []
    for teacher in teachers:
        features = keras.Model(teacher.cut.model.input, teacher.cut.tensor)(pixels)
        each.append(teacher.logits(np.array(features)))
        one = activate(np.array(network_of([teacher])(pixels)), "softmax")
        np.testing.assert_allclose(one, activate(each[-1], "softmax"), atol=1e-5)
    expected = activate(mean_logits(each, 1.0, "softmax"), "softmax")
    found = activate(np.array(network_of(teachers)(pixels)), "softmax")
    np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.fixture(scope="module")
def spec(digits_folder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("student")
    phase = PhaseSpec(name="student", epochs=25, unfreeze="last", learning_rate=5e-3)
    return RunSpec(
        name="digits",
        data=DataSpec(path=str(digits_folder), image_size=32, resize="squash"),
        views=ViewSpec(count=2, horizontal_flip=False),
        model=ModelSpec(backbone=str(save_backbone(folder / "units.keras")), weights="file"),
        phases=(phase,),
        cache=CacheSpec(folder=str(folder / "cache"), precision="float32"),
    )


@pytest.mark.slow
def test_the_report_has_attacked_images_and_a_smaller_network(spec, tmp_path):
    teacher = save_teacher(tmp_path / "teacher", NAMES)
    arguments = {"seeds": 1, "output": tmp_path / "run", "reporter": SilentReporter()}
    kt.distill(teacher, spec, smaller="small", smaller_weights="none", **ATTACKED, **arguments)
    report = read_json(tmp_path / "run" / "distillation.json")
    assert report["attack"] == {**BOUNDS, "num_images": report["num_test"]}
    taught, distilled, alone, least = report["contenders"]
    assert least["name"] == "small alone"
    assert least["num_parameters"] < alone["num_parameters"]
    assert 0 < least["num_bytes"] != alone["num_bytes"]
    for one in (taught, distilled, alone, least):
        assert one["clean_score"] == pytest.approx(one["score"])
        assert one["attacked_score"] <= one["clean_score"]
        low, high = one["attacked_interval"]
        assert low <= one["attacked_score"] <= high
    assert distilled["attacked_score"] > alone["attacked_score"] + 0.1
    text = (tmp_path / "run" / "distillation.md").read_text()
    header = next(line for line in text.splitlines() if line.startswith("|"))
    assert [cell.strip() for cell in header.split("|")][-4:-2] == ["clean, %", "attacked, %"]
    sentence = next(line for line in text.splitlines() if line.startswith("Attacked ("))
    assert "each pixel changed by at most 48 grey levels in 4 steps of 16" in sentence
    assert f"distilled {100 * distilled['attacked_score']:.1f}% (" in sentence


def test_a_smaller_network_that_cannot_be_built_is_refused_before_the_student_trains(
    spec, tmp_path
):
    teacher = save_teacher(tmp_path / "teacher", NAMES)
    output = tmp_path / "run"
    for fields, named in (
        ({"smaller": "mobilenet_0.26"}, "mobilenet_0.26"),
        ({"smaller": "small", "smaller_weights": "none", "phases.0.unfreeze": "stage9"}, "stage9"),
    ):
        given = {name: value for name, value in fields.items() if "." not in name}
        changed = override(spec, {name: x for name, x in fields.items() if "." in name})
        with pytest.raises(SpecError, match=named):
            kt.distill(teacher, changed, output=output, reporter=SilentReporter(), **given)
        assert not output.exists()
