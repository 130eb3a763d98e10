"""Tables: one row per run, and means over seeds with intervals."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from etils import epath
from rich import box
from rich.console import Console
from rich.table import Table
from scipy import stats

from experiments import files

_STRENGTHS = [
    f"{metric}{unit}{which}"
    for metric in ("ces_fixed", "ces_calibrated", "ces_infinitesimal", "ces_factor")
    for unit in ("", "_rms")
    for which in ("", "_active", "_max")
]

_CODES = [
    f"ces_{which}"
    for which in ("prequant", "postquant", "code_swap", "code_swap_matched", "code_ablate")
]

_SPECIFICITIES = [
    f"specificity_{space}{which}" for space in ("pixel", "factor") for which in ("", "_active")
]

# Metrics that have an interval over examples in `results.csv`, `_low` and `_high`.
WITH_INTERVAL = [
    *_STRENGTHS,
    *_CODES,
    *_SPECIFICITIES,
    "circuit_modularity",
    "circuit_modularity_signed",
    "encoder_modularity",
    "encoder_modularity_signed",
    "mediated_fraction_max",
    "mediated_fraction_sum",
    "mediation_interaction",
]

METRICS = [
    "reconstruction",
    "mse",
    "mse_mean_image",
    "latents",
    "kl",
    "active_latents",
    "mixed_latents",
    "passive_latents",
    "dead_latents",
    "perplexity",
    "dead_codes",
    "dci_disentanglement",
    "dci_completeness",
    "dci_informativeness",
    "mig",
    "sap",
    "factor_vae_score",
    "beta_vae_score",
    "modularity_rm",
    "explicitness",
    "irs",
    "infom",
    "infoc",
    "infoe",
    *WITH_INTERVAL,
    "circuit_modularity_null",
    "circuit_modularity_p",
    "encoder_modularity_null",
    "encoder_modularity_p",
    "latent_interaction",
    "code_swap_positions",
    "attribution_agreement",
    "monosemanticity",
    "monosemantic_fraction",
    "polysemantic_fraction",
    "circuit_size",
    "circuit_faithfulness",
    "circuit_faithfulness_random",
    "circuit_completeness",
    "circuit_overlap",
    "circuit_overlap_random",
    "pairs",
    "pairs_skipped",
    "readout_accuracy",
    "readout_error",
]

# The last column is the only one that two runs of the same command do not share.
COLUMNS = [
    *("dataset", "source", "correlated_factors", "model", "seed", "status", "steps"),
    "representation",
    *METRICS[: METRICS.index(WITH_INTERVAL[0])],
    *(name + end for name in WITH_INTERVAL for end in ("", "_low", "_high")),
    *METRICS[METRICS.index(WITH_INTERVAL[-1]) + 1 :],
    "train_seconds",
]

# What the printed table shows: a heading and a format each, such that 80 columns hold it.
_SHOWN = {
    "reconstruction": ("\nrec.", ".1f"),
    "kl": ("\nKL", ".2f"),
    "active_latents": ("\nactive", "d"),
    "ces_fixed": ("CES\nfixed", ".2f"),
    "ces_calibrated": ("CES\ncal.", ".2f"),
    "specificity_factor": ("spec.\nfactor", ".2f"),
    "circuit_modularity": ("circuit\nmod.", ".2f"),
    "dci_disentanglement": ("\nDCI-D", ".2f"),
    "mig": ("\nMIG", ".3f"),
}

Row = dict[str, Any]


def write(out: epath.Path, rows: Sequence[Row]) -> None:
    """Writes `results.csv` and `summary.csv`."""
    files.write_csv(out / "results.csv", COLUMNS, rows)
    summary = summarise(rows)
    columns = ["dataset", "source", "model", "runs", "diverged"]
    columns += [name + suffix for name in METRICS for suffix in ("", "_low", "_high")]
    files.write_csv(out / "summary.csv", columns, summary)


def summarise(rows: Sequence[Row]) -> list[Row]:
    """One row per dataset and model: the mean of each metric over seeds and its 95% interval.

    The interval is Student's t over the runs that are `ok`; empty with fewer than two of them.
    """
    by_model: dict[tuple[str, str, str], list[Row]] = {}
    for row in rows:
        by_model.setdefault((row["dataset"], row["source"], row["model"]), []).append(row)
    summary = []
    for (dataset, source, model), group in by_model.items():
        finished = [row for row in group if row["status"] == "ok"]
        line: Row = {"dataset": dataset, "source": source, "model": model}
        line |= {"runs": len(group), "diverged": len(group) - len(finished)}
        for name in METRICS:
            values = [row[name] for row in finished if row.get(name) is not None]
            line |= dict(zip((name, f"{name}_low", f"{name}_high"), interval(values), strict=True))
        summary.append(line)
    return summary


def interval(values: Sequence[float]) -> tuple[float | None, float | None, float | None]:
    """Mean and 95% interval of the mean by Student's t; None for what is not defined.

    Example:
      >>> interval([1.0, 3.0])
      (2.0, -10.70..., 14.70...)
      >>> interval([1.0])
      (1.0, None, None)
    """
    if not values:
        return None, None, None
    mean = float(np.mean(values))
    if len(values) < 2:
        return mean, None, None
    half = stats.t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / math.sqrt(len(values))
    return mean, mean - float(half), mean + float(half)


def show(console: Console, rows: Sequence[Row]) -> None:
    """Prints a table of runs for each dataset."""
    for dataset, source in dict.fromkeys((row["dataset"], row["source"]) for row in rows):
        group = [row for row in rows if (row["dataset"], row["source"]) == (dataset, source)]
        table = Table(title=f"{dataset} ({source}), {len(group)} runs", title_justify="left")
        table.box, table.padding = box.SIMPLE_HEAD, (0, 1, 0, 0)
        for name in ("model", "seed", "status"):
            table.add_column(f"\n{name}", no_wrap=True)
        for heading, _ in _SHOWN.values():
            table.add_column(heading, justify="right", no_wrap=True)
        for row in group:
            values = [
                "-" if row.get(name) is None else format(row[name], spec)
                for name, (_, spec) in _SHOWN.items()
            ]
            style = None if row["status"] == "ok" else "red"
            table.add_row(row["model"], str(row["seed"]), row["status"], *values, style=style)
        console.print(table)
