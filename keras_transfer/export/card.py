"""The card of a model: its purpose, training data, test figures and limits.

card.json is next to the artefact, for servers and pages; export/README.md has the same as text.
"""

import dataclasses
import datetime
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import keras
import numpy as np

from keras_transfer.backbones.graph import is_random_state
from keras_transfer.backbones.preprocess import Preprocess
from keras_transfer.backbones.registry import Backbone, get_backbone, is_backbone
from keras_transfer.backbones.scaling import describe_scaling
from keras_transfer.evaluation.results import Evaluation
from keras_transfer.export.contract import CARD_FILE
from keras_transfer.specs import COLOURS, DataSpec, RunSpec
from keras_transfer.storage.class_names import hash_class_names
from keras_transfer.storage.model_files import title
from keras_transfer.storage.run_folder import describe_environment
from keras_transfer.tasks.task import Task

_IMAGE_FILES: Final = (
    "Images are turned upright by their EXIF orientation, transparency is shown on {background}, "
    "and only the first frame of an animation is used. serving_default reads JPEG, PNG, WebP, GIF, "
    "BMP and .npy; it refuses animated WebP, GIF that is animated, transparent or not filled by "
    "its first frame, BMP with a palette, 16 bits, compression or an old header, incomplete files, "
    "and more than {max_megapixels:g} megapixels."
)
_ARRAY_FILES: Final = (
    "serving_default reads .npy files of uint8 or uint16 [height, width, {channels}] in C order, "
    "of at most {max_megapixels:g} megapixels, and no other images."
)


@dataclass(frozen=True, kw_only=True)
class Card:
    """Plain values, as in card.json; shares are 0-1, intervals 95 %.

    `version` and `precision` are those of the artefact and set when it is written. `last_stage` is
    '' for a backbone that is kept whole and not in the table of backbones. `figures` are
    those of the task's evaluation, and top-level fields in card.json. `predicts`, `purpose`,
    `quality`, `tables` and `limits` are the text of the task's `CardText`.
    """

    name: str
    task: str
    predicts: str
    purpose: str
    quality: list[str]
    tables: list[dict[str, Any]]
    version: int = 0
    created: str
    backbone: str
    last_stage: str
    weights: str
    licence: str
    class_names: tuple[str, ...]
    class_hash: str
    weights_hash: str
    image_size: int
    resize: str
    preprocessing: str
    precision: str = "float32"
    figures: dict[str, Any]
    data: dict[str, Any]
    phases: list[dict[str, Any]]
    limits: list[str]
    environment: dict[str, Any]

    @classmethod
    def read(cls, folder: Path) -> "Card":
        """Read the card of a folder."""
        content = json.loads((folder / CARD_FILE).read_text(encoding="utf-8"))
        own = {entry.name for entry in dataclasses.fields(cls)} - {"figures"}
        figures = {name: value for name, value in content.items() if name not in own}
        return cls(**{name: content[name] for name in own}, figures=figures)

    def with_origins(self, others: "Sequence[Card]") -> "Card":
        """The card with the backbones, weights and licences of others, each once."""
        found: dict[str, Any] = {}
        for name in ("backbone", "last_stage", "weights", "licence"):
            found[name] = "; ".join(filter(None, dict.fromkeys(getattr(x, name) for x in others)))
        return dataclasses.replace(self, **found)

    def write(self, folder: Path) -> None:
        """Write card.json."""
        content = dataclasses.asdict(self)
        figures = content.pop("figures")
        text = json.dumps(figures | content, indent=2) + "\n"
        (folder / CARD_FILE).write_text(text, encoding="utf-8")


_COUNTED: Final = ("train", "val", "test", "refit")


def make_card(
    spec: RunSpec,
    model: keras.Model,
    task: Task,
    test: Evaluation,
    counts: Mapping[str, int],
    *,
    limits: Sequence[str] = (),
) -> Card:
    """The card of a trained model.

    Args:
        task: the model's task after training.
        test: the evaluation on the test split.
        counts: number of images by split: 'train', 'val' and 'test'; 'refit' is that of both
            splits that the model was trained on once more.
        limits: further sentences on what the model does not promise.
    """
    # Of a model file and of a backbone that is not registered here, only the model is needed.
    name = spec.model.backbone
    row = get_backbone(name) if is_backbone(name) else None
    modes = dict.fromkeys(layer.mode for layer in model.layers if isinstance(layer, Preprocess))
    environment, text = describe_environment(), task.card(test)
    return Card(
        name=spec.name,
        task=task.name,
        predicts=text.predicts,
        purpose=text.purpose,
        quality=text.quality,
        tables=[table._asdict() for table in text.tables],
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        # Only names: no paths of the training machine.
        backbone=title(name),
        last_stage=spec.model.last_stage or (row.stage_names[-1] if row else ""),
        weights=title(spec.model.weights),
        licence=_origins(row, spec.model.weights) if row else "",
        class_names=task.names,
        class_hash=hash_class_names(task.names),
        weights_hash=hash_weights(model),
        image_size=spec.data.image_size,
        resize=spec.data.resize,
        preprocessing="; for another part of the network ".join(
            describe_scaling(mode, spec.data.channels) for mode in modes
        ),
        figures=text.figures,
        data={
            "source": spec.data.source,
            "path": Path(spec.data.path).name if spec.data.path else spec.data.name,
            **{f"num_{split}": counts[split] for split in _COUNTED if split in counts},
        },
        phases=[dataclasses.asdict(phase) for phase in spec.phases],
        limits=[
            *text.limits,
            *limits,
            _image_files(spec.data),
        ],
        environment={name: environment[name] for name in ("python", "packages")},
    )


def _image_files(data: DataSpec) -> str:
    text = _IMAGE_FILES if data.channels in (1, COLOURS) else _ARRAY_FILES
    return text.format(
        background=data.background, max_megapixels=data.max_megapixels, channels=data.channels
    )


def _origins(backbone: Backbone, weights: str) -> str:
    """Authors and licences of named weights, each once; '' for weights of another kind."""
    parts = backbone.parts or (backbone,)
    sources = [part.weights[weights] for part in parts if weights in part.weights]
    return "; ".join(dict.fromkeys(source.origin for source in sources))


def hash_weights(model: keras.Model) -> str:
    """The SHA-256 of all weights in the model's order, in hex; without the states of dropout."""
    digest = hashlib.sha256()
    for weight in model.weights:
        if not is_random_state(weight):
            digest.update(np.ascontiguousarray(weight).data)
    return digest.hexdigest()
