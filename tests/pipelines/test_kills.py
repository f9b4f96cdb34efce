"""Verbs that are killed at random moments and repeated, if KILLS is set to a number.

The repeated command ends with the results of an undisturbed one, and leaves no temporary file.
"""

import contextlib
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from small_backbone import save_small

ROOT = Path(__file__).parents[2]
NUM_KILLS = int(os.environ.get("KILLS", "0"))
"""How many processes are killed; each takes up to a minute."""

KILLS_IN_A_ROW = 4
SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)


@dataclass(frozen=True)
class Command:
    """A verb with its words, what it writes to, and the results that are compared."""

    verb: str
    words: tuple[str, ...]
    output: Path
    results: Callable[[Path], Any]

    def start(self, *more: str) -> subprocess.Popen[str]:
        """The verb in a process group of its own."""
        return subprocess.Popen(
            [sys.executable, "-m", f"pipelines.{self.verb}", *self.words, *more],
            cwd=ROOT,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def repeat(self) -> subprocess.Popen[str]:
        """The verb once more, resumed where there is something to resume."""
        begun = self.output.exists() or any(self.output.parent.glob("*.csv.partial*"))
        return self.start(*(["--resume"] if begun and self.verb != "export" else []))


def without_times(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: without_times(v) for k, v in value.items() if "second" not in k}
    return [without_times(item) for item in value] if isinstance(value, list) else value


def of_run(run: Path) -> Any:
    """Figures and predictions of a run."""
    metrics = json.loads((run / "metrics.json").read_text())
    return without_times(metrics), (run / "predictions.csv").read_text()


def of_export(run: Path) -> Any:
    """Figures and predictions of the run, and the numbers and agreement of its newest export."""
    newest = max((run / "export").glob("[0-9]*"), key=lambda version: int(version.name))
    proof = json.loads((newest / "proof.json").read_text())
    formats = sorted(file.name for file in (run / "formats" / newest.name).iterdir())
    agreement = [proof[name] for name in ("num_files", "label_agreement", "max_abs_difference")]
    return of_run(run), agreement, formats


@pytest.fixture(scope="module")
def make_commands(
    digits_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[Path], dict[str, Command]]:
    """The verbs, writing into a folder, of a small network of digits."""
    file = save_small(tmp_path_factory.mktemp("network") / "small.keras")
    spec = (
        str(digits_folder),
        *(f"model.backbone={file}", "data.image_size=32", "cache.precision=float32"),
        *("views.count=2", "phases.1.min_images=0", "phases.1.epochs=3"),
    )
    search = ("search.trials=2", "search.refits=0", "search.tuner=random")
    space = ("search.space.phases.1.learning_rate={values=[1e-3,1e-4]}",)

    def make(folder: Path) -> dict[str, Command]:
        run, table, tuned = folder / "run", folder / "all.csv", folder / "tuned"
        train = Command("train", (*spec, "--output", str(run)), run, of_run)
        words = (*spec, *search, *space, "--output", str(tuned))
        return {
            "train": train,
            "export": Command("export", (str(run), "--formats", "onnx,keras"), run, of_export),
            "predict": Command(
                "predict",
                (str(run), str(digits_folder), "--output", str(table)),
                table,
                Path.read_text,
            ),
            "tune": Command("tune", words, tuned, lambda folder: of_run(folder / "winner")),
        }

    return make


@dataclass(frozen=True)
class Undisturbed:
    """Each verb's results and seconds, and a run to export and to predict with."""

    results: dict[str, Any]
    seconds: dict[str, float]
    run: Path


@pytest.fixture(scope="module")
def undisturbed(make_commands, tmp_path_factory: pytest.TempPathFactory) -> Undisturbed:
    folder = tmp_path_factory.mktemp("undisturbed")
    results, seconds = {}, {}
    for name, command in make_commands(folder).items():
        start = time.monotonic()
        with command.start() as process:
            _, errors = process.communicate()
        assert process.returncode == 0, errors
        results[name], seconds[name] = command.results(command.output), time.monotonic() - start
        if name == "train":
            shutil.copytree(folder / "run", folder / "copy")
    return Undisturbed(results, seconds, folder / "copy")


def digests(folder: Path) -> dict[Path, str]:
    files = [file for file in folder.rglob("*") if file.is_file()]
    return {file: hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def killed_at_random(
    process: subprocess.Popen[str], draw: random.Random, seconds: float
) -> tuple[str, str]:
    """How the process was killed, '' if it had ended before, and what it had said."""
    number, is_group = draw.choice(SIGNALS), draw.random() < 0.5
    after = draw.uniform(1, seconds)
    with contextlib.suppress(subprocess.TimeoutExpired):
        return "", process.communicate(timeout=after)[1]
    (os.killpg if is_group else os.kill)(process.pid, number)
    way = f"{number.name} to the {'group' if is_group else 'process'} at {after:.1f} s"
    return way, process.communicate(timeout=60)[1]


@dataclass
class Trial:
    """A command that is killed some times in a row, then ends; `faults` tell what was wrong."""

    command: Command
    faults: list[str] = field(default_factory=list)
    started: list[subprocess.Popen[str]] = field(default_factory=list)
    num_kills: int = 0

    def kill(self, draw: random.Random, seconds: float) -> None:
        """Kill the command, and the repeated one, at random moments."""
        for _ in range(KILLS_IN_A_ROW):
            existed = self.command.output.exists()
            self.started.append(self.command.repeat())
            way, said = killed_at_random(self.started[-1], draw, seconds)
            print(f"   {self.command.verb}: {way} {said[-300:]}", flush=True)  # noqa: T201
            if "Traceback" in said or (way and "error:" in said):
                self.faults.append(f"{way}: {said[-2000:]}")
            if existed and not self.command.output.exists():
                self.faults.append(f"{way}: the output was deleted")
            if not way:
                return
            self.num_kills += 1

    def end(self, expected: Any) -> None:
        """Let the command end, and compare its results."""
        with self.command.repeat() as last:
            _, said = last.communicate(timeout=400)
        is_finished = any(words in said for words in ("is finished", "exists already"))
        if (last.returncode and not is_finished) or "Traceback" in said:
            self.faults.append(f"repeated: {last.returncode} {said[-2000:]}")
        elif self.command.results(self.command.output) != expected:
            self.faults.append("other results")
        files = [path.name for path in self.command.output.parent.rglob("*")]
        if kept := [name for name in files if ".partial" in name or ".replaced" in name]:
            self.faults.append(f"temporary files are left: {kept}")
        for process in self.started:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
                self.faults.append("a process that a killed command has started still runs")


@pytest.mark.slow
@pytest.mark.skipif(not NUM_KILLS, reason="takes an hour: set KILLS to the number of kills")
def test_killed_commands_end_like_undisturbed_ones(make_commands, undisturbed, tmp_path: Path):
    # A program started in the background ignores Ctrl-C, and so would those that it starts.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    draw = random.Random(0)
    trials: list[Trial] = []
    while sum(trial.num_kills for trial in trials) < NUM_KILLS:
        folder = tmp_path / str(len(trials))
        command = list(make_commands(folder).values())[len(trials) % 4]
        if command.verb in ("export", "predict"):
            shutil.copytree(undisturbed.run, folder / "run")
        else:
            folder.mkdir()
        before = digests(folder)
        trials.append(Trial(command))
        trials[-1].kill(draw, undisturbed.seconds[command.verb])
        trials[-1].end(undisturbed.results[command.verb])
        after = digests(folder)
        exported = [file for file in before if "/export/1/" in file.as_posix()]
        if any(after.get(file) != before[file] for file in exported):
            trials[-1].faults.append("an export was changed")
        print(command.verb, trials[-1].num_kills, trials[-1].faults, flush=True)  # noqa: T201
    assert [fault for trial in trials for fault in trial.faults] == []
