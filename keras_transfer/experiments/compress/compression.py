"""Compression: an ordinary run on a smaller trunk, compared with the run that it was made of."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from keras_transfer.compression.registry import Chain, further_files
from keras_transfer.config import override
from keras_transfer.experiments.compress.comparison import (
    REPORT_FILE,
    Compression,
    ancestors,
    compare,
)
from keras_transfer.experiments.compress.report import write_compression
from keras_transfer.experiments.compress.trunk import compressed_spec
from keras_transfer.experiments.distill.settings import distillation_spec
from keras_transfer.experiments.run import run_transfer
from keras_transfer.export.conversion import convert_run
from keras_transfer.export.formats.registry import Format, check_libraries
from keras_transfer.export.formats.report import JSON_FILE
from keras_transfer.inference.prediction import load_run
from keras_transfer.methods.registry import check_repeatable, make_methods
from keras_transfer.reporting.reporter import Reporter
from keras_transfer.specs import DistillSpec
from keras_transfer.storage.run_folder import RunFolder
from keras_transfer.storage.run_start import start_run


def compress_run(
    path: str | Path,
    chain: Chain,
    fields: Mapping[str, Any],
    *,
    is_distilled: bool,
    formats: Sequence[Format] = (),
    output: str | Path | None,
    resume: bool,
    reporter: Reporter,
) -> Compression:
    """Make the trunk of a finished run smaller, train a run on it, compare, and write the report.

    A finished run, whose comparison was interrupted, is only compared.

    Args:
        chain: from `registry.parse_chain`.
        fields: of the new run's spec, by dotted name.
        is_distilled: whether the phases learn from the finished run, not from labels alone.
        formats: also written of the new run, and compared.

    Raises:
        RunError: there is no finished run, or the new one cannot be written.
        SpecError: a field is wrong, or the run's network cannot be compressed.
        DataError: images of the run are missing or have changed.
        WeightsError, ExportError: as of `run_transfer`.
    """
    original = load_run(path)
    check_repeatable(make_methods(original.spec))
    override(original.spec, fields)  # Wrong fields are told before the trunk is made.
    check_libraries(formats)
    spec = override(compressed_spec(original, chain, reporter=reporter), fields)
    if is_distilled:
        spec = distillation_spec(spec, str(original.folder.path.absolute()), DistillSpec())
    run = start_run(spec, output=output, resume=resume, suffix="", last=REPORT_FILE)
    earlier = ancestors(original, reporter)
    if not run.is_complete:
        run_transfer(spec, run, reporter=reporter)
    compressed = load_run(run.path)
    for name, write in further_files(chain).items():
        with run.replacing(name) as file:
            write(compressed.model, file)
    export = run.export_folder / "1"
    if not _are_tried(formats, run, export.name):
        convert_run(run.path, export, formats, compare=False, reporter=reporter)
    found = compare([*earlier, original, compressed], reporter=reporter)
    write_compression(found)
    return found


def _are_tried(formats: Sequence[Format], run: RunFolder, version: str) -> bool:
    """Whether a finished conversion has a row for each of the formats, refused ones as well."""
    name = f"formats/{version}/{JSON_FILE}"
    rows = run.read_json(name)["formats"] if (run.path / name).is_file() else []
    return {entry.name for entry in formats} <= {row["name"] for row in rows}
