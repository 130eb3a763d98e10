"""Looks at one trained model in other bases than its units: directions, a sparse dictionary.

python -m experiments.bases results/demo/runs/dsprites/vae/seed_0
python -m experiments.bases CHECKPOINT --sites z decoder/dense_1 --dictionary decoder/dense_1

Of a site's directions, those count that vary over images and that the reconstruction reads: the
first few make 99% of what they all do to it. Modularity is that of how the features of neighbouring
sites act on each other, where features are the units, or the directions that count. The null gives
each feature its inputs from others, so that the few which act on everything are no longer the same
for all: a Q below it (z < 0) says that such there are.

A dictionary is judged on new images, beside the directions and the units: does the network work on
what it makes of activations, how much of a factor's effect do few features carry (MF, mediated
fraction), and do single ones tell a factor's classes (F1). Supervised are the means of the classes;
chance is random features, and saying yes to all.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from experiments import cli

if TYPE_CHECKING:
    import numpy as np
    from rich.console import Console

    from vaejax.circuits import InteractionBasis

_IMAGES = 512  # that directions are found in
_PROBES = 4  # backward passes for each of them
_FEW = 64  # images of which interactions are the mean


def parser() -> argparse.ArgumentParser:
    """The options."""
    parser = cli.Parser(prog="bases", description=__doc__)
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help="directory of a run")
    parser.add_argument("--sites", nargs="+", metavar="SITE", help="where (default: every layer)")
    parser.add_argument("--dictionary", metavar="SITE", help="train and judge a dictionary there")
    parser.add_argument(
        "--features", type=cli.positive, metavar="N",
        help="features of the dictionary (default: two for each unit)",
    )  # fmt: skip
    parser.add_argument(
        "--pairs", type=cli.positive, default=64, metavar="N",
        help="pairs of images for each factor that the dictionary is judged by (default: 64)",
    )  # fmt: skip
    parser.add_argument("--out", metavar="DIR", help="where to write (default: CHECKPOINT/bases)")
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    options = vars(parser().parse_args(arguments))
    cli.run("bases", lambda: analyze(options.pop("checkpoint"), options.pop("out"), **options))


def analyze(
    path: str,
    out: str | None,
    *,
    sites: Sequence[str] | None,
    dictionary: str | None,
    features: int | None,
    pairs: int,
) -> None:
    """Finds the bases of the model of a run's directory, prints and writes what they are worth.

    Args:
      path: The run's directory.
      out: Where to write `bases.json` and `bases.npz`; by default into it.
      sites: Names of the sites; by default all that count.
      dictionary: The site of a sparse dictionary; by default there is none.
      features: How many it has.
      pairs: Pairs of images for each factor that it is judged by.

    Raises:
      UsageError: There is no checkpoint that can be read, it lacks a site, a site never varies, or
        there is to be a dictionary and its dataset cannot be intervened on.
    """
    import jax
    from etils import epath

    from experiments import basis_effects, circuit_effects, effects, files, output
    from experiments.progress import counting
    from vaejax import circuits
    from vaejax.data import Renderable

    if pairs < 4:
        raise cli.UsageError(f"--pairs: expected at least 4, half of them held out, got {pairs}")
    if features and not dictionary:
        raise cli.UsageError("--features: of what? expected --dictionary SITE too")
    run, restored = cli.restore(path)
    output.set_up_compiler(run.preset)
    console = output.console()
    source = run.source()
    if dictionary and not isinstance(source, Renderable):
        raise cli.UsageError(f"{source.name} cannot draw images with one factor changed")
    model, variables = effects.without_discriminator(restored.model, restored.variables)
    network = effects.reconstruct(model), variables
    keys = jax.random.split(jax.random.key(circuit_effects.KEY), 4)
    images, _ = effects.draw(source, keys[0], _IMAGES)
    there = circuit_effects.unit_sites(model, variables, images[:1])
    there_too = [dictionary] if dictionary else []
    cli.check_names("site", [*(sites or ()), *there_too], there)
    sites = [name for name in there if name in (sites or there)]

    found: dict[str, InteractionBasis] = {}
    with counting(console, "bases") as update:
        wanted = list(dict.fromkeys([*sites, *there_too]))
        for done, site in enumerate(wanted, 1):
            try:
                found[site] = circuits.interaction_basis(*network, images, site, probes=_PROBES)
            except ValueError as error:  # one that never varies
                raise cli.UsageError(str(error)) from error
            update(done, len(wanted))
    record: dict[str, Any] = {
        "images": _IMAGES,
        "sites": {site: basis_effects.count_directions(of_site) for site, of_site in found.items()},
        "modularity": {},
        "dictionary": None,
    }
    with counting(console, "interactions") as update:
        of_sites = {site: found[site] for site in sites}
        record["modularity"] = basis_effects.modularity(network, images[:_FEW], of_sites, update)
    arrays: dict[str, np.ndarray] = {}
    for site, of_site in found.items():
        arrays |= basis_effects.arrays(site, of_site.basis)
        arrays |= basis_effects.arrays(f"eigenvalues_{site}", of_site.eigenvalues)
    if dictionary and isinstance(source, Renderable):
        with counting(console, "dictionary") as update:
            record["dictionary"], trained = basis_effects.judge_dictionary(
                network, source, keys[1:], dictionary, features, pairs, found[dictionary], update
            )
        arrays |= basis_effects.arrays(f"dictionary_{dictionary}", trained)
    _show(console, record)
    directory = epath.Path(out) if out else files.absolute(epath.Path(path)) / "bases"
    files.write_json(directory / "bases.json", record)
    files.write_npz(directory / "bases.npz", arrays)
    console.print(f"written to {directory}")


def _show(console: Console, record: dict[str, Any]) -> None:
    from experiments.basis_effects import COUNTS, SCORES, SIZES

    _print(console, "Directions", ("site", *COUNTS, "effective"), record["sites"])
    parts = {
        part: [
            of_basis[name] for of_basis in bases.values() for name in ("modularity", "null", "z")
        ]
        for part, bases in record["modularity"].items()
    }
    headings = ["sites", "units: Q", "null", "z", "directions: Q", "null", "z"]
    _print(console, "Modularity", headings, parts)
    if found := record["dictionary"]:
        headings = ["", "features", *(score.replace("_", " ") for score in SCORES)]
        _print(console, f"Bases of {found['site']}", headings, found["bases"])
        columns = [*(f"mf_{size}" for size in SIZES), "f1"]
        rows = {
            f"{factor}, {row}": [of_row.get(column) for column in columns]
            for factor, of_factor in found["factors"].items()
            for row, of_row in of_factor.items()
        }
        headings = ["", *(f"MF of {size}" for size in SIZES), "F1"]
        _print(console, f"Factors at {found['site']}", headings, rows)


def _print(console: Console, title: str, headings: Sequence[str], rows: Mapping[str, Any]) -> None:
    from experiments.circuit_report import new_table

    table = new_table(title, *headings)
    for name, row in rows.items():
        table.add_row(name, *map(_text, row.values() if isinstance(row, dict) else row))
    if rows:
        console.print(table)


def _text(value: Any) -> str:
    """A number, or one with its interval."""
    from experiments.basis_effects import ENDS

    if isinstance(value, dict) and value["value"] is not None:
        number, low, high = (_text(value[end]) for end in ENDS)
        return f"{number} ({low}, {high})"
    if value is None or isinstance(value, dict):
        return "-"
    return str(value) if isinstance(value, int) else f"{round(value, 2) + 0.0:.2f}"  # no -0.00


if __name__ == "__main__":
    main(sys.argv[1:])
