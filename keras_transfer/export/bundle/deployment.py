"""Files that servers need: configuration, container, manifest, clients and the model card.

Written into the folder of the numbered versions, with the values of the newest version:

    models.config             TensorFlow Serving's list of models
    batching_parameters.txt   how it batches requests
    Dockerfile, compose.yaml  a container of the newest version, for Docker or Docker Compose
    kubernetes.yaml           Deployment with probes and limits, Service, autoscaler
    clients/                  a request with curl, Python's standard library and gRPC
    README.md                 the model's card
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import keras
import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined

from keras_transfer.errors import printable
from keras_transfer.export.card import Card
from keras_transfer.export.contract import Contract
from keras_transfer.export.saved_model.proof import Proof, export_proven
from keras_transfer.export.saved_model.writer import BATCH_SIZES
from keras_transfer.reporting.reporter import Reporter
from keras_transfer.specs import RunSpec
from keras_transfer.storage.atomic import replacing
from keras_transfer.tasks.task import Task

FILES: Final = (
    "models.config",
    "batching_parameters.txt",
    "Dockerfile",
    ".dockerignore",
    "compose.yaml",
    "kubernetes.yaml",
    "clients/curl.sh",
    "clients/rest.py",
    "clients/grpc_client.py",
)
SERVING_VERSION: Final = "2.21.0"
"""Release of TensorFlow Serving in the container: that of the TensorFlow that exports."""

_BASE_MEGABYTES, _PER_MEGABYTE = 512, 8
"""Requested memory in MB: of a server without a model, and for each MB of a SavedModel."""


@dataclass(frozen=True)
class Bundle:
    """Values for the templates; `is_compiled`: XLA runs the SavedModel."""

    contract: Contract
    version: int
    folder: Path
    is_compiled: bool

    @property
    def values(self) -> dict[str, Any]:
        """The values by their names in the templates."""
        size = sum(file.stat().st_size for file in self.version_folder.rglob("*") if file.is_file())
        megabytes = _BASE_MEGABYTES + _PER_MEGABYTE * size / 1e6
        return {
            "name": self.contract.name,
            "dns_name": dns_name(self.contract.name),
            "version": self.version,
            "serving_version": SERVING_VERSION,
            "batch_sizes": BATCH_SIZES,
            "memory_mb": 256 * -(-round(megabytes) // 256),
            "contract": self.contract,
            "task": self.contract.task["task"],
            "is_compiled": self.is_compiled,
        }

    @property
    def version_folder(self) -> Path:
        """The SavedModel."""
        return self.folder / str(self.version)


def deliver(
    model: keras.Model,
    version_folder: Path,
    *,
    spec: RunSpec,
    task: Task,
    card: Card,
    files: Sequence[Path],
    outputs: np.ndarray,
    reporter: Reporter | None = None,
) -> Proof:
    """Export a verified SavedModel, and write the files for servers next to the numbered version.

    Args:
        version_folder: such as export/2; its parent gets configuration, clients and card.
        task: the model's task after training.
        files: images of the test split.
        outputs: the model's outputs for `files`, float32 [N, K].
        reporter: shows what is done; by default nothing.

    Raises:
        ExportError: the SavedModel does not run without Keras, or its outputs differ.
        RunError: the disk is full, or the folder cannot be written.
    """
    proof = export_proven(
        model,
        version_folder,
        spec=spec,
        task=task,
        files=files,
        outputs=outputs,
        card=card,
        reporter=reporter,
    )
    write_bundle(version_folder, proof)
    return proof


def write_bundle(version_folder: Path, proof: Proof) -> None:
    """Write all files into the parent of a numbered version; earlier ones are replaced.

    Raises:
        RunError: the disk is full, or the folder cannot be written.
    """
    folder = version_folder.parent
    bundle = Bundle(
        Contract.read(version_folder), int(version_folder.name), folder, proof.backend == "jax"
    )
    templates = _environment()
    for name in FILES:
        text = templates.get_template(f"{name}.j2").render(bundle.values)
        with replacing(folder / name) as path:
            path.write_text(text, encoding="utf-8")
            path.chmod(0o755 if name.endswith(".sh") else 0o644)
    text = templates.get_template("README.md.j2").render(
        bundle.values, card=Card.read(version_folder), proof=proof, kept=proof.kept
    )
    with replacing(folder / "README.md") as path:
        path.write_text(text, encoding="utf-8")


def dns_name(name: str) -> str:
    """A name that Kubernetes accepts: lower case, digits and dashes, at most 56 characters."""
    plain = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:50].strip("-")
    # The name of a service begins with a letter.
    return plain if plain[:1].isalpha() else f"model-{plain}".strip("-")


def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("keras_transfer.export.bundle"),
        undefined=StrictUndefined,
        keep_trailing_newline=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["percent"] = lambda share: f"{100 * share:.1f}"
    environment.filters["cell"] = _cell
    return environment


def _cell(text: str) -> str:
    """Escape text for a cell of a Markdown table: no Markdown, no HTML, no new cell."""
    return re.sub(r"([\\`*_{}\[\]<>()#+!|~&])", r"\\\1", printable(text))
