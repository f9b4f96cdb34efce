"""What holds for every method of the registry, and how specs name them."""

import dataclasses
import importlib

import keras
import numpy as np
import pytest

from keras_transfer.config import override, parse_assignments, spec_from_dict, spec_to_dict
from keras_transfer.errors import SpecError
from keras_transfer.methods.method import Method
from keras_transfer.methods.registry import METHODS, make_methods
from keras_transfer.reporting.reporter import SilentReporter
from keras_transfer.specs import PhaseSpec, RunSpec
from keras_transfer.storage.model_files import ADDING
from keras_transfer.tasks.single_label import SingleLabel
from keras_transfer.training.objective import Objective, PhaseContext

TASK = SingleLabel(("a", "b", "c"))


class Images:
    """Three images, one without a label, whose stored features are zeros."""

    train_rows, num_labelled, num_views, test_digests = np.arange(3), 2, 1, ()
    train_values = np.arange(2)
    dtype = np.dtype(np.float32)

    def read_frozen(self, cuts, image_size):
        self.shape = cuts[0].shape
        return [self]

    def read(self, rows, views):
        return np.zeros((len(rows), *self.shape), np.float32)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    file = tmp_path_factory.mktemp("teacher") / "net.keras"
    make_part().save(file)
    return str(file)


@pytest.fixture(params=list(METHODS))
def method(request, teacher) -> Method:
    phase = {"name": "last", "method": request.param}
    if request.param == "distill":
        phase["method_options"] = {"teacher": teacher, "solve": False}
    if request.param == "co_tuning":
        phase["method_options"] = {"source": teacher}
    if request.param in ("co_tuning", "affine", "adapters", "bss", "surgical", "auto_rgn"):
        phase["unfreeze"] = "last"
    changes = {"phases": [phase], "training.refit": False}
    if request.param == "align":
        phase["unfreeze"] = "last"
        changes["data.unlabelled"] = "target"
    methods = make_methods(override(RunSpec(), changes))
    assert [one.name for one in methods] == [request.param]
    return methods[0]


def prepare(method: Method, part: keras.Model, *, on_features: bool = False) -> Objective:
    spec = RunSpec()
    _, *trunk, dense = part.layers
    stages = {"stage1": trunk, "head": [dense]}
    context = PhaseContext(spec, TASK, on_features, SilentReporter(), Images(), stages)
    phase = dataclasses.replace(spec.phases[-1], train_batchnorm=True)
    return method.prepare(context, phase, part)


def make_part() -> keras.Model:
    pixels = keras.Input((8, 8, 3))
    features = keras.layers.Flatten()(keras.layers.BatchNormalization()(pixels))
    return keras.Model(pixels, keras.layers.Dense(3)(features))


def test_every_row_names_a_class_that_carries_the_row_s_name():
    for name, place in METHODS.items():
        module, _, attribute = place.partition(":")
        assert getattr(importlib.import_module(module), attribute).name == name


def test_methods_that_add_layers_are_known_where_a_run_becomes_a_backbone(method):
    adapters = method.adapters(PhaseSpec(unfreeze="last"), 0)
    assert (adapters is not None) == (method.name in ADDING)


def test_a_method_prepares_a_finite_loss_from_the_inputs_to_logits(method):
    part = make_part()
    objective = prepare(method, part)
    assert objective.model.input_shape == part.input_shape
    assert objective.model.output_shape == part.output_shape
    logits = objective.model(np.ones((4, 8, 8, 3), np.float32))
    encoded = TASK.encode(np.array([0, 1, 2, 1]))
    assert np.isfinite(float(objective.loss(encoded, logits)))
    method.finish(objective.model)
    np.testing.assert_allclose(objective.model(np.ones((4, 8, 8, 3))), logits, rtol=1e-6)


def test_a_transformation_of_batches_is_pure_and_keeps_shapes_and_copies(method):
    transform = prepare(method, make_part()).batch_transform
    if transform is None:
        return
    generator = np.random.default_rng(0)
    inputs = generator.random((6, 8, 8, 3), np.float32)
    encoded = TASK.encode(np.array([0, 1, 2, 0, 1, 2]))
    weights = np.float32([1.5, 1.5, 1.5, 1.5, 0, 0])
    given = tuple(column.copy() for column in (inputs, encoded, weights))
    first = transform(inputs, encoded, weights, (3, 1, 4))
    transform(inputs, encoded, weights, (3, 1, 5))
    again = transform(inputs, encoded, weights, (3, 1, 4))
    for one, other, before in zip(first, again, given, strict=True):
        np.testing.assert_array_equal(one, other)
        assert one.dtype == np.float32
        assert one.shape == before.shape
    for column, before in zip((inputs, encoded, weights), given, strict=True):
        np.testing.assert_array_equal(column, before)
    np.testing.assert_array_equal(first[2] == 0, weights == 0)


def test_an_unknown_option_is_refused(method):
    changes = {"phases.1.method": method.name, "phases.1.method_options.no_such_option": 1}
    with pytest.raises(SpecError) as raised:
        make_methods(override(RunSpec(), changes))
    assert "phases.1.method_options" in str(raised.value)


def test_an_unknown_method_is_refused_with_the_nearest_name():
    with pytest.raises(SpecError, match=r"phases\.0\.method: there is no method") as raised:
        make_methods(override(RunSpec(), {"phases.0.method": "supervise"}))
    assert "'supervised'" in raised.value.fix


def test_options_are_typed_words_of_a_command_line_and_survive_a_file():
    words = ["phases.1.method=x", "phases.1.method_options.alpha=0.4", "phases.2.unfreeze=last"]
    spec = override(RunSpec(), parse_assignments(words))
    assert spec.phases[1].method_options == {"alpha": 0.4}
    assert spec.phases[2].method_options == {"alpha": 0.4}
    assert spec.phases[0].method_options == {}
    assert spec_from_dict(spec_to_dict(spec)) == spec
    changed = override(RunSpec(), parse_assignments([*words, "phases.2.method_options.alpha=1"]))
    assert [phase.method_options.get("alpha") for phase in changed.phases] == [None, 0.4, 1]
