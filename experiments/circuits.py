"""Takes one trained model apart: which units carry which factor, and how they are wired.

python -m experiments.circuits results/demo/runs/dsprites/vae/seed_0 --factor scale
python -m experiments.circuits CHECKPOINT --factor x y --sites z decoder/up_1 --pairs 128
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from experiments import cli


def parser() -> argparse.ArgumentParser:
    """The options."""
    parser = cli.Parser(prog="circuits", description=__doc__)
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help="directory of a run")
    parser.add_argument(
        "--factor", nargs="+", metavar="NAME", help="whose circuits to find (default: all)"
    )
    parser.add_argument("--sites", nargs="+", metavar="SITE", help="where (default: every layer)")
    parser.add_argument(
        "--pairs", type=cli.positive, default=64, metavar="N",
        help="pairs of images for each factor, half of them held out (default: 64)",
    )  # fmt: skip
    parser.add_argument(
        "--threshold", type=cli.share, default=0.8, metavar="MF",
        help="the mediated fraction that a circuit is to reach (default: 0.8)",
    )  # fmt: skip
    parser.add_argument(
        "--screen", type=cli.positive, metavar="N",
        help="patch the N units of each site and factor with most attribution (default: all units)",
    )  # fmt: skip
    parser.add_argument(
        "--graph-width", type=cli.positive, default=32, metavar="N",
        help="follow paths between units of sites that have at most N of them (default: 32)",
    )  # fmt: skip
    parser.add_argument(
        "--out", metavar="DIR", help="where to write (default: CHECKPOINT/circuits)"
    )
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    args = parser().parse_args(arguments)
    options = vars(args)
    cli.run("circuits", lambda: analyze(options.pop("checkpoint"), options.pop("out"), **options))


def analyze(
    path: str,
    out: str | None,
    *,
    factor: Sequence[str] | None,
    sites: Sequence[str] | None,
    pairs: int,
    threshold: float,
    screen: int | None,
    graph_width: int,
) -> None:
    """Finds, judges, draws and writes the circuits of the model of a run's directory.

    Args:
      path: The run's directory.
      out: Where to write; by default into it.
      factor: Names of the factors; by default all.
      sites: Names of the sites; by default all that count.
      pairs: Pairs of images for each factor.
      threshold: The mediated fraction that a circuit is to reach.
      screen: See `vaejax.circuits.factor_units`.
      graph_width: Sites of more units are passed over in the graph.

    Raises:
      UsageError: There is no checkpoint that can be read, its dataset cannot be intervened on, or
        it lacks a factor or site.
    """
    import jax
    from etils import epath

    from experiments import (
        circuit_effects,
        circuit_pictures,
        circuit_report,
        effects,
        files,
        output,
    )
    from experiments.progress import counting
    from vaejax.data import Renderable

    if pairs < 4:
        raise cli.UsageError(f"--pairs: expected at least 4, half of them held out, got {pairs}")
    run, restored = cli.restore(path)
    output.set_up_compiler(run.preset)
    console = output.console()
    source = run.source()
    if not isinstance(source, Renderable):
        raise cli.UsageError(f"{source.name} cannot draw images with one factor changed")
    model, variables = effects.without_discriminator(restored.model, restored.variables)
    images, values = effects.draw(source, jax.random.key(circuit_effects.KEY), pairs)
    names = [of.name for of in source.factors]
    there = circuit_effects.unit_sites(model, variables, images[:1])
    for given, known, what in ((factor, names, "factor"), (sites, there, "site")):
        cli.check_names(what, given or (), known)

    with output.on_all_devices(), counting(console, "circuits") as update:
        found = circuit_effects.anatomy(
            model, variables, source, values,
            factors=factor, sites=sites, screen=screen, threshold=threshold, progress=update,
        )  # fmt: skip
    with output.on_all_devices(), counting(console, "paths") as update:
        graph = circuit_effects.graph(
            model, variables, source, values, found, widest=graph_width, progress=update
        )
    circuit_report.show(console, found, graph)
    directory = epath.Path(out) if out else files.absolute(epath.Path(path)) / "circuits"
    circuit_report.write(directory, found, graph)
    circuit_pictures.draw(directory, model, variables, source, values, found, graph)
    console.print(f"written to {directory}")


if __name__ == "__main__":
    main(sys.argv[1:])
