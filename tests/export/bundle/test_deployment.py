"""What lies beside a version: read by the parsers of those who will read it."""

import ast
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from google.protobuf import text_format
from tensorflow_serving.config.model_server_config_pb2 import ModelServerConfig

from keras_transfer.config import override
from keras_transfer.data.reading import read_pixels
from keras_transfer.export.bundle.deployment import FILES, deliver, dns_name
from keras_transfer.export.card import Card, hash_weights, make_card
from keras_transfer.export.contract import CARD_FILE
from keras_transfer.models.forward import predict_pixels
from keras_transfer.specs import RunSpec
from keras_transfer.storage.class_names import hash_class_names
from keras_transfer.storage.run_folder import next_version
from keras_transfer.tasks.single_label import SingleLabel

NAME = "Photos_of 2 things"


@pytest.fixture(scope="module")
def delivered(classifier, class_names, photos: Path, tmp_path_factory) -> Path:
    files = sorted(photos.iterdir())
    images = read_pixels(files, image_size=32, resize="crop", max_megapixels=1)
    probabilities = predict_pixels(
        classifier, np.stack([p.pixels for p in images]), activation="softmax"
    )
    labels = np.arange(len(files)) % 2
    spec = override(
        RunSpec(), {"name": NAME, "data.image_size": 32, "data.path": "secret/my_photos"}
    )
    task = SingleLabel(tuple(class_names))
    test = task.evaluate(labels, probabilities)
    card = make_card(spec, classifier, task, test, {"train": 5, "val": 6, "test": 36})
    folder = tmp_path_factory.mktemp("delivered") / "export"
    for _ in range(2):
        version = next_version(folder)
        deliver(
            classifier,
            version,
            spec=spec,
            task=task,
            card=card,
            files=files,
            outputs=probabilities,
        )
    return folder


def test_versions_grow_and_everything_speaks_of_the_newest(delivered: Path):
    assert sorted(path.name for path in delivered.iterdir() if path.name.isdigit()) == ["1", "2"]
    assert next_version(delivered).name == "3"
    for name in ("Dockerfile", ".dockerignore", "compose.yaml", "kubernetes.yaml", "README.md"):
        text = (delivered / name).read_text(encoding="utf-8")
        assert "photos" in text.lower() or name == ".dockerignore"
        assert "2" in text
    assert "COPY 2 /models/Photos_of-2-things/2\n" in (delivered / "Dockerfile").read_text()


def test_servers_configuration_is_what_tensorflow_serving_parses(delivered: Path):
    config = text_format.Parse((delivered / "models.config").read_text(), ModelServerConfig())
    (model,) = config.model_config_list.config
    assert (model.name, model.base_path) == ("Photos_of-2-things", "/models/Photos_of-2-things")
    assert model.model_version_policy.latest.num_versions == 1
    batching = (delivered / "batching_parameters.txt").read_text()
    sizes = [int(line.split()[1]) for line in batching.splitlines() if "allowed" in line[:8]]
    assert sizes == [1, 2, 4, 8, 16, 32]
    assert "max_batch_size { value: 32 }" in batching


def test_manifests_agree_with_each_other(delivered: Path):
    deployment, service, scaler = yaml.safe_load_all((delivered / "kubernetes.yaml").read_text())
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    compose = yaml.safe_load((delivered / "compose.yaml").read_text())["services"]
    assert compose["photos-of-2-things"]["image"] == container["image"] == "photos-of-2-things:2"
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    assert ports == {"grpc": 8500, "rest": 8501}
    assert container["readinessProbe"]["httpGet"]["path"] == "/v1/models/Photos_of-2-things"
    for kind in ("startupProbe", "readinessProbe", "livenessProbe"):
        (target,) = set(container[kind]) & {"httpGet", "tcpSocket"}
        assert container[kind][target]["port"] in ports
    labels = deployment["spec"]["template"]["metadata"]["labels"]
    assert deployment["spec"]["selector"]["matchLabels"].items() <= labels.items()
    assert service["spec"]["selector"].items() <= labels.items()
    assert scaler["spec"]["scaleTargetRef"]["name"] == deployment["metadata"]["name"]
    assert {"requests", "limits"} == set(container["resources"])


def test_clients_are_programs(delivered: Path):
    for name in FILES:
        text = (delivered / name).read_text(encoding="utf-8")
        assert "{{" not in text
        if name.endswith(".py"):
            ast.parse(text)
    subprocess.run(["bash", "-n", str(delivered / "clients" / "curl.sh")], check=True)


def test_clients_say_in_a_sentence_what_is_missing(delivered: Path, tmp_path, photos: Path):
    nowhere, photo = "http://127.0.0.1:9", str(sorted(photos.iterdir())[0])
    rest = [sys.executable, str(delivered / "clients" / "rest.py")]
    curl = ["bash", str(delivered / "clients" / "curl.sh")]
    calls = {
        (*rest, str(tmp_path / "no.jpg")): "no.jpg cannot be read: No such file or directory",
        (*rest, photo, "--server", nowhere): f"No server answers at {nowhere}. Start it with",
        (*curl, str(tmp_path / "no.jpg")): "no.jpg cannot be read",
        (*curl, photo, nowhere): f"No server answers at {nowhere}: start it with",
    }
    for words, told in calls.items():
        if words[0] == "bash" and not shutil.which("curl"):
            continue
        done = subprocess.run(words, capture_output=True, text=True, check=False)
        assert done.returncode
        assert told in done.stderr
        assert "urlopen" not in done.stderr
        assert "Errno 2]" not in done.stderr


def test_the_card_says_what_was_measured(delivered: Path, classifier, class_names):
    content = json.loads((delivered / "2" / CARD_FILE).read_text())
    assert (content["version"], content["num_test"], content["data"]["num_val"]) == (2, 36, 6)
    assert content["data"]["path"] == "my_photos"
    assert content["class_hash"] == hash_class_names(class_names)
    assert content["weights_hash"] == hash_weights(classifier)
    assert Card.read(delivered / "2").figures["accuracy"] == content["accuracy"]
    assert any("path" in limit for limit in content["limits"])  # the class without test images
    words = (delivered / "README.md").read_text(encoding="utf-8")
    low, high = content["accuracy_interval"]
    assert f"accuracy is **{100 * content['accuracy']:.1f} %**" in words
    assert f"{100 * low:.1f}–{100 * high:.1f}" in words
    for name, figures in content["per_class"].items():
        assert f"| {name} | {100 * figures['recall']:.1f} (" in words


def test_weights_hash_follows_the_weights_and_nothing_else(make_classifier, class_names):
    one, other = make_classifier(class_names), make_classifier(class_names)
    assert hash_weights(one) == hash_weights(other)
    bias = other.get_layer("logits").bias
    bias.assign(bias + 1e-6)
    assert hash_weights(one) != hash_weights(other)


@pytest.mark.parametrize(
    ("name", "expected"),
    [("Flowers", "flowers"), ("a_b.c", "a-b-c"), ("--", "model"), ("2024", "model-2024")],
)
def test_names_become_names_that_kubernetes_takes(name, expected):
    assert dns_name(name) == expected
