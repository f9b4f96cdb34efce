"""The spec of a pretraining on a folder of images without labels."""

from collections.abc import Collection
from dataclasses import replace
from typing import Final

from keras_transfer.backbones.registry import BACKBONES
from keras_transfer.config import check_single_training, override
from keras_transfer.errors import SpecError
from keras_transfer.pretext.registry import check_kind
from keras_transfer.specs import PhaseSpec, RunSpec, ViewSpec

BASE: Final = RunSpec(
    views=ViewSpec(policy="strong", count=None),
    phases=(PhaseSpec(epochs=20, unfreeze="last_two", learning_rate=1e-3, layer_decay=0.03),),
)
"""What a pretraining on a folder differs in from a run.

With a higher `layer_decay` pretrained stages changed so much that accuracies fell by 4 to 38 points
(`docs/guides/pretraining.md`).
"""


def pretraining_spec(spec: RunSpec, given: Collection[str], *, kind: str) -> RunSpec:
    """The spec of a pretraining, whose only phase is called like its kind.

    Args:
        spec: `BASE` with the folder, the backbone and the fields that the user has set.
        given: the dotted names of these fields.

    Raises:
        SpecError: the kind is unknown, or a field contradicts a pretraining.
    """
    check_kind(kind)
    if spec.model.weights == "none":
        spec = _from_scratch(spec, given)
    check_single_training(
        spec, "a pretraining is a single training", fix="leave folds, seeds and halvings out"
    )
    phases = (replace(spec.phases[0], name=kind), *spec.phases[1:])
    name = spec.name if "name" in given else f"{spec.name}-{kind}"
    return override(replace(spec, phases=phases), {"name": name})


def _from_scratch(spec: RunSpec, given: Collection[str]) -> RunSpec:
    """The spec for random weights: all stages train alike, and so does BatchNormalization."""
    if "phases.0.unfreeze" not in given and spec.model.backbone not in BACKBONES:
        raise SpecError(
            "the lowest stage of this backbone is not known before it is read",
            expected="phases.0.unfreeze=… with the stage from which on random weights train",
            received=f"model.weights=none model.backbone={spec.model.backbone}",
            fix="set phases.0.unfreeze, such as to stem",
        )
    fields: dict[str, object] = {"train_batchnorm": True, "layer_decay": 1.0}
    if "phases.0.unfreeze" not in given:
        fields["unfreeze"] = BACKBONES[spec.model.backbone].stage_names[0]
    changes = {f"phases.0.{name}": value for name, value in fields.items()}
    return override(spec, {name: x for name, x in changes.items() if name not in given})
