"""Runs artefacts in a process where keras and keras_transfer cannot be imported.

Run by path, never imported: `python -P isolated_script.py NAME…`, where each NAME is a package that
must not be importable. Each line on standard input is one command, each line on standard output its
result, both JSON objects. If a command fails, its result has the key "error" with a traceback:

    {"do": "open", "opener": o.py, "path": …, "num_threads": 2}
                                                        {"number": 0, "class_hash": …}
    {"do": "predict", "number": 0, "pixels": a.npy, "outputs": b.npy}                {}
    {"do": "time", "number": 0, "shape": [8, 224, 224, 3], "calls": 5}
                                                        {"seconds": […]}
    {"do": "serve", "number": 0, "images": a.bin, "outputs": b.npz}                  {}

`opener` is the file of a format with the function `open_artefact`. `pixels` are uint8 [N, S, S, C].
`images` holds encoded images and after each its conversion to PNG, which may be empty. All of them
are preceded by their length as 8 bytes, big endian; a SavedModel runs them through all of its
signatures.
"""

import gc
import importlib.util
import json
import os
import sys
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

_BATCH_SIZE: Final = 32


class _Artefacts:
    """The open artefacts by number, and the batch size that each was last timed with."""

    def __init__(self) -> None:
        self._opened: list[Any] = []
        self._warm: dict[int, int] = {}

    def open(self, opener: str, path: str, **settings: Any) -> dict[str, Any]:
        # By path: the package that the file belongs to cannot be imported here.
        spec = importlib.util.spec_from_file_location(Path(opener).stem, opener)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module
        gc.disable()  # What imports create stays, so that collections only cost time.
        try:
            spec.loader.exec_module(module)
            self._opened.append(module.open_artefact(Path(path), **settings))
        finally:
            gc.enable()
        return {"number": len(self._opened) - 1, "class_hash": self._opened[-1].class_hash}

    def predict(self, number: int, pixels: str, outputs: str) -> dict[str, Any]:
        """Outputs of all images in batches of 32, and of the first image alone, as a check."""
        import numpy as np

        images = np.load(pixels, mmap_mode="r")
        predict = self._opened[number].predict
        starts = range(0, len(images), _BATCH_SIZE)
        rows = [predict(np.array(images[start : start + _BATCH_SIZE])) for start in starts]
        one = predict(np.array(images[:1]))
        if one.shape != rows[0][:1].shape:
            raise ValueError(f"a batch of one image gives outputs of shape {one.shape}")
        np.save(outputs, np.concatenate(rows))
        return {}

    def time(self, number: int, shape: list[int], calls: int) -> dict[str, Any]:
        """Seconds of each call with a batch of this shape."""
        import numpy as np

        predict = self._opened[number].predict
        batch = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
        if self._warm.get(number) != len(batch):
            predict(batch)  # The first batch of a size builds kernels or traces a graph.
            self._warm[number] = len(batch)
        seconds = []
        for _ in range(calls):
            started = time.perf_counter()
            predict(batch)
            seconds.append(time.perf_counter() - started)
        return {"seconds": seconds}

    def serve(self, number: int, images: str, outputs: str) -> dict[str, Any]:
        """Outputs of every signature of a SavedModel, by name."""
        import numpy as np

        np.savez(outputs, **self._opened[number].serve(_batches(Path(images))))
        return {}


def main(*blocked: str) -> None:
    """Run commands until standard input ends."""
    # Output of libraries must not mix with the results on standard output.
    replies = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    # `import tensorflow` imports Keras where it is installed, which would hide that it is needed.
    for name in blocked:
        sys.modules[name] = None  # type: ignore[assignment]
    artefacts = _Artefacts()
    for line in sys.stdin:
        order = json.loads(line)
        try:
            reply = getattr(artefacts, order.pop("do"))(**order)
        except Exception:  # A failure is reported as a result; the other artefacts still run.
            reply = {"error": traceback.format_exc()}
        print(json.dumps(reply), file=replies)


def _batches(file: Path) -> Iterator[list[tuple[bytes, bytes]]]:
    batch: list[tuple[bytes, bytes]] = []
    with file.open("rb") as stream:
        while header := stream.read(8):
            original = stream.read(int.from_bytes(header, "big"))
            batch.append((original, stream.read(int.from_bytes(stream.read(8), "big"))))
            if len(batch) == _BATCH_SIZE:
                yield batch
                batch = []
    if batch:
        yield batch


if __name__ == "__main__":
    main(*sys.argv[1:])
