"""ImageNet weights in Keras's cache: found, checked, fetched, and never lost."""

import functools
import hashlib
import http.server
import shutil
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import keras
import numpy as np
import pytest

from keras_transfer.backbones import sources
from keras_transfer.backbones.archives import save_embedded
from keras_transfer.backbones.record import Backbone
from keras_transfer.backbones.registry import get_backbone
from keras_transfer.backbones.trunk import build_trunk
from keras_transfer.errors import WeightsError

TINY = "mobilenet_0.25"
NO_TOP = "mobilenet_2_5_224_tf_no_top.h5"


def find_weights(row: Backbone, **options) -> Path:
    return row.weights["imagenet"].find(row, **options)


def published_at(row: Backbone, **changes: str) -> Backbone:
    """The row with another URL or digest of its ImageNet weights."""
    return replace(row, weights={"imagenet": row.weights["imagenet"]._replace(**changes)})


def trunk_model(*, name: str = TINY, last_stage: str = "", side: int = 32) -> keras.Model:
    """The trunk with ImageNet weights as a model of its own."""
    inputs = keras.Input((side, side, 3))
    trunk = build_trunk(get_backbone(name), inputs, last_stage=last_stage, weights="imagenet")
    return keras.Model(inputs, trunk.output)


def save_small_archive(folder: Path) -> None:
    """Embedded weights of one backbone, to be offered."""
    inputs = keras.Input((32, 32, 3))
    trunk = build_trunk(get_backbone(TINY), inputs, last_stage="stage1", weights="none")
    save_embedded(trunk, folder, {})


def random_pixels(side: int = 32) -> np.ndarray:
    return np.random.default_rng(0).uniform(0, 255, (2, side, side, 3)).astype("float32")


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Keras's cache in an empty folder, on a machine that reaches nothing."""
    for scheme in ("http_proxy", "https_proxy", "HTTPS_PROXY"):
        monkeypatch.setenv(scheme, "http://127.0.0.1:9")
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.setenv("KERAS_HOME", str(tmp_path / "home"))
    return tmp_path / "home" / "models"


def test_imagenet_weights_in_the_cache_are_those_keras_loads(offline, shared_weights):
    offline.mkdir(parents=True)
    shutil.copy(shared_weights / NO_TOP, offline)
    ours = trunk_model(side=64)
    theirs = keras.applications.MobileNet(
        alpha=0.25, include_top=False, input_shape=(64, 64, 3), weights=str(offline / NO_TOP)
    )
    pixels = random_pixels(64)
    expected = np.asarray(theirs(keras.applications.mobilenet.preprocess_input(pixels.copy())))
    assert expected.std() > 0.1
    np.testing.assert_allclose(np.asarray(ours(pixels)), expected, atol=1e-5)


def test_imagenet_weights_fill_a_cut_trunk(offline, shared_weights):
    offline.mkdir(parents=True)
    shutil.copy(shared_weights / NO_TOP, offline)
    whole, cut = trunk_model(), trunk_model(last_stage="stage3")
    middle = keras.Model(whole.inputs[0], whole.get_layer("conv_pw_5_relu").output)
    np.testing.assert_array_equal(
        np.asarray(cut(random_pixels())), np.asarray(middle(random_pixels()))
    )


def test_imagenet_weights_that_cannot_be_fetched_say_what_to_do(offline, tmp_path):
    save_small_archive(tmp_path)
    began = time.monotonic()
    with pytest.raises(WeightsError) as caught:
        find_weights(get_backbone(TINY), embedded=tmp_path)
    assert time.monotonic() - began < 10
    message = str(caught.value)
    assert str(offline / NO_TOP) in message
    assert "storage.googleapis.com" in message
    assert "model.weights=embedded model.last_stage=stage1" in message
    assert not any(offline.glob("*"))


def test_imagenet_weights_of_a_backbone_without_embedded_ones_name_others(offline, tmp_path):
    save_small_archive(tmp_path)
    with pytest.raises(
        WeightsError, match=r"model\.backbone=mobilenet_0\.25 model\.last_stage=stage1"
    ):
        find_weights(get_backbone("nasnet_large"), embedded=tmp_path)


def test_imagenet_weights_missing_are_noticed_before_a_trunk_is_built(offline):
    with pytest.raises(WeightsError, match="nasnet_large_no_top"):
        trunk_model(name="nasnet_large")


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Callable[[str], Backbone]]:
    """A row whose weights come from a server on this machine, by the digest it is said to have."""
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / NO_TOP).write_bytes(b"the published weights")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setenv("KERAS_HOME", str(tmp_path / "home"))
    handler = functools.partial(QuietHandler, directory=tmp_path / "source")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        row = get_backbone(TINY)
        url = f"http://127.0.0.1:{server.server_port}/{NO_TOP}"
        yield lambda digest: published_at(row, url=url, digest=digest)
        server.shutdown()


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *arguments) -> None:
        pass


@pytest.mark.parametrize("kind", ["md5", "sha256", "none"])
def test_imagenet_weights_are_fetched_once(served, tmp_path, kind):
    content = b"the published weights"
    row = served("" if kind == "none" else hashlib.new(kind, content).hexdigest())
    file = find_weights(row)
    assert file == tmp_path / "home" / "models" / NO_TOP
    assert file.read_bytes() == content
    (tmp_path / "source" / NO_TOP).unlink()
    assert find_weights(row) == file


def test_download_with_another_digest_leaves_nothing_behind(served, tmp_path):
    with pytest.raises(WeightsError, match="cannot be downloaded"):
        find_weights(served("0" * 32))
    assert list((tmp_path / "home" / "models").iterdir()) == []


def test_source_that_does_not_answer_is_given_up(monkeypatch, tmp_path):
    monkeypatch.setattr(sources, "CONNECT_SECONDS", 0.5)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    row = get_backbone(TINY)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/{NO_TOP}"
        began = time.monotonic()
        with pytest.raises(WeightsError, match="timed out"):
            find_weights(published_at(row, url=url))
        assert time.monotonic() - began < 5


def test_file_in_the_cache_with_another_digest_is_refused_and_kept(offline):
    row = get_backbone("resnet50")
    offline.mkdir(parents=True)
    file = offline / row.weights["imagenet"].file
    file.write_bytes(b"weights of my own")
    with pytest.raises(WeightsError, match="is not the file that was published") as caught:
        find_weights(row)
    assert row.weights["imagenet"].digest in caught.value.expected
    assert "set model.weights to their path" in caught.value.fix
    assert file.read_bytes() == b"weights of my own"


@pytest.mark.parametrize("damage", ["half", "text"])
def test_damaged_file_without_a_known_digest_is_refused_and_kept(offline, shared_weights, damage):
    offline.mkdir(parents=True)
    content = (shared_weights / NO_TOP).read_bytes()
    damaged = content[: len(content) // 2] if damage == "half" else b"<html>not found</html>"
    (offline / NO_TOP).write_bytes(damaged)
    with pytest.raises(WeightsError, match="damaged"):
        trunk_model()
    assert (offline / NO_TOP).read_bytes() == damaged
