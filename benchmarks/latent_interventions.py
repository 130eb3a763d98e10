"""Decoded `do(z_i = v)`: every latent of some examples set to every value, as images.

    python -m benchmarks.latent_interventions --peer-python PATH

The reference network decodes 1,120 intervened latents (16 examples, 10 latents, 7 values); and
`ces_fixed` measures the same interventions. PyTorch decodes the same latents in one batch, and in
batches of the size that was fastest; a loop without `jit` decodes them one by one. Images must be
equal to 1e-4 before any time counts. Then how time and memory grow with the number of
interventions.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import common, plot
from benchmarks.common import Case, Goal
from benchmarks.reference import (
    Peer,
    Reference,
    arguments,
    check_equal,
    reference,
    suffix_flops,
    torch_peer,
)
from vaejax import metrics
from vaejax.chunking import map_chunks, resolve_chunk
from vaejax.interventions import latents

VALUES = jnp.array(metrics.FIXED_VALUES)
EXAMPLES = 16
BATCHES = (16, 32, 64, 128, 256)  # that PyTorch is tried with
LOOPED = 32  # latents of the loop without jit
GOALS = (Goal("vaejax", "x PyTorch", 5), Goal("vaejax", "of the floor", 0.7))


def main() -> None:
    """The command line."""
    args = arguments(__doc__, rounds=10)
    network = reference()
    with torch_peer(args.peer_python, network) as peer:
        rows = _compared(network, peer, args.rounds)
    growth, fit = _growth(network)
    common.report("latent_interventions", rows, GOALS, growth=growth, fit=[fit])
    plot.cost("latent_interventions", "interventions", growth, fit)


def _compared(network: Reference, peer: Peer | None, rounds: int) -> list[common.Row]:
    variables, z = network.variables, _latents(EXAMPLES)
    many = len(z) * z.shape[1] * len(VALUES)
    work: dict[str, Any] = {"work": many, "flops": many * suffix_flops(variables, "encoder/mean")}
    stages = common.stages(images, network, z)
    cases = {
        "vaejax": Case(lambda: common.seconds(lambda: images(network, z)), **work, stages=stages),
        "vaejax ces_fixed": Case(lambda: common.seconds(lambda: _ces(network, z)), **work),
        "JAX, no jit, one by one": Case(lambda: _loop(network, z), work=LOOPED),
    }
    if peer is not None:
        settings = _settings(z)
        np.save(peer.folder / "latents.npy", np.asarray(settings))
        file = {"latents": str(peer.folder / "latents.npy")}
        check_equal(images(network, z), peer.array("decode", chunk=many, **file), "images")
        best = min(BATCHES, key=lambda size: _decode(peer, file, size, repeats=3))
        cases["PyTorch"] = Case(lambda: _decode(peer, file, best), **work)
        cases["PyTorch, one batch"] = Case(lambda: _decode(peer, file, many), **work)
        print(f"PyTorch was fastest with batches of {best}")
    peers = ("PyTorch", "PyTorch, one batch", "JAX, no jit, one by one")
    return common.compare(cases, "images", rounds, peers)


def _decode(peer: Peer, file: dict[str, str], chunk: int, repeats: int = 1) -> float:
    return float(np.median([peer.ask("decode", chunk=chunk, **file) for _ in range(repeats)]))


def _growth(network: Reference) -> tuple[list[common.Row], common.Row]:
    rows = []
    for examples in (4, 8, 16, 32, 64):
        z = _latents(examples)
        compiled = _ces.lower(network, z).compile()
        call = functools.partial(compiled, network, z)
        call()
        taken = float(np.median([common.seconds(call) for _ in range(5)]))
        memory = compiled.memory_analysis()
        assert memory is not None
        rows.append(
            {
                "interventions": examples * z.shape[1] * len(VALUES),
                "seconds": taken,
                "memory MiB": memory.temp_size_in_bytes / 2**20,
            }
        )
    return rows, common.linear_fit([r["interventions"] for r in rows], [r["seconds"] for r in rows])


def _latents(examples: int) -> jax.Array:
    return jax.random.normal(jax.random.key(0), (examples, 10))


def _settings(z: jax.Array) -> jax.Array:
    """`[N D V, D]`: each latent of each example set to each value."""
    one = jax.vmap(latents.do, (None, None, 0))  # over values
    every = jax.vmap(one, (None, 0, None))  # over latents
    return jnp.moveaxis(every(z, jnp.arange(z.shape[1]), VALUES), 2, 0).reshape(-1, z.shape[1])


@jax.jit
def images(network: Reference, z: jax.Array) -> jax.Array:
    """Of all interventions on the latents `z` of some examples."""
    settings = _settings(z)

    def decode(rows: jax.Array) -> Any:
        return network.decode(settings[rows])

    return map_chunks(decode, len(settings), resolve_chunk(None))


@jax.jit
def _ces(network: Reference, z: jax.Array) -> metrics.CES:
    return metrics.ces_fixed(network.decode, z)


def _loop(network: Reference, z: jax.Array) -> float:
    settings = _settings(z)[:LOOPED]

    def decode() -> list[Any]:
        return [network.decode(row[None]) for row in settings]

    return common.seconds(decode)


if __name__ == "__main__":
    main()
