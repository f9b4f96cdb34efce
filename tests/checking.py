"""One process without Keras that checks all exports of a process of tests."""

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PROOF = "keras_transfer.export.saved_model.proof"
VERIFICATION = "keras_transfer.export.verification"
SCRIPT = Path(__file__).with_name("checking_process.py")
MOST_USES = 60
"""Exports that one process checks: it keeps every network that it has opened."""


@contextmanager
def one_checking_process() -> Iterator[None]:
    """Each export begins with a process that an earlier one has left, if there is one."""
    proof, verification = map(importlib.import_module, (PROOF, VERIFICATION))
    isolated, idle = proof.IsolatedProcess, []

    def start(kind):
        script, verification._SCRIPT = verification._SCRIPT, SCRIPT
        try:
            return isolated(kind)
        finally:
            verification._SCRIPT = script

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
        proof.IsolatedProcess = isolated
        for process, _ in idle:
            process.close()
