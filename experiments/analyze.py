"""Measures one checkpoint again, and prints or saves what the sweep would have.

python -m experiments.analyze results/demo/runs/dsprites/vae/seed_0
python -m experiments.analyze CHECKPOINT --out analysis
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from experiments import cli


def parser() -> argparse.ArgumentParser:
    """The options."""
    parser = cli.Parser(prog="analyze", description=__doc__)
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help="directory of a run")
    parser.add_argument(
        "--out", metavar="DIR", help="write metrics.json, latents.npz and the pictures there"
    )
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    args = parser().parse_args(arguments)
    cli.run("analyze", lambda: analyze(args.checkpoint, args.out))


def analyze(path: str, out: str | None) -> None:
    """Measures the model of a run's directory.

    Args:
      path: The run's directory.
      out: Where to write what was found, if anywhere.

    Raises:
      UsageError: If there is no checkpoint that can be read.
    """
    from etils import epath

    from experiments import output, readouts, report, runs
    from vaejax import checkpoint

    try:
        restored = checkpoint.restore(path)
        run = runs.Run.from_config(restored.config)
    except (FileNotFoundError, ValueError, KeyError, TypeError) as error:
        raise cli.UsageError(str(error)) from error
    output.set_up_compiler(optimize=run.preset.optimize)  # as the sweep, for the same numbers
    console = output.console()
    # The sweep's own read-out, if the run is still where the sweep has put it.
    directory = epath.Path(path).absolute()
    sweep = next((p for p in directory.parents if run.path(p) == directory), None)
    readout = readouts.get(run.source(), run.preset, sweep, console)
    row = runs.finish(run, restored.state, readout, epath.Path(out) if out else None)
    for name in report.COLUMNS:
        if row.get(name) is not None:
            console.print(f"{name:28} {row[name]}")


if __name__ == "__main__":
    main(sys.argv[1:])
