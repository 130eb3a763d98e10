"""What `test_processes` compares, computed by processes that `jax.distributed` connects.

python -m tests.two_processes FOLDER ADDRESS COUNT INDEX, in each of COUNT processes, which write
what they found to FOLDER/INDEX.npz.
"""

import os
import sys
from pathlib import Path

import jax
import numpy as np

from tests import eight_devices as small
from vaejax import checkpoint, devices, fit, init, zoo
from vaejax.data import streaming
from vaejax.data.storage import OnHost
from vaejax.training import abstract_state

RUNS, BATCH, STEPS = 4, 8, 4
ANALYSES = ("ces_fixed", "patch_units", "encode_pool")


def leaves(tree):
    return small.leaves(devices.gather(tree))


def trained(name, storage=small.on_device):
    """A few steps, and histories as the callback finds them."""
    recipe, weights = small.RECIPES[name]
    seen = []
    states = init(recipe, (4, 4, 1), small.keys(RUNS))
    end = fit(
        recipe,
        small.listed(storage),
        states,
        small.hyper(weights, RUNS),
        steps=STEPS,
        chunk=2,
        on_chunk=lambda done, states, history: seen.append(jax.device_get(history)),
    )
    return end, leaves((end, seen))


def computed():
    """What is the same on any number of processes."""
    _, found = trained("beta_tc_vae")
    streaming.WINDOW_BYTES = 2 * RUNS * BATCH * 16
    _, streamed = trained("beta_tc_vae", OnHost)
    analyses = small.analyses()
    return {
        "trained": found,
        "streamed": streamed,
        **{name: leaves(analyses[name]()) for name in ANALYSES},
    }


def saved(folder):
    """States that are saved three times and read again; only the last two saves are kept."""
    network = zoo.Network((32, 32, 1), latent_dim=2, width=0.05)
    config = {"model": "vae", "network": vars(network), "batch_size": BATCH}
    abstract = abstract_state(zoo.recipe("vae", network, BATCH), network.image_shape)
    draw = np.random.default_rng(3)
    states = jax.tree.map(
        lambda leaf: draw.integers(0, 9, (RUNS, *leaf.shape)).astype(leaf.dtype),
        abstract.replace(key=abstract.step),
    )
    states = devices.place(states.replace(key=small.keys(RUNS)), "run")
    paths = [folder / f"run_{run}" for run in range(RUNS)]
    with checkpoint.Writer(paths, [config] * RUNS) as writer:
        assert writer.restore() is None
        for step in (1, 2, 3):
            writer.save(step, states)
    with checkpoint.Writer(paths, [config] * RUNS) as writer:
        step, restored = writer.restore()
    one = checkpoint.restore(paths[1])
    return {
        "steps": [step, *checkpoint.saved_steps(paths[1])],
        "saved": leaves(states),
        "restored": leaves(restored),
        "one": leaves(one.state),
    }


def main(folder, address, count, index):
    folder, count, index = Path(folder), int(count), int(index)
    jax.config.update("jax_disable_most_optimizations", True)
    jax.distributed.initialize(address, count, index)
    found = {"agreed": [devices.agree(lambda: [os.getpid(), "decided by the first"])[0]]}
    mesh = devices.mesh(RUNS // 2, BATCH)
    found["mesh"] = [mesh.devices.shape]
    with devices.use(mesh):
        states = init(small.RECIPES["beta_tc_vae"][0], (4, 4, 1), small.keys(RUNS))
        found["runs_held"] = [states.step.addressable_data(0).shape[0]]
        found |= computed() | saved(folder)
    np.savez(
        folder / f"{index}.npz",
        **{f"{name}:{i}": x for name, xs in found.items() for i, x in enumerate(xs)},
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
