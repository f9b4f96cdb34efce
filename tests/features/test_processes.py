"""Extractions as processes: killed, wanted twice, and of very many pictures."""

import multiprocessing
import random
import time
from pathlib import Path

import numpy as np
import pytest
from extraction_process import run, run_many

from keras_transfer.features.store import Store

NUM_KILLS = 20


@pytest.fixture(scope="module")
def processes():
    """Starts processes quickly: they are forked from one that has imported everything."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["extraction_process"])
    return context


def finish(process) -> None:
    process.start()
    process.join(200)
    assert process.exitcode == 0


def load(file: Path) -> dict[str, np.ndarray]:
    with np.load(file) as arrays:
        return dict(arrays)


@pytest.fixture(scope="module")
def undisturbed(processes, tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed")
    started = time.monotonic()
    finish(processes.Process(target=run, args=(str(folder / "store"), str(folder / "a.npz"))))
    seconds = time.monotonic() - started
    assert len(list((folder / "store").rglob("shard-*.bin"))) > 10
    return load(folder / "a.npz"), seconds


@pytest.mark.slow
def test_killed_at_twenty_random_moments_it_ends_with_the_same_bits(
    processes, undisturbed, tmp_path
):
    expected, seconds = undisturbed
    moments = random.Random(0)
    kills, attempt, interrupted = 0, 0, set()
    while kills < NUM_KILLS:
        store, result = tmp_path / f"store-{attempt}", tmp_path / f"{attempt}.npz"
        attempt += 1
        # Several kills of one extraction, until it has got to its end in spite of them.
        while kills < NUM_KILLS:
            started = tmp_path / f"started-{kills}"
            process = processes.Process(target=run, args=(str(store), str(result), str(started)))
            process.start()
            while not started.exists():
                assert process.is_alive()
                time.sleep(0.005)
            process.join(moments.uniform(0, seconds / 2))
            if not process.is_alive():
                break
            process.kill()
            process.join()
            kills += 1
            interrupted.add(len(list(store.rglob("shard-*.bin"))))
        finish(processes.Process(target=run, args=(str(store), str(result))))
        found = load(result)
        for number in ("0", "1"):
            np.testing.assert_array_equal(found[number], expected[number])
        assert Store(store).entries()
    assert len(interrupted) > 3, "kills at different stages"


def test_two_processes_share_one_extraction(processes, undisturbed, tmp_path):
    expected, _ = undisturbed
    both = [
        processes.Process(target=run, args=(str(tmp_path / "store"), str(tmp_path / f"{n}.npz")))
        for n in range(2)
    ]
    for process in both:
        process.start()
    for process in both:
        process.join(200)
        assert process.exitcode == 0
    results = [load(tmp_path / f"{n}.npz") for n in range(2)]
    assert sorted(int(result["computed"]) for result in results) == [0, 960]
    for result in results:
        np.testing.assert_array_equal(result["1"], expected["1"])


def test_memory_does_not_grow_with_the_number_of_pictures(processes, tmp_path):
    peaks = []
    for number in (1_000, 20_000):
        result = tmp_path / f"{number}.txt"
        arguments = (number, str(tmp_path / str(number)), str(result))
        finish(processes.Process(target=run_many, args=arguments))
        peaks.append(float(result.read_text()))
    assert peaks[1] < 1.1 * peaks[0], peaks
