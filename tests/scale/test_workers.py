"""Extraction and prediction with workers: the same bits as in one process, also after a kill."""

import contextlib
import hashlib
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from small_backbone import save_small

from keras_transfer.config import spec_to_dict
from keras_transfer.errors import RunError, SpecError
from keras_transfer.experiments.session import open_session
from keras_transfer.features import chunks as chunks
from keras_transfer.inference.prediction import identify, load_run, predict_files
from keras_transfer.inference.writers import write_predictions
from keras_transfer.methods.networks import prepare_classifier
from keras_transfer.reporting.reporter import SilentReporter
from keras_transfer.scale.environment import Environment
from keras_transfer.scale.extraction import store_features
from keras_transfer.scale.prediction import predict_with_workers
from keras_transfer.scale.workers import Extractor, Predictor
from keras_transfer.specs import CacheSpec, DataSpec, ModelSpec, PhaseSpec, RunSpec
from keras_transfer.storage.run_folder import RunFolder
from keras_transfer.tasks.registry import describe_task, read_task
from keras_transfer.tasks.single_label import SingleLabel
from keras_transfer.training.fitting import fit_phases

# Workers optimize their graphs, and the same bits are wanted.
pytestmark = pytest.mark.graph_optimizer


class Killer(SilentReporter):
    """Kills a worker after the first progress, and keeps all messages."""

    def __init__(self, kill=lambda: True):
        self.heard: list[str] = []
        self._kill, self.has_killed = kill, False

    def info(self, text: str) -> None:
        self.heard.append(text)

    @contextlib.contextmanager
    def progress(self, title: str):
        def count(done: int, total: int) -> None:
            if title == "computing features" and not self.has_killed:
                self.has_killed = self._kill()

        yield count


@pytest.fixture(autouse=True)
def _small_units(monkeypatch):
    """Only the planning reads it, in this process."""
    monkeypatch.setattr(chunks, "CHUNK_VIEWS", 64)


@pytest.fixture(scope="module")
def network(tmp_path_factory) -> ModelSpec:
    """Of a file, since workers do not know the backbone `small`."""
    file = save_small(tmp_path_factory.mktemp("network") / "small.keras")
    return ModelSpec(backbone=str(file), last_stage="stage2", weights="none")


@pytest.fixture
def make_spec(network, digits_folder, tmp_path):
    def build(name: str) -> RunSpec:
        return RunSpec(
            name="digits",
            data=DataSpec(path=str(digits_folder), image_size=32),
            model=network,
            phases=(
                PhaseSpec(name="frozen", epochs=1),
                PhaseSpec(name="fine-tune", unfreeze="stage2", epochs=3, learning_rate=1e-4),
            ),
            cache=CacheSpec(folder=str(tmp_path / name), precision="float32"),
        )

    return build


def files_of(folder: str) -> dict[str, str]:
    """Hashes of all that is stored; entry.json has a time, and measured rates."""
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(Path(folder).rglob("*"))
        if path.is_file() and path.name != "entry.json" and path.suffix != ".lock"
    }


@pytest.mark.slow
def test_killed_workers_leave_the_same_cache_as_a_single_process(make_spec, kill_one):
    (alone,) = store_features(make_spec("alone"), num_workers=None, reporter=SilentReporter())
    expected = files_of(make_spec("alone").cache.folder)
    assert alone.num_computed > 500
    assert len(expected) > 20
    spec = make_spec("shared")
    reporter = Killer(lambda: kill_one("Extractor"))
    (stats,) = store_features(spec, num_workers=2, reporter=reporter)
    assert reporter.has_killed
    assert any("A worker was lost at" in text for text in reporter.heard)
    assert (stats.num_computed, stats.num_found) == (alone.num_computed, 0)
    assert files_of(spec.cache.folder) == expected
    _train_on_stored_features(spec)


def _train_on_stored_features(spec: RunSpec) -> None:
    silent = SilentReporter()
    # Nothing is missing, so that no worker is started.
    assert [t.num_computed for t in store_features(spec, num_workers=2, reporter=silent)] == [0]
    with open_session(spec, reporter=silent) as session:
        phase_inputs = session.phase_inputs()
        outcomes = fit_phases(session.build_classifier(), phase_inputs, reporter=silent)
    assert [outcome.name for outcome in outcomes] == ["frozen", "fine-tune"]
    assert [stats.num_computed for stats in phase_inputs.extraction_stats] == [0]
    assert session.data.num_decoded == 0


@pytest.fixture
def as_a_worker(monkeypatch):
    """Undo what a worker changes in its process."""
    for name, value in os.environ.items():
        monkeypatch.setenv(name, value)
    threads = ("TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS", "OMP_NUM_THREADS")
    for name in (*threads, "JAX_PLATFORMS"):
        monkeypatch.setenv(name, "")


@pytest.mark.usefixtures("as_a_worker")
def test_a_worker_copies_variables_that_are_set_and_removes_others(monkeypatch):
    monkeypatch.setenv("KERAS_HOME", "here")
    monkeypatch.delenv("TF_ENABLE_ONEDNN_OPTS", raising=False)
    environment = Environment.here(3)
    monkeypatch.setenv("KERAS_HOME", "elsewhere")
    monkeypatch.setenv("TF_ENABLE_ONEDNN_OPTS", "1")
    environment.apply()
    assert os.environ["KERAS_HOME"] == "here"
    assert "TF_ENABLE_ONEDNN_OPTS" not in os.environ
    assert os.environ["TF_NUM_INTRAOP_THREADS"] == "3"


@pytest.mark.usefixtures("as_a_worker")
def test_a_worker_with_another_network_raises_an_error(make_spec):
    spec = make_spec("store")

    def mistaken(chunks, feature_writer, on_views):
        own, rows = next(iter(chunks)).alone()
        task, _ = read_task(spec)
        other = Extractor(RunSpec(**{**vars(spec), "seed": 1}), task, Environment.here(2))
        other.compute(own, feature_writer.source.part(rows))
        yield from ()

    silent = SilentReporter()
    with open_session(spec, reporter=silent) as session:
        phase_inputs = session.phase_inputs(worker_pool=mistaken)
        with pytest.raises(RunError, match="another classifier"):
            phase_inputs.for_phase(session.build_classifier(), 0)


def test_specs_that_store_nothing_of_their_own_are_refused(make_spec):
    spec = make_spec("store")
    for change in ({"cache": CacheSpec(mode="off")}, {"folds": 3}):
        with pytest.raises(SpecError):
            store_features(
                RunSpec(**{**vars(spec), **change}), num_workers=1, reporter=SilentReporter()
            )


@pytest.fixture
def run_folder(network, tmp_path) -> str:
    """A run folder with what a prediction needs."""
    folder = RunFolder.create(tmp_path / "run")
    names = tuple(f"digit_{n}" for n in range(10))
    spec = RunSpec(data=DataSpec(image_size=32), model=network)
    folder.write_json("spec.json", spec_to_dict(spec))
    folder.write_class_names(names)
    folder.write_json("task.json", describe_task(SingleLabel(tuple(names))))
    with folder.replacing("model.keras") as path:
        prepare_classifier(spec, SingleLabel(names)).save(path)
    return str(folder.path)


@pytest.mark.slow
def test_two_workers_predict_what_one_process_does_row_by_row(
    run_folder, digits_folder, tmp_path, kill_one
):
    files = sorted(digits_folder.rglob("*.png"))[:230]
    for place, content in ((3, b"no image"), (100, b"")):
        files[place] = tmp_path / f"broken-{place}.png"
        files[place].write_bytes(content)
    files[200] = tmp_path / "gone.png"
    Image.new("RGB", (9, 9), "red").save(tmp_path / "red.png")
    files.append(tmp_path / "red.png")
    run = load_run(run_folder)
    some = {f"{number:064x}": np.eye(10, dtype=np.float32)[3] for number in range(2)}
    arguments = {"known": some, "batch_size": 2}
    reporter, has_killed = Killer(), []

    def predicted(remaining):
        rows = predict_with_workers(
            run_folder,
            remaining,
            identity=identify(run),
            num_workers=2,
            reporter=reporter,
            **arguments,
        )
        for number, row in enumerate(rows):
            if number >= 16 and not has_killed and kill_one("Predictor"):
                has_killed.append(number)
            yield row

    for name, predict in (
        ("one.csv", lambda remaining: predict_files(run, remaining, **arguments)),
        ("two.csv", predicted),
    ):
        summary = write_predictions(
            predict,
            files,
            tmp_path / name,
            task=run.contract.restored_task,
            target=identify(run),
        )
        assert (summary.num_predicted, summary.num_bad) == (228, 3)
    assert (tmp_path / "two.csv").read_bytes() == (tmp_path / "one.csv").read_bytes()
    assert has_killed
    assert [text[:16] for text in reporter.heard] == ["A worker was los"]


@pytest.mark.usefixtures("as_a_worker")
def test_a_worker_with_another_model_raises_an_error(run_folder):
    worker = Predictor(run_folder, "of something else", {}, 8, Environment.here(2))
    with pytest.raises(RunError, match="another model"):
        worker.predict([Path("a.png")])
