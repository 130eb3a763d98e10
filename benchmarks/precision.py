"""What lower precision of matrix products costs in accuracy, and what it gains on this device.

    python -m benchmarks.precision

Accelerators are faster where the factors of a product are rounded, to TensorFloat-32 (10 bits of
mantissa) or bfloat16 (7 bits), and summed in float32: `--precision` of the sweep. The same rounding
is done here on any device, of the inputs and the kernels of all layers, and what interventions find
is compared with float32. `bfloat16 throughout` keeps variables, images and activations in it too.

Largest errors: `pixel` of a reconstruction, `ces` of a latent's `ces_fixed` as a share of the
strongest latent's, `latent MF` and `channel MF` of the mediated fraction, mean over pairs, of a
latent or of a channel of three layers. `x float32` is the speed of decoding that the device gains,
which is none on a CPU. The network has been trained for a while.
"""

from __future__ import annotations

import argparse
import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax

from benchmarks import common
from benchmarks.common import Case
from benchmarks.latent_interventions import images
from benchmarks.reference import SITES, Reference, reference, suffix_flops
from vaejax import intervene, metrics
from vaejax.interventions import mediate, patch_units

STEPS = 200
PAIRS = 8
SETTINGS = {"float32": 23, "tensorfloat32": 10, "bfloat16": 7}  # bits of the mantissa
READ = tuple("z" if site == "encoder/mean" else site for site in SITES[:-1])  # by a layer
DECODED = tuple(site for site in READ if site.startswith("decoder/"))
PATCHED = ("encoder/conv_4", "decoder/up_1", "decoder/up_3")


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=STEPS, help="of training before")
    args = parser.parse_args()
    network = reference(args.steps)
    cases = {name: _decoding(network, name) for name in SETTINGS}
    speeds = common.compare(cases, "images", args.rounds, ["float32"])
    gains = {row["case"]: row["x float32"] for row in speeds}
    exact = _figures(network, bits=SETTINGS["float32"])
    rows = [
        {"case": name, **_errors(_figures(network, bits=bits), exact), "x float32": gains[name]}
        for name, bits in SETTINGS.items()
        if name != "float32"
    ]
    low = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), network)
    throughout = _errors(_figures(low, bits=SETTINGS["bfloat16"]), exact)
    common.report("precision", [*rows, {"case": "bfloat16 throughout", **throughout}])


def _decoding(network: Reference, precision: str) -> Case:
    """As `benchmarks.latent_interventions`, in a precision of this device."""
    z = jax.random.normal(jax.random.key(0), (16, 10))

    def run() -> float:
        with jax.default_matmul_precision(precision):
            return common.seconds(lambda: images(network, z))

    many = len(images(network, z))
    return Case(run, many, many * suffix_flops(network.variables, "encoder/mean"))


def _figures(network: Reference, *, bits: int) -> dict[str, jax.Array]:
    """What is compared, in float32."""
    reconstruct = functools.partial(_reconstruct, network.recipe.model, bits)
    pair = network.clean[:PAIRS], network.corrupted[:PAIRS]
    z = jax.random.normal(jax.random.key(0), (PAIRS, 10), network.clean.dtype)

    @jax.jit
    def ces(variables: Any) -> jax.Array:
        def decode(z: jax.Array) -> Any:
            return _rounded(network.recipe.model, bits, DECODED, variables, z, method="decode")

        return metrics.ces_fixed(decode, z).per_latent

    @jax.vmap
    def through(mask: jax.Array) -> jax.Array:
        found = mediate(reconstruct, network.variables, *pair, {"z": mask})
        return found.mediated_fraction.value

    units = patch_units(reconstruct, network.variables, *pair, sites=PATCHED)
    figures = {
        "pixel": reconstruct(network.variables, pair[0]),
        "ces": ces(network.variables),
        "latent MF": through(jnp.eye(10, dtype=bool)),
        "channel MF": jnp.concatenate([unit.mediated_fraction.value for unit in units.values()]),
    }
    return {name: figure.astype(jnp.float32) for name, figure in figures.items()}


def _reconstruct(model: nn.Module, bits: int, variables: Any, images: jax.Array) -> jax.Array:
    found = _rounded(model, bits, READ, variables, images)
    return found.reconstruction


def _rounded(
    model: nn.Module,
    bits: int,
    sites: tuple[str, ...],
    variables: Any,
    inputs: jax.Array,
    **kwargs: Any,
) -> Any:
    """The model with both factors of all products rounded: what layers read, and their kernels."""

    def rounded(x: jax.Array, _: object = None) -> jax.Array:
        return lax.reduce_precision(x, exponent_bits=8, mantissa_bits=bits)

    variables = jax.tree.map(lambda leaf: rounded(leaf) if leaf.ndim > 1 else leaf, variables)
    apply_fn = intervene(functools.partial(model.apply, **kwargs), dict.fromkeys(sites, rounded))
    output, _ = apply_fn(variables, dict.fromkeys(sites), rounded(inputs))
    return output


def _errors(found: dict[str, jax.Array], exact: dict[str, jax.Array]) -> dict[str, float]:
    errors = {name: float(jnp.abs(found[name] - exact[name]).max()) for name in exact}
    return errors | {"ces": errors["ces"] / float(exact["ces"].max())}


if __name__ == "__main__":
    main()
