"""Training step of the reference network, batch 64, 64x64x1: 1, 3 and 12 runs in one program.

    python -m benchmarks.train_step --peer-python PATH

Against PyTorch training the same runs in turn, from the same parameters and with the losses
compared before any time counts. Ours draws its batches, PyTorch is given one. PyTorch wants an
environment of its own: PATH is its interpreter. Without it the peer is skipped.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

import vaejax
from benchmarks import common
from benchmarks.common import Case, Goal
from benchmarks.reference import (
    BATCH,
    Reference,
    arguments,
    check_equal,
    flops,
    reference,
    torch_peer,
)

STEPS = 10  # per repetition
GOALS = (Goal("vaejax, 3 runs", "x PyTorch", 1 / 0.7),)


def main() -> None:
    """The command line."""
    args = arguments(__doc__, rounds=10)
    network = reference()
    with torch_peer(args.peer_python, network) as peer:
        cases = {f"vaejax, {runs} runs": _ours(network, runs) for runs in (1, 3, 12)}
        if peer is not None:
            check_equal(_loss(network), peer.ask("loss"), "loss")
            needed = _operations(network)
            cases["PyTorch"] = Case(lambda: peer.ask("train", steps=STEPS), STEPS, needed)
        rows = common.compare(cases, "steps", args.rounds, ["PyTorch"])
    common.report("train_step", rows, GOALS)


def _ours(network: Reference, runs: int) -> Case:
    recipe, source = network.recipe, network.source
    states = vaejax.init(recipe, source.image_shape, jax.random.split(jax.random.key(0), runs))
    hyper = {"beta": jnp.ones(runs), "learning_rate": jnp.full(runs, 1e-4)}
    # A twelfth of the steps, so that rounds are of one length.
    steps = max(1, STEPS // runs)
    stages = common.stages(vaejax.train, recipe, source, states, hyper, steps=steps)

    def step() -> Any:
        nonlocal states
        states, history = vaejax.train(recipe, source, states, hyper, steps=steps)
        return history

    work, needed = steps * runs, _operations(network) * steps * runs / STEPS
    return Case(lambda: common.seconds(step), work, needed, stages)


def _loss(network: Reference) -> float:
    out: Any = network.recipe.model.apply(network.variables, network.clean)
    rec = vaejax.Bernoulli().negative_log_likelihood(network.clean, out.logits)
    kl = vaejax.objectives.kl_divergence(out.posterior).sum(-1)
    return float((rec + kl).mean())


def _operations(network: Reference) -> float:
    """Operations of `STEPS` steps: forward, and twice that backward.

    The gradient in the images, which nobody needs, is left out.
    """
    of_layer = flops(network.variables)
    return STEPS * BATCH * (3 * sum(of_layer.values()) - of_layer["encoder/conv_1"])


if __name__ == "__main__":
    main()
