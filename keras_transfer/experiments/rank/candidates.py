"""Candidates of a ranking: their specs and their classifiers with weights."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from keras_transfer.backbones.registry import BACKBONES, is_backbone
from keras_transfer.config import override
from keras_transfer.errors import SpecError
from keras_transfer.experiments.rank.source_head import SourceHead, load_source_head
from keras_transfer.features.phase_inputs import HEAD_ONLY, find_head_cut
from keras_transfer.fields import nearest
from keras_transfer.methods.networks import prepare_classifier
from keras_transfer.models.classifier import Classifier
from keras_transfer.models.cuts import Cut
from keras_transfer.specs import CandidateSpec, RankSpec, RunSpec
from keras_transfer.storage.model_files import (
    OWN_WEIGHTS,
    find_file,
    names_file,
    resolve,
    title,
)
from keras_transfer.tasks.task import Task


@dataclass(frozen=True)
class Candidate:
    """One trunk to be ranked; `spec` is the run that would fine-tune it."""

    name: str
    spec: RunSpec
    source_weights: str | None


@dataclass(frozen=True, eq=False)
class BuiltCandidate:
    """A candidate with its weights. `cut` is the input of a phase that trains only the head.

    `source` predicts the classes that the trunk was pretrained on, None where no file was given.
    """

    candidate: Candidate
    classifier: Classifier
    cut: Cut
    source: SourceHead | None

    @property
    def num_parameters(self) -> int:
        """Of the trunk, through its last kept stage."""
        return self.classifier.trunk.num_parameters


def make_candidates(spec: RunSpec, ranking: RankSpec) -> tuple[Candidate, ...]:
    """The candidates of `ranking.backbones`; fields that an entry lacks are as in `spec.model`.

    Raises:
        SpecError: there are fewer than two, one is unknown, or two are the same.
    """
    if len(ranking.backbones) < 2:
        raise SpecError(
            "a ranking needs several backbones",
            expected='backbones with two entries or more, such as ["resnet50", "mobilenet_v2"]',
            received=f"{len(ranking.backbones)}",
            fix="add the backbones to compare",
        )
    tables = [
        entry if isinstance(entry, CandidateSpec) else CandidateSpec(backbone=entry)
        for entry in ranking.backbones
    ]
    for number, table in enumerate(tables):
        if not (is_backbone(table.backbone) or names_file(table.backbone)):
            raise SpecError(
                f"backbones.{number} is not in the table of backbones",
                expected=f"one of {', '.join(BACKBONES)}; or the path of a model file or run",
                received=repr(table.backbone),
                fix=nearest(table.backbone, list(BACKBONES)),
            )
    specs = [resolve(override(spec, dict(_changes(table)))) for table in tables]
    names = _name(specs)
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise SpecError(
            f"backbones has {twice!r} twice",
            expected="entries that differ in backbone, last_stage or weights",
            received=", ".join(names),
            fix="leave one out, or give them other weights or another last_stage",
        )
    return tuple(
        Candidate(name, one, table.source_weights)
        for name, one, table in zip(names, specs, tables, strict=True)
    )


def _changes(table: CandidateSpec) -> Iterator[tuple[str, str]]:
    for name in ("backbone", "last_stage", "weights", "preprocess"):
        if (value := getattr(table, name)) is not None:
            yield f"model.{name}", value


def _name(specs: Sequence[RunSpec]) -> list[str]:
    """Short names, with the weights only if they are random or the only difference.

    Of a path only the end is in a name, unless two have the same end.
    """
    trained = [_cut(spec) for spec in specs if spec.model.weights != "none"]
    short, full = [], []
    for spec in specs:
        name, weights = _cut(spec), spec.model.weights
        origin = spec.model.backbone if weights == OWN_WEIGHTS else weights
        endings = ["", ""]
        if weights == "none":
            endings = [", random"] * 2
        elif trained.count(name) > 1:
            endings = [f", {title(origin)}", f", {find_file(origin)}"]
        short.append(name + endings[0])
        full.append(name + endings[1])
    return [a if short.count(a) == 1 else b for a, b in zip(short, full, strict=True)]


def _cut(spec: RunSpec) -> str:
    return " to ".join(filter(None, (title(spec.model.backbone), spec.model.last_stage)))


def build_candidates(
    candidates: Sequence[Candidate], task: Task, *, race: bool
) -> list[BuiltCandidate]:
    """Build all candidates, so that errors in any of them are raised within seconds.

    Args:
        race: whether the phases of the spec are trained later; then their stages must exist.

    Raises:
        SpecError: a stage is unknown, images are too small, or the classes of the source cannot
            be predicted from these features.
        WeightsError: weights are missing or do not fit.
    """
    built = []
    for candidate in candidates:
        spec = candidate.spec
        trained = spec if race else replace(spec, phases=(HEAD_ONLY,))
        classifier = prepare_classifier(trained, task)
        cut = find_head_cut(classifier)
        source = None
        if candidate.source_weights is not None:
            source = load_source_head(
                classifier, spec.model, Path(candidate.source_weights).expanduser()
            )
        built.append(BuiltCandidate(candidate, classifier, cut, source))
    return built
