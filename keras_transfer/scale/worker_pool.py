"""A pool of Ray workers: each runs one task at a time; the task of a lost worker is run again.

A worker is a Ray actor: a process that builds its network for its first task and keeps it. Ray
reports a lost worker; a new one replaces it and gets its task first.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Final, Generic, TypeVar

from keras_transfer.errors import KerasTransferError, RunError
from keras_transfer.reporting.reporter import Reporter
from keras_transfer.scale.cluster import Share

_MOST_FAILURES: Final = 3
_LOOK_SECONDS: Final = 10.0
"""Seconds between checks for machines while no task finishes."""

Task = TypeVar("Task")


@dataclass(eq=False)
class _Started(Generic[Task]):
    """A task given to a worker: its number, and its number of failures."""

    number: int
    task: Task
    num_failures: int = 0


class _Queue(Generic[Task]):
    """Tasks in their order, but failed ones first."""

    def __init__(self, tasks: Iterable[Task], ahead: int | None):
        self.again: deque[_Started[Task]] = deque()
        self._tasks, self._ahead = enumerate(tasks), ahead
        self._newest = -1

    def next(self, running: list[int]) -> _Started[Task] | None:
        """The next task for a free worker, or None; `running` has the numbers of running tasks."""
        if self.again:
            return self.again.popleft()
        oldest = min(running, default=self._newest)
        if self._ahead is not None and self._newest - oldest >= self._ahead:
            return None
        if started := next((_Started(*one) for one in self._tasks), None):
            self._newest = started.number
        return started


class RayWorkerPool(Generic[Task]):
    """Runs tasks with workers of one kind.

    `start` starts a worker's process with the given Ray options; `send` gives it a task and returns
    the reference of its result; `name` describes a task in a few words.
    """

    def __init__(
        self,
        *,
        start: Callable[[dict[str, Any]], Any],
        send: Callable[[Any, Task], Any],
        name: Callable[[Task], str],
        share: Share,
        reporter: Reporter,
    ):
        # By default Ray would retry in the failed process; here another process runs the task.
        self._options = {"num_cpus": share.num_cpus, "max_restarts": 0, "max_task_retries": 0}
        self._start, self._send, self._name = start, send, name
        self._reporter = reporter

    def work(
        self, tasks: Iterable[Task], num_workers: int, *, ahead: int | None = None
    ) -> Iterator[tuple[int, Task, Any]]:
        """Yield number, task and result of all tasks, as they finish.

        Args:
            tasks: taken one by one when workers are free.
            ahead: how many tasks may start after the oldest unfinished one; None is no limit.

        Raises:
            KerasTransferError: the error that a worker raised.
            RunError: one task failed three times with other errors, or ended its worker.
        """
        import ray

        queue = _Queue(tasks, ahead)
        running: dict[Any, tuple[Any, _Started[Task]]] = {}
        idle: list[Any] = []

        def hand_out() -> None:
            """Give tasks to idle workers, and start new ones for further tasks."""
            while len(running) < num_workers:
                if not (started := queue.next([started.number for _, started in running.values()])):
                    return
                worker = idle.pop() if idle else self._start(self._options)
                running[self._send(worker, started.task)] = worker, started

        try:
            hand_out()
            while running:
                done = _next_done(running)
                worker, started = running.pop(done)
                try:
                    result = ray.get(done)
                except ray.exceptions.RayError as error:
                    idle += self._after_failure(worker, started, error)
                    queue.again.append(started)
                    hand_out()
                else:
                    idle.append(worker)
                    # Before the caller processes the result, which may take time.
                    hand_out()
                    yield started.number, started.task, result
        finally:
            for worker in [*idle, *(worker for worker, _ in running.values())]:
                ray.kill(worker)

    def _after_failure(self, worker: Any, started: _Started[Task], error: Exception) -> list[Any]:
        """Report a failure; the worker if it is still usable."""
        import ray

        is_alive = isinstance(error, ray.exceptions.RayTaskError)
        cause = getattr(error, "cause", error) if is_alive else error
        if isinstance(cause, KerasTransferError):
            raise cause from None
        started.num_failures += 1
        reason = _first_line(cause)
        if started.num_failures == _MOST_FAILURES:
            raise RunError(
                f"{self._name(started.task)} failed {_MOST_FAILURES} times",
                expected="a task that a worker can finish",
                received=reason,
                fix="correct the error above; details are in Ray's logs, by default in "
                "/tmp/ray/session_latest/logs of the worker's machine. If memory ran out, set "
                "fewer --workers. Stored results are not computed again",
            ) from cause
        how = "failed" if is_alive else "was lost"
        self._reporter.info(
            f"A worker {how} at {self._name(started.task)} ({reason}); the task is run again."
        )
        if is_alive:
            return [worker]
        ray.kill(worker)  # It may still run if only the connection was lost.
        return []


def _next_done(running: Iterable[Any]) -> Any:
    """The next reference with a result; RunError if no machine is left.

    By default Ray would wait for new machines.
    """
    import ray

    while True:
        done, _ = ray.wait(list(running), timeout=_LOOK_SECONDS)
        if done:
            return done[0]
        nodes = ray.nodes()
        if not any(node["Alive"] for node in nodes):
            raise RunError(
                "no machine of the Ray cluster is left",
                expected="at least one for workers",
                received=f"{len(nodes)} lost machines",
                fix="see Ray's logs, by default in /tmp/ray/session_latest/logs, then run the same "
                "command again: finished work is not repeated",
            )


def _first_line(cause: BaseException) -> str:
    lines = str(cause).strip().splitlines()
    return f"{type(cause).__name__}: {lines[0] if lines else 'no message'}"[:300]
