"""Drawing the redrawn datasets, against the training step that consumes what is drawn.

    python -m benchmarks.render

Images per second of `source.batch` for 256 images in one program, at 64x64 and 32x32; the time to
draw one image as a share of the time that the reference network (64x64, batch 64; at 32x32 the half
width network of the demo, batch 32) takes to train on one, in the same rounds; and the seconds that
the drawing adds to a program that is compiled. Goal: 20,000 images of 64x64 a second on two cores.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import vaejax
from benchmarks import common
from benchmarks.common import Goal
from vaejax.data import ArraySource, DataSource

IMAGES = 256
REPEATS = 4  # calls, per repetition
STEPS = 5  # of training, per repetition
GOAL = 20_000


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=10)
    args = parser.parse_args()
    rows = [row for size in (64, 32) for row in _rows(size, args.rounds)]
    goals = [Goal(f"{name} 64x64", "images/s", GOAL) for name in vaejax.data.REDRAWN]
    common.report("render", rows, goals)


def _rows(image_size: int, rounds: int) -> list[common.Row]:
    workloads: dict[str, Callable[[], float]] = {}
    compiled = {}
    for name in vaejax.data.REDRAWN:
        workloads[name], compiled[name] = _drawing(vaejax.data.source(name, image_size))
    batch, width = (64, 1.0) if image_size == 64 else (32, 0.5)
    workloads["training"] = _training(image_size, batch, width)
    times = common.alternate(workloads, rounds)
    step = times.pop("training") / (STEPS * batch)
    rows = []
    for name, seconds in times.items():
        row: common.Row = {"case": f"{name} {image_size}x{image_size}"}
        row["images/s"] = IMAGES / float(np.median(seconds))
        row["% of a training step"] = common.ratio(100 * seconds / IMAGES, step)
        rows.append(row | {f"{stage} s": spent for stage, spent in compiled[name].items()})
    return rows


def _drawing(source: DataSource) -> tuple[Callable[[], float], dict[str, float]]:
    """The workload, and the seconds it took to trace and compile."""
    draw = jax.jit(lambda key: source.batch(key, IMAGES)[0])
    key = jax.random.key(1)
    stages = common.stages(draw, key)

    def again() -> float:
        # The first call after another program pays for memory that the system took back.
        draw(key).block_until_ready()
        return common.seconds(lambda: [draw(key) for _ in range(REPEATS)]) / REPEATS

    return again, stages


def _training(image_size: int, batch: int, width: float) -> Callable[[], float]:
    """Steps of a VAE on images that cost nothing to draw."""
    source = ArraySource.of(np.zeros((batch, image_size, image_size, 3)), np.zeros((batch, 1), int))
    recipe = vaejax.zoo.recipe("vae", vaejax.zoo.Network(source.image_shape, width=width), batch)
    states = vaejax.init(recipe, source.image_shape, jax.random.key(0)[None])
    hyper = {"beta": jnp.ones(1), "learning_rate": jnp.full(1, 1e-4)}

    def step() -> Any:
        nonlocal states
        states, history = vaejax.train(recipe, source, states, hyper, steps=STEPS)
        return history

    return lambda: common.seconds(step)


if __name__ == "__main__":
    main()
