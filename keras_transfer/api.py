"""The Python interface: functions to fine-tune, search and rank, or all of it.

Keyword arguments are fields of the spec: `backbone="vgg16"` is `model.backbone`. Names with dots
are given as a dict, `**{"phases.0.epochs": 3}`.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras

from keras_transfer.backbones.choice import choose_backbone
from keras_transfer.config import (
    check_single_training,
    describe_other_names,
    describe_without_effect,
    divide,
    dotted_fields,
    is_images,
    load_spec,
    make_spec,
    override,
    with_dotted_space,
    with_search_space,
)
from keras_transfer.data.python_data import is_in_memory, store
from keras_transfer.errors import DataError, SpecError
from keras_transfer.experiments.auto.budget import Budget
from keras_transfer.experiments.auto.report import show_auto, write_auto
from keras_transfer.experiments.auto.search import run_auto
from keras_transfer.experiments.combine.combination import combine_runs
from keras_transfer.experiments.combine.report import show_combination
from keras_transfer.experiments.distill.distillation import run_distillation
from keras_transfer.experiments.distill.generations import Generations
from keras_transfer.experiments.distill.report import show_distillation
from keras_transfer.experiments.distill.settings import distillation_spec
from keras_transfer.experiments.distill.teachers import store_teacher
from keras_transfer.experiments.finished_run import Run
from keras_transfer.experiments.rank.ranking import rank
from keras_transfer.experiments.rank.report import show_ranking, write_ranking
from keras_transfer.experiments.run import run_transfer
from keras_transfer.experiments.self_supervision import run_pretraining
from keras_transfer.experiments.summary import show_result
from keras_transfer.experiments.tune.best import WINNER
from keras_transfer.experiments.tune.report import show_search, write_search
from keras_transfer.experiments.tune.search import SUFFIX, run_search
from keras_transfer.experiments.tune.space import read_space
from keras_transfer.fields import build
from keras_transfer.pretext.registry import DEFAULT
from keras_transfer.pretext.settings import BASE, pretraining_spec
from keras_transfer.reporting.reporter import Reporter, TerminalReporter
from keras_transfer.specs import AutoSpec, DistillSpec, RankSpec, RunSpec
from keras_transfer.storage.run_folder import RunFolder, next_free
from keras_transfer.storage.run_start import DEFAULT_PARENT, start_run, vacated_on_refusal

Source = RunSpec | str | os.PathLike[str] | Any | None
Teacher = str | os.PathLike[str] | Any


def fine_tune(
    source: Source = None,
    labels: Any = None,
    *,
    output: str | Path | None = None,
    preset: str | None = None,
    resume: bool = False,
    reporter: Reporter | None = None,
    **fields: Any,
) -> Run:
    """Train, evaluate and export a model, and print all decisions.

    Args:
        source: a folder with a sub-folder for each class, a CSV file, a run folder or spec file,
            or a spec; or data in memory: NumPy arrays (images, labels) uint8 [N, H, W, 3] and [N],
            a `tf.data.Dataset` of (image, label) or of batches, or a `pandas.DataFrame` with the
            columns of a CSV file. None uses the images of the preset.
        labels: where `source` is an array of images alone: `fine_tune(images, labels)`.
        output: the run folder; by default the next free `saved_models/<name>`.
        preset: a preset's name, such as "lite", or a TOML file; sets the fields not given. Without
            it and without a backbone, that is ResNet50 where its weights are on this machine or can
            be downloaded, else EfficientNet-Lite0.
        resume: whether to continue the interrupted run in `output`.
        reporter: shows decisions and progress; by default on the terminal or in the notebook.
        fields: fields of the spec; and `class_names` for labels of data in memory that are numbers.

    Raises:
        SpecError: a field is unknown, has the wrong type or is out of range, or the spec is a
            study of several trainings.
        DataError, WeightsError: the images or weights cannot be used.
        RunError: the run cannot be written or resumed, or training diverged.
        ExportError: the exported model does not agree with the trained one.
    """
    reporter = reporter or TerminalReporter()
    given = source if labels is None else (source, labels)
    spec = _make_spec(given, preset, fields, reporter)
    check_single_training(
        spec,
        "fine_tune runs a single training, but this spec is a study of several trainings",
        fix="run studies with `python -m pipelines.train`",
    )
    result = run_transfer(spec, start_run(spec, output=output, resume=resume), reporter=reporter)
    if isinstance(reporter, TerminalReporter):
        show_result(result, reporter)
    return Run(result.run.path)


def tune(
    source: Source = None,
    *,
    trials: int | None = None,
    space: Mapping[str, Any] | None = None,
    output: str | Path | None = None,
    preset: str | None = None,
    resume: bool = False,
    reporter: Reporter | None = None,
    **fields: Any,
) -> Run:
    """Search for better values and return the run of the best trial.

    `run.search` has all trials, the best first, and says whether to take it, see `SearchResults`.

    Args:
        source, preset, fields: as for `fine_tune`; `refits=0` leaves out the comparison of the
            best trial with the original spec.
        trials: maximum number of trials; by default `search.trials` of the spec, 20 without preset.
        space: by field, such as `model.dropout` or `lr`, a list of values or a dict with `low`,
            `high`, `step` and `sampling`. By default the spec's own `search.space`, or what
            applies of `specs.DEFAULT_SPACE` if that is empty. Fields without effect are left out.
        output, resume: the search folder; by default the next free `saved_models/<name>-search`.

    Raises:
        SpecError: a field or the space is wrong, or no field of it has an effect.
        DataError, WeightsError, ExportError: as for `fine_tune`.
        RunError: every trial failed, or the folder cannot be written.
    """
    given = fields if trials is None else {**fields, "search.trials": trials}
    reporter = reporter or TerminalReporter()
    own = {} if space is None else read_space(space)
    spec = _make_spec(source, preset, given, reporter)
    if own:
        spec = override(spec, {"search.space": own})
    spec = with_search_space(with_dotted_space(spec, reporter.info))
    folder = start_run(spec, output=output, resume=resume, suffix=SUFFIX)
    found = run_search(spec, folder, reporter=reporter)
    write_search(found)
    if isinstance(reporter, TerminalReporter):
        show_search(found, reporter)
    return Run(folder.path / WINNER)


@dataclass(frozen=True, repr=False, eq=False)
class RankedBackbones(Mapping[str, dict[str, Any]]):
    """Backbones and their figures, the best first: `ranking["vgg16"]["scores"]["probe"]`."""

    path: Path
    """The folder with rank.json, rank.md and rank.png."""
    recommended: str | None
    """The fastest backbone that is not significantly worse than the best; None if none is within
    the limits."""
    sentence: str
    """The recommendation in words."""
    table: str
    """The ranking as Markdown."""
    figures: Mapping[str, dict[str, Any]]
    """The figures by name, as the mapping itself has them."""

    def __getitem__(self, name: str) -> dict[str, Any]:
        return self.figures[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.figures)

    def __len__(self) -> int:
        return len(self.figures)

    def __repr__(self) -> str:
        return f"{self.table}\n\n{self.sentence}"

    def _repr_markdown_(self) -> str:
        return repr(self)


def rank_backbones(
    source: Source,
    backbones: Sequence[str | Mapping[str, Any]],
    *,
    output: str | Path | None = None,
    preset: str | None = None,
    reporter: Reporter | None = None,
    **fields: Any,
) -> RankedBackbones:
    """Compare pretrained backbones on these images before any fine-tuning, and print a table.

    Args:
        source, preset: as for `fine_tune`.
        backbones: two or more names or paths, or dicts of `backbone`, `last_stage`, `weights` and
            `preprocess`.
        output: the folder; by default the next free `saved_models/rank-<name>`.
        fields: fields of the ranking, such as `max_latency_ms`, and of the spec.

    Raises:
        SpecError, WeightsError: a candidate cannot be built.
        DataError: the images cannot be used.
        RunError: features or results cannot be stored.
    """
    own, others = divide(fields, RankSpec)
    reporter = reporter or TerminalReporter()
    # The ranking chooses the backbone, so that of the spec does not matter.
    base = preset if preset or isinstance(source, RunSpec) else "resnet50"
    spec = _make_spec(source, base, others, reporter)
    candidates = [one if isinstance(one, str) else dict(one) for one in backbones]
    ranking = build(RankSpec, {**own, "backbones": candidates}, "", "the ranking")
    folder = RunFolder.create(output or next_free(DEFAULT_PARENT, f"rank-{spec.name}"))
    with vacated_on_refusal(folder):
        found = rank(spec, ranking, reporter=reporter)
        report = write_ranking(found, folder)
    if isinstance(reporter, TerminalReporter):
        show_ranking(found, report, folder, reporter)
    content = folder.read_json("rank.json")
    return RankedBackbones(
        path=folder.path,
        recommended=content["recommended"],
        sentence=content["sentence"],
        table=report.table.markdown(),
        figures={one["name"]: one for one in content["candidates"]},
    )


def auto(
    source: Source,
    *,
    time_budget: str = "10m",
    output: str | Path | None = None,
    reporter: Reporter | None = None,
    **fields: Any,
) -> Run:
    """Find the best model within a time budget and return its run, with auto.md and auto.json.

    Ctrl-C ends the search, and the best model so far is finished.

    Args:
        source, output: as for `fine_tune`.
        time_budget: time for everything, such as '90s', '10m' or '1.5h'.
        fields: `max_latency_ms`, `max_size_mb`, `backbones` and `folds`, and fields of the spec.

    Raises:
        SpecError: the budget is too short, a backbone is unknown, or none can be used.
        DataError, WeightsError, RunError, ExportError: as for `fine_tune`.
    """
    own, others = divide(fields, AutoSpec)
    settings = build(AutoSpec, {**own, "time_budget": time_budget}, "", "auto")
    budget, reporter = Budget.start(time_budget), reporter or TerminalReporter()
    spec = _make_spec(source, None, others, reporter, chooses=False)
    folder = start_run(spec, output=output, suffix="")
    found = run_auto(spec, settings, folder, budget=budget, reporter=reporter)
    write_auto(found)
    if isinstance(reporter, TerminalReporter):
        show_auto(found, reporter)
    return Run(folder.path)


def distill(
    teacher: Teacher | Sequence[Teacher],
    source: Source = None,
    *,
    output: str | Path | None = None,
    preset: str | None = None,
    resume: bool = False,
    reporter: Reporter | None = None,
    **fields: Any,
) -> Run:
    """Train a student that follows a teacher, and compare both with the student alone.

    The run's folder also has distillation.json, distillation.md and distillation.png.

    Args:
        teacher: a run or its folder, Keras model file or functional `keras.Model` that maps pixels
            0-255 to logits or outputs of the task, or several, whose mean probabilities count. A
            model is stored once as a file, named by its content.
        source, output, preset, resume: as for `fine_tune`.
        fields: fields of the distillation, such as `kind`, `temperature`, `unlabelled` and
            `generations`, and of the student's spec, such as `backbone`.

    Raises:
        SpecError: there is no teacher, it has other classes, or an option is wrong.
        DataError: as for `fine_tune`, or the teacher was trained on images of the test split.
        WeightsError, RunError, ExportError: as for `fine_tune`.
    """
    own, others = divide(fields, DistillSpec)
    settings = build(DistillSpec, own, "", "distillation")
    reporter = reporter or TerminalReporter()
    is_one = isinstance(teacher, Run | str | os.PathLike | keras.Model)
    given: Any = [teacher] if is_one else teacher
    student = _make_spec(source, preset, others, reporter)
    paths = [os.fspath(_place_of(one)) for one in given]
    spec = distillation_spec(student, ",".join(paths), settings)
    generations = Generations.of(spec, settings.generations, output=output, resume=resume)
    first = generations.start(1)
    found = run_distillation(generations, first, settings, reporter=reporter)
    if isinstance(reporter, TerminalReporter):
        show_distillation(found, reporter)
    return Run(found.run.folder.path)


def _place_of(teacher: Teacher) -> str | os.PathLike[str]:
    if isinstance(teacher, Run):
        return teacher.path
    return store_teacher(teacher) if isinstance(teacher, keras.Model) else teacher


def combine(
    runs: Sequence[Run | str | os.PathLike[str]],
    *,
    how: str = "ensemble",
    scale: float | None = None,
    output: str | Path | None = None,
    reporter: Reporter | None = None,
) -> Run:
    """Combine finished runs into one run, and compare it with each of them.

    The run's folder also has combination.json and combination.md.

    Args:
        runs: two or more runs or their folders.
        how: 'ensemble' for the mean of probabilities, 'soup' for the mean of the weights of runs
            of one network, 'line' for the best network between two; these have the same splits, and
            runs are taken while the loss on validation falls. 'add' and 'negate' move the weights
            of the first run by what the others changed of the same pretrained backbone.
        scale: of 'add' and 'negate', what these changes are multiplied by, above 0 and at most 10;
            None for the best of 0, 0.1, … 1 on validation.
        output: its folder; by default the next free one below saved_models/.

    Raises:
        SpecError: `how` or `scale` cannot be used, or the runs do not fit together.
        DataError: the runs have other splits, or their images are missing or have changed.
        RunError, ExportError: as for `fine_tune`.
    """
    reporter = reporter or TerminalReporter()
    paths = [one.path if isinstance(one, Run) else os.fspath(one) for one in runs]
    found = combine_runs(paths, how=how, scale=scale, output=output, reporter=reporter)
    if isinstance(reporter, TerminalReporter):
        show_combination(found, reporter)
    return Run(found.run.path)


def pretrain(
    folder: str | os.PathLike[str],
    *,
    kind: str = DEFAULT,
    output: str | Path | None = None,
    resume: bool = False,
    reporter: Reporter | None = None,
    **fields: Any,
) -> Path:
    """Train a backbone on images without labels; the folder that `backbone=` takes.

    Args:
        folder: images at any depth; their labels, if they have any, are not read.
        kind: what is learned: 'simsiam' or 'rotation'.
        output, resume: as for `fine_tune`.
        fields: fields of the spec, such as `backbone="mobilenet"` and `weights="none"`.

    Returns:
        the folder with model.keras, and the report in pretraining.json.

    Raises:
        SpecError: the kind or a field is unknown, or contradicts a pretraining.
        DataError, WeightsError, RunError: as for `fine_tune`.
    """
    reporter = reporter or TerminalReporter()
    given = dotted_fields(fields, BASE)
    spec = make_spec(Path(folder), base=BASE, **fields)
    spec = pretraining_spec(choose_backbone(spec, given, reporter.info), given, kind=kind)
    run = start_run(spec, output=output, resume=resume, suffix="")
    run_pretraining(spec, run, reporter=reporter)
    return run.path.absolute()


def _make_spec(
    source: Source,
    preset: str | None,
    fields: Mapping[str, Any],
    reporter: Reporter,
    *,
    chooses: bool = True,
) -> RunSpec:
    """The spec of a call; `chooses` says whether a backbone is chosen where none is given."""
    if source is None and preset is None:
        raise SpecError(
            "there are no images",
            expected="a folder, a CSV file, a spec or a preset",
            received="neither source nor preset",
            fix='give a folder with a sub-folder for each class, or preset="quickstart"',
        )
    if hasattr(source, "__array_interface__"):
        raise DataError(
            "these are images without labels",
            expected="(images, labels)",
            received=type(source).__name__,
            fix="give both as one tuple: fine_tune((images, labels))",
        )
    if isinstance(source, RunSpec) and preset is not None:
        raise SpecError(
            "a spec and a preset were given",
            expected="one of them",
            received=f"a spec and preset={preset!r}",
            fix="leave out preset, or give the folder of the images in place of the spec",
        )
    base = None if preset is None else load_spec(preset)
    if is_in_memory(source):
        source, fields = _stored(source, base or RunSpec(), dict(fields), reporter)
    given = Path(source) if isinstance(source, str | os.PathLike) else source
    for sentence in describe_other_names(fields, given if isinstance(given, RunSpec) else base):
        reporter.info(sentence)
    spec = make_spec(given, base=base, **fields)
    for sentence in describe_without_effect(fields, spec):
        reporter.info(sentence)
    if chooses and base is None and isinstance(given, Path) and is_images(given):
        return choose_backbone(spec, dotted_fields(fields), reporter.info)
    return spec


def _stored(
    source: Any, base: RunSpec, fields: dict[str, Any], reporter: Reporter
) -> tuple[Path, dict[str, Any]]:
    """The CSV file of data in memory, which is stored first, and the other fields."""
    names = fields.pop("class_names", None)
    dotted = dotted_fields(fields, base)
    paths, labels, channels = (
        dotted.get(f"data.{name}", getattr(base.data, name))
        for name in ("path_column", "label_column", "channels")
    )
    reporter.info("Storing the data as files, unless the same are stored already …")
    columns = {"path_column": paths, "label_column": labels}
    path = store(source, class_names=names, **columns, channels=channels)
    reporter.info(f"They are in {path.parent}.")
    return path, fields
