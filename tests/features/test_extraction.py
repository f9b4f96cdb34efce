"""Features are what the frozen layers would have given, are computed once, and never go stale."""

import dataclasses
import resource

import keras
import numpy as np
import pytest
from feature_sources import EXACT, cut_at, extract_all, make_source, source_of, wanted
from small_models import make_classifier

from keras_transfer.data.datasets import Views
from keras_transfer.errors import RunError
from keras_transfer.features.extraction import extract
from keras_transfer.features.source import Request
from keras_transfer.reporting.reporter import SilentReporter
from keras_transfer.specs import CacheSpec, ViewSpec
from keras_transfer.storage.cache import Cache


def plain_features(cut, source, pairs: np.ndarray) -> np.ndarray:
    """By the classifier's own layers, on the views themselves."""
    views = Views(source.examples, source.views).read(*pairs.T)
    return np.asarray(keras.Model(cut.model.input, cut.tensor)(views.astype(np.float32)))


@pytest.mark.parametrize("unfreeze", ["head", "stage2"])
@pytest.mark.parametrize("backbone", ["mobilenet_0.25", "vgg16"])
def test_features_are_those_of_the_unfolded_network(backbone, unfreeze, tmp_path):
    cut, source = cut_at(make_classifier(backbone), unfreeze), make_source(40)
    features, stats = extract_all(cut, source, tmp_path)
    pairs = wanted(40, 2)
    expected = plain_features(cut, source, pairs)
    found = features.read(*pairs.T)
    np.testing.assert_allclose(found, expected, atol=2e-6 * np.abs(expected).max())
    assert (stats.num_computed, stats.num_found) == (80, 0)
    assert not np.allclose(features.read([3], [0]), features.read([3], [1]))


def test_the_float16_store_rounds_to_eleven_bits(tmp_path):
    cut, source = cut_at(make_classifier(), "stage2"), make_source(40)
    features, _ = extract_all(cut, source, tmp_path, cache_spec=CacheSpec(precision="float32"))
    expected = plain_features(cut, source, wanted(40, 2))
    found = features.read(*wanted(40, 2).T)
    assert found.dtype == np.float16
    np.testing.assert_allclose(found, expected, rtol=2**-10, atol=2e-6 * np.abs(expected).max())


def test_a_second_extraction_computes_nothing_even_in_a_folder_that_was_moved(tmp_path):
    cut, source = cut_at(make_classifier(), "head"), make_source(40)
    before, _ = extract_all(cut, source, tmp_path / "here")
    (tmp_path / "here").rename(tmp_path / "there")
    after, stats = extract_all(cut_at(make_classifier(), "head"), source, tmp_path / "there")
    assert (stats.num_computed, stats.num_found) == (0, 80)
    np.testing.assert_array_equal(before.rows, after.rows)


def test_only_what_is_new_is_computed(tmp_path):
    cut = cut_at(make_classifier(), "head")
    extract_all(cut, make_source(30), tmp_path)
    _, stats = extract_all(cut, make_source(40), tmp_path)
    assert (stats.num_computed, stats.num_found) == (20, 60)
    _, stats = extract_all(cut, make_source(40), tmp_path, num_views=3)
    assert (stats.num_computed, stats.num_found) == (40, 80)


def test_one_changed_pixel_is_a_miss(tmp_path):
    cut, source = cut_at(make_classifier(), "head"), make_source(40)
    extract_all(cut, source, tmp_path)
    pixels = source.examples.pixels.copy()
    pixels[7, 3, 3, 1] ^= 1
    changed = source_of(pixels, source.examples.targets.values, source.views)
    _, stats = extract_all(cut, changed, tmp_path)
    assert (stats.num_computed, stats.num_found) == (2, 78)


@pytest.mark.parametrize("change", [{"rotation": 11.0}, {"seed": 1}, {"policy": "strong"}])
def test_another_augmentation_is_a_miss_for_augmented_views_only(change, tmp_path):
    cut, source = cut_at(make_classifier(), "head"), make_source(40)
    extract_all(cut, source, tmp_path)
    other = dataclasses.replace(source, views=dataclasses.replace(source.views, **change))
    _, stats = extract_all(cut, other, tmp_path)
    assert (stats.num_computed, stats.num_found) == (40, 40)


def test_the_number_of_views_alone_is_no_miss(tmp_path):
    cut, source = cut_at(make_classifier(), "head"), make_source(20)
    extract_all(cut, source, tmp_path)
    other = dataclasses.replace(source, views=ViewSpec(count=9))
    assert extract_all(cut, other, tmp_path)[1].num_computed == 0


def test_another_weight_stage_type_or_precision_is_a_miss(tmp_path):
    source = make_source(20)
    extract_all(cut_at(make_classifier(), "head"), source, tmp_path)

    def computed(cut, cache_spec: CacheSpec = EXACT) -> int:
        return extract_all(cut, source, tmp_path, cache_spec=cache_spec)[1].num_computed

    classifier = make_classifier()
    assert computed(cut_at(classifier, "stage2")) == 40
    assert computed(cut_at(make_classifier(seed=1), "head")) == 40
    assert computed(cut_at(classifier, "head"), CacheSpec(precision="float32")) == 40
    assert computed(cut_at(classifier, "head"), CacheSpec(precision="bfloat16")) == 40
    assert computed(cut_at(classifier, "head")) == 0
    (kernel, *_) = classifier.variables_of("stage1")
    values = np.array(kernel)
    values.ravel()[0] = np.nextafter(values.ravel()[0], np.float32(9))
    kernel.assign(values)
    assert computed(cut_at(classifier, "head")) == 40


def test_another_head_or_dropout_is_a_hit(tmp_path):
    source = make_source(20)
    extract_all(cut_at(make_classifier(dropout=0.3), "head"), source, tmp_path)
    cut = cut_at(make_classifier(dropout=0.5), "head")
    assert extract_all(cut, source, tmp_path)[1].num_computed == 0


def test_two_cuts_share_one_pass_and_equal_two_passes(tmp_path):
    classifier, source = make_classifier(), make_source(40)
    cuts = [cut_at(classifier, "head"), cut_at(classifier, "stage2")]
    requests = [Request(cut, wanted(40, views)) for cut, views in zip(cuts, (2, 3), strict=True)]
    cache = Cache(tmp_path / "joint")
    joint, stats = extract(
        requests, source, cache_spec=EXACT, cache=cache, reporter=SilentReporter()
    )
    assert stats.num_computed == 120
    for cut, views, features in zip(cuts, (2, 3), joint, strict=True):
        alone, _ = extract_all(cut, source, tmp_path / cut.name, num_views=views)
        scale = np.abs(alone.rows).max()
        np.testing.assert_allclose(features.rows, alone.rows, atol=2e-6 * scale)
    assert joint[0].shape == (8,)
    assert joint[1].shape == (16, 16, 4)


def test_a_full_disk_is_told_and_the_next_extraction_goes_on(tmp_path):
    cut, source = cut_at(make_classifier(), "stage2"), make_source(64)
    request, cache = Request(cut, wanted(64, 1)), Cache(tmp_path)
    arguments = {
        "cache_spec": EXACT,
        "cache": cache,
        "reporter": SilentReporter(),
        "shard_bytes": 1,
    }
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(RunError, match="disk is full") as raised:
            extract([request], source, **arguments)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "cache.folder" in raised.value.fix
    (features,), stats = extract([request], source, **arguments)
    assert stats.num_computed == 64
    expected = plain_features(cut, source, wanted(64, 1))
    np.testing.assert_allclose(np.asarray(features.rows), expected, atol=1e-4)


def test_activations_too_large_for_float16_are_an_error(tmp_path):
    classifier = make_classifier("vgg16")
    for variable in classifier.variables_of("stage1"):
        variable.assign(variable * 100)
    with pytest.raises(RunError, match="too large") as raised:
        extract_all(
            cut_at(classifier, "head"),
            make_source(20),
            tmp_path,
            cache_spec=CacheSpec(precision="float32"),
        )
    assert "cache.dtype=float32" in raised.value.fix
