"""Networks whose bases and interactions are known."""

import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from vaejax.models.layers import Site


class Rotated(nn.Module):
    """Layers `a <- tanh(a W)`, each stored in rotated coordinates: site `h0` holds `a R`."""

    curved: bool

    @nn.compact
    def __call__(self, a, matrices, rotations):
        for layer, (matrix, turn) in enumerate(zip(matrices, rotations, strict=True)):
            a = jnp.tanh(a @ matrix) if self.curved else a @ matrix
            a = Site(name=f"h{layer}")(a @ turn) @ turn.T
        return a


class Map(nn.Module):
    """Sites `map [B, 2, 2, 3]`, `x + offset`, and `mixed [B, 2, 2, 2]`, `map` times `[12, 8]`."""

    @nn.compact
    def __call__(self, x, offset, matrix):
        flat = Site(name="map")(x + offset).reshape(-1, 12)
        return Site(name="mixed")((flat @ matrix).reshape(-1, 2, 2, 2))


def linear(variables, x):
    return Rotated(curved=False).apply({}, x, *variables)


def curved(variables, x):
    return Rotated(curved=True).apply({}, x, *variables)


def feature_map(variables, x):
    return Map().apply({}, x, *variables)


def rotation(seed, n):
    return np.linalg.qr(np.random.default_rng(seed).normal(size=(n, n)))[0]


def float32(*arrays):
    return tuple(jnp.asarray(array, jnp.float32) for array in arrays)


def normal(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def independent(n, columns):
    """`[n, columns]`, uncorrelated and of unit variance to rounding; n a power of 2."""
    bits = np.arange(n)[:, None] >> np.arange(n.bit_length() - 1)[None] & 1
    assert bits.shape[1] >= columns
    return jnp.asarray(2 * bits[:, :columns] - 1, jnp.float32)
