"""The artefacts of a comparison; each runs in a separate process."""

from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

import numpy as np

from keras_transfer.devices.processors import num_processors
from keras_transfer.errors import ExportError
from keras_transfer.export.contract import Contract
from keras_transfer.export.formats.agreement import (
    Agreement,
    agree,
    measure_latencies,
)
from keras_transfer.export.formats.making import KERAS_EXPORT_FOLDER
from keras_transfer.export.formats.registry import (
    KERAS,
    KERAS_EXPORT,
    OPENVINO,
    SAVED_MODEL,
    Format,
    Kind,
    megabytes,
)
from keras_transfer.export.formats.report import PLAIN, Row
from keras_transfer.export.formats.runtimes import check_class_hash
from keras_transfer.export.verification import IsolatedArtefact, IsolatedProcess
from keras_transfer.models.activations import activate
from keras_transfer.reporting.reporter import Reporter

_ONEDNN: Final = "TF_ENABLE_ONEDNN_OPTS"
_BFLOAT16_FLAGS: Final = ("avx512_bf16", "amx_bf16")


@dataclass(frozen=True, kw_only=True)
class Variant:
    """An artefact and how it is run.

    `precision` is that of its `Format` and selects the limits of the comparison; with the `hint`
    'bfloat16' OpenVINO computes in it; `environment` are variables of its process.
    """

    name: str
    path: Path
    kind: Kind
    precision: str = "float32"
    hint: str = "float32"
    environment: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, eq=False)
class Reference:
    """The reference of all variants: the model's `outputs` [N, K], and the true `values`.

    `pixels_file` has the N test images; `trained_in` is the dtype policy of the model.
    """

    contract: Contract
    pixels_file: Path
    outputs: np.ndarray
    values: np.ndarray
    trained_in: str


def of_formats(formats: Sequence[Format], folder: Path) -> list[Variant]:
    """Variants for the files in a folder of formats."""
    return [
        Variant(name=x.name, path=folder / x.file, kind=x.kind, precision=x.precision)
        for x in formats
    ]


def in_bfloat16(formats: Sequence[Format], folder: Path) -> list[Variant]:
    """OpenVINO computing in bfloat16, if the processor has instructions for it."""
    if not has_bfloat16():
        return []
    return [
        replace(variant, name=f"{variant.name} bfloat16", precision="dynamic", hint="bfloat16")
        for variant in of_formats(formats, folder)
        if variant.kind == OPENVINO and variant.precision == "float32"
    ]


def others(model_file: Path, export_folder: Path, scratch: Path) -> list[Variant]:
    """Keras's own export without and with oneDNN, the SavedModel, and the model in Keras."""
    keras_export, served = scratch / KERAS_EXPORT_FOLDER, Contract.read(export_folder).precision
    without, with_onednn = {_ONEDNN: "0"}, {_ONEDNN: "1"}
    return [
        Variant(name=PLAIN, path=keras_export, kind=KERAS_EXPORT, environment=without),
        Variant(
            name=f"{PLAIN} oneDNN", path=keras_export, kind=KERAS_EXPORT, environment=with_onednn
        ),
        Variant(
            name="SavedModel",
            path=export_folder,
            kind=SAVED_MODEL,
            # A trunk in bfloat16 was verified at its export, with the tolerance for bfloat16.
            precision="float32" if served == "float32" else "dynamic",
            environment=with_onednn,
        ),
        Variant(name="keras", path=model_file, kind=KERAS, environment=with_onednn),
    ]


def compare(
    variants: Sequence[Variant],
    reference: Reference,
    *,
    failed: Mapping[str, str],
    timed: bool,
    reporter: Reporter,
) -> list[Row]:
    """Run every variant on the test images, and time those that agree, in turns.

    Args:
        failed: errors of formats that could not be written, by name.
    """
    rows: dict[str, Row] = {}
    with ExitStack() as processes:
        to_time: dict[str, IsolatedArtefact] = {}
        for variant in variants:
            if variant.name in failed:
                refusal = f"it could not be written: {failed[variant.name].splitlines()[-1]}"
                rows[variant.name] = _row(variant, None, refusal)
                continue
            process = processes.enter_context(
                IsolatedProcess(variant.kind, environment=variant.environment)
            )
            try:
                artefact = _open(process, variant, reference.contract.input_shape)
                found = _agreement(variant, artefact, reference)
            except ExportError as error:
                rows[variant.name] = _row(variant, None, str(error))
                process.close()
                continue
            rows[variant.name] = _row(variant, found, found.refusal)
            if timed and not found.refusal:
                to_time[variant.name] = artefact
            else:
                process.close()
        latencies = measure_latencies(to_time, reporter=reporter) if timed else {}
    return [replace(row, latencies=latencies.get(name, {})) for name, row in rows.items()]


def notes(names: Iterable[str], *, timed: bool) -> list[str]:
    """How the figures of a table were obtained; `names` are those of its rows."""
    sentences = [
        "Every format ran the test images in a separate process, without this package and, "
        "except for the keras and difference files, without Keras; agreement and |Δp| are with the "
        "model's own outputs."
    ]
    if timed:
        sentences.append(
            f"Timed in turns, each with {num_processors()} threads, uint8 squares in and "
            "outputs out; no other program should run on the machine at that time. "
            f"{PLAIN} is Keras's own export and takes float pixels; it runs without oneDNN, as "
            "TensorFlow decides on processors without AVX-512 VNNI. SavedModel is serving_resized."
        )
    if timed and any(name.startswith("openvino") for name in names):
        sentences.append(
            "OpenVINO computes in float32"
            + (
                " and in the rows named bfloat16 in bfloat16."
                if has_bfloat16()
                else "; this processor has no instructions for bfloat16."
            )
        )
    return sentences


def has_bfloat16() -> bool:
    """Whether the processor has instructions for bfloat16, if Linux reports it."""
    file = Path("/proc/cpuinfo")
    flags = file.read_text(encoding="utf-8").split() if file.is_file() else []
    return any(flag in flags for flag in _BFLOAT16_FLAGS)


def _open(
    process: IsolatedProcess, variant: Variant, input_shape: tuple[int, int, int]
) -> IsolatedArtefact:
    return process.open(
        variant.path, input_shape=input_shape, num_threads=num_processors(), precision=variant.hint
    )


def _agreement(variant: Variant, artefact: IsolatedArtefact, reference: Reference) -> Agreement:
    task = reference.contract.restored_task
    if variant.kind != KERAS_EXPORT:
        check_class_hash(variant.path, artefact.class_hash, reference.contract)
    outputs = artefact.predict(reference.pixels_file)
    return agree(
        activate(outputs, task.activation) if variant.kind.gives_logits else outputs,
        reference.outputs,
        reference.values,
        task=task,
        precision=variant.precision,
        trained_in=reference.trained_in,
    )


def _row(variant: Variant, found: Agreement | None, refusal: str) -> Row:
    return Row(
        name=variant.name,
        file=variant.path.name,
        megabytes=megabytes(variant.path),
        agreement=found,
        refusal=refusal,
    )
