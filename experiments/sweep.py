"""Trains and measures a grid of models, datasets and seeds, and leaves one table.

    python -m experiments.sweep                          the demo: six models, three seeds
    python -m experiments.sweep --models vae vq_vae --seeds 0 1 2 3 4
    python -m experiments.sweep --preset paper --out results/paper

Interrupted at any moment, the same command goes on from the last checkpoint.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from experiments import cli

if TYPE_CHECKING:
    from experiments.presets import Preset


def parser() -> argparse.ArgumentParser:
    """The options."""
    parser = cli.Parser(prog="sweep", description=__doc__)
    cli.add_run_options(parser, out="results/PRESET")
    parser.add_argument(
        "--datasets",
        nargs="+",
        type=cli.dataset_name,
        metavar="NAME",
        help="dsprites, ..., or dsprites@chain: see `python -m experiments.data list`",
    )
    parser.add_argument("--models", nargs="+", type=cli.model_name, metavar="NAME")
    parser.add_argument("--seeds", nargs="+", type=cli.natural, metavar="N")
    parser.add_argument(
        "--dry-run", action="store_true", help="print the grid, the parameters and an estimate"
    )
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    args = parser().parse_args(arguments)

    def command() -> None:
        overrides = {
            "datasets": args.datasets and tuple(args.datasets),
            "source": args.source,
            "models": args.models and tuple(args.models),
            "seeds": args.seeds and tuple(args.seeds),
            "steps": args.steps,
        }
        preset = cli.resolve(args.preset, overrides)
        if args.dry_run:
            from experiments import estimate

            estimate.show(preset)
        else:
            sweep(preset, args.out or f"results/{args.preset}", fresh=args.fresh)

    cli.run("sweep", command)


def sweep(preset: Preset, out: str, *, fresh: bool = False) -> None:
    """Completes every run of a preset in an output directory, and prints the table.

    Args:
      preset: What to run.
      out: The output directory.
      fresh: Delete what it holds first.

    Raises:
      UsageError: If the directory holds the runs of another configuration, or is in use.
    """
    from etils import epath

    from experiments import output, report, runs

    output.set_up_compiler(optimize=preset.optimize)
    console = output.console()
    directory = epath.Path(out)
    with output.claim(directory, dataclasses.asdict(preset), fresh=fresh):
        grid = runs.grid(preset, runs.present(preset, console))

        def write() -> list[report.Row]:
            finished = [row for run in grid if (row := runs.result(directory, run))]
            report.write(directory, finished)
            return finished

        runs.complete(directory, grid, console, write)
        report.show(console, write())
        console.print(f"wrote {directory / 'results.csv'} and summary.csv; pictures in runs/")


if __name__ == "__main__":
    main(sys.argv[1:])
