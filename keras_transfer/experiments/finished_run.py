"""A finished run as one object: evaluate, predict, explain and export with it."""

import csv
import io
import os
import tempfile
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Final, Literal

import keras
import numpy as np
from PIL import Image

from keras_transfer.adaptation.registry import AUTO
from keras_transfer.compression.registry import parse_chain
from keras_transfer.config import load_spec
from keras_transfer.data.images import resizer
from keras_transfer.data.python_data import (
    advice,
    are_encoded,
    as_uint8,
    has_numbers,
    is_in_memory,
    is_stored,
    names_in,
    path_of,
    write_images,
)
from keras_transfer.data.records import BadFile, counted
from keras_transfer.errors import DataError, RunError, enumerated
from keras_transfer.evaluation.recorded import RecordedEvaluation
from keras_transfer.experiments.adapt.adaptation import adapt_run
from keras_transfer.experiments.adapt.report import show_adaptation
from keras_transfer.experiments.compress.compression import compress_run
from keras_transfer.experiments.compress.report import show_compression
from keras_transfer.experiments.evaluation import evaluate_run, export_run
from keras_transfer.experiments.extension import extend_run
from keras_transfer.experiments.suggestion import Suggestion, suggest_images
from keras_transfer.experiments.summary import describe_export, describe_proof
from keras_transfer.experiments.tune.results import SearchResults
from keras_transfer.export.conversion import convert_run
from keras_transfer.export.formats.registry import check_libraries, parse_formats
from keras_transfer.inference import prediction
from keras_transfer.inference.explanation import Explanation, explain_files
from keras_transfer.inference.explanation_files import draw_overlay
from keras_transfer.inference.paths import expand_paths
from keras_transfer.inference.prediction import LoadedRun, Prediction, predict_files
from keras_transfer.models.forward import BATCH_SIZE
from keras_transfer.reporting.reporter import Reporter, TerminalReporter
from keras_transfer.specs import RunSpec
from keras_transfer.storage.model_files import title
from keras_transfer.storage.run_folder import RunFolder, plain
from keras_transfer.tasks.single_label import SingleLabel

Files = str | os.PathLike[str]
_NOT_COMPARED: Final = (
    "images in memory are compared with those of the training by the bytes of their files, which "
    "differ even where the pixels are equal: images that the run was trained on may count, and "
    "the figures be too good; evaluate the files, or images that it was not trained on"
)


class DrawnExplanation(Explanation):
    """An explanation that notebooks show as the image next to its heat map."""

    def draw(self) -> Image.Image:
        """The image next to its heat map; `run.explain("a.jpg").draw().save("a_explained.png")`."""
        return draw_overlay(self)

    def _repr_png_(self) -> bytes:
        buffer = io.BytesIO()
        self.draw().save(buffer, "PNG")
        return buffer.getvalue()


@dataclass(frozen=True, repr=False)
class Run:
    """A finished run in the folder `path`; files and model are read when they are first used."""

    path: Path
    """The folder; see `docs/reference/files.md` for its files."""

    def __repr__(self) -> str:
        classes = f"{len(self.class_names)} classes"
        backbone = title(self.spec.model.backbone)
        return f"Run({str(self.path)!r}: {backbone}, {classes})\n{self.evaluation}"

    @cached_property
    def spec(self) -> RunSpec:
        """The settings that the run was made with."""
        return load_spec(self.path)

    @cached_property
    def class_names(self) -> tuple[str, ...]:
        """Names of the outputs, in order."""
        return RunFolder(self.path).read_class_names()

    @property
    def model(self) -> keras.Model:
        """The Keras model: float32 images [B, S, S, C] in 0-255 to logits [B, K]."""
        return self._loaded.model

    @cached_property
    def evaluation(self) -> RecordedEvaluation:
        """The figures of the test split from metrics.json, such as `run.evaluation.accuracy`."""
        return RecordedEvaluation(RunFolder(self.path).read_json("metrics.json")["test"])

    @cached_property
    def search(self) -> SearchResults | None:
        """search.json of the search that made this run, with all `trials`; else None."""
        folder = RunFolder(self.path.absolute().parent)
        if not folder.search_file.is_file():
            return None
        return SearchResults(folder.read_json("search.json"))

    def evaluate(
        self,
        data: Any = None,
        *,
        class_names: Sequence[str] | None = None,
        moved_to: Files | None = None,
        include_training: bool = False,
        reporter: Reporter | None = None,
    ) -> RecordedEvaluation:
        """Evaluate the model on a labelled folder or CSV file, or again on its test split.

        Images that the run was trained on are left out, as far as their files are the same byte
        by byte. A warning says where pixels in memory cannot be compared.

        Args:
            data: folder of class folders, CSV file, or data in memory as for `fine_tune`. Classes
                are matched by name, so it may have only some of the run's.
            class_names: names of the classes for labels of data in memory that are numbers. By
                default numbers are indices of `run.class_names`, which are sorted; but labels as
                they are where one of those names is a number, such as '7'.
            moved_to: where the run's own images are now; None is its `data.path`.
            include_training: whether images of `data` count that the run was trained on.

        Returns:
            the figures, with the attributes of `run.evaluation`.

        Raises:
            DataError: the images cannot be used, changed since the run, or have unknown classes,
                or a number is not that of a class.
        """
        reporter = reporter or TerminalReporter()
        path = None if data is None else self._labelled(data, class_names, reporter)
        if not include_training and are_encoded(data) and not is_stored(self.spec.data.path):
            warnings.warn(_NOT_COMPARED, stacklevel=2)
        found = evaluate_run(
            self.path,
            path,
            moved_to=None if moved_to is None else os.fspath(moved_to),
            include_training=include_training,
            reporter=reporter,
        )
        return RecordedEvaluation(plain(found.to_dict()))

    @cached_property
    def history(self) -> dict[str, list[Any]]:
        """The columns of history.csv, such as `run.history["val_loss"]`, with a row per epoch."""
        with RunFolder(self.path).history_file.open(encoding="utf-8", newline="") as file:
            names, *rows = csv.reader(file)
        columns = zip(*rows, strict=True) if rows else [()] * len(names)
        kinds = {"phase": str, "epoch": int}
        return {
            name: [kinds.get(name, float)(cell) if cell else None for cell in column]
            for name, column in zip(names, columns, strict=True)
        }

    def predict(self, images: Any) -> list[Prediction | BadFile]:
        """Predict images: a list of files, one file, a folder, an array, or data of `fine_tune`.

        Args:
            images: paths of files, or of folders with all images below them; uint8 or floats
                0-255 [N, H, W, C], usually in RGB, resized like the run's own images; an image of
                Pillow; or (images,
                labels), a `tf.data.Dataset` or a `pandas.DataFrame`, whose labels are not used.

        Returns:
            an entry for each image, in order. A file that is not a usable image has a `BadFile`
            with its `reason`, whose `label` is '', and a warning names it. The path of an image in
            memory is its index.

        Raises:
            DataError: a folder has no image, or the array has another type or shape.
        """
        found = self._predict_any(images)
        if bad := [f"{one.path} ({one.reason})" for one in found if isinstance(one, BadFile)]:
            words = counted(len(bad), "image was", "images were")
            warnings.warn(f"{words} not predicted: {enumerated(bad, 5)}", stacklevel=2)
        return found

    def _predict_any(self, images: Any) -> list[Prediction | BadFile]:
        if isinstance(images, np.ndarray):
            return self._predict_array(as_uint8(images))
        if isinstance(images, Image.Image):
            images = ([np.asarray(images.convert("RGB"))], [""])
        are_files = isinstance(images, tuple) and isinstance(images[0], str | os.PathLike)
        if are_files or not is_in_memory(images):
            return list(predict_files(self._loaded, _files(images)))
        with tempfile.TemporaryDirectory() as folder:
            channels = self.spec.data.channels
            files = write_images(images, Path(folder), channels=channels)
            found = predict_files(self._loaded, files)
            # Files of a table keep their paths.
            return [
                replace(one, path=Path(one.path).name)
                if Path(one.path).parent == Path(folder)
                else one
                for one in found
            ]

    def explain(self, file: Files, class_name: str | None = None) -> DrawnExplanation:
        """A Grad-CAM heat map of one image, which notebooks show.

        Args:
            file: an image file.
            class_name: the class to explain; None is the most probable one.

        Raises:
            DataError: the file is not a usable image, or the run has no such class.
        """
        if not isinstance(file, str | os.PathLike):
            raise DataError(
                "only image files can be explained",
                expected="the path of an image file",
                received=type(file).__name__,
                fix="save the image first: PIL.Image.fromarray(pixels).save('image.png')",
            )
        (found,) = explain_files(self._loaded, [Path(file)], class_name=class_name)
        if isinstance(found, BadFile):
            raise DataError(
                f"{found.path} cannot be explained",
                expected="an image file",
                received=found.reason,
                fix="give another file",
            )
        return DrawnExplanation(**{f.name: getattr(found, f.name) for f in fields(found)})

    def suggest(
        self, folder: Files, *, count: int = 50, reporter: Reporter | None = None
    ) -> list[Suggestion]:
        """The images below a folder that are to be labelled next, the most uncertain first.

        Copies and images that the run has used are left out. The suggestions are spread, so that
        they differ from each other.

        Args:
            folder: images at any depth.
            count: how many; all new images if there are fewer.

        Raises:
            DataError: the folder has no image, none that can be read, or none that is new.
        """
        reporter = reporter or TerminalReporter()
        return suggest_images(
            self.path, path_of(folder, is_labelled=False), count=count, reporter=reporter
        )

    def export(
        self,
        formats: Sequence[str] = (),
        *,
        precision: Literal["float32", "bfloat16"] | None = None,
        moved_to: Files | None = None,
        reporter: Reporter | None = None,
    ) -> Path:
        """Export the model under the next version number, verified on the run's test split.

        Args:
            formats: other formats to write as well, such as "onnx" and "litert_int8"; "all".
            precision: of the SavedModel; None is the spec's `export.precision`.
            moved_to: where the run's own images are now; None is its `data.path`.

        Returns:
            the folder of the SavedModel, or of the other formats if there are any.

        Raises:
            DataError, RunError: the run or its test images no longer exist.
            ExportError: a format is unknown, its library is missing, or it does not agree.
        """
        reporter = reporter or TerminalReporter()
        names = [formats] if isinstance(formats, str) else formats
        chosen = parse_formats(",".join(names)) if names else ()
        check_libraries(chosen)  # Before anything is written.
        place = None if moved_to is None else os.fspath(moved_to)
        folder, proof = export_run(
            self.path, reporter=reporter, precision=precision, moved_to=place
        )
        reporter.info(describe_proof(proof))
        reporter.info(describe_export(folder))
        if not chosen:
            return folder
        folder, rows = convert_run(
            self.path, folder, chosen, compare=False, reporter=reporter, moved_to=place
        )
        for row in rows:
            if row.refusal:
                reporter.info(f"{row.name} is refused: {row.refusal}")
        return folder

    def compress(
        self,
        *,
        output: Files | None = None,
        distill: bool = False,
        formats: str = "",
        resume: bool = False,
        reporter: Reporter | None = None,
        **words: Any,
    ) -> "Run":
        """A run with a smaller, faster network, and its comparison with this one.

        Its folder also has compression.json, compression.md and compression.png.

        Args:
            output: its folder; by default the next free one below saved_models/.
            distill: whether it learns from this run, not from labels alone.
            formats: other formats to write as well and to compare, such as 'onnx_int8,openvino'.
            resume: continue an interrupted one.
            words: steps with their amounts, in their order, such as `channels=0.3`: `channels`,
                `features` and `low_rank`; and fields of the new run's spec.

        Raises:
            SpecError: no step is given, an amount is out of range, or a field is wrong.
            DataError: images of the run are missing or have changed.
            RunError, WeightsError, ExportError: as of `fine_tune`.
        """
        reporter = reporter or TerminalReporter()
        chain, others = parse_chain(words)
        found = compress_run(
            self.path,
            chain,
            others,
            is_distilled=distill,
            formats=parse_formats(formats) if formats else (),
            output=None if output is None else os.fspath(output),
            resume=resume,
            reporter=reporter,
        )
        if isinstance(reporter, TerminalReporter):
            show_compression(found, reporter)
        return Run(found.compressed.run.folder.path)

    def extend(
        self,
        images: Any,
        *,
        class_names: Sequence[str] | None = None,
        output: Files | None = None,
        resume: bool = False,
        reporter: Reporter | None = None,
        **fields: Any,
    ) -> "Run":
        """A run that also knows new images, of new classes or of its own.

        Args:
            images: folder of class folders, CSV file, or data in memory as for `fine_tune`.
            class_names: as for `evaluate`; with those of new classes, numbers can mean them, too.
            output: its folder; by default the next free one below saved_models/.
            resume: continue an interrupted one.
            fields: fields of the new run's spec.

        Raises:
            SpecError: the run has no classes, or a field is wrong.
            DataError: images of the run are missing or have changed, or the new ones cannot be
                used.
            RunError, WeightsError, ExportError: as of `fine_tune`.
        """
        reporter = reporter or TerminalReporter()
        place = None if output is None else os.fspath(output)
        found = extend_run(
            self.path,
            self._labelled(images, class_names, reporter),
            fields,
            output=place,
            resume=resume,
            reporter=reporter,
        )
        for sentence in found.describe():
            reporter.info(sentence)
        return Run(found.extended.folder.path)

    def adapt(
        self,
        folder: Files,
        *,
        kind: str = AUTO,
        labelled: Files | None = None,
        moved_to: Files | None = None,
        output: Files | None = None,
        resume: bool = False,
        reporter: Reporter | None = None,
    ) -> "Run":
        """A run whose model is adapted to images without labels that look different.

        Its folder also has adaptation.json and adaptation.md, with all kinds that were compared.
        Where nothing helps clearly it has the model of this run, bit by bit.

        Args:
            folder: images of the target, at any depth.
            kind: 'auto'; or 'coral', 'adabn', 'self_training' or several with '+'.
            labelled: a folder of classes, or a CSV file, with a few labelled images of the target,
                by which 'auto' chooses; None chooses without labels.
            moved_to: where the run's own images are now; None is its `data.path`.
            output: its folder; by default the next free one below saved_models/.
            resume: continue an interrupted one.

        Raises:
            SpecError: the kind is unknown, or cannot be applied to this run.
            DataError: images are missing, cannot be used, or are too few.
            RunError, ExportError: as of `fine_tune`.
        """
        reporter = reporter or TerminalReporter()
        new, found = adapt_run(
            self.path,
            path_of(folder, is_labelled=False),
            kind=kind,
            labelled=None if labelled is None else self._labelled(labelled, None, reporter),
            moved_to=None if moved_to is None else os.fspath(moved_to),
            output=None if output is None else os.fspath(output),
            resume=resume,
            reporter=reporter,
        )
        if isinstance(reporter, TerminalReporter):
            show_adaptation(new, found, self._loaded.task, reporter)
        return Run(new.path)

    def _labelled(self, data: Any, given: Sequence[str] | None, reporter: Reporter) -> str:
        """The path of labelled images; numbers of data in memory are classes of this run."""
        own = self.spec.data
        names = given
        if not names and is_in_memory(data) and not names_in(data):
            are_classes = self.spec.task == SingleLabel.name
            is_named_by_numbers = any(name.lstrip("-").isdecimal() for name in self.class_names)
            names = self.class_names if are_classes and not is_named_by_numbers else None
        path = path_of(
            data,
            class_names=names,
            path_column=own.path_column,
            label_column=own.label_column,
            channels=own.channels,
        )
        if names and not given and has_numbers(data, own.label_column):
            meanings = [f"{number} is {name}" for number, name in enumerate(names)]
            reporter.info(
                f"Labels that are numbers are indices of run.class_names: {enumerated(meanings, 5)}"
                "; labels that are texts do not depend on an order."
            )
        return path

    @cached_property
    def _loaded(self) -> LoadedRun:
        return prediction.load_run(self.path)

    def _predict_array(self, images: np.ndarray) -> list[Prediction | BadFile]:
        channels = self.spec.data.channels
        if images.ndim != 4 or images.shape[-1] != channels or images.dtype != np.uint8:
            raise DataError(
                "the array does not contain images",
                expected=f"uint8 of shape [N, H, W, {channels}]{', RGB' if channels == 3 else ''}",
                received=f"{images.dtype} of shape {list(images.shape)}",
                fix="images[np.newaxis] for a single image, np.stack([images] * 3, axis=-1) for "
                "[N, H, W] in grey"
                if images.ndim != 4
                else advice(images[0]),
            )
        run = self._loaded
        resize = resizer(run.contract.image_size, run.contract.resize, channels)
        found: list[Prediction | BadFile] = []
        for start in range(0, len(images), BATCH_SIZE):
            squares = [np.asarray(resize(image)) for image in images[start : start + BATCH_SIZE]]
            for outputs in run(np.stack(squares)):
                found.append(Prediction(str(len(found)), outputs, run.task))
        return found


def load_run(path: Files) -> Run:
    """Open the folder of a finished run, which may have been moved.

    Args:
        path: the folder, such as saved_models/my_photos.

    Raises:
        RunError: there is no run, or the run is not finished.
    """
    folder = RunFolder.open(Path(path))
    if not folder.metrics_file.is_file():
        winner = folder.path / "winner"
        raise RunError(
            f"there is no finished run in {folder.path}",
            expected="a folder with metrics.json, which a run writes last",
            received="a study, which saves no model"
            if folder.study_file.is_file()
            else f"a search; its best trial is {winner}"
            if winner.is_dir()
            else "an unfinished run",
            fix=f"give {winner}" if winner.is_dir() else "finish it with resume=True or --resume",
        )
    return Run(folder.path)


def _files(images: Files | Iterable[Files]) -> Iterator[Path]:
    for path in [images] if isinstance(images, str | os.PathLike) else images:
        if os.path.isdir(path):
            yield from expand_paths([os.fspath(path)], io.StringIO())
        else:
            yield Path(path)
