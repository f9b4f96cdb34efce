"""The words of a chain of compression steps."""

import zlib

import numpy as np
import pytest
from small_networks import make_network, make_sample

from keras_transfer.compression.registry import STEPS, compress, parse_chain
from keras_transfer.errors import SpecError


def test_steps_keep_their_order_and_other_words_are_fields():
    chain, fields = parse_chain({"low_rank": "0.1", "phases.0.epochs": 3, "channels": 0.3})
    assert chain == (("low_rank", 0.1), ("channels", 0.3))
    assert fields == {"phases.0.epochs": 3}


@pytest.mark.parametrize(
    ("words", "named"),
    [
        ({}, "nothing"),
        ({"chanels": 0.3}, "chanels"),
        ({"channels": 1.5, "low_rank": -1}, "channels=1.5, low_rank=-1"),
        ({"channels": True}, "channels=True"),
        ({"channels": "much"}, "channels=much"),
        ({"channels": 0.3, "data.path": "x", "seed": 1}, "data.path, seed"),
        ({"clusters": 16, "channels": 0.3}, "clusters, channels"),
        ({"channels": 0.3, "model.backbone": "vgg16"}, "model.backbone"),
    ],
)
def test_wrong_words_are_all_named(words, named):
    with pytest.raises(SpecError) as failure:
        parse_chain(words)
    assert named in failure.value.received
    if "chanels" in words:
        assert "channels" in failure.value.fix


def test_a_chain_takes_all_steps():
    model = make_network()
    sample = make_sample(model)
    chain = tuple((name, 0.25) for name in ("channels", "low_rank"))
    smaller = compress(model, sample, chain)
    assert smaller.count_params() < model.count_params()
    assert smaller.output.shape == model.output.shape


@pytest.mark.parametrize("name", STEPS)
def test_every_step_makes_a_network_smaller_and_leaves_it_as_it_was(name):
    model = make_network()
    before = model.get_weights()
    smaller = compress(model, make_sample(model), [(name, 8 if name == "clusters" else 0.5)])
    sizes = [
        len(zlib.compress(np.concatenate([w.ravel() for w in x.get_weights()])))
        for x in (model, smaller)
    ]
    assert sizes[1] < sizes[0]
    assert all((one == other).all() for one, other in zip(before, model.get_weights(), strict=True))
