"""Ask one artefact in a process of its own, as a stranger would: its library and nothing of ours.

Run by path, never imported: `python -P asker.py '{"path": …, "kind": …}'`. It opens the artefact
and says which class hash it holds; from then on each line on standard input is an order, and each
line on the first standard output its answer, both JSON:

    {"pixels": a.npy, "answers": b.npy}   answer all images of one file into another
    {"batch_size": 8, "calls": 5}         the seconds of so many calls
"""

import importlib.util
import json
import os
import sys
import time
import traceback
from pathlib import Path
from types import ModuleType
from typing import Any, Final

_BLOCKED: Final = {
    "keras": (),
    "saved_model": ("keras", "tf_keras", "jax", "keras_transfer"),
    "plain": ("keras", "tf_keras", "jax", "keras_transfer"),
}
_ALL: Final = ("tensorflow", "keras", "tf_keras", "jax", "keras_transfer")
_BATCH_SIZE: Final = 32


def main(words: str) -> None:
    """Open, then answer until standard input ends."""
    order = json.loads(words)
    # What libraries print must not come between the answers.
    out = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    for name in _BLOCKED.get(order["kind"], _ALL):
        sys.modules[name] = None  # type: ignore[assignment]
    try:
        opened = _openers().open_artefact(
            Path(order["path"]),
            kind=order["kind"],
            num_threads=order["num_threads"],
            precision=order["precision"],
        )
        print(json.dumps({"class_hash": opened.class_hash}), file=out)
        asked = _Asked(opened.classify, order["image_size"])
        for line in sys.stdin:
            print(json.dumps(asked.obey(json.loads(line))), file=out)
    except Exception:  # Any failure is an answer.
        print(json.dumps({"error": traceback.format_exc()}), file=out)


class _Asked:
    """An open artefact and the batch size that it was last asked with."""

    def __init__(self, classify: Any, image_size: int):
        self._classify, self._size, self._warm = classify, image_size, 0

    def obey(self, order: dict[str, Any]) -> dict[str, Any]:
        if "pixels" in order:
            return self._answer(order["pixels"], order["answers"])
        return {"seconds": self._time(order["batch_size"], order["calls"])}

    def _answer(self, pixels_file: str, answers_file: str) -> dict[str, Any]:
        import numpy as np

        pixels = np.load(pixels_file, mmap_mode="r")
        batches = (
            np.array(pixels[start : start + _BATCH_SIZE])
            for start in range(0, len(pixels), _BATCH_SIZE)
        )
        rows = [self._classify(batch) for batch in batches]
        one = self._classify(np.array(pixels[:1]))
        if one.shape != rows[0][:1].shape:
            raise ValueError(f"a batch of 1 is answered with {one.shape}")
        np.save(answers_file, np.concatenate(rows))
        return {"dtype": str(one.dtype)}

    def _time(self, batch_size: int, calls: int) -> list[float]:
        import numpy as np

        shape = (batch_size, self._size, self._size, 3)
        batch = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
        if self._warm != batch_size:
            self._classify(batch)  # Another size is laid out, or traced, first.
            self._warm = batch_size
        seconds = []
        for _ in range(calls):
            begun = time.perf_counter()
            self._classify(batch)
            seconds.append(time.perf_counter() - begun)
        return seconds


def _openers() -> ModuleType:
    """`openers.py` beside this file, although nothing of ours can be imported."""
    path = Path(__file__).with_name("openers.py")
    spec = importlib.util.spec_from_file_location("openers", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["openers"] = module
    spec.loader.exec_module(module)
    return module


if __name__ == "__main__":
    main(sys.argv[1])
