"""Small searches over real digits, as several tests run them."""

import json

from keras_transfer.config import override
from keras_transfer.experiments.tune.search import SearchResult, run_search
from keras_transfer.reporting.reporter import SilentReporter
from keras_transfer.specs import (
    CacheSpec,
    DataSpec,
    ModelSpec,
    PhaseSpec,
    RunSpec,
    TrainingSpec,
    ViewSpec,
)
from keras_transfer.storage.run_start import start_run

RATE, DROPOUT = "phases.0.learning_rate", "model.dropout"
SPACE = {RATE: {"values": [1e-3, 3e-2]}, DROPOUT: {"values": [0.0, 0.3]}}


def make_spec(folder, cache, **changes) -> RunSpec:
    """A grid of four heads on a random trunk."""
    spec = RunSpec(
        name="small",
        data=DataSpec(path=str(folder), image_size=32, resize="squash"),
        views=ViewSpec(count=2),
        model=ModelSpec(backbone="small", last_stage="stage1", weights="none"),
        phases=(PhaseSpec(name="frozen", epochs=2),),
        training=TrainingSpec(rollback=False, refit=False, label_smoothing=0.0),
        cache=CacheSpec(folder=str(cache), precision="float32", dtype="float32"),
    )
    search = {"search.tuner": "grid", "search.refits": 0, "search.space": SPACE}
    return override(spec, {**search, **changes})


def search(spec: RunSpec, output, reporter=None, *, resume: bool = False, **given) -> SearchResult:
    run = start_run(spec, output=output, resume=resume, suffix="-search")
    return run_search(spec, run, reporter=reporter or SilentReporter(), **given)


def read_json(path):
    return json.loads(path.read_text())
