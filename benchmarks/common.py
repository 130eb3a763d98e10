"""What the benchmarks share: alternating timings, ratios with intervals, the floor, the peer."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

RESULTS = Path(__file__).parent / "results"


def alternate(workloads: Mapping[str, Callable[[], float]], rounds: int) -> dict[str, np.ndarray]:
    """Runs the workloads in turn, A B C A B C, so that a drift of the machine meets all alike.

    Args:
      workloads: Functions that return the seconds of one repetition.
      rounds: Repetitions of each that count; one more goes before as a warm-up.

    Returns:
      Seconds per workload, `[rounds]`.
    """
    for workload in workloads.values():
        workload()
    times: dict[str, list[float]] = {name: [] for name in workloads}
    for _ in range(rounds):
        for name, workload in workloads.items():
            times[name].append(workload())
    return {name: np.array(seconds) for name, seconds in times.items()}


def seconds(function: Callable[[], Any]) -> float:
    """Seconds until the result of a JAX computation is there."""
    began = time.perf_counter()
    jax.block_until_ready(function())
    return time.perf_counter() - began


def ratio(a: np.ndarray, b: np.ndarray) -> tuple[float, float, float]:
    """Median of `a / b` pair by pair, with the 95% bootstrap interval of the median."""
    ratios = a / b
    draws = np.random.default_rng(0).choice(ratios, (2000, len(ratios)))
    low, high = np.percentile(np.median(draws, axis=1), [2.5, 97.5])
    return float(np.median(ratios)), float(low), float(high)


def matmul(size: int = 2048) -> Callable[[], float]:
    """A workload that times one float32 matrix product of `2 size^3` operations."""
    matrix = jnp.ones((size, size))
    product = jax.jit(jnp.matmul)
    return lambda: seconds(lambda: product(matrix, matrix))


class Peer:
    """A peer in a process and an environment of its own, run step by step beside ours.

    The peer is a script that reads one JSON request per line and answers each with one line.
    """

    def __init__(self, python: str, script: Path, *arguments: str) -> None:
        self._process = subprocess.Popen(
            [python, str(script), *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __enter__(self) -> Peer:
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()

    def ask(self, **request: Any) -> Any:
        """Sends a request and waits for the answer."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        if not answer:
            raise RuntimeError("the peer died; its error is above")
        return json.loads(answer)


def has_torch(python: str) -> bool:
    """Whether an interpreter can import PyTorch."""
    probe = subprocess.run([python, "-c", "import torch"], capture_output=True, check=False)
    return probe.returncode == 0


def report(name: str, rows: Sequence[Mapping[str, Any]]) -> None:
    """Prints a table and writes it to `benchmarks/results/NAME.json`."""
    columns = list(rows[0])
    cells = [[_cell(row[column]) for column in columns] for row in rows]
    widths = [max(map(len, (c, *(r[i] for r in cells)))) for i, c in enumerate(columns)]
    for line in ([*columns], *cells):
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)))
    RESULTS.mkdir(exist_ok=True)
    device = jax.devices()[0].device_kind
    content = {"device": device, "python": sys.version.split()[0], "jax": jax.__version__}
    (RESULTS / f"{name}.json").write_text(json.dumps({**content, "rows": rows}, indent=2) + "\n")


def _cell(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
