"""Measures one checkpoint again, and prints or saves what the sweep would have.

python -m experiments.analyze results/demo/runs/dsprites/vae/seed_0
python -m experiments.analyze CHECKPOINT --out analysis
python -m experiments.analyze CHECKPOINT --metrics dci mig --representation samples
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import Any

from experiments import cli
from experiments.presets import REPRESENTATIONS


def parser() -> argparse.ArgumentParser:
    """The options."""
    parser = cli.Parser(prog="analyze", description=__doc__)
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help="directory of a run")
    parser.add_argument(
        "--out", metavar="DIR", help="write metrics.json, latents.npz and the pictures there"
    )
    cli.add_metrics(parser)
    parser.add_argument(
        "--representation",
        choices=REPRESENTATIONS,
        help="what the disentanglement metrics score (default: means, or the codes of a VQ-VAE)",
    )
    parser.add_argument(
        "--without-passive", action="store_true", help="score without passive latents"
    )
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    args = parser().parse_args(arguments)
    options = {
        "names": args.metrics,
        "representation": args.representation,
        "without_passive": args.without_passive,
    }
    cli.run("analyze", lambda: analyze(args.checkpoint, args.out, **options))


def analyze(path: str, out: str | None, **options: Any) -> None:
    """Measures the model of a run's directory.

    Args:
      path: The run's directory.
      out: Where to write what was found, if anywhere.
      **options: What to measure, as `experiments.measure.measure` takes it.

    Raises:
      UsageError: If there is no checkpoint that can be read, or the model lacks what is asked for.
    """
    from etils import epath

    from experiments import files, output, readouts, report, runs
    from experiments.measure import MissingError

    run, restored = cli.restore(path)
    output.set_up_compiler(run.preset)  # as the sweep, for the same numbers
    console = output.console()
    # The sweep's own read-out, if the run is still where the sweep has put it.
    directory = files.absolute(epath.Path(path))
    sweep = next((p for p in directory.parents if run.path(p) == directory), None)
    readout = None
    if readouts.needed(options["names"] or run.preset.metrics):
        readout = readouts.get(run.source(), run.preset, sweep, console)
    destination = epath.Path(out) if out else None
    try:
        row = runs.finish(run, restored.state, readout, destination, **options)
    except MissingError as error:
        raise cli.UsageError(f"{path}: {error}") from error
    for name in report.COLUMNS:
        if row.get(name) is not None:
            console.print(f"{name:28} {row[name]}")


if __name__ == "__main__":
    main(sys.argv[1:])
