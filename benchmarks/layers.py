"""Where the time of the decoder goes: each layer alone, beside the bare matrix product in it.

    python -m benchmarks.layers

The layers of the reference network's decoder, on as many examples at once as interventions take.
`of the floor` says what share of the speed of a large matrix product each reaches; `product` the
same of the product that the layer contains, alone. The rest is what puts the product's rows
together to an image (on a CPU a transposed convolution is one product and a sum of four shifted
parts of it), the bias and the activation. `share` is that of the time of all layers.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import common
from benchmarks.common import Case
from benchmarks.reference import SITES, Reference, flops, reference
from vaejax.chunking import resolve_chunk
from vaejax.convolution import conv_transpose

CALLS = 200  # per repetition, in one program

Layer = Callable[[jax.Array], jax.Array]


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=10)
    args = parser.parse_args()
    network = reference()
    cases: dict[str, Case] = {}
    for site in SITES:
        if site.startswith("decoder/"):
            layer, product, x = _layer(network, site)
            needed = CALLS * len(x) * flops(network.variables)[site]
            cases[site] = Case(_timed(layer, x), CALLS * len(x), needed)
            cases[f"{site}: product"] = Case(_timed(product, x), CALLS * len(x), needed)
    rows = common.compare(cases, "examples", args.rounds)
    layers = [row for row in rows if "product" not in row["case"]]
    products = [row["of the floor"] for row in rows if "product" in row["case"]]
    spent = np.array([1 / row["examples/s"] for row in layers])
    for row, product, share in zip(layers, products, spent / spent.sum(), strict=True):
        row |= {"product, of the floor": product, "share": float(share)}
    common.report("layers", layers)


def _layer(network: Reference, site: str) -> tuple[Layer, Layer, jax.Array]:
    """A layer up to its activation, the matrix product in it, and an input for both."""
    parameters = network.variables["params"]["decoder"][site.partition("/")[2]]
    kernel, bias = parameters["kernel"], parameters["bias"]
    examples = resolve_chunk(None)
    if kernel.ndim == 2:
        x = jnp.ones((examples, len(kernel)))
        return lambda x: jax.nn.relu(x @ kernel + bias), lambda x: x @ kernel, x
    side = 4 * 2 ** (int(site[-1]) - 1)
    x = jnp.ones((examples, side, side, kernel.shape[2]))
    rows = kernel.swapaxes(0, 2).reshape(kernel.shape[2], -1)
    return lambda x: jax.nn.relu(conv_transpose(x, kernel) + bias), lambda x: x @ rows, x


def _timed(layer: Layer, x: jax.Array) -> Callable[[], float]:
    """The layer many times in a row, each on an input that follows from the last output."""

    @jax.jit
    def repeated(x: jax.Array) -> jax.Array:
        def again(_: int, scale: jax.Array) -> jax.Array:
            # Or XLA would compute no more than the number that is looked at.
            output = jax.lax.optimization_barrier(layer(scale * x))
            return 1 + 1e-20 * output.ravel()[0]

        return jax.lax.fori_loop(0, CALLS, again, jnp.ones(()))

    return lambda: common.seconds(lambda: repeated(x))


if __name__ == "__main__":
    main()
