"""All ways to get an answer that one comparison tries, each in a process of its own."""

from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

import numpy as np

from keras_transfer.errors import ExportError
from keras_transfer.export.contract import Contract
from keras_transfer.export.formats.agreement import Agreement, agree, num_processors, time_in_turns
from keras_transfer.export.formats.isolated import Asked
from keras_transfer.export.formats.making import PLAIN_FOLDER, files_of
from keras_transfer.export.formats.openers import BFLOAT16
from keras_transfer.export.formats.openers import PLAIN as PLAIN_KIND
from keras_transfer.export.formats.registry import Format
from keras_transfer.export.formats.report import PLAIN, Row
from keras_transfer.export.formats.runtimes import check_class_hash
from keras_transfer.reporting.reporter import Reporter

SAVED_MODEL: Final = "SavedModel"
KERAS: Final = "keras"
_ONEDNN: Final = "TF_ENABLE_ONEDNN_OPTS"
_UNITS_FOR_BFLOAT16: Final = ("avx512_bf16", "amx_bf16")


@dataclass(frozen=True, kw_only=True)
class Way:
    """An artefact and how it is asked; fields as of `Format`, `Row` and `Asked`."""

    name: str
    path: Path
    precision: str = "float32"
    kind: str = ""
    hint: str = "float32"
    environment: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, eq=False)
class Bench:
    """What every way is held against: the model's `probabilities` [N, C] and `labels` [N].

    `pixels_file` has the N test images; `trained_in` is the dtype policy of the model.
    """

    contract: Contract
    pixels_file: Path
    probabilities: np.ndarray
    labels: np.ndarray
    trained_in: str


def of_formats(formats: Sequence[Format], folder: Path) -> list[Way]:
    """The files of a folder of formats."""
    return [
        Way(name=entry.name, path=folder / entry.file, precision=entry.precision)
        for entry in formats
    ]


def in_bfloat16(formats: Sequence[Format], folder: Path) -> list[Way]:
    """OpenVINO computing in bfloat16, where the processor has units for it."""
    if not has_bfloat16():
        return []
    return [
        replace(way, name=f"{way.name} bfloat16", precision="dynamic", hint=BFLOAT16)
        for way in of_formats(formats, folder)
        if way.name == "openvino"
    ]


def to_compare_with(model_file: Path, export_folder: Path, scratch: Path) -> list[Way]:
    """Keras's own export, without and with oneDNN, our SavedModel, and the model in Keras."""
    plain, served = scratch / PLAIN_FOLDER, Contract.read(export_folder).precision
    return [
        Way(name=PLAIN, path=plain, kind=PLAIN_KIND, environment={_ONEDNN: "0"}),
        Way(name=f"{PLAIN} oneDNN", path=plain, kind=PLAIN_KIND, environment={_ONEDNN: "1"}),
        Way(
            name=SAVED_MODEL,
            path=export_folder,
            # A trunk in bfloat16 has been proven with the export, in its own tolerance.
            precision="float32" if served == "float32" else "dynamic",
            environment={_ONEDNN: "1"},
        ),
        Way(name=KERAS, path=model_file, environment={_ONEDNN: "1"}),
    ]


def try_all(
    ways: Sequence[Way],
    bench: Bench,
    *,
    failed: Mapping[str, str],
    timed: bool,
    reporter: Reporter,
) -> list[Row]:
    """Ask every way about the test images, and time those that agree, in turns.

    Args:
        failed: why formats could not even be made, by name.
    """
    rows: dict[str, Row] = {}
    with ExitStack() as held:
        asked: dict[str, Asked] = {}
        for way in ways:
            if way.name in failed:
                refusal = f"it could not be made: {failed[way.name].splitlines()[-1]}"
                rows[way.name] = _row(way, None, refusal)
                continue
            try:
                one = held.enter_context(_open(way, bench.contract.image_size))
                found = _ask(way, one, bench)
            except ExportError as error:
                rows[way.name] = _row(way, None, str(error))
            else:
                rows[way.name] = _row(way, found, found.refusal)
                if timed and not found.refusal:
                    asked[way.name] = one
                else:
                    one.close()
        for name, latencies in (time_in_turns(asked, reporter=reporter) if timed else {}).items():
            rows[name] = replace(rows[name], latencies=latencies)
    return list(rows.values())


def notes(names: Iterable[str], *, timed: bool) -> list[str]:
    """What a reader of the table has to know; `names` are those of its rows."""
    said = [
        "Every format answered the test images in a process of its own, without this package "
        "and, but for the keras file, without Keras; agreement and |Δp| are with the model's own "
        "answers."
    ]
    if timed:
        said.append(
            f"Timed in turns, each with {num_processors()} threads, uint8 squares in and "
            "probabilities out, on a machine on which nothing else should compute meanwhile. "
            f"{PLAIN} is Keras's own and takes float pixels; it runs without oneDNN, as TensorFlow "
            "decides on processors without AVX-512 VNNI. SavedModel is serving_resized."
        )
    if timed and any(name.startswith("openvino") for name in names):
        said.append(
            "OpenVINO computes in float32"
            + (
                " and, where it says so, in bfloat16."
                if has_bfloat16()
                else "; this processor has no units for bfloat16."
            )
        )
    return said


def has_bfloat16() -> bool:
    """Whether the processor multiplies bfloat16 itself, as far as Linux tells."""
    file = Path("/proc/cpuinfo")
    flags = file.read_text(encoding="utf-8").split() if file.is_file() else []
    return any(unit in flags for unit in _UNITS_FOR_BFLOAT16)


def _open(way: Way, image_size: int) -> Asked:
    return Asked(
        way.path,
        image_size=image_size,
        num_threads=num_processors(),
        kind=way.kind,
        precision=way.hint,
        environment=way.environment,
    )


def _ask(way: Way, asked: Asked, bench: Bench) -> Agreement:
    if not way.kind:
        check_class_hash(way.path, asked.class_hash, bench.contract)
    return agree(
        asked.answer(bench.pixels_file),
        bench.probabilities,
        bench.labels,
        precision=way.precision,
        trained_in=bench.trained_in,
    )


def _row(way: Way, found: Agreement | None, refusal: str) -> Row:
    files = [file for file in files_of(way.path) if file.is_file()]
    return Row(
        name=way.name,
        file=way.path.name,
        megabytes=sum(file.stat().st_size for file in files) / 1e6,
        agreement=found,
        refusal=refusal,
    )
