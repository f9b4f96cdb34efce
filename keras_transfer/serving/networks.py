"""The network of a served version: that of its SavedModel, or the same one in a faster format.

`RUN/formats/<version>/formats.json` says which formats were verified on the test images. With
`runtime` 'auto' those and the SavedModel are timed here, in turns, and the fastest one serves; a
format named by `runtime` serves without being timed. Decoding and `serving_explain` stay those of
the SavedModel.
"""

import dataclasses
import functools
import json
import math
import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import tensorflow as tf

from keras_transfer.devices.timing import take_turns
from keras_transfer.errors import ExportError
from keras_transfer.export.contract import Contract
from keras_transfer.export.formats.registry import Format
from keras_transfer.export.formats.report import JSON_FILE
from keras_transfer.export.formats.runtimes import open_runtime
from keras_transfer.reporting.numbers import percent
from keras_transfer.serving.settings import AUTO, SAVED_MODEL, SERVED_FORMATS

Classify = Callable[[np.ndarray], Mapping[str, np.ndarray]]
"""Outputs of `serving_resized` by name, [B, …], for pixels uint8 [B, S, S, C]."""

_BATCH_SIZES: Final = (1, 8)
_ENOUGH_SECONDS: Final = 5.0
"""For all networks together and each batch size; slow ones take longer for the fewest calls."""


@dataclass(frozen=True, eq=False)
class ServedNetwork:
    """The network that serves: 'saved_model' or the name of a format, why, and its function."""

    name: str
    reason: str
    classify: Classify


def choose_network(
    saved_model: Classify, runtime: str, formats_folder: Path, contract: Contract
) -> ServedNetwork:
    """The network that `runtime` names or, with 'auto', the fastest of the verified ones.

    Args:
        saved_model: that of the SavedModel.
        runtime: 'saved_model', 'auto', or the name of a format.
        formats_folder: the formats of this version; it may be missing.
        contract: that of the SavedModel.

    Raises:
        ExportError: the named format was not written or verified, was refused, or cannot be opened.
    """
    if runtime == SAVED_MODEL:
        return ServedNetwork(SAVED_MODEL, "", saved_model)
    rows = _read_rows(formats_folder)
    if runtime != AUTO:
        row = rows.get(runtime)
        if row is None or row["refusal"]:
            raise _not_verified(runtime, formats_folder, row)
        network = _open(SERVED_FORMATS[runtime], formats_folder, contract)
        return ServedNetwork(runtime, _describe(row), network)
    networks, unusable = {SAVED_MODEL: saved_model}, []
    for name, entry in SERVED_FORMATS.items():
        if name not in rows or rows[name]["refusal"]:
            continue
        try:
            networks[name] = _open(entry, formats_folder, contract)
        except ExportError as error:  # Such as a library that is not installed here.
            unusable.append(f"{name} cannot be used: {error.received}")
    if len(networks) == 1:
        words = "; ".join(unusable) or "no other format was verified: pipelines.export --formats"
        return ServedNetwork(SAVED_MODEL, words, saved_model)
    seconds = _time_in_turns(networks, contract.input_shape)
    best, second, *_ = sorted(networks, key=lambda name: math.prod(seconds[name]))
    reasons = [_compare(seconds, best, SAVED_MODEL if best != SAVED_MODEL else second)]
    if best in rows:
        reasons.append(_describe(rows[best]))
    return ServedNetwork(best, "; ".join([*reasons, *unusable]), networks[best])


def _read_rows(folder: Path) -> dict[str, dict[str, Any]]:
    """The rows of formats.json by name; none without that file."""
    try:
        content = json.loads((folder / JSON_FILE).read_text(encoding="utf-8"))
        rows = {row["name"].replace(" ", "_"): row for row in content["formats"]}
        return {name: row for name, row in rows.items() if row["agreement"] or row["refusal"]}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise ExportError(
            f"{folder / JSON_FILE} cannot be read",
            expected="the file that was written together with the formats",
            received=str(error) or type(error).__name__,
            fix="write the formats again: python -m pipelines.export RUN --formats …",
        ) from error


def _open(entry: Format, folder: Path, contract: Contract) -> Classify:
    precision = "bfloat16" if entry.precision == "bfloat16" else "float32"
    network = open_runtime(folder / entry.file, precision=precision)
    # The SavedModel may compute in another precision.
    theirs = dataclasses.replace(network.contract, precision=contract.precision)
    if theirs != contract:
        raise ExportError(
            f"{folder} belongs to another model than the SavedModel",
            expected=f"the contract of {contract.name}, classes {contract.class_hash[:16]}…",
            received=f"{theirs.name}, classes {theirs.class_hash[:16]}…",
            fix="export again with --formats",
        )
    return functools.partial(_classify, network, contract)


def _classify(
    network: Callable[[np.ndarray], np.ndarray], contract: Contract, pixels: np.ndarray
) -> dict[str, np.ndarray]:
    served = contract.restored_task.served(tf.constant(network(pixels)))
    return {name: tensor.numpy() for name, tensor in served.items()}


def _time_in_turns(
    networks: Mapping[str, Classify], input_shape: tuple[int, int, int]
) -> dict[str, list[float]]:
    """Median seconds of a call for each of the batch sizes, by name."""
    images = np.random.default_rng(0).integers(0, 256, (max(_BATCH_SIZES), *input_shape), np.uint8)
    enough = _ENOUGH_SECONDS / len(networks)
    medians: dict[str, list[float]] = {name: [] for name in networks}
    for size in _BATCH_SIZES:
        calls = [functools.partial(classify, images[:size]) for classify in networks.values()]
        for name, seconds in zip(networks, take_turns(calls, enough_seconds=enough), strict=True):
            medians[name].append(statistics.median(seconds))
    return medians


def _compare(seconds: Mapping[str, list[float]], best: str, other: str) -> str:
    """How fast the chosen network is, and how many times as fast as another one."""
    figures = " and ".join(
        f"{1e3 * value:.1f} ms for {size}"
        for size, value in zip(_BATCH_SIZES, seconds[best], strict=True)
    )
    ratios = " and ".join(
        f"{theirs / ours:.1f}" for ours, theirs in zip(seconds[best], seconds[other], strict=True)
    )
    return f"the fastest of {len(seconds)}, {figures}, {ratios} × as fast as {other}"


def _describe(row: Mapping[str, Any]) -> str:
    """How a format agrees with the model."""
    found = row["agreement"]
    share = percent(found["label_agreement"])
    return f"verified on {found['num_images']} test images: {share} % of the predictions agree"


def _not_verified(runtime: str, folder: Path, row: Mapping[str, Any] | None) -> ExportError:
    return ExportError(
        f"{runtime} cannot serve",
        expected=f"{SERVED_FORMATS[runtime].file} in {folder}, verified",
        received=f"it was refused: {row['refusal']}" if row else "no such row in formats.json",
        fix=f"write it: python -m pipelines.export RUN --formats {runtime}, or choose another "
        "--runtime",
    )
