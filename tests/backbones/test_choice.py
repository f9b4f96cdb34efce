"""The backbone of a run that names none: where the weights are decides, and it is said."""

import socket
import urllib.request

import pytest

from keras_transfer.backbones.choice import choose_backbone
from keras_transfer.backbones.registry import get_backbone
from keras_transfer.backbones.sources import PublishedWeights
from keras_transfer.specs import RunSpec


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture(autouse=True)
def _no_weights_on_this_machine(monkeypatch, tmp_path):
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))


@pytest.fixture
def refused(monkeypatch):
    """A network on which every connection is refused at once."""

    def refuse(*_, **__):
        raise ConnectionRefusedError(111, "Connection refused")

    monkeypatch.setattr(socket, "create_connection", refuse)


@pytest.mark.usefixtures("refused")
def test_without_weights_and_network_lite_is_taken_and_the_reason_given(said):
    spec = choose_backbone(RunSpec(), {"data.path": "photos"}, said.append)
    assert spec.model.backbone == "efficientnet_lite0"
    assert spec.model.weights == "imagenet"
    (sentence,) = said
    for part in ("efficientnet_lite0", "resnet50", "cannot be downloaded", "model.backbone"):
        assert part in sentence
    assert sentence.endswith("(The download failed: [Errno 111] Connection refused.)")


@pytest.mark.usefixtures("refused")
def test_weights_in_the_cache_of_keras_need_no_network(said, tmp_path):
    weights = get_backbone("resnet50").weights["imagenet"]
    assert isinstance(weights, PublishedWeights)
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / weights.file).touch()
    assert choose_backbone(RunSpec(), {}, said.append).model.backbone == "resnet50"
    assert "resnet50" in said[0]


def test_weights_that_can_be_downloaded_are_taken_without_downloading_them(
    said, monkeypatch, tmp_path
):
    asked = []

    class Response:
        def close(self) -> None:
            pass

    def answer(request, timeout):
        asked.append(request.get_method())
        return Response()

    monkeypatch.setattr(urllib.request, "urlopen", answer)
    assert choose_backbone(RunSpec(), {}, said.append).model.backbone == "resnet50"
    assert asked == ["HEAD"]
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("refused")
@pytest.mark.parametrize("field", ["model.backbone", "model.weights", "model.last_stage"])
def test_a_model_that_was_given_is_never_replaced(said, field):
    spec = RunSpec()
    assert choose_backbone(spec, {field: "given"}, said.append) is spec
    assert said == []
