"""A process for every host of a run, and what is said when one of them is lost.

The process that a user starts trains nothing: it starts the host it is, as Keras's variables say,
or `devices.hosts` of them on this machine, and minds them. A host that waits for a lost one may be
deaf to everything else, so whoever minds it must be another process.
"""

import contextlib
import os
import sys
import time
import traceback
from pathlib import Path
from typing import Final

from keras_transfer.config import load_spec
from keras_transfer.devices.hosts import ADDRESSES, HOST, NUM_HOSTS, given_host, meeting_place
from keras_transfer.devices.subprocess_call import SubprocessCall, end_with_parent, free_port
from keras_transfer.errors import KerasTransferError, RunError
from keras_transfer.experiments.run import run_transfer
from keras_transfer.experiments.summary import show_result
from keras_transfer.reporting.reporter import Reporter, SilentReporter, TerminalReporter
from keras_transfer.specs import RunSpec
from keras_transfer.storage.run_folder import RunFolder
from keras_transfer.storage.run_start import vacated_on_refusal

_POLL_SECONDS: Final = 0.5
_GRACE_SECONDS: Final = 5.0
"""How long the others may go on after one has ended badly: the first seen need not be the cause."""

_SIGNS_OF_LOSS: Final = ("coordination service", "Gloo", "heartbeat", "distributed service")
"""Words by which JAX, and what it is made of, tell that another host is gone."""


def run_hosts(spec: RunSpec, run: RunFolder, *, reporter: Reporter, profile: bool = False) -> None:
    """Start the hosts of a run that are to be started here, and mind them until they have ended.

    What host 0 says goes to the terminal, what the others say into the run folder.

    Raises:
        KerasTransferError: the very error that ended a host.
        RunError: a host was lost; the run goes on with --resume.
    """
    given, num_hosts = given_host()
    environments: dict[int, dict[str, str]] = {given: {}}
    if num_hosts > 1:
        reporter.info(
            f"This is host {given} of {num_hosts}; within five minutes all have to meet at "
            f"{meeting_place()}."
        )
    else:
        num_hosts = spec.devices.hosts
        address = f"127.0.0.1:{free_port()}"
        environments = {
            host: {ADDRESSES: address, NUM_HOSTS: f"{num_hosts}", HOST: f"{host}"}
            for host in range(num_hosts)
        }
        reporter.info(f"{num_hosts} processes of this machine train together, as hosts would.")
    with contextlib.ExitStack() as held:
        children = {}
        for host, environment in environments.items():
            child = SubprocessCall(
                play_host,
                title=f"host {host} of {num_hosts}",
                log=log_of(run, host),
                environment=environment,
                on_terminal=host == 0,
                folder=str(run.path),
                parent=os.getpid(),
                profile=profile and host == 0,
            )
            held.callback(child.stop)
            children[host] = child
        _mind(children, run, num_hosts)


def log_of(run: RunFolder, host: int) -> Path:
    """Where a host's native log output goes: to the run's own log, as ever, that of host 0."""
    return run.log_file if host == 0 else run.path / f"host-{host}.log"


def play_host(folder: str, parent: int, profile: bool) -> None:
    """What a started process does: its part of the run in a folder, while its parent lives."""
    end_with_parent(parent)
    run = RunFolder(Path(folder))
    spec, host = load_spec(run.spec_file), given_host()[0]
    terminal = TerminalReporter()
    try:
        reporter = SilentReporter() if host else terminal
        result = run_transfer(spec, run, reporter=reporter, profile=profile)
    except KerasTransferError:
        raise
    except Exception as error:
        if any(sign in str(error) for sign in _SIGNS_OF_LOSS):
            raise _lost(_other_than(*given_host()), f"{error}"[:300], run) from error
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)  # On the way out JAX would wait for the others, who wait for this one.
    if host == 0:
        show_result(result, terminal)


def _mind(children: dict[int, SubprocessCall], run: RunFolder, num_hosts: int) -> None:
    waiting = dict(children)
    ended_badly: list[int] = []
    deadline = float("inf")
    while waiting and time.monotonic() < deadline:
        time.sleep(_POLL_SECONDS)
        for host, child in list(waiting.items()):
            if not child.ended:
                continue
            del waiting[host]
            if not child.ended_well:
                ended_badly.append(host)
                deadline = min(deadline, time.monotonic() + _GRACE_SECONDS)
    # One that was killed is a cause, and so is the first with an error of its own; those that JAX
    # aborts, because they have lost touch, are consequences.
    for host in sorted(ended_badly, key=lambda host: _how_late(children[host])):
        ending = children[host].ending
        if _was_aborted(children[host]):
            raise _lost(
                _other_than(host, num_hosts),
                f"no sign of life, for which JAX ended host {host} ({ending})",
                run,
            )
        if children[host].was_killed:
            raise _lost(f"host {host} of {num_hosts}", ending, run)
        # Refused: its own process has taken the folder away, but for what was written here.
        is_gone = not run.spec_file.exists()
        with vacated_on_refusal(run) if is_gone else contextlib.nullcontext():
            children[host].result()


def _was_aborted(child: SubprocessCall) -> bool:
    return child.was_killed and child.ending.endswith("SIGABRT")


def _how_late(child: SubprocessCall) -> int:
    if not child.was_killed:
        return 1
    return 2 if _was_aborted(child) else 0


def _other_than(host: int, num_hosts: int) -> str:
    """Of two hosts it is known which was lost if the other lives."""
    return f"host {1 - host} of {num_hosts}" if num_hosts == 2 else f"a host other than {host}"


def _lost(who: str, received: str, run: RunFolder) -> RunError:
    return RunError(
        f"{who} was lost or never came, and the others cannot go on without it",
        expected="hosts that all come, and live until the run has ended",
        received=received,
        fix=f"look into the logs in {run.path}, then start all hosts again with --resume: the run "
        "goes on from its last epoch",
    )
