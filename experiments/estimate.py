"""`--dry-run`: what a sweep would train, and about how long it would take."""

from __future__ import annotations

import math
import time
from typing import Any

import jax
import jax.numpy as jnp
from rich.table import Table

from experiments import jobs, output, runs
from experiments.presets import Preset
from vaejax.training import abstract_state, train

# Share of the matrix-product peak that training reaches, as measured by benchmarks/train_step.py
# on CPUs; on an accelerator small models reach less.
_EFFICIENCY = 0.4


def show(preset: Preset, shard: tuple[int, int] = (1, 1)) -> None:
    """Prints the jobs of a shard with their parameters, and an estimate of the time to train.

    Args:
      preset: What would run.
      shard: `(i, n)`: the i-th of n shares, counted from 1.
    """
    output.set_up_compiler(preset)
    index, count = shard
    todo = jobs.split(runs.grid(preset), count)[index - 1 :: count]
    of_shard = f", shard {index}/{count}" if count > 1 else ""
    peak = _matmul_peak()
    table = Table(title=f"{sum(map(len, todo))} runs in {len(todo)} programs{of_shard}")
    for name in ("dataset", "model", "seeds", "parameters", "steps", "estimate"):
        table.add_column(name, justify="right", no_wrap=True)
    total = 0.0
    for job in todo:
        parameters, flops = cost(job[0])
        seconds = len(job) * preset.steps * flops / (peak * _EFFICIENCY)
        total += seconds
        models = list(dict.fromkeys(run.model for run in job))
        seeds = " ".join(dict.fromkeys(str(run.seed) for run in job))
        for model in models:
            share = _duration(seconds / len(models))
            row = (job[0].dataset, model, seeds, f"{parameters:,}", f"{preset.steps:,}", share)
            table.add_row(*row)
    console = output.console()
    console.print(table)
    device = jax.devices()[0].device_kind
    console.print(
        f"training takes about {_duration(total)} on this device ({device}, {peak / 1e9:.0f} "
        "GFLOP/s in matrix products); compiling and measuring come on top"
    )


def cost(run: runs.Run) -> tuple[int, float]:
    """Parameters of a run's model, and floating-point operations of one training step."""
    state = abstract_state(run.recipe(), run.source().image_shape)
    parameters = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(state.variables["params"]))
    return parameters, float(lower(run, steps=1).cost_analysis()["flops"])


def lower(run: runs.Run, steps: int) -> Any:
    """The lowered program of a number of training steps of a run alone."""
    recipe, source = run.recipe(), run.source()
    state = abstract_state(recipe, source.image_shape)
    states = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((1, *leaf.shape), leaf.dtype), state)
    hyper = {name: jax.ShapeDtypeStruct((1,), jnp.float32) for name in run.hyper()}
    return train.lower(recipe, source, states, hyper, steps=steps)


def _matmul_peak(size: int = 2048, repeats: int = 5) -> float:
    """Floating-point operations per second of a float32 matrix product on the default device."""
    matrix = jnp.ones((size, size))
    product = jax.jit(jnp.matmul)
    product(matrix, matrix).block_until_ready()
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        product(matrix, matrix).block_until_ready()
        times.append(time.perf_counter() - began)
    return 2 * size**3 / min(times)


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    if seconds < 7200:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"
