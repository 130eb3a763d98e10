"""Training step of the reference network, batch 64, 64x64x1: one and three runs in one program.

    python -m benchmarks.train_step --peer-python PATH

Against PyTorch on the same network, from the same parameters, with the losses compared before any
time counts; and against the floor, the step's operations at the speed of a matrix product measured
in the same rounds. Ours draws its batches, PyTorch is given one. PyTorch wants an environment of
its own: PATH is its interpreter. Without it the peer is skipped.
"""

from __future__ import annotations

import argparse
import contextlib
import math
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict

import vaejax
from benchmarks import common
from vaejax.training import unstack

STEPS = 10  # per repetition
BATCH = 64


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--peer-python", default=sys.executable, metavar="PATH")
    parser.add_argument("--rounds", type=int, default=10)
    args = parser.parse_args()

    source = vaejax.data.source("dsprites")
    recipe = vaejax.zoo.recipe("vae", vaejax.zoo.Network(source.image_shape), BATCH)
    workloads = {"matmul": common.matmul()}
    compiled = {}
    for runs in (1, 3):
        workloads[f"vaejax, {runs} runs"], compiled[runs] = _ours(recipe, source, runs)

    with contextlib.ExitStack() as stack:
        if common.has_torch(args.peer_python):
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            peer = stack.enter_context(_peer(args.peer_python, recipe, source, folder))
            workloads["PyTorch"] = lambda: peer.ask(steps=STEPS)
        else:
            print(f"skipped PyTorch: {args.peer_python} has none (see --peer-python)")
        times = common.alternate(workloads, args.rounds)

    peak = 2 * 2048**3 / times.pop("matmul")
    floor = _operations(recipe, source) * STEPS / peak
    rows = []
    for name, seconds in times.items():
        runs = 3 if "3 runs" in name else 1
        row: dict[str, Any] = {"workload": name}
        row["ms per step"] = float(np.median(seconds)) / STEPS * 1e3
        row["floor"] = "{:.2f} ({:.2f}, {:.2f})".format(*common.ratio(seconds, runs * floor))
        if "PyTorch" in times:
            ratios = common.ratio(seconds, runs * times["PyTorch"])
            row["PyTorch in turn"] = "{:.2f} ({:.2f}, {:.2f})".format(*ratios)
        row["compile s"] = compiled[runs] if name != "PyTorch" else 0.0
        rows.append(row)
    print("times as multiples of the floor and of PyTorch training the same runs in turn")
    common.report("train_step", rows)


def _ours(
    recipe: vaejax.Recipe, source: vaejax.data.DataSource, runs: int
) -> tuple[Callable[[], float], float]:
    """The workload, and the seconds it took to trace and compile."""
    states = vaejax.init(recipe, source.image_shape, jax.random.split(jax.random.key(0), runs))
    hyper = {"beta": jnp.ones(runs), "learning_rate": jnp.full(runs, 1e-4)}
    began = time.perf_counter()
    vaejax.train.lower(recipe, source, states, hyper, steps=STEPS).compile()
    compile_seconds = time.perf_counter() - began

    def step() -> Any:
        nonlocal states
        states, history = vaejax.train(recipe, source, states, hyper, steps=STEPS)
        return history

    return lambda: common.seconds(step), compile_seconds


def _peer(
    python: str, recipe: vaejax.Recipe, source: vaejax.data.DataSource, folder: Path
) -> common.Peer:
    """PyTorch with the parameters of a fresh run, once its loss was seen to be ours."""
    states = vaejax.init(recipe, source.image_shape, jax.random.key(1)[None])
    variables = unstack(states)[0].variables
    images, _ = source.batch(jax.random.key(2), BATCH)
    flat = flatten_dict(variables["params"], sep="/")
    np.savez(folder / "params.npz", **flat)
    np.save(folder / "images.npy", np.asarray(images))
    script = Path(__file__).with_name("torch_train_step.py")
    peer = common.Peer(python, script, str(folder / "params.npz"), str(folder / "images.npy"))

    out: Any = recipe.model.apply(variables, images)
    rec = vaejax.Bernoulli().negative_log_likelihood(images, out.logits)
    kl = vaejax.objectives.kl_divergence(out.posterior).sum(-1)
    ours, theirs = float((rec + kl).mean()), peer.ask(loss=True)
    if abs(ours - theirs) > 1e-4 * abs(ours):
        raise RuntimeError(f"the losses differ: {ours} here, {theirs} in PyTorch")
    return peer


def _operations(recipe: vaejax.Recipe, source: vaejax.data.DataSource) -> float:
    """Operations of one step's matrix products: forward, and twice that backward.

    The gradient in the images, which nobody needs, is left out.
    """
    state = vaejax.training.abstract_state(recipe, source.image_shape)
    total = 0.0
    size = source.image_shape[0]
    for path, kernel in flatten_dict(state.variables["params"], sep="/").items():
        if not path.endswith("kernel"):
            continue
        layer = path.split("/")[1]
        positions = 1
        if layer.startswith("conv"):  # positions of the output
            positions = (size // 2 ** int(layer[-1])) ** 2
        elif layer.startswith("up"):  # positions of the input
            positions = (4 * 2 ** (int(layer[-1]) - 1)) ** 2
        passes = 2 if path == "encoder/conv_1/kernel" else 3
        total += 2 * passes * BATCH * positions * math.prod(kernel.shape)
    return total


if __name__ == "__main__":
    main()
