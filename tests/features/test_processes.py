"""Extractions as processes: killed, wanted twice, and of very many images."""

import multiprocessing
import random
import time
from pathlib import Path

import numpy as np
import pytest
from extraction_process import run, run_many

NUM_KILLS, KILLS_IN_A_ROW = 10, 5


@pytest.fixture(scope="module")
def processes():
    """Starts processes quickly: they are forked from one that has imported everything."""
    with pytest.MonkeyPatch.context() as patch:
        # The server does not take over the search path of this process.
        patch.setenv("PYTHONPATH", str(Path(__file__).parents[1]))
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["extraction_process"])
        yield context


def finish(process) -> None:
    process.start()
    process.join(200)
    assert process.exitcode == 0


def load(file: Path) -> dict[str, np.ndarray]:
    with np.load(file) as arrays:
        return dict(arrays)


@pytest.fixture(scope="module")
def undisturbed(processes, tmp_path_factory):
    """What an extraction gives that nobody disturbs, and how many shards it writes."""
    folder = tmp_path_factory.mktemp("undisturbed")
    finish(processes.Process(target=run, args=(str(folder / "store"), str(folder / "a.npz"))))
    return load(folder / "a.npz"), num_shards(folder / "store")


def num_shards(cache: Path) -> int:
    return len(list(cache.glob("*/shard-*.json")))


def kill_after(process, cache: Path, target: int, delay: float) -> None:
    """Start it, wait until so many shards are there and a little longer, and kill it."""
    process.start()
    while num_shards(cache) < target:
        assert process.is_alive(), "it ended before it could be killed"
        time.sleep(0.003)
    time.sleep(delay)
    process.kill()
    process.join()


@pytest.mark.slow
def test_killed_at_ten_random_moments_it_ends_with_the_same_bits(processes, undisturbed, tmp_path):
    expected, most = undisturbed
    moments = random.Random(0)
    found_by_the_next = set()
    for number in range(NUM_KILLS // KILLS_IN_A_ROW):
        cache, result = tmp_path / f"store-{number}", tmp_path / f"{number}.npz"
        for target in sorted(moments.sample(range(most - 2), KILLS_IN_A_ROW)):
            process = processes.Process(target=run, args=(str(cache), str(result)))
            kill_after(process, cache, target, moments.uniform(0, 0.02))
            found_by_the_next.add(num_shards(cache))
        finish(processes.Process(target=run, args=(str(cache), str(result))))
        found = load(result)
        for cut in ("0", "1"):
            np.testing.assert_array_equal(found[cut], expected[cut])
    assert len(found_by_the_next) > NUM_KILLS / 2, "kills at different stages"


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


def test_memory_does_not_grow_with_the_number_of_images(processes, tmp_path):
    peaks = []
    for number in (1_000, 10_000):
        result = tmp_path / f"{number}.txt"
        arguments = (number, str(tmp_path / str(number)), str(result))
        finish(processes.Process(target=run_many, args=arguments))
        peaks.append(float(result.read_text()))
    assert peaks[1] < 1.1 * peaks[0], peaks
