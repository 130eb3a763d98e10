"""Trains and measures one run, as the sweep would.

    python -m experiments.train --model beta_vae --seed 3 --steps 5000 --out results/one

Interrupted at any moment, the same command goes on from the last checkpoint.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from experiments import cli


def parser() -> argparse.ArgumentParser:
    """The options."""
    parser = cli.Parser(prog="train", description=__doc__)
    cli.add_run_options(parser, out="results/train/DATASET_MODEL_SEED")
    parser.add_argument("--model", type=cli.model_name, required=True, metavar="NAME")
    parser.add_argument("--dataset", type=cli.dataset_name, default="dsprites", metavar="NAME")
    parser.add_argument("--seed", type=cli.natural, default=0, metavar="N")
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    args = parser().parse_args(arguments)

    def command() -> None:
        from experiments.sweep import sweep

        one = {"datasets": (args.dataset,), "models": (args.model,), "seeds": (args.seed,)}
        given = {name: getattr(args, name) for name in ("source", "steps", "precision", "metrics")}
        preset = cli.resolve(args.preset, one | given)
        name = f"{args.dataset}_{args.model}_{args.seed}"
        sweep(preset, args.out or f"results/train/{name}", fresh=args.fresh)

    cli.run("train", command)


if __name__ == "__main__":
    main(sys.argv[1:])
