"""A search for TensorBoard's HParams tab: an experiment with a session for each trial.

    tensorboard/                  the experiment: parameters with their domains, and the metrics
    tensorboard/<trial>/          a session: values, metrics and its status

Written with TensorBoard's own messages, so that TensorFlow is not needed.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.plugins.hparams import api_pb2, metadata, plugin_data_pb2
from tensorboard.plugins.hparams.summary_v2 import (
    Discrete,
    Domain,
    HParam,
    Metric,
    RealInterval,
    hparams_config_pb,
    hparams_pb,
)
from tensorboard.plugins.scalar.summary_v2 import scalar_pb
from tensorboard.summary.writer.event_file_writer import EventFileWriter

from keras_transfer.experiments.tune.record import CHOICE, COMPLETED, Search, SearchTrial
from keras_transfer.storage.run_folder import RunFolder

FOLDER = "tensorboard"


def write_logs(folder: RunFolder, search: Search) -> Path:
    """Write the folder for `tensorboard --logdir`, in place of an earlier one.

    The objective is the first metric; the domain of a number is the range of the values tried.

    Returns:
        The folder.

    Raises:
        RunError: it cannot be written.
    """
    trials, scales, choices = search.trials, search.scales, search.choices
    kinds = {
        name: _kind(choices[name]) if scale == CHOICE else float for name, scale in scales.items()
    }
    domains = {
        name: _choice(choices[name], kinds[name]) if scale == CHOICE else _range(name, trials)
        for name, scale in scales.items()
    }
    hparams = [HParam(name, domain) for name, domain in domains.items()]
    tags = tags_of(search)
    metrics = [Metric(tag) for tag in tags]
    created = min(trial.started for trial in trials)
    experiment = hparams_config_pb(hparams, metrics, time_created_secs=created)
    with folder.replacing(FOLDER) as partial:
        _write_events(partial, [(created, 0, experiment)])
        for trial in trials:
            _write_events(partial / trial.name, _session(trial, kinds, tags))
    return folder.path / FOLDER


def tags_of(search: Search) -> dict[str, str]:
    """Tags of a session's metrics, and the fields of a trial that they show."""
    shown = {name: key for key, name in search.names.items()}
    return shown | {"epochs": "epochs", "seconds": "seconds"}


def _session(
    trial: SearchTrial, kinds: Mapping[str, type], tags: Mapping[str, str]
) -> list[tuple[float, int, Summary]]:
    """The summaries of a trial, each with its time and step."""
    values = {
        name: _plain(trial.values[name], kind)
        for name, kind in kinds.items()
        if name in trial.values
    }
    start = hparams_pb(values, trial_id=trial.name, start_time_secs=trial.started)
    events = [(trial.started, 0, start)]
    for tag, name in tags.items():
        # Failed trials have no metrics.
        if (value := getattr(trial, name)) is not None:
            events.append((trial.ended, trial.epochs, scalar_pb(tag, value)))
    return [*events, (trial.ended, trial.epochs, _end(trial))]


def _end(trial: SearchTrial) -> Summary:
    """The summary of a session's end, made here because TensorBoard's function needs TensorFlow."""
    succeeded = trial.status == COMPLETED
    status = api_pb2.STATUS_SUCCESS if succeeded else api_pb2.STATUS_FAILURE
    info = plugin_data_pb2.SessionEndInfo(status=status, end_time_secs=trial.ended)
    data = plugin_data_pb2.HParamsPluginData(session_end_info=info)
    summary = Summary()
    summary.value.add(
        tag=metadata.SESSION_END_INFO_TAG,
        metadata=metadata.create_summary_metadata(data),
        tensor=metadata.NULL_TENSOR,
    )
    return summary


def _write_events(folder: Path, events: Sequence[tuple[float, int, Summary]]) -> None:
    writer = EventFileWriter(str(folder))
    try:
        for time, step, summary in events:
            writer.add_event(Event(wall_time=time, step=step, summary=summary))
    finally:
        writer.close()


def _kind(values: Sequence[Any]) -> type:
    """The type in TensorBoard that can represent all choices."""
    types = {type(value) for value in values}
    if types == {bool}:
        return bool
    return float if types <= {int, float} else str


def _plain(value: Any, kind: type) -> Any:
    return "none" if value is None else kind(value)


def _choice(values: Sequence[Any], kind: type) -> Domain:
    return Discrete(list(dict.fromkeys(_plain(value, kind) for value in values)), dtype=kind)


def _range(name: str, trials: Sequence[SearchTrial]) -> Domain | None:
    tried = np.array([trial.values[name] for trial in trials if name in trial.values], float)
    return RealInterval(float(tried.min()), float(tried.max())) if tried.size else None
