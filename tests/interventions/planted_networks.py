"""Networks written by hand whose effects follow in closed form."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from vaejax.models.layers import Site


class Bypass(nn.Module):
    """`y = through * mid + around * x`, where `mid = x`: the share through / (through + around)."""

    through: float = 3.0
    around: float = 1.0

    @nn.compact
    def __call__(self, x):
        return self.through * Site(name="mid")(x) + self.around * x


class Gate(nn.Module):
    """`y = u * v` of the two columns of x."""

    @nn.compact
    def __call__(self, x):
        return Site(name="u")(x[:, :1]) * Site(name="v")(x[:, 1:])


class Diamond(nn.Module):
    """`u = x`, `m = 2 u`, `v = 3 m + 5 u`, `w = 7 u`, `y = v + w`: four paths from u to y.

    By way of v go 6 + 5 = 11 of 18, of them 5 directly and 6 through m; by way of w go 7.
    """

    @nn.compact
    def __call__(self, x):
        u = Site(name="u")(x)
        m = Site(name="m")(2 * u)
        v = Site(name="v")(3 * m + 5 * u)
        w = Site(name="w")(7 * u)
        return v + w


class Units(nn.Module):
    """A hidden layer `h [B, 4]`, whose unit 3 is a ReLU that never fires, and `y = h @ WEIGHT`."""

    @nn.compact
    def __call__(self, x):
        h = jnp.concatenate([x, nn.relu(-1 - x[:, :1] ** 2)], axis=1)
        return Site(name="h")(h) @ WEIGHT


class Image(nn.Module):
    """A site `map [B, 2, 2, 3]` that the output `[B]` sums with the weights `MAP_WEIGHT`."""

    @nn.compact
    def __call__(self, x):
        return jnp.sum(Site(name="map")(x) * MAP_WEIGHT, axis=(1, 2, 3))


WEIGHT = np.array([[1, 0], [0, 2], [3, 4], [5, 6]], np.float32)
MAP_WEIGHT = np.arange(12, dtype=np.float32).reshape(2, 2, 3)


def normal(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def random_variables(model, images, scale=0.3):
    """Variables of a model away from the zeros that biases start at; compiles nothing."""
    shapes = jax.eval_shape(model.init, jax.random.key(0), images)
    leaves, structure = jax.tree.flatten(shapes)
    drawn = [scale * normal(seed, *leaf.shape) for seed, leaf in enumerate(leaves)]
    return jax.tree.unflatten(structure, drawn)
