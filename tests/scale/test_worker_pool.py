"""Worker pools whose processes are killed or fail; the tasks are trivial here."""

import os
import signal
import subprocess
import sys

import pytest

from keras_transfer.errors import DataError, RunError
from keras_transfer.reporting.reporter import SilentReporter
from keras_transfer.scale.cluster import Share, joined
from keras_transfer.scale.worker_pool import RayWorkerPool

pytestmark = [pytest.mark.usefixtures("ray_cluster"), pytest.mark.graph_optimizer]


class Listener(SilentReporter):
    """Keeps all messages."""

    def __init__(self):
        self.heard: list[str] = []

    def info(self, text: str) -> None:
        self.heard.append(text)


def pool_of(method, listener: Listener) -> RayWorkerPool:
    import ray

    class Worker:
        """Sent by value: this module is not on the workers' search path."""

        def do(self, task):
            return method(task)

    return RayWorkerPool(
        start=lambda options: ray.remote(Worker).options(**options).remote(),
        send=lambda worker, task: worker.do.remote(task),
        name=lambda task: f"task {task}",
        share=Share(1),
        reporter=listener,
    )


@pytest.mark.slow
def test_every_task_is_done_once_and_a_killed_worker_is_reported(tmp_path):
    def square(task: int) -> int:
        import os
        import signal

        if task == 3 and not (tmp_path / "killed").exists():
            (tmp_path / "killed").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return task * task

    listener = Listener()
    done = list(pool_of(square, listener).work(range(8), 2))
    assert sorted(done) == [(n, n, n * n) for n in range(8)]
    (told,) = listener.heard
    assert told.startswith("A worker was lost at task 3 (Actor")
    assert told.endswith("the task is run again.")


def test_a_task_that_fails_three_times_ends_the_work_with_its_reason():
    def broken(task: int) -> int:
        return task // (task - 2)

    listener = Listener()
    with pytest.raises(RunError, match="task 2 failed 3 times") as raised:
        list(pool_of(broken, listener).work(range(4), 2))
    assert "ZeroDivisionError" in raised.value.received
    assert [text[:24] for text in listener.heard] == ["A worker failed at task "] * 2


def test_a_worker_that_is_killed_three_times_by_a_task_ends_the_work():
    def deadly(task: int) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    listener = Listener()
    with pytest.raises(RunError, match="task 0 failed 3 times") as raised:
        list(pool_of(deadly, listener).work(range(1), 1))
    assert "fewer --workers" in raised.value.fix
    assert len(listener.heard) == 2


def test_an_error_of_the_package_ends_the_work_at_once_unchanged():
    def refuse(task: int) -> None:
        raise DataError("no", expected="a", received="b", fix="c")

    listener = Listener()
    with pytest.raises(DataError) as raised:
        list(pool_of(refuse, listener).work(range(4), 2))
    assert (raised.value.what, raised.value.fix) == ("no", "c")
    assert listener.heard == []


def test_tasks_are_begun_only_so_far_ahead_of_the_oldest(tmp_path):
    def slow_first(task: int) -> list[str]:
        import time

        (tmp_path / f"{task:02d}").touch()
        if task == 0:
            while not (tmp_path / "04").exists():
                time.sleep(0.01)
            time.sleep(0.3)
        return sorted(path.name for path in tmp_path.iterdir())

    done = pool_of(slow_first, Listener()).work(range(12), 3, ahead=4)
    begun = {number: names for number, _, names in done}
    # A worker that starts late may not have begun its task yet; none may be further ahead.
    assert {"00", "04"} <= set(begun[0]) <= {"00", "01", "02", "03", "04"}
    assert sorted(begun) == list(range(12))


def test_more_workers_than_processors_are_refused():
    with (
        pytest.raises(RunError, match="exceeds the number of CPUs of the Ray cluster") as raised,
        joined(1000, reporter=SilentReporter()),
    ):
        pass
    assert raised.value.expected.startswith("at most ")


def test_the_cluster_sends_no_usage_statistics_and_requires_a_token():
    assert os.environ["RAY_USAGE_STATS_ENABLED"] == "0"
    assert os.environ["RAY_AUTH_MODE"] == "token"
    assert len(os.environ["RAY_AUTH_TOKEN"]) == 64


WITHOUT_A_NODE = """
import os, signal, time
import ray
from keras_transfer.errors import RunError
from keras_transfer.scale import worker_pool
from keras_transfer.scale.cluster import joined
from keras_transfer.reporting.reporter import SilentReporter

worker_pool._LOOK_SECONDS = 1.0

class Worker:
    def do(self, task):
        os.kill(os.getppid(), signal.SIGKILL)  # Ray's own process, which has started this one.
        time.sleep(60)  # A worker ends when it sees that.

with joined(1, reporter=SilentReporter()) as share:
    pool = worker_pool.RayWorkerPool(
        start=lambda options: ray.remote(Worker).options(**options).remote(),
        send=lambda worker, task: worker.do.remote(task),
        name=str,
        share=share,
        reporter=SilentReporter(),
    )
    try:
        list(pool.work(range(3), 1))
    except RunError as error:
        print("told:", error)
"""


QUICK_TO_NOTICE = {
    "RAY_health_check_period_ms": "500",
    "RAY_health_check_timeout_ms": "2000",
    "RAY_health_check_failure_threshold": "2",
}
"""Ray's settings of how soon a lost machine is noticed, which is half a minute otherwise."""


@pytest.mark.slow
def test_a_cluster_whose_only_machine_dies_ends_the_work():
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_A_NODE],
        env={**os.environ, **QUICK_TO_NOTICE},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert "told: no machine of the Ray cluster is left" in done.stdout, done.stderr[-2000:]
