"""Modules of every kind for the tests of the transform, and what they are compared with."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import struct, traverse_util

from vaejax.zoo import Network, recipe

X = jax.random.normal(jax.random.key(1), (4, 6))

ZOO = ("vae", "factor_vae", "vq_vae")
NETWORK = Network((32, 32, 1), width=0.125, discriminator_width=8, codebook_size=8, code_dim=4)
IMAGES = jax.random.uniform(jax.random.key(2), (3, 32, 32, 1))
KEY = jax.random.key(3, impl="rbg")  # compiles faster than the default


@functools.cache
def of_the_zoo(name):
    model = recipe(name, NETWORK).model
    return model, initialised(model, IMAGES, KEY)


class Block(nn.Module):
    features: int = 3

    @nn.compact
    def __call__(self, x):
        return jnp.tanh(nn.Dense(self.features, name="inner")(x))


class Listed(nn.Module):
    """Made in `setup`, with a list of layers, nested modules and other methods than a call."""

    def setup(self):
        self.layers = [Block(4), nn.Dense(3)]
        self.head = {"a": nn.Dense(2), "b": nn.Sequential([nn.Dense(2), jnp.tanh, nn.Dense(1)])}

    def encode(self, x):
        for layer in self.layers:
            x = layer(x)
        return x

    def decode(self, z):
        return self.head["a"](z), self.head["b"](z)

    def __call__(self, x):
        return self.decode(self.encode(x))


class ByParts(nn.Module):
    """Calls other methods of a module, which are no sites, but what they call is."""

    def setup(self):
        self.listed = Listed()

    def __call__(self, x):
        return self.listed.decode(self.listed.encode(x))


class Twice(nn.Module):
    """Calls one module three times."""

    @nn.compact
    def __call__(self, x):
        block = Block(x.shape[-1], name="block")
        return block(block(x)) + block(2 * x)


@struct.dataclass
class Pair:
    mean: Any
    scale: Any


class Several(nn.Module):
    """Returns several arrays, as `kind`."""

    kind: str

    @nn.compact
    def __call__(self, x):
        a, b = jnp.split(nn.Dense(4, name="dense")(x), 2, -1)
        return {"tuple": (a, b), "dict": {"a": a, "b": b}, "record": Pair(a, b)}[self.kind]


class OfSeveral(nn.Module):
    kind: str

    @nn.compact
    def __call__(self, x):
        a, b = jax.tree.leaves(Several(self.kind, name="several")(x))
        return a * jnp.exp(b)


class Base(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(3, name="dense")(x)


class Heir(Base):
    @nn.compact
    def __call__(self, x):
        return 10 * super().__call__(x)


class HeirOfHeir(Heir):
    @nn.compact
    def __call__(self, x):
        return 1 + super().__call__(x)


class Inheriting(nn.Module):
    @nn.compact
    def __call__(self, x):
        return HeirOfHeir(name="heir")(x) ** 2


class Sharing(nn.Module):
    """A child in the scope of its parent."""

    class Child(nn.Module):
        child: nn.Module

        def setup(self):
            nn.share_scope(self, self.child)

        @nn.compact
        def __call__(self, x):
            return nn.Dense(2, name="own")(self.child(x))

    @nn.compact
    def __call__(self, x):
        return self.Child(Block(4))(x)


class Stateful(nn.Module):
    """Dropout and moving averages."""

    @nn.compact
    def __call__(self, x):
        x = nn.Dropout(0.5, deterministic=False, name="dropout")(nn.Dense(5, name="dense")(x))
        return nn.BatchNorm(use_running_average=False, name="norm")(x)


class Perturbed(nn.Module):
    @nn.compact
    def __call__(self, x):
        h = self.perturb("h", nn.Dense(5, name="hidden")(x))
        return nn.Dense(2, name="out")(jnp.tanh(h))


class Cell(nn.Module):
    @nn.compact
    def __call__(self, carry, x):
        h = jnp.tanh(nn.Dense(3, name="dense")(carry + x))
        return h, 2 * h


class Scanned(nn.Module):
    @nn.compact
    def __call__(self, xs):
        scanned = nn.scan(Cell, variable_broadcast="params", split_rngs={"params": False})
        _, ys = scanned(name="cell")(jnp.zeros(3), nn.Dense(3, name="embed")(xs))
        return nn.Dense(2, name="out")(ys)


class Within(nn.Module):
    """A block inside a transformation of modules."""

    transform: Any

    @nn.compact
    def __call__(self, x):
        return nn.Dense(2, name="out")(self.transform(Block)(4, name="block")(x))


class Mapped(nn.Module):
    @nn.compact
    def __call__(self, x):
        mapped = nn.vmap(Block, variable_axes={"params": 0}, split_rngs={"params": True})
        return mapped(name="blocks")(x).sum(0)


class Branching(nn.Module):
    def setup(self):
        self.block = Block(6)

    def __call__(self, x):
        if self.is_initializing():
            return self.block(x)
        return nn.cond(
            x.sum() > 0, lambda self, x: self.block(x), lambda self, x: 2 * self.block(x), self, x
        )


class Chain(nn.Module):
    """Blocks `first .. last`: an early, a middle and a late site."""

    widths: tuple[int, ...] = (5, 4, 3)

    @nn.compact
    def __call__(self, x):
        for name, width in zip(("first", "middle", "last"), self.widths, strict=True):
            x = Block(width, name=name)(x)
        return jnp.sin(x)


def initialised(model, *args, seed=0):
    return jax.jit(model.init)(jax.random.key(seed), *args)


def captured(apply_fn, *args, mutable=(), **kwargs):
    """The output, and what Flax itself captures: site -> activation."""
    kwargs.update(capture_intermediates=True, mutable=["intermediates", *mutable])
    output, state = apply_fn(*args, **kwargs)
    activations = {}
    for (*path, method), calls in traverse_util.flatten_dict(state["intermediates"]).items():
        for number, activation in enumerate(calls if path and method == "__call__" else (), 1):
            activations["/".join(path) + ("" if number == 1 else f"#{number}")] = activation
    return output, activations


def assert_equal(got, expected):
    assert jax.tree.structure(got) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)


def assert_close(got, expected, rtol=1e-5, atol=1e-6):
    assert jax.tree.structure(got) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol, atol)


def message(call, *args, **kwargs):
    """The one line of a `ValueError`."""
    with pytest.raises(ValueError) as error:  # noqa: PT011
        call(*args, **kwargs)
    assert "\n" not in str(error.value)
    return str(error.value)


def dense(params, x, shift=0.0):
    return x @ params["kernel"] + params["bias"] + shift
