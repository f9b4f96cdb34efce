"""A student learns from a teacher's outputs, which are computed once for each view."""

import dataclasses

import keras
import numpy as np
import pytest
import tensorflow as tf
from distilling import (
    NUM_IMAGES,
    SPLITS,
    UNLABELLED,
    Training,
    save_backbone,
    save_maps,
    save_teacher,
)
from feature_sources import make_source, source_of
from scipy import special
from sklearn.datasets import load_digits
from small_models import CLASS_NAMES

from keras_transfer.config import override
from keras_transfer.data.targets import Targets
from keras_transfer.errors import DataError, SpecError, WeightsError
from keras_transfer.features.phase_inputs import PhaseInputs
from keras_transfer.methods.distillation.attention import AttentionMap
from keras_transfer.methods.distillation.kind import Batch
from keras_transfer.methods.distillation.registry import make_kind
from keras_transfer.methods.distillation.soft_targets import mean_logits, probabilities
from keras_transfer.methods.distillation.teacher import load_teacher
from keras_transfer.methods.registry import make_methods
from keras_transfer.models.activations import activate
from keras_transfer.specs import ModelSpec, RunSpec, ViewSpec
from keras_transfer.storage.model_files import resolve
from keras_transfer.storage.run_folder import RunFolder
from keras_transfer.storage.run_start import start_run
from keras_transfer.tasks.linear_head import (
    HeadFeatures,
    LinearHead,
    solve_distilled,
    solve_logistic,
    solve_softmax,
)
from keras_transfer.tasks.multi_label import MultiLabel
from keras_transfer.tasks.regression import Regression

NONE = np.empty(0, np.int64)
FIT = {"phases.0.epochs": 2, "phases.0.learning_rate": 1e-2}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """With a teacher and the cache of all students."""
    place = tmp_path_factory.mktemp("distilled")
    save_teacher(place / "teacher")
    save_backbone(place / "units.keras")
    return place


@pytest.fixture
def options(folder):
    return {"teacher": str(folder / "teacher")}


def hidden_layer(folder):
    """A student whose hidden layer trains, too."""
    return {
        "model.backbone": str(folder / "units.keras"),
        "model.weights": "file",
        "phases.0.unfreeze": "last",
        "phases.0.epochs": 12,
        "phases.0.learning_rate": 5e-3,
    }


@pytest.fixture(scope="module")
def alone(folder):
    """The accuracy of this student with few labels and no teacher."""
    return Training(folder, None, hidden_layer(folder)).fit().accuracy


def features_and_targets():
    generator = np.random.default_rng(0)
    values = generator.normal(size=(40, 2, 6))
    labels = np.eye(3)[generator.integers(0, 3, 40)]
    labels[30:] = 0  # The last ten have no label.
    teacher = special.softmax(3 * generator.normal(size=(40, 2, 3)), axis=-1)
    return values, HeadFeatures(lambda rows, view: values[rows, view], 40, 2, 6), labels, teacher


def test_the_solved_head_is_the_optimum_of_the_documented_loss():
    values, features, labels, teacher = features_and_targets()
    ones, temperature = np.ones(40), 3.0
    head = solve_distilled(
        features, 0.4 * labels, 0.6 * teacher, ones, temperature=temperature, strengths=(0.5,)
    )
    logits = values @ head.kernel + head.bias
    hard = 0.4 * labels.sum(axis=1)[:, None, None] * special.softmax(logits, axis=-1)
    soft = 0.6 * (special.softmax(logits / temperature, axis=-1) - teacher)
    gradient = (hard - 0.4 * labels[:, None] + temperature * soft) / 2
    np.testing.assert_allclose(gradient.sum(axis=(0, 1)), 0, atol=1e-4)
    scale = features.standardisation()[1]
    by_kernel = 0.5 * np.einsum("nvd,nvk->dk", values - values[:, 0].mean(axis=0), gradient)
    np.testing.assert_allclose(by_kernel / scale[:, None], -head.kernel * scale[:, None], atol=1e-3)


def test_at_temperature_1_the_solved_head_is_that_of_mixed_targets():
    values, features, labels, _ = features_and_targets()
    one_view = dataclasses.replace(features, num_views=1)
    teacher = special.softmax(values[:, :1, :3], axis=-1)
    found = solve_distilled(one_view, 0.3 * labels, 0.7 * teacher, np.ones(40), temperature=1.0)
    mixed = 0.3 * labels + 0.7 * teacher[:, 0]
    expected = solve_softmax(one_view, mixed, np.ones(40))
    np.testing.assert_allclose(found.kernel, expected.kernel, atol=1e-6)


def test_a_student_of_few_labels_gains_from_images_without_labels_and_a_second_one_costs_nothing(
    options, folder
):
    alone = Training(folder, changes={"phases.0.method": "exact"}).fit()
    first = Training(folder, options).fit()
    assert first.accuracy > alone.accuracy + 0.1
    (passes,) = first.inputs.teacher_stats
    assert (passes.num_computed, passes.num_found) == (2 * (len(SPLITS.train) + len(UNLABELLED)), 0)
    second = Training(folder, options, {"model.pooling": "max", "views.seed": 0}).fit()
    (passes,) = second.inputs.teacher_stats
    assert passes.num_computed == 0
    assert any("Teacher: Features of all" in sentence for sentence in second.reporter.said)
    labels_only = Training(folder, {**options, "hard_weight": 1.0}, unlabelled=NONE).fit()
    np.testing.assert_array_equal(
        labels_only.weights["logits/kernel"], alone.weights["logits/kernel"]
    )


@pytest.mark.parametrize(
    "kind",
    [
        "logits",
        "feature",
        pytest.param("decoupled", marks=pytest.mark.slow),
        pytest.param("dynamic", marks=pytest.mark.slow),
        pytest.param("similarity", marks=pytest.mark.slow),
        pytest.param("relational", marks=pytest.mark.slow),
    ],
)
def test_every_kind_of_fit_learns_more_than_few_labels_teach(kind, options, folder, alone):
    changes = hidden_layer(folder)
    before = (folder / "teacher" / "model.keras").read_bytes()
    student = Training(folder, {**options, "kind": kind}, changes).fit()
    assert student.accuracy > alone + 0.1
    assert (folder / "teacher" / "model.keras").read_bytes() == before
    names = {path.partition("/")[0] for path in student.weights}
    assert "adapter" not in names
    assert "logits" in names


def test_a_student_of_attention_looks_where_its_teacher_looks(options, folder):
    save_maps(folder / "maps.keras")
    changes = hidden_layer(folder) | {
        "model.backbone": str(folder / "maps.keras"),
        "model.pooling": "flatten",
    }
    teacher = load_teacher(str(folder / "teacher"), 32)
    pixels = np.float32(make_source(NUM_IMAGES).examples.pixels[SPLITS.test])
    expected = AttentionMap((8, 8))(
        keras.Model(teacher.cut.model.input, teacher.cut.model.get_layer("grey").output)(pixels)
    )

    def likeness(kind):
        student = Training(folder, {**options, **kind}, changes).fit()
        assert "maps/kernel" in student.weights
        model = student.classifier.model
        maps = keras.Model(model.input, model.get_layer("maps").output)(pixels)
        cosines = np.sum(AttentionMap((8, 8))(maps) * expected, axis=1)
        return float(cosines.mean()), student.accuracy

    before, _ = likeness({"kind": "logits"})
    after, accuracy = likeness({"kind": "attention", "kind_options": {"weight": 10.0}})
    assert after > before + 0.2
    assert accuracy > 0.7


def test_a_student_that_sees_grey_learns_from_a_teacher_that_sees_colours(folder):
    """Ink is red, green or blue: as bright for the teacher, but three greys for the student."""
    options = {"teacher": str(save_teacher(folder / "colours", weight=1.0))}
    scans = make_source(NUM_IMAGES).examples
    tints = np.eye(3)[np.random.default_rng(0).integers(0, 3, NUM_IMAGES)]
    coloured = np.uint8(scans.pixels * tints[:, None, None])
    source = source_of(coloured, scans.targets.values, ViewSpec(count=2))
    changes = hidden_layer(folder) | {"model.preprocess": "grey"}
    alone = Training(folder, None, changes, source=source).fit()
    student = Training(folder, options, changes, source=source).fit()
    assert student.accuracy > alone.accuracy + 0.1
    grey = np.repeat(coloured @ np.float32([[0.299], [0.587], [0.114]]), 3, axis=-1)
    for images in (coloured, grey):
        outputs = student.classifier.model.predict_on_batch(np.float32(images[SPLITS.test]))
        found = student.inputs.predict(student.classifier, SPLITS.test)
        np.testing.assert_allclose(special.softmax(outputs, axis=1), found, atol=1e-4)


def other_task(name):
    """Scans with ten labels, one of which each has; or with a number, a weighted sum of pixels."""
    scans = make_source(NUM_IMAGES)
    labels = np.eye(10, dtype=np.float32)[scans.examples.targets.values]
    pixels = load_digits().data
    if name == "multi_label":
        task, values = MultiLabel(CLASS_NAMES), labels
        digits = np.eye(10)[load_digits().target[NUM_IMAGES:]]
        features = HeadFeatures(lambda rows, _: pixels[NUM_IMAGES:][rows], len(digits), 1, 64)
        head = solve_logistic(features, digits, np.ones(digits.shape), strengths=(0.3,))
    else:
        kernel = np.random.default_rng(0).normal(size=(64, 1))
        head = LinearHead(kernel, np.zeros(1), 1.0, 0.0, 0)
        values = np.float32(pixels[:NUM_IMAGES] @ kernel)
        known = values[SPLITS.train]
        task = Regression(("sum",), means=(known.mean(),), deviations=(known.std(),))
    targets = Targets(
        values=values, names=task.names, strata=labels == 1, strata_names=CLASS_NAMES, kind="label"
    )
    examples = dataclasses.replace(scans.examples, targets=targets)
    views = ViewSpec(count=2)
    return task, head, dataclasses.replace(scans, examples=examples, views=views)


def test_an_adversarial_student_answers_attacked_images_better_than_another(options, folder):
    attack = {"epsilon": 48.0, "step": 16.0, "steps": 4}
    kind, changes = make_kind("adversarial", attack | {"target": "labels"}), hidden_layer(folder)
    pixels = np.float32(make_source(NUM_IMAGES).examples.pixels[SPLITS.test])
    labels = make_source(NUM_IMAGES).examples.targets.values[SPLITS.test]
    targets = np.eye(10, dtype=np.float32)[labels]

    def accuracies(given):
        student = Training(folder, {**options, **given}, changes).fit()
        model = student.classifier.model
        attacked = kind.attacked(model, tf.constant(pixels), Batch(targets, None, None, 1.0))
        return student.accuracy, float((model(attacked).numpy().argmax(axis=1) == labels).mean())

    _, before = accuracies({"kind": "logits"})
    clean, robust = accuracies({"kind": "adversarial", "kind_options": attack})
    assert robust > before + 0.1
    assert clean > 0.6


@pytest.mark.parametrize("name", ["multi_label", "regression"])
def test_students_of_other_tasks_learn_more_than_few_labels_teach(name, folder):
    task, head, source = other_task(name)
    place = save_teacher(folder / name, task.names, head=head, task=name)
    changes = hidden_layer(folder) | {"task": name}
    given = {"source": source, "task": task}
    alone = Training(folder, None, changes, **given).fit()
    student = Training(folder, {"teacher": str(place)}, changes, **given).fit()
    assert student.accuracy > alone.accuracy + {"multi_label": 0.03, "regression": 0.1}[name]
    wrong = save_teacher(folder / "softmax", task.names, head=head, top="softmax", task=name)
    with pytest.raises(SpecError, match="predicts something else than the student"):
        load_teacher(str(wrong), 32).check(task, ())


def test_kinds_for_single_labels_are_refused_for_other_tasks(options, folder):
    task, _, source = other_task("regression")
    given = {"kind": "decoupled", "solve": False}
    with pytest.raises(SpecError, match="kind 'decoupled' is for single labels only"):
        Training(folder, options | given, {"task": task.name}, source=source, task=task).fit()


def test_labels_alone_are_the_plain_fit_bit_for_bit_and_validation_is_the_task_s_loss(
    options, folder
):
    plain = Training(folder, None, FIT).fit()
    hard = {**options, "hard_weight": 1.0, "solve": False}
    for path, value in Training(folder, hard, FIT).fit().weights.items():
        np.testing.assert_array_equal(value, plain.weights[path])
    soft = Training(folder, {**options, "solve": False}, FIT).fit()
    (outcome,) = soft.outcomes
    best = outcome.history[outcome.best_epoch - 1]
    assert best["val_loss"] == pytest.approx(outcome.val_loss, rel=1e-4)
    assert best["val_accuracy"] == pytest.approx(outcome.val_score)


@pytest.mark.slow
def test_a_resumed_student_has_the_same_bits(options, folder, tmp_path):
    changes = {**hidden_layer(folder), "phases.0.epochs": 3}
    chosen = {**options, "kind": "feature"}
    expected = Training(folder, chosen, changes).fit().weights
    run = RunFolder.create(tmp_path / "run")
    run.checkpoint_folder.mkdir()
    for num_epochs in (2, None):
        resumed = Training(folder, chosen, changes).fit(run, num_epochs=num_epochs)
    for path, value in expected.items():
        np.testing.assert_array_equal(value, resumed.weights[path])


@pytest.mark.parametrize("top", ["linear", "softmax", "sigmoid"])
def test_stored_features_give_the_logits_of_the_network(top, tmp_path):
    file = save_teacher(tmp_path / "teacher", top=top) / "model.keras"
    teacher, pixels = load_teacher(str(file), 32), make_source(20).examples.pixels
    below = keras.Model(teacher.cut.model.input, teacher.cut.tensor)
    features = below.predict_on_batch(np.float32(pixels))
    expected = keras.models.load_model(file).predict_on_batch(np.float32(pixels))
    logits = teacher.logits(features)
    np.testing.assert_allclose(activate(logits, top), expected, rtol=1e-4, atol=1e-4)
    assert teacher.activation == top


def test_a_teacher_of_numbers_is_split_below_its_conversion_to_the_user_s_units(tmp_path):
    task = Regression(("a", "b"), means=(3e5, -2.0), deviations=(1e5, 0.5))
    image = values = keras.Input((32, 32, 3))
    for layer in task.head(ModelSpec(backbone="small"), seed=0):
        values = layer(values)
    model = keras.Model(image, values)
    task.initialise(model)
    model.save(tmp_path / "teacher.keras")
    teacher = load_teacher(str(tmp_path / "teacher.keras"), 32)
    assert teacher.cut.name == "features of teacher.keras"
    pixels = np.float32(make_source(5).examples.pixels)
    features = keras.Model(teacher.cut.model.input, teacher.cut.tensor).predict_on_batch(pixels)
    assert features.shape == (5, 3)
    np.testing.assert_allclose(
        teacher.logits(features), model.predict_on_batch(pixels), rtol=1e-4, atol=1e-3
    )


def test_several_teachers_count_by_the_mean_of_their_probabilities():
    each = [np.random.default_rng(seed).normal(size=(5, 2, 4)) for seed in range(3)]
    mean = np.mean([probabilities(one, 3.0) for one in each], axis=0)
    np.testing.assert_allclose(probabilities(mean_logits(each, 3.0), 3.0), mean, atol=1e-6)
    twice = mean_logits([each[0], each[0]], 3.0)
    np.testing.assert_allclose(probabilities(twice, 3.0), probabilities(each[0], 3.0), atol=1e-6)
    assert mean_logits(each[:1], 3.0) is each[0]
    of_labels = special.expit(mean_logits(each, 3.0, "sigmoid") / 3)
    np.testing.assert_allclose(of_labels, special.expit(np.stack(each) / 3).mean(axis=0), atol=1e-6)
    np.testing.assert_allclose(mean_logits(each, 3.0, "linear"), np.mean(each, axis=0), rtol=1e-5)


@pytest.mark.parametrize(
    ("changed", "part"),
    [
        ({"teacher": ""}, "there is no teacher"),
        ({"temperature": 0}, "temperature is out of range"),
        ({"hard_weight": 1.5}, "hard_weight is out of range"),
        ({"kind": "logit"}, "no kind of distillation called 'logit'"),
        ({"kind": "decoupled", "kind_options": {"gamma": 1}}, "unknown field 'kind_options.gamma'"),
        ({"kind_options": {"beta": 1}}, "kind 'logits' of distillation has no options"),
        ({"kind": "feature"}, "compares features, which phase 'student' does not train"),
        ({"kind": "feature", "teacher": "a,b"}, "with those of one teacher"),
    ],
)
def test_options_that_cannot_work_are_refused_before_anything_is_read(changed, part, options):
    unfreeze = "last" if "teacher" in changed else "head"
    chosen = {"method": "distill", "method_options": {**options, **changed}}
    phase = {"name": "student", "unfreeze": unfreeze, **chosen}
    with pytest.raises(SpecError, match=part):
        make_methods(override(RunSpec(), {"phases": [phase]}))


@pytest.mark.parametrize(
    ("changed", "changes", "part"),
    [
        ({}, {"training.sampling": "balanced"}, "images without labels are of no class"),
        ({}, {"views.count": None}, "views have no end"),
    ],
)
def test_phases_that_cannot_distil_are_refused(changed, changes, part, options, folder):
    with pytest.raises(SpecError, match=part):
        Training(folder, {**options, **changed}, changes).fit()


def test_teachers_of_other_classes_sizes_or_with_seen_test_images_are_refused(tmp_path):
    names = (*"012345678", "nine")
    other = save_teacher(tmp_path / "other", names)
    with pytest.raises(SpecError, match="does not know 9; the student does not know nine"):
        Training(tmp_path, {"teacher": str(other)}).fit()
    large = save_teacher(tmp_path / "large", size=64)
    with pytest.raises(SpecError, match="reads images of another size"):
        Training(tmp_path, {"teacher": str(large)}).fit()
    images = make_source(500)
    teacher = load_teacher(str(save_teacher(tmp_path / "fine")), 32)
    seen = dataclasses.replace(teacher, seen=frozenset(images.digests[60:62]))
    with pytest.raises(DataError, match="trained on images of this run's test split"):
        seen.check(Training(tmp_path).classifier.task, images.digests[:200])


def test_a_missing_teacher_is_refused_where_a_run_starts_or_trains_but_not_afterwards(tmp_path):
    phase = {"method": "distill", "method_options": {"teacher": "no/such/run"}}
    spec = override(RunSpec(), {"phases": [phase]})
    make_methods(resolve(spec))  # A finished run is evaluated and exported without its teacher.
    for call in (lambda: start_run(spec, output=tmp_path / "run"), lambda: load_teacher("a", 32)):
        with pytest.raises(SpecError, match="a teacher does not exist"):
            call()
    assert not (tmp_path / "run").exists()


def test_a_teacher_is_kept_with_its_digest_and_not_used_when_it_has_changed(tmp_path):
    folder = save_teacher(tmp_path / "teacher")
    phase = {"method": "distill", "method_options": {"teacher": f"{folder}, {folder}"}}
    spec = resolve(override(RunSpec(), {"phases": [phase]}))
    one, two = spec.phases[0].method_options["teacher"].split(",")
    assert one == two
    assert one.startswith(f"{folder / 'model.keras'}#sha256=")
    assert resolve(spec) == spec
    with (folder / "model.keras").open("ab") as file:
        file.write(b"x")
    with pytest.raises(WeightsError, match="was changed"):
        load_teacher(one, 32)


def test_larger_teachers_see_the_same_views_in_their_own_size(folder):
    large = make_source(500, views=Training(folder).spec.views)
    pixels = np.repeat(np.repeat(large.examples.pixels, 2, axis=1), 2, axis=2)
    key = dataclasses.replace(large.pixels, content={"size": 64}, shape=(64, 64, 3))
    examples = dataclasses.replace(large.examples, pixels=pixels)
    large = dataclasses.replace(large, examples=examples, pixels=key)
    options = {"teacher": str(save_teacher(folder / "large", size=64))}
    student = Training(folder, options)
    sizes = []
    student.inputs = PhaseInputs(
        student.spec,
        student.inputs.source,
        SPLITS,
        methods=student.inputs.methods,
        cache=student.inputs._cache,
        reporter=student.reporter,
        unlabelled=UNLABELLED,
        source_of=lambda size: sizes.append(size) or large,
    )
    assert student.fit().accuracy > 0.3
    assert sizes == [64]
