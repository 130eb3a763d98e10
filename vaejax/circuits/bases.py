"""Other bases for the units of a site: directions, or the features of a dictionary.

A basis says what the units of a site are. `in_basis` writes a network such that the features of a
basis are a site of their own, so that every analysis of units is one of features.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, Protocol

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import struct
from jax import lax

from vaejax.interventions import intervene


class Basis(Protocol):
    """Features of the activations of a site: a pytree of arrays with these two methods."""

    def encode(self, activation: jax.Array) -> jax.Array:
        """The features `[..., F]` of activations `[..., C]`."""
        ...

    def decode(self, features: jax.Array) -> jax.Array:
        """The activations `[..., C]` that features `[..., F]` stand for."""
        ...


@struct.dataclass
class LinearBasis:
    """Directions: `encode(a) = (a - center) inward` and `decode(f) = center + f outward`.

    Attributes:
      center: The activation without features, `[C]`.
      inward: What reads each feature, one in each column, `[C, F]`.
      outward: What each feature writes, one in each row, `[F, C]`.
    """

    center: jax.Array
    inward: jax.Array
    outward: jax.Array

    def encode(self, activation: jax.Array) -> jax.Array:
        """The features `[..., F]` of activations `[..., C]`."""
        check_width("activations", activation, len(self.center))
        return product(activation.astype(self.center.dtype) - self.center, self.inward)

    def decode(self, features: jax.Array) -> jax.Array:
        """The activations `[..., C]` of features `[..., F]`."""
        return self.center + product(features, self.outward)


def unit_basis(center: jax.Array) -> LinearBasis:
    """The units themselves, to compare other bases with.

    Args:
      center: `[C]`; it only shifts the features.

    Example:
      >>> print(unit_basis(jnp.array([1.0, 0.0])).encode(jnp.array([[3.0, 4.0]])))
      [[2. 4.]]
    """
    center = jnp.asarray(center)
    identity = jnp.eye(len(center), dtype=center.dtype)
    return LinearBasis(center, identity, identity)


@functools.cache
def in_basis(apply_fn: Callable[..., Any], site: str) -> Callable[..., Any]:
    """A network whose activation at a site is written in a basis, as two sites of its own.

        a = decode(f) + e,   f = encode(a) at "SITE/features",   e = a - decode(f) at "SITE/error"

    Unless the features or the error are edited, the rest of the network gets `a` itself, to the
    last bit; else it gets `a + decode(f') - decode(f) + e' - e`. So a patch of some features leaves
    the others and what the basis cannot express as they were, and the two sites together are a
    complete cut. To the rest of the network, units of `SITE` are what came of the features: an edit
    there overrides them, and `unit_sites` lists the features and the error in its stead (but for a
    site that is a second call, `h#2`).

    The basis is an argument, not a constant: one program serves all bases of a shape. Equal
    arguments get the same function, so that compiled programs are found again. For the bases of two
    sites, apply it twice: `in_basis(in_basis(f, "h"), "k")` takes
    `((variables, basis_h), basis_k)`.

    Args:
      apply_fn: The network: `apply_fn(variables, ...) -> output`.
      site: Which site; its activation is one array `[B, ..., C]`.

    Returns:
      `f((variables, basis), ...) -> output`, with a `Basis` of C channels. (When called it raises a
      ValueError where the basis is one of another number of channels.)

    Example:
      >>> from vaejax.interventions import patch_units
      >>> model = nn.Sequential([nn.Dense(2), nn.Dense(1)])
      >>> base, donor = jnp.ones((4, 3)), jnp.zeros((4, 3))
      >>> variables = model.init(jax.random.key(0), base)
      >>> turned = jnp.array([[0.6, 0.8], [-0.8, 0.6]])
      >>> basis = LinearBasis(jnp.zeros(2), turned, turned.T)
      >>> found = patch_units(in_basis(model.apply, "layers_0"), (variables, basis), base, donor,
      ...                     sites=["layers_0/features"])
      >>> print(f"{found['layers_0/features'].mediated_fraction.value.sum():.4f}")
      1.0000

    References:
      Marks et al., `Sparse Feature Circuits <https://arxiv.org/abs/2403.19647>`_, 2024, for the
      error as a node.
    """

    def rewrite(activation: jax.Array, basis: Basis) -> jax.Array:
        check_array(activation)
        features = basis.encode(activation)
        decoded = basis.decode(features)
        error = activation.astype(decoded.dtype) - decoded
        # Differences from what was there: exactly zero where nothing was edited.
        change = basis.decode(_tag(f"{site}/features", features)) - decoded
        change += _tag(f"{site}/error", error) - error
        return activation + change.astype(activation.dtype)

    edited = intervene(apply_fn, {site: rewrite})

    def rewritten(variables_and_basis: tuple[Any, Basis], *args: Any, **kwargs: Any) -> Any:
        variables, basis = variables_and_basis
        return edited(variables, {site: basis}, *args, **kwargs)[0]

    return rewritten


def product(x: jax.Array, matrix: jax.Array) -> jax.Array:
    """`x @ matrix` in full precision: accelerators would round the factors, here the features."""
    return jnp.matmul(x, matrix, precision=lax.Precision.HIGHEST)


def check_array(activation: Any) -> None:
    """Raises a ValueError unless the activation is one array `[B, ..., C]`."""
    if not hasattr(activation, "ndim") or activation.ndim < 2:
        got = getattr(activation, "shape", type(activation).__name__)
        raise ValueError(f"expected a site of one array [B, ..., C], got {got}")


def check_width(what: str, array: jax.Array, width: int) -> None:
    """Raises a ValueError unless the last axis has that length."""
    if array.shape[-1:] != (width,):
        raise ValueError(f"expected {what} [..., {width}], got {list(array.shape)}")


class _Identity(nn.Module):
    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return x


class _Parent(nn.Module):
    """Gives a module a path, without being a site: its method is not `__call__`."""

    site: str

    @nn.compact
    def tag(self, x: jax.Array) -> jax.Array:
        return _Identity(name=self.site)(x)


def _tag(site: str, x: jax.Array) -> jax.Array:
    """`x`, as the activation of a site of that name."""
    tagged: Any = _Parent(site, parent=None).apply({}, x, method="tag")
    return tagged
