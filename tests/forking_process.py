"""Imports TensorFlow and this package once, and forks a process for each order; see forked_process.

    python tests/forking_process.py SOCKET

Each message on the socket, whose number is SOCKET, is an order: JSON, with the file descriptors of
standard input, output and error. The answer is the number of a process that runs the command. That
process is a child of the process that sent the order, which is a subreaper.
"""

import gc
import json
import os
import runpy
import signal
import socket
import sys
import time
from pathlib import Path

sys.path[0] = str(Path(__file__).parents[1])

from keras_transfer.devices import speed_up_imports

speed_up_imports()


def import_all() -> None:
    """Only imports: nothing is computed, so that TensorFlow has no threads yet."""
    import tensorflow  # noqa: F401

    import keras_transfer.experiments.run
    import keras_transfer.inference.prediction  # noqa: F401

    gc.collect()
    gc.freeze()


def next_order(channel: socket.socket) -> dict:
    """Answer orders; this returns in the forked processes only."""
    while True:
        message, streams, _, _ = socket.recv_fds(channel, 1 << 20, 3)
        if not message:
            sys.exit()
        reading, writing = os.pipe()
        if not (between := os.fork()):
            if child := os.fork():
                os.write(writing, str(child).encode())
                os._exit(0)
            channel.close()
            for stream in (reading, writing):
                os.close(stream)
            return json.loads(message) | {"streams": streams}
        # The child is the sender's as soon as the process between them has ended.
        os.waitpid(between, 0)
        channel.send(os.read(reading, 100))
        for stream in (reading, writing, *streams):
            os.close(stream)


def become(order: dict) -> None:
    """Take over what a process is started with."""
    while os.getppid() != order["parent"]:
        time.sleep(0.001)
    for number, stream in enumerate(order["streams"]):
        os.dup2(stream, number)
        os.close(stream)
    sys.stdin = open(0, closefd=False)  # noqa: SIM115
    sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", buffering=1, errors="backslashreplace", closefd=False)  # noqa: SIM115
    os.chdir(order["folder"])
    os.environ.clear()
    os.environ.update(order["environment"])
    signal.signal(signal.SIGINT, signal.default_int_handler)


def run(kind: str, program: str, *arguments: str) -> None:
    """What Python does with `-m program` or `-c program`."""
    sys.path[:1] = [os.getcwd(), *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    sys.argv = [kind, *arguments]
    if kind == "-m":
        sys.modules.pop(program, None)  # As in a new process, it has not been imported.
        runpy.run_module(program, run_name="__main__", alter_sys=True)
    else:
        exec(compile(program, "<string>", "exec"), {"__name__": "__main__"})


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the tests.
    import_all()
    order = next_order(socket.socket(fileno=int(sys.argv[1])))
    become(order)
    run(*order["words"])
