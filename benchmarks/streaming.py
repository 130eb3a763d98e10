"""Training on images that stay in a file, against the same images on the device.

    python -m benchmarks.streaming

A file of 64x64x3 images, twice, is trained on by the reference network, batch 64: mapped from disk
and fed ahead, and from the device's memory. The losses must be equal to the last bit before any
time counts. Reported: the time of a step as a multiple of the one from memory, and how much memory
of the process each of them takes at most, beyond what it had before (the first compiles).
"""

from __future__ import annotations

import argparse
import resource
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import vaejax
from benchmarks import common
from vaejax.data import GridSource
from vaejax.data.protocols import Factor
from vaejax.data.storage import OnDevice, OnHost

STEPS = 54  # two windows of one run


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gigabytes", type=float, default=4.0, help="size of the file")
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=".") as folder:
        mapped = _write(Path(folder) / "images.npy", int(args.gigabytes * 2**30) // (64 * 64 * 3))
        rows = []
        factors = (Factor("row", len(mapped)),)
        # Streaming first: the peak of memory that the system reports never falls.
        sources = {
            "file": lambda: GridSource(OnHost(mapped), "random", factors),
            "device": lambda: GridSource(
                OnDevice(jax.device_put(np.array(mapped))), "random", factors
            ),
        }
        workloads, peaks, histories = {}, {}, []
        for name, make in sources.items():
            before = _peak()
            workload, history = _training(make())
            workloads[name], peaks[name] = workload, _peak() - before
            histories.append(history)
        for name, here in histories[0].items():
            np.testing.assert_array_equal(here, histories[1][name], err_msg=name)
        times = common.alternate(workloads, args.rounds)
        for name, seconds in times.items():
            row: common.Row = {"case": f"images from the {name}"}
            row["ms per step"] = float(np.median(seconds)) / STEPS * 1e3
            row["time / device's"] = common.ratio(seconds, times["device"])
            rows.append(row | {"peak MiB": round(peaks[name] / 2**20)})
        common.report("streaming", rows)


def _write(path: Path, rows: int) -> np.ndarray:
    """A file of random images, larger than any cache of the processor."""
    shape = (rows, 64, 64, 3)
    file = np.lib.format.open_memmap(path, mode="w+", dtype=np.uint8, shape=shape)
    block = np.random.default_rng(0).integers(0, 256, (1024, 64, 64, 3), np.uint8)
    for start in range(0, rows, len(block)):
        file[start : start + len(block)] = np.roll(block, start, axis=1)[: rows - start]
    file.flush()
    del file
    return np.load(path, mmap_mode="r")


def _training(source: GridSource) -> tuple[Any, dict[str, np.ndarray]]:
    """The workload, and the history of its first steps."""
    recipe = vaejax.zoo.recipe("vae", vaejax.zoo.Network(source.image_shape), 64)
    states = vaejax.init(recipe, source.image_shape, jax.random.key(0)[None])
    hyper = {"beta": jnp.ones(1), "learning_rate": jnp.full(1, 1e-4)}
    histories = []

    def fit() -> float:
        nonlocal states
        began = time.perf_counter()
        states = vaejax.fit(
            recipe,
            source,
            states,
            hyper,
            steps=STEPS,
            chunk=STEPS,
            on_chunk=lambda _, __, history: histories.append(history),
        )
        jax.block_until_ready(states.step)
        return time.perf_counter() - began

    fit()
    return fit, jax.device_get(histories[0])


def _peak() -> int:
    """The most memory that this process has held, in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


if __name__ == "__main__":
    main()
