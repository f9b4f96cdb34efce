"""A pool of Ray workers: tasks are handed out one by one, and again when a worker dies.

A worker is an actor: a process that builds its networks at its first task and keeps them. Ray
notices when one dies; another is started in its place, and its task comes first again.
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
"""How often to look whether there are machines left, while nothing is done."""

Task = TypeVar("Task")


@dataclass(eq=False)
class _Begun(Generic[Task]):
    """A task that was handed out: its place among all, and how often it failed."""

    number: int
    task: Task
    num_failures: int = 0


class _Queue(Generic[Task]):
    """Tasks in their order, but those that failed first."""

    def __init__(self, tasks: Iterable[Task], ahead: int | None):
        self.again: deque[_Begun[Task]] = deque()
        self._tasks, self._ahead = enumerate(tasks), ahead
        self._newest = -1

    def next(self, running: list[int]) -> _Begun[Task] | None:
        """What a free worker should do now, the tasks of these numbers being under way."""
        if self.again:
            return self.again.popleft()
        oldest = min(running, default=self._newest)
        if self._ahead is not None and self._newest - oldest >= self._ahead:
            return None
        if begun := next((_Begun(*one) for one in self._tasks), None):
            self._newest = begun.number
        return begun


class RayWorkerPool(Generic[Task]):
    """As many workers of one kind as asked for, while tasks last.

    `start` starts a worker's process, given Ray's options; `send` hands it a task and gives the
    reference to what it will answer; `name` says in a few words which task it is.
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
        # Ray's own second tries go to the process that died: here another takes over.
        self._options = {"num_cpus": share.num_cpus, "max_restarts": 0, "max_task_retries": 0}
        self._start, self._send, self._name = start, send, name
        self._reporter = reporter

    def work(
        self, tasks: Iterable[Task], num_workers: int, *, ahead: int | None = None
    ) -> Iterator[tuple[int, Task, Any]]:
        """Yield number, task and answer of all tasks, as they are done.

        Args:
            tasks: taken one by one, as workers are free.
            ahead: how far behind the oldest unfinished task one may be begun; None is no limit.

        Raises:
            KerasTransferError: the very error that a worker raised.
            RunError: one task failed three times in other ways, or killed its worker.
        """
        import ray

        queue = _Queue(tasks, ahead)
        running: dict[Any, tuple[Any, _Begun[Task]]] = {}
        idle: list[Any] = []

        def hand_out() -> None:
            """Give the idle something to do, and start workers while there is more than that."""
            while len(running) < num_workers:
                if not (begun := queue.next([begun.number for _, begun in running.values()])):
                    return
                worker = idle.pop() if idle else self._start(self._options)
                running[self._send(worker, begun.task)] = worker, begun

        try:
            hand_out()
            while running:
                done = _next_done(running)
                worker, begun = running.pop(done)
                try:
                    answer = ray.get(done)
                except ray.exceptions.RayError as error:
                    idle += self._after_failure(worker, begun, error)
                    queue.again.append(begun)
                    hand_out()
                else:
                    idle.append(worker)
                    # Before the answer is looked at, which may take a while.
                    hand_out()
                    yield begun.number, begun.task, answer
        finally:
            for worker in [*idle, *(worker for worker, _ in running.values())]:
                ray.kill(worker)

    def _after_failure(self, worker: Any, begun: _Begun[Task], error: Exception) -> list[Any]:
        """Tell it; the worker is idle again, or gone."""
        import ray

        is_alive = isinstance(error, ray.exceptions.RayTaskError)
        cause = getattr(error, "cause", error) if is_alive else error
        if isinstance(cause, KerasTransferError):
            raise cause from None
        begun.num_failures += 1
        reason = _first_line(cause)
        if begun.num_failures == _MOST_FAILURES:
            raise RunError(
                f"{self._name(begun.task)} failed {_MOST_FAILURES} times",
                expected="a worker that comes to its end",
                received=reason,
                fix="mend what it names; Ray's logs, by default in /tmp/ray/session_latest/logs of "
                "the worker's machine, have the whole story. If memory ran out, set fewer "
                "--workers. What is stored already is not computed again",
            ) from cause
        how = "failed" if is_alive else "died"
        self._reporter.info(
            f"A worker {how} at {self._name(begun.task)} ({reason}); it is given out again."
        )
        if is_alive:
            return [worker]
        ray.kill(worker)  # Should only the connection have died.
        return []


def _next_done(running: Iterable[Any]) -> Any:
    """The reference that is answered next; RunError where no machine is left to answer.

    Ray itself would wait for machines to join.
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
                expected="at least one on which workers can run",
                received=f"{len(nodes)} that died",
                fix="look into Ray's logs, by default in /tmp/ray/session_latest/logs, then give "
                "the same command again: what is done already is not done anew",
            )


def _first_line(cause: BaseException) -> str:
    lines = str(cause).strip().splitlines()
    return f"{type(cause).__name__}: {lines[0] if lines else 'no message'}"[:300]
