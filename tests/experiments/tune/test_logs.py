"""TensorBoard's own HParams backend reads a search as it was."""

import pytest
from google.protobuf import text_format
from tensorboard.backend.event_processing.data_provider import MultiplexerDataProvider
from tensorboard.backend.event_processing.plugin_event_multiplexer import EventMultiplexer
from tensorboard.context import RequestContext
from tensorboard.plugins.base_plugin import TBContext
from tensorboard.plugins.hparams import api_pb2, get_experiment, list_session_groups
from tensorboard.plugins.hparams.backend_context import Context

from keras_transfer.errors import RunError
from keras_transfer.experiments.tune.record import Search, SearchTrial
from keras_transfer.experiments.tune.tensorboard import write_logs
from keras_transfer.storage.run_folder import RunFolder
from keras_transfer.tasks.task import Monitor

SCALES = {
    "phases.0.learning_rate": "log",
    "model.dropout": "linear",
    "phases.1.unfreeze": "choice",
    "training.class_weights": "choice",
    "views.flip": "choice",
}
CHOICES = {
    "phases.1.unfreeze": ["stage4", "stage5"],
    "training.class_weights": ["balanced", 3, None],
    "views.flip": [False, True],
}
REQUEST = """
    allowed_statuses: STATUS_SUCCESS allowed_statuses: STATUS_FAILURE
    allowed_statuses: STATUS_RUNNING allowed_statuses: STATUS_UNKNOWN
    slice_size: 100
    include_metrics: true
"""


def _trial(number: int, **changes) -> SearchTrial:
    values = {
        "phases.0.learning_rate": 10.0**-number,
        "model.dropout": 0.1 * number,
        "phases.1.unfreeze": "stage5" if number % 2 else "stage4",
        "training.class_weights": CHOICES["training.class_weights"][number % 3],
        "views.flip": number > 1,
    }
    entries = {"status": "completed", "score": 0.9, "val_score": 0.9, "val_loss": 0.25}
    entries |= {"epochs": 3 + number, "seconds": 20.0, "started": 1e9 + 100 * number}
    return SearchTrial(
        name=f"{number:04}", values=values, worker="tuner0", **{**entries, **changes}
    )


TRIALS = [
    _trial(1),
    _trial(2, score=0.75, val_score=0.75),
    _trial(3, status="failed", score=None, val_score=None, val_loss=None, cause="no memory"),
]


def _write(folder, trials=TRIALS):
    search = Search(
        trials,
        scales=SCALES,
        choices=CHOICES,
        objective="val_score",
        monitor=Monitor("accuracy", "max", is_share=True),
        winner="0001",
    )
    return write_logs(folder, search)


def _read(logs):
    """The experiment and its sessions, as TensorBoard's own server would answer."""
    multiplexer = EventMultiplexer()
    multiplexer.AddRunsFromDirectory(str(logs))
    multiplexer.Reload()
    provider = MultiplexerDataProvider(multiplexer, str(logs))
    context = Context(TBContext(data_provider=provider))
    asked = RequestContext()
    asked_experiment = api_pb2.GetExperimentRequest(include_metrics=True)
    experiment = get_experiment.Handler(asked, context, "", asked_experiment).run()
    request = text_format.Parse(REQUEST, api_pb2.ListSessionGroupsRequest())
    sessions = list_session_groups.Handler(asked, context, "", request).run()
    return experiment, sessions.session_groups


def test_experiment_names_parameters_with_domains_and_the_objective_first(tmp_path):
    experiment, _ = _read(_write(RunFolder(tmp_path)))
    infos = {info.name: info for info in experiment.hparam_infos}
    assert set(infos) == set(SCALES)
    rate = infos["phases.0.learning_rate"].domain_interval
    assert (rate.min_value, rate.max_value) == pytest.approx((1e-3, 1e-1))
    assert list(infos["phases.1.unfreeze"].domain_discrete) == ["stage4", "stage5"]
    assert sorted(infos["training.class_weights"].domain_discrete) == ["3", "balanced", "none"]
    assert infos["views.flip"].type == api_pb2.DATA_TYPE_BOOL
    assert next(info.name.tag for info in experiment.metric_infos) == "val_accuracy"


def test_every_trial_is_a_session_with_values_metrics_and_status(tmp_path):
    _, groups = _read(_write(RunFolder(tmp_path)))
    assert [group.name for group in groups] == ["0001", "0002", "0003"]
    for group, trial in zip(groups, TRIALS, strict=True):
        (session,) = group.sessions
        assert session.start_time_secs == trial.started
        assert session.end_time_secs == trial.started + 20
        assert group.hparams["phases.0.learning_rate"].number_value == pytest.approx(
            trial.values["phases.0.learning_rate"]
        )
        assert group.hparams["phases.1.unfreeze"].string_value == trial.values["phases.1.unfreeze"]
        assert group.hparams["views.flip"].bool_value is trial.values["views.flip"]
        expected = str(trial.values["training.class_weights"]).lower()
        assert group.hparams["training.class_weights"].string_value == expected
        succeeded = trial.status == "completed"
        status = api_pb2.STATUS_SUCCESS if succeeded else api_pb2.STATUS_FAILURE
        assert session.status == status
        metrics = {value.name.tag: value for value in session.metric_values}
        assert metrics["epochs"].value == metrics["epochs"].training_step == trial.epochs
        if succeeded:
            assert metrics["val_accuracy"].value == pytest.approx(trial.val_score)
            assert metrics["val_loss"].value == pytest.approx(0.25)
        else:
            assert not {"val_accuracy", "val_loss"} & set(metrics)


def test_writing_again_replaces_all_sessions(tmp_path):
    folder = RunFolder(tmp_path)
    _write(folder)
    logs = _write(folder, TRIALS[:2])
    assert sorted(path.name for path in logs.iterdir() if path.is_dir()) == ["0001", "0002"]
    assert all(len(list(path.glob("*tfevents*"))) == 1 for path in (logs, *logs.glob("0*")))
    assert len(_read(logs)[1]) == 2
    assert [path.name for path in tmp_path.iterdir()] == ["tensorboard"]


def test_a_parameter_that_a_trial_lacks_is_left_out_of_its_session(tmp_path):
    partial = _trial(4)
    del partial.values["model.dropout"]
    groups = _read(_write(RunFolder(tmp_path), [partial]))[1]
    assert "model.dropout" not in groups[0].hparams
    assert "phases.1.unfreeze" in groups[0].hparams


def test_a_place_that_cannot_be_written_is_told(tmp_path):
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(RunError, match="cannot be written"):
        _write(RunFolder(tmp_path / "file"))
