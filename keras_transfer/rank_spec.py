"""A ranking as data: which trunks are compared, and what the chosen one may cost."""

from dataclasses import dataclass, field

from keras_transfer.conversion import option


@dataclass(frozen=True, kw_only=True)
class CandidateSpec:
    """One trunk to be ranked; what is left at none is as in the run's model."""

    backbone: str = option("", "name in the table of backbones")
    last_stage: str | None = option(None, "as model.last_stage")
    weights: str | None = option(None, "as model.weights")
    source_weights: str | None = option(
        None, "weights file of the whole network with its top: adds LEEP and NCE"
    )


@dataclass(frozen=True, kw_only=True)
class RankSpec:
    """Which trunks are compared for these pictures, and what the chosen one may cost."""

    backbones: tuple[str | CandidateSpec, ...] = field(
        default=(),
        metadata={
            "help": "two or more names, or tables {backbone=…, last_stage=…, weights=…, "
            "source_weights=…}; what a table leaves out is as in the run's model, source_weights "
            "is a file of the whole network with its top and adds LEEP and NCE"
        },
    )
    max_latency_ms: float | None = option(
        None, "most milliseconds for one picture through the frozen layers, here", low=0.001
    )
    max_size_mb: float | None = option(
        None, "most 10^6 bytes of the trunk's weights in float32", low=0.001
    )
    race: bool = option(False, "fine-tune the best ones, the worse half leaving early")
    finalists: int = option(3, "how many candidates race=true fine-tunes", low=2)
    neighbours: int = option(5, "k of the k nearest neighbours", low=1)
    folds: int = option(5, "folds in which pictures are held out from a probe", low=2)
