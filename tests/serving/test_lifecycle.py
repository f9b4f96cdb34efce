"""Versions that are added, broken and removed under load, and how a server shuts down."""

import asyncio
import json
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from http_clients import InProcess, Live, as_base64, exchange, hang_up, http_request

from keras_transfer.serving.settings import Settings

PREDICT = "/v1/models/temples:predict"


class Load:
    """Clients that send one request after the other until `stop`."""

    def __init__(self, port: int, images: list[bytes], *, num_clients: int = 4):
        self._requests = [
            http_request(PREDICT, json.dumps({"instances": [as_base64(data)]}).encode())
            for data in images
        ]
        self._port, self._num_clients = port, num_clients
        self._is_over = False
        self.answers: list[tuple[int, int, list[float]]] = []
        """Row of the image, status and probabilities, as they came."""
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()))

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._is_over = True
        self._thread.join()

    def wait_until_hung_up(self) -> None:
        """Wait until every client has lost its connection, which is how it ends by itself."""
        self._thread.join(timeout=30)
        assert not self._thread.is_alive()

    async def _run(self) -> None:
        await asyncio.gather(*(self._ask(number) for number in range(self._num_clients)))

    async def _ask(self, number: int) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
        row = number
        while not self._is_over:
            row = (row + 1) % len(self._requests)
            status, content = await exchange(reader, writer, self._requests[row])
            answer = content["predictions"][0]["probabilities"] if status == 200 else []
            self.answers.append((row, status, answer))
            if not status:
                break
        await hang_up(writer)


@contextmanager
def under_load(live: Live, images: list[bytes]) -> Iterator[Load]:
    load = Load(live.port, images)
    load.start()
    try:
        yield load
    finally:
        load.stop()


def answers_of(folder: Path, images: list[bytes]) -> np.ndarray:
    loaded = tf.saved_model.load(str(folder))
    answer = loaded.signatures["serving_default"](image_bytes=tf.constant(images))
    return answer["probabilities"].numpy()


def states(live: Live) -> dict[str, str]:
    return states_in(live.ask("/v1/models/temples")[1])


def states_in(content: dict) -> dict[str, str]:
    return {entry["version"]: entry["state"] for entry in content["model_version_status"]}


@pytest.mark.slow
def test_versions_change_under_load_without_a_failed_request(
    run_folder: Path,
    tmp_path: Path,
    live_server,
    export_another: Callable,
    images: list[bytes],
    probabilities: np.ndarray,
):
    folder = Path(shutil.copytree(run_folder / "export", tmp_path / "export"))
    expected = {"1": probabilities}
    with live_server(folder, "--poll-seconds", "0.2") as live, under_load(live, images) as load:
        (folder / "2").mkdir()  # Broken: a copy that only began.
        shutil.copy(folder / "1" / "saved_model.pb", folder / "2")
        (folder / "9.partial").mkdir()
        (folder / "Dockerfile").touch()
        live.wait_for(lambda: states(live).get("2") == "END")
        _, content = live.ask("/v1/models/temples/versions/2")
        message = content["model_version_status"][0]["status"]["error_message"]
        assert "see the server's log" in message
        assert "/" not in message
        assert live.version() == "1"
        for number in ("3", "4"):
            export_another(folder / number, float(number))
            expected[number] = answers_of(folder / number, images)
            live.wait_for(lambda number=number: live.version() == number)
        live.wait_for(lambda: states(live).get("3") == "END")
        assert live.ask("/v1/models/temples/versions/3/metadata")[0] == 404
        time.sleep(0.5)
        load.stop()
        seen = set()
        for row, status, answer in load.answers:
            assert status == 200
            fits = [n for n, p in expected.items() if np.abs(p[row] - answer).max() < 1e-5]
            assert fits, "probabilities of no version"
            seen |= set(fits)
        assert seen == set(expected)
        live.process.send_signal(signal.SIGINT)
        assert live.process.wait(timeout=30) == 0


def test_a_broken_copy_is_tried_again_when_it_is_complete(run_folder: Path, tmp_path: Path):
    folder = Path(shutil.copytree(run_folder / "export", tmp_path / "export"))
    tampered = Path(shutil.copytree(folder / "1", folder / "2"))
    (tampered / "labels.txt").write_text("other\nclasses\nhere\n")
    with InProcess(Settings(folder=folder)) as client:

        def refreshed() -> dict[str, str]:
            client.service.versions.refresh()
            return states_in(client.get("/v1/models/temples").json())

        assert refreshed() == {"2": "END", "1": "AVAILABLE"}
        shutil.copy(folder / "1" / "labels.txt", tampered)
        assert refreshed()["2"] == "AVAILABLE"
        shutil.rmtree(tampered)
        assert refreshed()["1"] == "AVAILABLE"


def check_that_sigterm_finishes_the_requests_under_way(live: Live, images: list[bytes]) -> None:
    rows = [{"image_bytes": as_base64(data), "class_index": -1} for data in images]
    content = {"signature_name": "serving_explain", "instances": rows}
    request = http_request(PREDICT, json.dumps(content).encode())

    async def end_amid_requests() -> list[tuple[int, object]]:
        connections = [await asyncio.open_connection("127.0.0.1", live.port) for _ in range(4)]
        waiting = [asyncio.create_task(exchange(*c, request)) for c in connections]
        assert (await asyncio.to_thread(live.ask, "/healthz"))[0] == 200
        assert not any(task.done() for task in waiting)
        live.process.send_signal(signal.SIGTERM)
        answers = await asyncio.gather(*waiting)
        for _, writer in connections:
            await hang_up(writer)
        return answers

    answers = asyncio.run(end_amid_requests())
    assert [status for status, _ in answers] == [200] * 4
    assert live.process.wait(timeout=30) == 0
    with pytest.raises(ConnectionRefusedError):
        live.ask("/healthz")


@pytest.mark.slow
def test_a_killed_server_loses_only_requests_under_way_and_sigterm_loses_none(
    run_folder: Path, live_server, images: list[bytes], probabilities: np.ndarray
):
    def check(load: Load) -> None:
        for row, status, answer in load.answers:
            if status:
                assert status == 200
                np.testing.assert_allclose(answer, probabilities[row], rtol=0, atol=1e-6)

    before = sorted(path for path in run_folder.rglob("*"))
    with live_server(run_folder) as live, under_load(live, images) as load:
        while len(load.answers) < 50:
            time.sleep(0.05)
        live.process.kill()
        load.wait_until_hung_up()
    lost = [status for _, status, _ in load.answers if status != 200]
    assert lost == [0] * 4  # One a client.
    check(load)
    assert sorted(path for path in run_folder.rglob("*")) == before
    with live_server(run_folder, "--port", str(live.port)) as live:
        with under_load(live, images) as load:
            while len(load.answers) < 50:
                time.sleep(0.05)
        check(load)
        assert all(status == 200 for _, status, _ in load.answers)
        check_that_sigterm_finishes_the_requests_under_way(live, images)


def test_wrong_arguments_end_with_a_hint(run_folder: Path, tmp_path: Path, capsys):
    from pipelines import serve

    assert serve.main([str(tmp_path)]) == 2
    assert "no exported model" in capsys.readouterr().err
    assert serve.main([str(run_folder), "--host", "203.0.113.1", "--port", "0"]) == 2
    assert "cannot listen on" in capsys.readouterr().err


def test_help_does_not_import_tensorflow():
    code = (
        "import sys, runpy; sys.argv = ['serve', '--help']\n"
        "try: runpy.run_module('pipelines.serve', run_name='__main__')\n"
        "except SystemExit: pass\n"
        "names = ('keras', 'tensorflow', 'numpy', 'starlette', 'uvicorn')\n"
        "sys.exit(any(name in sys.modules for name in names))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "--max-wait-ms" in done.stdout
