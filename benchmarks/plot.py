"""Cost against work, as a picture."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.figure import Figure

from benchmarks import common


def cost(name: str, work: str, growth: Sequence[common.Row], fit: common.Row) -> None:
    """Writes `benchmarks/results/NAME.png`: seconds against work, and the line through them.

    Args:
      name: The benchmark.
      work: The column of the rows that says how much work was done.
      growth: Rows with this column, `seconds` and perhaps `memory MiB`.
      fit: From `common.linear_fit`.
    """
    figure = Figure(figsize=(4.5, 3), layout="constrained")
    axes = figure.add_subplot(xlabel=work, ylabel="seconds", title=name.replace("_", " "))
    amounts = [row[work] for row in growth]
    axes.plot(amounts, [row["seconds"] for row in growth], "o")
    line = [fit["s at 0"] + fit["s per unit"] * amount for amount in amounts]
    axes.plot(amounts, line, "-", color="C0", label=f"exponent {fit['exponent']:.2f}")
    axes.set(xlim=(0, None), ylim=(0, None))
    if "memory MiB" in growth[0]:
        other = axes.twinx()
        other.plot(amounts, [row["memory MiB"] for row in growth], "s--", color="C1", ms=3)
        other.set(ylabel="memory, MiB", ylim=(0, None))
    axes.legend()
    common.RESULTS.mkdir(exist_ok=True)
    figure.savefig(common.RESULTS / f"{name}.png", dpi=120)
