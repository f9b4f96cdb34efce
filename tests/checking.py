"""One process without Keras that checks all exports of a process of tests."""

import importlib
from collections.abc import Iterator
from contextlib import contextmanager

PROOF = "keras_transfer.export.saved_model.proof"
MOST_USES = 60
"""Exports that one process checks: it keeps every network that it has opened."""


@contextmanager
def one_checking_process() -> Iterator[None]:
    """Each export begins with a process that an earlier one has left, if there is one."""
    proof = importlib.import_module(PROOF)
    start, idle = proof.IsolatedProcess, []

    @contextmanager
    def kept(kind):
        process, num_uses = idle.pop() if idle else (start(kind), 0)
        try:
            yield process
        except BaseException:
            process.close()
            raise
        if num_uses < MOST_USES:
            idle.append((process, num_uses + 1))
        else:
            process.close()

    proof.IsolatedProcess = kept
    try:
        yield
    finally:
        proof.IsolatedProcess = start
        for process, _ in idle:
            process.close()
