"""Hosts of a run: starts one process per host, watches them, and reports a lost one.

The process that a user starts does not train. It starts the host that Keras's variables define for
this machine, or `devices.hosts` hosts on this machine. A host that waits for a lost one may not
react to anything else, so this process watches it.
"""

import contextlib
import os
import sys
import time
import traceback
from pathlib import Path
from typing import Final

from keras_transfer.config import load_spec
from keras_transfer.devices.hosts import ADDRESSES, HOST, NUM_HOSTS, first_address, given_host
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
"""Time for the others to end after one has failed: the first failure may not be the cause."""

_SIGNS_OF_LOSS: Final = ("coordination service", "Gloo", "heartbeat", "distributed service")
"""Words in errors of JAX and its libraries that mean that another host was lost."""


def run_hosts(spec: RunSpec, run: RunFolder, *, reporter: Reporter, profile: bool = False) -> None:
    """Start this machine's hosts of a run, and wait until they have ended.

    The output of host 0 goes to the terminal, that of the others to the run folder.

    Raises:
        KerasTransferError: the error that ended a host.
        RunError: a host was lost; the run continues with --resume.
    """
    given, num_hosts = given_host()
    environments: dict[int, dict[str, str]] = {given: {}}
    if num_hosts > 1:
        reporter.info(
            f"This is host {given} of {num_hosts}; all have to connect to "
            f"{first_address()} within five minutes."
        )
    else:
        num_hosts = spec.devices.hosts
        address = f"127.0.0.1:{free_port()}"
        environments = {
            host: {ADDRESSES: address, NUM_HOSTS: f"{num_hosts}", HOST: f"{host}"}
            for host in range(num_hosts)
        }
        reporter.info(f"{num_hosts} processes on this machine train together, like hosts.")
    with contextlib.ExitStack() as held:
        processes = {}
        for host, environment in environments.items():
            process = SubprocessCall(
                run_host,
                title=f"host {host} of {num_hosts}",
                log=log_of(run, host),
                environment=environment,
                on_terminal=host == 0,
                folder=str(run.path),
                parent=os.getpid(),
                profile=profile and host == 0,
            )
            held.callback(process.stop)
            processes[host] = process
        _watch(processes, run, num_hosts)


def log_of(run: RunFolder, host: int) -> Path:
    """The log file of a host: run.log for host 0, host-<number>.log for the others."""
    return run.log_file if host == 0 else run.path / f"host-{host}.log"


def run_host(folder: str, parent: int, profile: bool) -> None:
    """Main function of a host's process; it ends with its parent."""
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
        os._exit(1)  # At exit JAX would wait for the other hosts, which wait for this one.
    if host == 0:
        show_result(result, terminal)


def _watch(processes: dict[int, SubprocessCall], run: RunFolder, num_hosts: int) -> None:
    waiting = dict(processes)
    failed: list[int] = []
    deadline = float("inf")
    while waiting and time.monotonic() < deadline:
        time.sleep(_POLL_SECONDS)
        for host, process in list(waiting.items()):
            if not process.ended:
                continue
            del waiting[host]
            if not process.ended_well:
                failed.append(host)
                deadline = min(deadline, time.monotonic() + _GRACE_SECONDS)
    # A killed host is a cause, and also the first host with an error; hosts that JAX aborts because
    # they lost the connection are consequences.
    for host in sorted(failed, key=lambda host: _rank_as_cause(processes[host])):
        ending = processes[host].ending
        if _was_aborted(processes[host]):
            raise _lost(
                _other_than(host, num_hosts),
                f"no heartbeat, so JAX ended host {host} ({ending})",
                run,
            )
        if processes[host].was_killed:
            raise _lost(f"host {host} of {num_hosts}", ending, run)
        with vacated_on_refusal(run):
            processes[host].result()


def _was_aborted(process: SubprocessCall) -> bool:
    return process.was_killed and process.ending.endswith("SIGABRT")


def _rank_as_cause(process: SubprocessCall) -> int:
    if not process.was_killed:
        return 1
    return 2 if _was_aborted(process) else 0


def _other_than(host: int, num_hosts: int) -> str:
    """The lost host if `host` is still running; known only with two hosts."""
    return f"host {1 - host} of {num_hosts}" if num_hosts == 2 else f"a host other than {host}"


def _lost(who: str, received: str, run: RunFolder) -> RunError:
    return RunError(
        f"{who} was lost or never connected, and the others cannot continue without it",
        expected="hosts that all connect and run to the end",
        received=received,
        fix=f"see the logs in {run.path}, then start all hosts again with --resume: the run "
        "continues after its last finished epoch",
    )
