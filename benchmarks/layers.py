"""Where the time goes: each layer of the decoder alone, and each product of a training step.

    python -m benchmarks.layers

The layers of the reference network's decoder, on as many examples at once as interventions take.
`of the floor` says what share of the speed of a large matrix product each reaches; `product` the
same of the product that the layer contains, alone. The rest is what puts the product's rows
together to an image (on a CPU a transposed convolution is one product and a sum of four shifted
parts of it), the bias and the activation. `share` is that of the time of all layers.

Then, with a whole batch as in training, the three products of every convolution: forward, and
backward by its input and by its kernel.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import common
from benchmarks.common import Case
from benchmarks.reference import BATCH, SITES, Reference, flops, reference
from vaejax.chunking import resolve_chunk
from vaejax.convolution import conv, conv_transpose

CALLS = 200  # of a layer of the decoder per repetition, in one program
STEPS = 10  # of training, likewise

Layer = Callable[[Any], jax.Array]


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
    training = common.compare(_training(network), "examples", args.rounds)
    spent = np.array([1000 * BATCH / row["examples/s"] for row in training])
    for row, ms in zip(training, spent, strict=True):
        row |= {"ms": float(ms), "share": float(ms / spent.sum())}
    common.report("layers", layers, training=training)


def _training(network: Reference) -> dict[str, Case]:
    """The products of the convolutions of a training step, by the layer and what they are for."""
    cases = {}
    for site in SITES:
        part, _, layer = site.partition("/")
        if layer.startswith(("conv", "up")):
            kernel = network.variables["params"][part][layer]["kernel"]
            work = STEPS * BATCH
            products = _products(layer, kernel)
            if site == SITES[0]:
                del products["by input"]  # the gradient in the images, which nobody needs
            for what, (product, given) in products.items():
                timed = _timed(product, given, STEPS)
                cases[f"{site}: {what}"] = Case(timed, work, work * flops(network.variables)[site])
    return cases


def _products(layer: str, kernel: jax.Array) -> dict[str, tuple[Layer, Any]]:
    """Forward, and backward by the input and by the kernel; each with what it is given."""
    decodes, number = layer.startswith("up"), int(layer[-1])
    convolve = conv_transpose if decodes else conv
    side = 4 * 2 ** (number - 1) if decodes else 128 // 2**number
    x = jnp.ones((BATCH, side, side, kernel.shape[2]))
    y = jnp.ones(jax.eval_shape(convolve, x, kernel).shape)

    def by_input(y: jax.Array) -> Any:
        return jax.linear_transpose(lambda x: convolve(x, kernel), x)(y)[0]

    def by_kernel(pair: tuple[jax.Array, jax.Array]) -> Any:
        x, y = pair
        return jax.linear_transpose(lambda kernel: convolve(x, kernel), kernel)(y)[0]

    return {
        "forward": (lambda x: convolve(x, kernel), x),
        "by input": (by_input, y),
        "by kernel": (by_kernel, (x, y)),
    }


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


def _timed(layer: Layer, x: Any, calls: int = CALLS) -> Callable[[], float]:
    """The layer many times in a row, each on an input that follows from the last output."""

    @jax.jit
    def repeated(x: Any) -> jax.Array:
        def again(_: int, scale: jax.Array) -> jax.Array:
            # Or XLA would compute no more than the number that is looked at.
            scaled = jax.tree.map(lambda leaf: scale * leaf, x)
            output = jax.lax.optimization_barrier(layer(scaled))
            return 1 + 1e-20 * output.ravel()[0]

        return jax.lax.fori_loop(0, calls, again, jnp.ones(()))

    return lambda: common.seconds(lambda: repeated(x))


if __name__ == "__main__":
    main()
