"""Trains and measures a grid of models, datasets and seeds, and leaves one table.

    python -m experiments.sweep                          the demo: six models, three seeds
    python -m experiments.sweep --models vae vq_vae --seeds 0 1 2 3 4
    python -m experiments.sweep --preset paper --out results/paper

Interrupted at any moment, the same command goes on from the last checkpoint. Several may run at
once on one output directory, which they share where it has locks. On many machines:

    python -m experiments.sweep --out DIR --shard $SLURM_ARRAY_TASK_ID/8     sbatch --array=1-8
    python -m experiments.sweep --out DIR --shard $((JOB_COMPLETION_INDEX + 1))/8     Kubernetes
    python -m experiments.sweep --out DIR --launcher ray          on a Ray cluster that is running
    python -m experiments.sweep --out DIR --launcher jax     in every process of a TPU pod's slice

DIR is a directory that all of them reach, or a bucket, such as gs://BUCKET/DIR.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from experiments import cli

if TYPE_CHECKING:
    from etils import epath

    from experiments import report
    from experiments.presets import Preset
    from experiments.runs import Run


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
        "--shard",
        type=cli.shard,
        default=(1, 1),
        metavar="I/N",
        help="do the I-th of N shares, counted from 1; all have the same --out",
    )
    parser.add_argument(
        "--launcher",
        choices=("local", "ray", "jax"),
        default="local",
        help="this process (the default), the workers of a Ray cluster that is running, or all "
        "processes that jax.distributed connects, each of which is given this command",
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="print the grid, the parameters and an estimate"
    )
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    args = parser().parse_args(arguments)

    def command() -> None:
        options = ("datasets", "source", "models", "seeds", "steps", "precision", "metrics")
        preset = cli.resolve(args.preset, {name: getattr(args, name) for name in options})
        if args.shard != (1, 1) and args.launcher != "local":
            raise cli.UsageError(
                f"--shard and --launcher {args.launcher} both share out the runs: give one"
            )
        if args.shard != (1, 1) and args.fresh:
            raise cli.UsageError(
                "--fresh would delete what other shards have done: delete the directory before "
                "the first starts, or take another --out"
            )
        if args.dry_run:
            from experiments import estimate

            estimate.show(preset, args.shard)
        else:
            out = args.out or f"results/{args.preset}"
            sweep(preset, out, fresh=args.fresh, shard=args.shard, launcher=args.launcher)

    cli.run("sweep", command)


def sweep(
    preset: Preset,
    out: str,
    *,
    fresh: bool = False,
    shard: tuple[int, int] = (1, 1),
    launcher: str = "local",
) -> None:
    """Completes runs of a preset in an output directory, and prints the table of all of them.

    Args:
      preset: What to run.
      out: The output directory.
      fresh: Delete what it holds first.
      shard: `(i, n)`: do the i-th of n shares of the runs, counted from 1.
      launcher: `"local"` for this process, `"ray"` for a Ray cluster, or `"jax"` for the processes
        that `jax.distributed` connects, of which this is one.

    Raises:
      UsageError: If the directory holds the runs of another configuration, if it is to be deleted
        while in use, if there is no cluster, or no other process to connect with.
      JobsFailedError: If jobs failed on the cluster; the others are finished.
    """
    from etils import epath

    from experiments import files, jobs, output, report, runs

    output.set_up_compiler(preset)
    first = launcher != "jax" or connect()
    console = output.console(quiet=not first)
    directory = epath.Path(out)
    failed: list[str] = []
    with contextlib.ExitStack() as stack:
        if launcher == "ray":
            from experiments import launch

            ray = stack.enter_context(launch.cluster())
            directory = files.absolute(directory)
        if first:
            stack.enter_context(output.claim(directory, dataclasses.asdict(preset), fresh=fresh))
        if launcher == "jax":
            wait_for(directory)
        grid = runs.grid(preset, runs.present(preset, console))

        def write() -> list[report.Row]:
            return write_table(directory, runs.grid(preset)) if first else []

        if launcher == "ray":
            failed = launch.run(ray, directory, grid, console, write)
        else:
            index, count = shard
            todo = jobs.split(grid, count)[index - 1 :: count]
            jobs.complete(directory, todo, console, write)
        report.show(console, write())
        console.print(f"wrote {directory / 'results.csv'} and summary.csv; pictures in runs/")
        if left := jobs.unfinished(directory, grid):
            console.print(f"{len(grid) - len(left)} of {len(grid)} runs are finished")
    if failed:
        how_many = f"{len(failed)} job{'s' if len(failed) > 1 else ''}"
        raise cli.JobsFailedError(f"{how_many} failed: {'; '.join(failed)}")


def connect() -> bool:
    """Connects with the other processes of a TPU pod's slice, of SLURM, MPI or Kubernetes.

    Returns:
      Whether this is the first of them.

    Raises:
      UsageError: It is not known which they are.
    """
    import jax

    try:
        jax.distributed.initialize()
    except (RuntimeError, ValueError) as error:
        raise cli.UsageError(
            "--launcher jax cannot connect with other processes, as on a TPU pod or under SLURM: "
            + " ".join(str(error).split())
        ) from error
    return jax.process_index() == 0


def wait_for(directory: epath.Path) -> None:
    """Waits until the first process has claimed the output directory.

    Raises:
      UsageError: It is not where this process looks.
    """
    from vaejax import devices

    devices.agree(lambda: None)
    if not (directory / "config.json").exists():
        raise cli.UsageError(f"{directory} is not the same directory in all processes")


def write_table(directory: epath.Path, grid: Sequence[Run]) -> list[report.Row]:
    """Writes the tables of the runs that are finished, whoever has finished them.

    Whoever finishes a run writes after that, and looks again after writing. So the last of several
    that write at once finds what the others have finished, and the tables lack none.

    Returns:
      The rows.
    """
    from experiments import report, runs

    while True:
        rows = [row for run in grid if (row := runs.result(directory, run))]
        report.write(directory, rows)
        if len(rows) == sum(runs.result(directory, run) is not None for run in grid):
            return rows


if __name__ == "__main__":
    main(sys.argv[1:])
