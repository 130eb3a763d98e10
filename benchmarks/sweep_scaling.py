"""What a sweep costs: its stages, and how its time grows with runs and with workers.

    python -m benchmarks.sweep_scaling [--preset paper]

Stages of one run of each program of a preset, on one dataset: a step of training, and measuring the
run when it is trained (the second time, when its programs are compiled; the first as well), and
what that makes of the whole preset on this machine. Measuring is timed for the VAE, as which the
other Gaussian models are measured, and the VQ-VAE, on networks that have not been trained, whose
metrics take the same work but for the trees.

Then whole sweeps as commands, with their programs on disk: one process with one to four seeds, the
intercept of whose line is what a process costs; and two processes that share one directory, beside
the one that does all of it. Two workers on a machine whose cores one already keeps busy gain only
what that one leaves idle.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import vaejax
from benchmarks import common, plot
from experiments import jobs, readouts, runs
from experiments.output import console
from experiments.presets import PRESETS, Preset
from vaejax.training import TrainState, unstack

STEPS = 5  # of training, per repetition
SEEDS = (1, 2, 4)  # how many, of two models
MEASURED = ("vae", "vq_vae")


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preset", choices=PRESETS, default="demo")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--no-sweeps", action="store_true", help="the stages alone")
    args = parser.parse_args()
    preset = PRESETS[args.preset]
    rows = _stages(preset, args.rounds)
    further: dict[str, list[common.Row]] = {"whole_preset": [_whole(preset, rows)]}
    if not args.no_sweeps:
        growth, workers = _sweeps(args.rounds)
        fit = common.linear_fit([r["runs"] for r in growth], [r["seconds"] for r in growth])
        further |= {"growth": growth, "fit": [fit], "workers": workers}
        plot.cost(f"sweep_scaling_{args.preset}", "runs", growth, fit)
    common.report(f"sweep_scaling_{args.preset}", rows, (), **further)


def _stages(preset: Preset, rounds: int) -> list[common.Row]:
    """A row for each program of the preset's first dataset."""
    preset = dataclasses.replace(preset, datasets=preset.datasets[:1], seeds=(0,))
    quiet = console(quiet=True)
    began = time.perf_counter()
    readout = readouts.get(jobs.groups(runs.grid(preset))[0][0].source(), preset, None, quiet)
    rows: list[common.Row] = [{"case": "read-out", "seconds": time.perf_counter() - began}]
    trainings: dict[str, Callable[[], float]] = {}
    row_of: dict[str, common.Row] = {}
    for run, *_ in jobs.groups(runs.grid(preset)):
        source, recipe = run.source(), run.recipe()
        states = vaejax.init(recipe, source.image_shape, jax.random.key(0)[None])
        (state,) = unstack(states)
        spent = []
        for _ in range(2 if run.model in MEASURED else 0):
            began = time.perf_counter()
            runs.finish(run, state, readout, None)
            spent.append(time.perf_counter() - began)
        row_of[run.model] = {"case": run.model}
        if spent:
            row_of[run.model] |= {"first measuring, s": spent[0], "measuring, s": spent[1]}
        trainings[run.model] = _training(run, states)
    for model, seconds in common.alternate(trainings, rounds).items():
        row_of[model]["ms per step"] = 1000 * float(np.median(seconds)) / STEPS
        rows.append(row_of[model])
    return rows


def _training(run: runs.Run, states: TrainState) -> Callable[[], float]:
    source, recipe = run.source(), run.recipe()
    hyper = {name: jnp.full(1, value) for name, value in run.hyper().items()}

    def repetition() -> float:
        nonlocal states

        def step() -> Any:
            nonlocal states
            states, history = vaejax.train(recipe, source, states, hyper, steps=STEPS)
            return history

        return common.seconds(step)

    return repetition


def _whole(preset: Preset, rows: list[common.Row]) -> common.Row:
    """Hours for all runs of a preset, if all datasets were like the first."""
    by_model = {row["case"]: row for row in rows}
    steps, measuring, first = 0.0, 0.0, 0.0
    for job in jobs.groups(runs.grid(preset)):
        model = job[0].model
        measured = by_model[model if model in MEASURED else MEASURED[0]]
        steps += len(job) * preset.steps * by_model[model]["ms per step"] / 1000
        measuring += len(job) * measured["measuring, s"]
        first += measured["first measuring, s"] - measured["measuring, s"]
    found = {"training": steps, "measuring": measuring, "compiling what measures": first}
    found["read-outs"] = len(preset.datasets) * by_model["read-out"]["seconds"]
    row = {f"{name}, h": seconds / 3600 for name, seconds in found.items()}
    return {"case": f"{len(runs.grid(preset))} runs", **row, "in all, h": sum(row.values())}


def _sweeps(rounds: int) -> tuple[list[common.Row], list[common.Row]]:
    with tempfile.TemporaryDirectory() as folder:
        environment = {**os.environ, "JAX_COMPILATION_CACHE_DIR": f"{folder}/programs"}

        def sweep(seeds: int, workers: int = 1) -> float:
            with tempfile.TemporaryDirectory(dir=folder) as out:
                command = [sys.executable, "-m", "experiments.sweep", "--preset", "smoke"]
                command += ["--models", "vae", "beta_tc_vae", "--out", out]
                command += ["--seeds", *map(str, range(seeds))]
                began = time.perf_counter()
                started = [
                    subprocess.Popen(
                        command,
                        cwd=Path(__file__).parents[1],
                        env=environment,
                        stdout=subprocess.DEVNULL,
                    )
                    for _ in range(workers)
                ]
                if any(process.wait() for process in started):
                    raise RuntimeError("a sweep failed; its error is above")
                return time.perf_counter() - began

        sweeps: dict[str, Callable[[], float]] = {
            f"{2 * n} runs": functools.partial(sweep, n) for n in SEEDS
        }
        sweeps["two workers"] = functools.partial(sweep, SEEDS[-1], workers=2)
        times = common.alternate(sweeps, rounds)
    growth = [{"runs": 2 * n, "seconds": float(np.median(times[f"{2 * n} runs"]))} for n in SEEDS]
    alone, two = times[f"{2 * SEEDS[-1]} runs"], times["two workers"]
    workers = [{"case": "two workers", "x one worker": common.ratio(alone, two)}]
    return growth, workers


if __name__ == "__main__":
    main()
