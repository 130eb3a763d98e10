"""Whether seeds of a model have the same units and circuits, and which models have clearer units.

    python -m experiments.sweep --out DIR
    python -m experiments.stability DIR
    python -m experiments.stability DIR --site z

For every two seeds of a model: the units of a site are paired by what they do for each factor
(`vaejax.circuits.match_units`), and each factor's circuit in one seed is compared with the units
that those of the other are paired with. Units without effect are left out.

| column | what it is |
|---|---|
| similarity | mean cosine of paired units' effects on the factors |
| permuted | the same with the factors of one seed permuted |
| Jaccard | units that both circuits have, as a share of those that either has; mean over factors |
| random | the mean for random sets of the circuits' sizes |
| shuffled | the mean if units of one seed combine factors at random, see below |

`random` is low for any two networks: units are paired because they carry the same factors, and so
circuits meet. `shuffled` knows that: what units do for a factor, and whether they are in its
circuit, is exchanged among the units of one seed, for each factor anew, and units are paired again.
Circuits that agree no better than that agree in nothing but how effects are distributed. Where some
units do more than others for all factors alike, as shuffled ones do not, it is too high.

Pairs of seeds share seeds, so intervals are those of a jackknife that leaves out a seed with all
its pairs, with Student's t, as if seeds were drawn anew. The variance is right where the agreement
of two seeds is a sum of what each contributes; the more it is the pair's own, the more it is too
large, up to `2 (n - 1) / (n - 2)` times for n seeds. Two seeds have no interval.

The second table asks whether the units of a model are about one factor, or several, more than
the VAE's of the same seeds: mean difference, with Student's 95% interval over seeds. Each interval
stands alone: of twenty, one is expected to miss.
"""

from __future__ import annotations

import argparse
import io
import itertools
import json
import math
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from experiments import cli

if TYPE_CHECKING:
    from etils import epath

_AGREEMENT = (
    *("units", "similarity", "similarity_permuted", "similarity_shuffled", "similarity_p"),
    *("factors", "jaccard", "jaccard_random", "jaccard_shuffled"),
)
COLUMNS = ("dataset", "model", "site", "seed_a", "seed_b", *_AGREEMENT)
FRACTIONS = ("monosemanticity", "monosemantic_fraction", "polysemantic_fraction")
FRACTION_COLUMNS = (
    *("dataset", "model", "column", "seeds", "mean", "vae"),
    *("difference", "difference_low", "difference_high"),
)
_SHUFFLES = 20

Interval = tuple[float | None, float | None, float | None]


class Units(NamedTuple):
    """The units of one site that have an effect: S units, K factors.

    Attributes:
      effect: Of each unit on each factor, `[S, K]`.
      circuit: Whether it is in the factor's circuit, `[S, K]` bool.
    """

    effect: np.ndarray
    circuit: np.ndarray


def parser() -> argparse.ArgumentParser:
    """The options."""
    parser = cli.Parser(prog="stability", description=__doc__)
    parser.add_argument("results", metavar="DIR", help="output directory of a sweep")
    parser.add_argument(
        "--site", nargs="+", metavar="SITE", help="where (default: all that have circuits)"
    )
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    args = parser().parse_args(arguments)

    def command() -> None:
        from etils import epath

        stability(epath.Path(args.results), args.site)

    cli.run("stability", command)


def stability(directory: epath.Path, sites: Sequence[str] | None = None) -> None:
    """Compares all seeds and models: prints tables, writes them to files.

    `circuit_stability.csv` has a row for each dataset, model, site and pair of seeds,
    `unit_fractions.csv` one for each dataset, model but the VAE, and column.

    Args:
      directory: Of a sweep.
      sites: Where; by default all that have circuits.

    Raises:
      UsageError: No two seeds of a model have circuits, or none has them at one of the sites.
    """
    from experiments import files, output
    from experiments.progress import counting

    runs = _finished(directory)
    known = list(dict.fromkeys(site for _, units in runs for site in units))
    if not known:
        raise cli.UsageError(
            f"{directory} has no finished run with circuits; python -m experiments.sweep makes them"
        )
    cli.check_names("site", sites or (), known)
    pairs = _pairs(runs, sites or known)
    if not pairs:
        raise cli.UsageError(
            f"{directory} has circuits at {', '.join(sites or known)} of one seed of each model; "
            "python -m experiments.sweep --seeds 0 1 2 makes more"
        )
    console = output.console()
    rows = []
    with counting(console, "pairs of seeds") as update:
        for done, (head, first, second) in enumerate(pairs, 1):
            rows.append(dict(zip(COLUMNS, head, strict=False)) | agreement(first, second))
            update(done, len(pairs))
    fractions = compare_fractions([row for row, _ in runs])
    files.write_csv(directory / "circuit_stability.csv", COLUMNS, rows)
    files.write_csv(directory / "unit_fractions.csv", FRACTION_COLUMNS, fractions)
    _show(console, rows)
    _show_fractions(console, fractions)


def agreement(first: Units, second: Units) -> dict[str, float | int | None]:
    """How alike the units and circuits of a site of two networks are; the order does not matter.

    Returns:
      What `circuit_stability.csv` has for a pair of seeds; None where there is nothing to compare.
    """
    from vaejax import circuits

    # All units of the smaller get a partner then, and random sets are drawn from the larger.
    fewer, more = sorted((first, second), key=lambda of: len(of.effect))
    num_factors = fewer.effect.shape[1]
    if not len(fewer.effect):
        return dict.fromkeys(_AGREEMENT) | {"units": 0, "factors": 0}
    matching = circuits.match_units(fewer.effect, more.effect)
    overlaps = [
        circuits.overlap(
            matching.mapped(np.flatnonzero(fewer.circuit[:, k])),
            np.flatnonzero(more.circuit[:, k]),
            len(more.effect),
        )
        for k in range(num_factors)
    ]
    defined = [overlap for overlap in overlaps if not np.isnan(overlap.jaccard)]
    shuffled = np.array([_shuffled(fewer, more, seed) for seed in range(_SHUFFLES)])
    numbers = (
        float(matching.similarity.mean()),
        matching.null,
        float(shuffled[:, 0].mean()),
        matching.p_value,
        len(defined),
        *(
            float(np.mean([getattr(overlap, name) for overlap in defined])) if defined else None
            for name in ("jaccard", "expected")
        ),
        float(shuffled[:, 1].mean()) if defined else None,
    )
    return dict(zip(_AGREEMENT, (len(fewer.effect), *map(_or_none, numbers)), strict=True))


def seed_interval(values: Mapping[tuple[int, int], float]) -> Interval:
    """Mean over pairs of seeds, and its 95% interval by a jackknife over seeds.

        U +- t(n - 1) sqrt((n - 1) / n sum_i (U_-i - mean U_-i)^2)

    with U the mean over pairs and U_-i that over the pairs without seed i.

    Args:
      values: For pairs of seeds.

    Returns:
      The mean and the ends of the interval; None for what is not defined.

    Example:
      What three seeds contribute is 1, 2 and 6: twice their mean, and Student's interval of it.

      >>> seed_interval({(0, 1): 3.0, (0, 2): 7.0, (1, 2): 8.0})
      (6.0, -7.14..., 19.14...)

    References:
      Arvesen, "Jackknifing U-statistics", 1969.
    """
    from scipy import stats

    if not values:
        return None, None, None
    mean = float(np.mean(list(values.values())))
    seeds = sorted({seed for pair in values for seed in pair})
    without = [[value for pair, value in values.items() if seed not in pair] for seed in seeds]
    if not all(without):
        return mean, None, None
    n, means = len(seeds), [np.mean(rest) for rest in without]
    half = float(stats.t.ppf(0.975, n - 1) * math.sqrt((n - 1) * np.var(means)))
    return mean, mean - half, mean + half


def compare_fractions(results: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """How the models' shares of units of each kind differ from the VAE's, seed by seed.

    Args:
      results: Rows of finished runs, as `metrics.json` holds them.

    Returns:
      Rows of `unit_fractions.csv`: for each dataset that has a VAE, each other model and column,
      over the seeds that both have.
    """
    from experiments.report import interval

    rows = []
    for dataset, model in dict.fromkeys((row["dataset"], row["model"]) for row in results):
        for column in FRACTIONS if model != "vae" else ():
            of_model, of_vae = (
                {
                    row["seed"]: row[column]
                    for row in results
                    if (row["dataset"], row["model"]) == (dataset, name)
                    and row.get(column) is not None
                }
                for name in (model, "vae")
            )
            seeds = sorted(of_model.keys() & of_vae.keys())
            if seeds:
                means = (float(np.mean([of[seed] for seed in seeds])) for of in (of_model, of_vae))
                difference = interval([of_model[seed] - of_vae[seed] for seed in seeds])
                cells = dataset, model, column, len(seeds), *means, *difference
                rows.append(dict(zip(FRACTION_COLUMNS, cells, strict=True)))
    return rows


def _finished(directory: epath.Path) -> list[tuple[dict[str, Any], dict[str, Units]]]:
    """Rows of finished runs, and the units of each of their sites that has circuits."""
    runs = []
    for path in sorted(directory.glob("runs/*/*/seed_*/metrics.json")):
        units = path.parent / "units.npz"
        row = json.loads(path.read_text())
        if row["status"] == "ok" and units.exists():
            runs.append((row, _read(units)))
    return sorted(runs, key=lambda run: tuple(run[0][key] for key in ("dataset", "model", "seed")))


def _read(path: epath.Path) -> dict[str, Units]:
    with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as arrays:
        sites = [name.removeprefix("circuit_") for name in arrays.files if "circuit_" in name]
        found = {}
        for site in sites:
            if f"effect_{site}" not in arrays.files:  # it is that of another array of circuits
                continue
            effect = np.nan_to_num(arrays[f"effect_{site}"].astype(float)).T
            there = (effect > 0).any(axis=1)
            found[site] = Units(effect[there], arrays[f"circuit_{site}"].T[there])
    return found


def _pairs(
    runs: Sequence[tuple[dict[str, Any], dict[str, Units]]], sites: Sequence[str]
) -> list[tuple[tuple[Any, ...], Units, Units]]:
    """Dataset, model, site and two seeds, with the units of both."""
    found = []
    for dataset, model in dict.fromkeys((row["dataset"], row["model"]) for row, _ in runs):
        group = [run for run in runs if (run[0]["dataset"], run[0]["model"]) == (dataset, model)]
        for site in sites:
            there = [(row["seed"], units[site]) for row, units in group if site in units]
            for (a, first), (b, second) in itertools.combinations(there, 2):
                found.append(((dataset, model, site, a, b), first, second))
    return found


def _shuffled(first: Units, second: Units, seed: int) -> tuple[float, float]:
    """Similarity and Jaccard if the units of the second combine factors at random."""
    from vaejax import circuits

    generator = np.random.default_rng(seed)
    num, num_factors = second.effect.shape
    orders = generator.permuted(np.tile(np.arange(num)[:, None], (1, num_factors)), axis=0)
    second = Units(*(np.take_along_axis(array, orders, axis=0) for array in second))
    rows, partners, cosines = circuits.pair_units(first.effect, second.effect)
    a, b = np.zeros((2, num, num_factors), bool)
    a[partners], b[:] = first.circuit[rows], second.circuit
    either = (a | b).sum(axis=0)
    jaccard = ((a & b).sum(axis=0) / np.maximum(either, 1))[either > 0]
    return float(cosines.mean()), float(jaccard.mean()) if len(jaccard) else float("nan")


def _show(console: Any, rows: Sequence[dict[str, Any]]) -> None:
    """A table for each dataset, of means over pairs of seeds."""
    shown = {
        "similarity": "\nsimilarity", "similarity_permuted": "per-\nmuted",
        "similarity_shuffled": "shuf-\nfled", "jaccard": "\nJaccard",
        "jaccard_random": "\nrandom", "jaccard_shuffled": "shuf-\nfled",
    }  # fmt: skip
    for dataset in dict.fromkeys(row["dataset"] for row in rows):
        of_dataset = [row for row in rows if row["dataset"] == dataset]
        title = f"Units and circuits of two seeds: {dataset}"
        table = _table(title, "\nmodel", "\nsite", "\nseeds", *shown.values())
        for model, site in dict.fromkeys((row["model"], row["site"]) for row in of_dataset):
            group = [row for row in of_dataset if (row["model"], row["site"]) == (model, site)]
            seeds = {row[end] for row in group for end in ("seed_a", "seed_b")}
            found = {name: seed_interval(_by_pair(group, name)) for name in shown}
            cells = [
                _cell(*of_name) if name in ("similarity", "jaccard") else _cell(of_name[0])
                for name, of_name in found.items()
            ]
            table.add_row(model, site, str(len(seeds)), *cells)
        console.print(table)


def _show_fractions(console: Any, rows: Sequence[dict[str, Any]]) -> None:
    """A table for each dataset, of differences from the VAE."""
    for dataset in dict.fromkeys(row["dataset"] for row in rows):
        title = f"Units, and how they differ from the VAE's: {dataset}"
        table = _table(title, *FRACTION_COLUMNS[1:7])
        for row in rows:
            if row["dataset"] == dataset:
                low, high = row["difference_low"], row["difference_high"]
                difference = _cell(row["difference"], low, high, spec="+.2f")
                names = row["model"], row["column"], str(row["seeds"])
                table.add_row(*names, _cell(row["mean"]), _cell(row["vae"]), difference)
        console.print(table)


def _by_pair(rows: Sequence[dict[str, Any]], name: str) -> dict[tuple[int, int], float]:
    return {(row["seed_a"], row["seed_b"]): row[name] for row in rows if row[name] is not None}


def _table(title: str, *headings: str) -> Any:
    from rich import box
    from rich.table import Table

    # Without padding: 100 columns hold it.
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=0)
    for heading in headings:
        table.add_column(heading, no_wrap=True)
    return table


def _cell(
    mean: float | None, low: float | None = None, high: float | None = None, spec: str = ".2f"
) -> str:
    if mean is None:
        return "-"
    return f"{mean:{spec}}" if low is None else f"{mean:{spec}} ({low:{spec}}, {high:{spec}})"


def _or_none(value: Any) -> Any:
    return None if value is None or np.isnan(value) else value


if __name__ == "__main__":
    main(sys.argv[1:])
