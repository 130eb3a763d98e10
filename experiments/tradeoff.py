"""Whether causal effects are weaker where disentanglement is higher, over the runs of a sweep.

    python -m experiments.tradeoff results/demo

The papers report that causal effect strength correlates negatively with DCI disentanglement within
a dataset. This is the Spearman correlation over runs, with a 95% interval by a bootstrap of whole
architectures: seeds of one architecture are alike, and counting them as independent would make the
interval too narrow. Read it as it is meant: six architectures are few.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from experiments import cli

if TYPE_CHECKING:
    from etils import epath

STRENGTHS = ("ces_fixed", "ces_calibrated")
DISENTANGLEMENT = "dci_disentanglement"
COLUMNS = (
    *("dataset", "source", "strength", "models", "runs", "architectures"),
    *("spearman", "spearman_low", "spearman_high"),
)
_RESAMPLES = 10_000


def clustered_spearman(
    x: ArrayLike, y: ArrayLike, clusters: ArrayLike, *, seed: int = 0
) -> tuple[float, float, float]:
    """Spearman correlation of N pairs, and its 95% interval by a bootstrap of clusters.

    A resample draws as many clusters as there are, with replacement, and takes all their pairs.
    Resamples in which x or y is constant have no correlation and are left out.

    Args:
      x: `[N]` numbers.
      y: `[N]` numbers.
      clusters: `[N]` labels.
      seed: Of the resamples.

    Returns:
      The correlation and the ends of the interval, NaN where undefined.

    Example:
      >>> clustered_spearman([1, 2, 3, 4], [8, 7, 6, 1], ["a", "a", "b", "c"])
      (-1.0, -1.0, -1.0)
    """
    pairs = np.stack([np.asarray(x, np.float64), np.asarray(y, np.float64)])
    names, members = np.unique(np.asarray(clusters), return_inverse=True)
    drawn = np.random.default_rng(seed).integers(0, len(names), (_RESAMPLES, len(names)))
    times = (drawn[:, :, None] == np.arange(len(names))).sum(axis=1)  # [resamples, clusters]
    weights = np.concatenate([np.ones((1, len(members))), times[:, members]])
    rho = _weighted_spearman(pairs, weights)
    resampled = rho[1:][~np.isnan(rho[1:])]
    if not len(resampled):
        return float(rho[0]), float("nan"), float("nan")
    low, high = np.quantile(resampled, [0.025, 0.975])
    return float(rho[0]), float(low), float(high)


def _weighted_spearman(
    pairs: NDArray[np.float64], weights: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Spearman correlation `[R]` of `pairs` `[2, N]`, each as often as `weights` `[R, N]` say."""
    # The mean rank of a number that occurs several times: those below it, and half its equals.
    below = (pairs[:, None, :] < pairs[:, :, None]) + 0.5 * (pairs[:, None, :] == pairs[:, :, None])
    ranks = np.einsum("rj,pij->pri", weights, below)
    total = weights.sum(axis=1)
    centred = ranks - (np.einsum("rj,prj->pr", weights, ranks) / total)[..., None]
    covariance = np.einsum("rj,prj,qrj->pqr", weights, centred, centred)
    scale = np.sqrt(covariance[0, 0] * covariance[1, 1])
    # Ranks are multiples of 1/2: a variance below 1e-9 is one of equal numbers.
    rho = np.full(len(weights), np.nan)
    np.divide(covariance[0, 1], scale, out=rho, where=scale > 1e-9)
    return rho.clip(-1.0, 1.0)


def rows(results: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """One row for each dataset, strength, and with or without VQ-VAE.

    Args:
      results: Rows of `results.csv` that are `ok`; values may be text.
    """
    found = []
    for dataset, source in dict.fromkeys((row["dataset"], row["source"]) for row in results):
        group = [row for row in results if (row["dataset"], row["source"]) == (dataset, source)]
        for strength in STRENGTHS:
            for models in ("all", "without vq_vae"):
                chosen = [
                    row
                    for row in group
                    if (models == "all" or row["model"] != "vq_vae")
                    and row[strength] not in (None, "")
                    and row[DISENTANGLEMENT] not in (None, "")
                ]
                names = [row["model"] for row in chosen]
                if len(set(names)) < 2:
                    continue
                x, y = (
                    [float(row[name]) for row in chosen] for name in (strength, DISENTANGLEMENT)
                )
                values = clustered_spearman(x, y, names)
                values_or_none = [None if np.isnan(value) else value for value in values]
                head = dataset, source, strength, models, len(chosen), len(set(names))
                found.append(dict(zip(COLUMNS, (*head, *values_or_none), strict=True)))
    return found


def parser() -> argparse.ArgumentParser:
    """The options."""
    parser = cli.Parser(prog="tradeoff", description=__doc__)
    parser.add_argument("results", metavar="DIR", help="output directory of a sweep")
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    args = parser().parse_args(arguments)

    def command() -> None:
        from etils import epath

        tradeoff(epath.Path(args.results))

    cli.run("tradeoff", command)


def tradeoff(directory: epath.Path) -> None:
    """Prints the correlations of a sweep and writes `tradeoff.csv` beside its results.

    Raises:
      UsageError: If there are no results, or too few.
    """
    from rich import box
    from rich.table import Table

    from experiments import files, output

    path = directory / "results.csv"
    if not path.exists():
        raise cli.UsageError(f"no results.csv in {directory}; python -m experiments.sweep makes it")
    results = files.read_csv(path)
    missing = [name for name in (*STRENGTHS, DISENTANGLEMENT) if results and name not in results[0]]
    if missing:
        raise cli.UsageError(f"{path} has no column {', '.join(missing)}")
    found = rows([row for row in results if row["status"] == "ok"])
    if not found:
        raise cli.UsageError(
            f"{path} has finished runs of fewer than two architectures with CES and DCI, which a "
            "sweep measures unless --metrics leaves them out"
        )
    table = Table(title="Spearman correlation with DCI disentanglement", title_justify="left")
    table.box, table.padding = box.SIMPLE_HEAD, (0, 1, 0, 0)
    for name in ("dataset", "strength", "models", "runs", "correlation", "95% interval"):
        table.add_column(name, no_wrap=True)
    for row in found:
        low, high = row["spearman_low"], row["spearman_high"]
        table.add_row(
            f"{row['dataset']} ({row['source']})",
            row["strength"],
            row["models"],
            f"{row['runs']} of {row['architectures']}",
            "-" if row["spearman"] is None else f"{row['spearman']:+.2f}",
            "-" if low is None else f"{low:+.2f} to {high:+.2f}",
        )
    output.console().print(table)
    files.write_csv(directory / "tradeoff.csv", COLUMNS, found)


if __name__ == "__main__":
    main(sys.argv[1:])
