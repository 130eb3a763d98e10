"""What the benchmarks share: cases timed in turn, their ratios to a peer and to the floor, tables.

The floor of a case is the time that its operations would take at the speed of a matrix product,
which is measured in the same rounds. A ratio is formed pair by pair within rounds, and has the 95%
bootstrap interval of its median.
"""

from __future__ import annotations

import dataclasses
import json
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

RESULTS = Path(__file__).parent / "results"

_MATMUL = 2048  # side of the matrices that the floor is measured with

Row = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Case:
    """Something to time.

    Attributes:
      run: One repetition; returns its seconds.
      work: Units of work that a repetition does.
      flops: Operations of the matrix products without which there is no answer; 0 if that says
        nothing.
      stages: Seconds of tracing, lowering and compiling, for those that are reported.
    """

    run: Callable[[], float]
    work: float = 1
    flops: float = 0
    stages: Mapping[str, float] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Goal:
    """What a figure is to reach.

    Attributes:
      case: The row of the table.
      column: The column.
      at_least: Or, if negative, at most the opposite.
    """

    case: str
    column: str
    at_least: float


def compare(
    cases: Mapping[str, Case], unit: str, rounds: int, peers: Iterable[str] = ()
) -> list[Row]:
    """Times cases in turn, with a matrix product among them.

    Args:
      cases: By name. Their speeds per unit of work are compared.
      unit: What a unit of work is called, in the plural.
      rounds: Repetitions that count.
      peers: Those among the cases that all others are compared with.

    Returns:
      A row for each case: `unit/s`, `of the floor` and, for each peer, how many times as fast.
      Ratios are triples: median, lower and upper end.
    """
    product = matmul()
    times = alternate({"": product, **{name: case.run for name, case in cases.items()}}, rounds)
    peak = 2 * _MATMUL**3 / times.pop("")
    rows = []
    for name, case in cases.items():
        seconds = times[name]
        row: Row = {"case": name, f"{unit}/s": case.work / float(np.median(seconds))}
        row["of the floor"] = ratio(case.flops / peak, seconds) if case.flops else None
        for peer in peers:
            if peer in cases:
                theirs = times[peer] / cases[peer].work
                row[f"x {peer}"] = ratio(theirs, seconds / case.work) if peer != name else None
        rows.append(row | {f"{stage} s": spent for stage, spent in case.stages.items()})
    return rows


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


def matmul() -> Callable[[], float]:
    """A workload that times one float32 matrix product, the measure of the floor."""
    matrix = jnp.ones((_MATMUL, _MATMUL))
    product = jax.jit(jnp.matmul)
    return lambda: seconds(lambda: product(matrix, matrix))


def stages(function: Any, *args: Any, **kwargs: Any) -> dict[str, float]:
    """Seconds that a jitted function takes to be traced, lowered and compiled."""
    times = [time.perf_counter()]
    traced = function.trace(*args, **kwargs)
    times.append(time.perf_counter())
    lowered = traced.lower()
    times.append(time.perf_counter())
    lowered.compile()
    times.append(time.perf_counter())
    names = ("trace", "lower", "compile")
    return dict(zip(names, np.diff(times).tolist(), strict=True))


def linear_fit(work: Sequence[float], seconds: Sequence[float]) -> Row:
    """How cost grows with work: the exponent of a power law, and a line's intercept and slope."""
    exponent = np.polyfit(np.log(work), np.log(seconds), 1)[0]
    slope, intercept = np.polyfit(work, seconds, 1)
    return {"exponent": float(exponent), "s per unit": float(slope), "s at 0": float(intercept)}


def report(
    name: str, rows: Sequence[Row], goals: Sequence[Goal] = (), **further: Sequence[Row]
) -> None:
    """Prints tables and writes them to `benchmarks/results/NAME.json`.

    Args:
      name: The benchmark.
      rows: Its table.
      goals: What figures of it are to reach; those of peers that were not there are left out.
      **further: More tables by title.
    """
    show(rows)
    for title, table in further.items():
        print(f"\n{title.replace('_', ' ')}")
        show(table)
    judged = [row for goal in goals if (row := _judged(goal, rows))]
    if judged:
        print()
        show(judged)
    RESULTS.mkdir(exist_ok=True)
    device = jax.devices()[0].device_kind
    content: Row = {"device": device, "python": sys.version.split()[0], "jax": jax.__version__}
    content |= {"rows": rows, "goals": judged, **further}
    (RESULTS / f"{name}.json").write_text(json.dumps(content, indent=2) + "\n")


def _judged(goal: Goal, rows: Sequence[Row]) -> Row | None:
    for row in rows:
        if row["case"] == goal.case and row.get(goal.column) is not None:
            found = row[goal.column]
            value = found[0] if isinstance(found, tuple) else found
            bound = abs(goal.at_least)
            met = value >= bound if goal.at_least > 0 else value <= bound
            wanted = f"{'at least' if goal.at_least > 0 else 'at most'} {bound:g}"
            return {
                "goal": f"{goal.case}: {goal.column}",
                "wanted": wanted,
                "found": found,
                "met": "yes" if met else "no",
            }
    return None


def show(rows: Sequence[Row]) -> None:
    """Prints a table."""
    columns = list(dict.fromkeys(column for row in rows for column in row))
    cells = [[_cell(row.get(column)) for column in columns] for row in rows]
    widths = [max(map(len, (c, *(r[i] for r in cells)))) for i, c in enumerate(columns)]
    for line in ([*columns], *cells):
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)))


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, tuple | list):
        return "{:.2f} ({:.2f}, {:.2f})".format(*value)
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    return str(value)
