"""Networks with circuits that are known, among units that are none."""

import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from vaejax.models.layers import Site

# What each of ten hidden units reads of five factors, and what it writes to the output.
READ = np.zeros((5, 10), np.float32)
READ[[0, 0, 1, 0, 1, 0, 2, 3, 4], [0, 1, 2, 3, 3, 4, 7, 8, 9]] = 1
READ[:, 6] = -1
WRITE = np.zeros((10, 5), np.float32)
WRITE[[0, 1, 2, 3, 3, 7, 8, 9], [0, 0, 1, 0, 1, 2, 3, 4]] = 4, 3, 5, 2, 2, 6, 6, 6
WRITE[5], WRITE[6] = 1, 5
CARRIED = [{0}, {0}, {1}, {0, 1}, set(), set(), set(), {2}, {3}, {4}]
CORRELATED = 4  # reads the first factor, and nothing reads it


class Hidden(nn.Module):
    """`y = relu(x @ READ) @ WRITE` of five factors that are above 0.

    Of the hidden units two are about factor 0, one about both 0 and 1, and one about each of the
    others. One follows factor 0 and is not read, one is read and constant, one never fires.
    """

    @nn.compact
    def __call__(self, x):
        hidden = Site(name="hidden")(nn.relu(x @ READ + np.eye(10, dtype=np.float32)[5]))
        return hidden @ WRITE


class Redundant(nn.Module):
    """`y = max(h_0, h_1)` of two copies of x `[B, 1]`."""

    @nn.compact
    def __call__(self, x):
        return Site(name="copies")(jnp.tile(x, (1, 2))).max(1, keepdims=True)


class Both(nn.Module):
    """`y = h_10 * h_11` of twelve copies of x `[B, 1]`: neither does anything alone at x = 0."""

    @nn.compact
    def __call__(self, x):
        copies = Site(name="copies")(jnp.tile(x, (1, 12)))
        return copies[:, 10:11] * copies[:, 11:12]


class Saturating(nn.Module):
    """`y = min(100 h_0, 0.1) + h_1` of two copies of x `[B, 1]`: the gradient prefers the first."""

    @nn.compact
    def __call__(self, x):
        copies = Site(name="copies")(jnp.tile(x, (1, 2)))
        return jnp.minimum(100 * copies[:, :1], 0.1) + copies[:, 1:]


class TwoLayers(nn.Module):
    """Three units write to the second of two layers: `y = second.sum`, `second = first[:, :2]`."""

    @nn.compact
    def __call__(self, x):
        first = Site(name="b_first")(jnp.tile(x, (1, 3)))
        return Site(name="a_second")(first[:, :2] * jnp.array([3.0, 1.0])).sum(1, keepdims=True)


def factor_pairs(num=20, factors=5, seed=0):
    """Pairs that differ in one factor: clean and corrupted `[M, K]`, and which, `[M]`."""
    generator = np.random.default_rng(seed)
    clean = generator.uniform(1, 2, (num * factors, factors)).astype(np.float32)
    changed = np.tile(np.arange(factors), num)
    corrupted = clean.copy()
    corrupted[np.arange(len(clean)), changed] += generator.uniform(0.5, 1, len(clean))
    return clean, corrupted, changed
