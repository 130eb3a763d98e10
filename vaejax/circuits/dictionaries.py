"""Sparse dictionaries: more features than channels, few of them active at a time."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jax import lax

from vaejax.circuits.bases import check_width, product


@struct.dataclass
class SparseDictionary:
    """A sparse autoencoder: a basis of F features, none negative and most of them zero.

        f = relu((a - center) inward + bias),   decode(f) = center + f outward

    Attributes:
      center: The activation without features, `[C]`.
      inward: What reads each feature, one in each column, `[C, F]`.
      bias: `[F]`.
      outward: The direction of norm 1 that each feature writes, one in each row, `[F, C]`.
      firing: The share of the training activations on which each feature is not zero, `[F]`; 0 for
        a dead one.
    """

    center: jax.Array
    inward: jax.Array
    bias: jax.Array
    outward: jax.Array
    firing: jax.Array

    def encode(self, activation: jax.Array) -> jax.Array:
        """The features `[..., F]` of activations `[..., C]`."""
        check_width("activations", activation, len(self.center))
        shifted = activation.astype(self.center.dtype) - self.center
        return jax.nn.relu(product(shifted, self.inward) + self.bias)

    def decode(self, features: jax.Array) -> jax.Array:
        """The activations `[..., C]` of features `[..., F]`."""
        return self.center + product(features, self.outward)


def train_dictionary(
    key: jax.Array,
    activations: jax.Array,
    size: int,
    sparsity: float = 0.4,
    *,
    steps: int = 5000,
    batch_size: int = 256,
    learning_rate: float = 3e-3,
) -> SparseDictionary:
    """Trains a sparse autoencoder on activations, each a sample of its channels [S].

        minimise E ||a - decode(encode(a))||^2 + sparsity E |f|_1,   where E ||a - E a||^2 = 1

    Adam, its rate falling linearly to a twentieth; the directions keep norm 1. Ten times until 70%
    of the steps, features that fired in no batch since half such a period start anew: at what the
    dictionary misses of an example, drawn in proportion to its squared error. What is dead at the
    end has `firing == 0`. At last the penalty's shrinking is undone: features are scaled by those
    factors that fit the activations best, which moves none of their zeros.

    A penalty rather than the k largest features, because it finds planted directions without being
    told how many are active: 32 to 128 features in half as many dimensions, 2 to 4 at a time, with
    a mean cosine of 0.97 to 1.00 by the default (0.91 to 1.00 from 0.2 to 0.8). The k largest found
    32 or 64 with one of 0.68 to 0.98, as k went from about half to twice the number that is active.

    Args:
      key: Draws the first directions, batches and restarts.
      activations: `[N, C]`; of feature maps, their positions as samples:
        `maps.reshape(-1, C)`, all or some.
      size: Number F of features.
      sparsity: Weight of the penalty. It needs no change with the scale of activations.
      steps: Batches trained on.
      batch_size: Samples in each, drawn with replacement.
      learning_rate: The first.

    Returns:
      A `SparseDictionary`, a basis for `in_basis`.

    Raises:
      ValueError: Activations that are not `[N, C]` or never vary, or numbers out of range.

    References:
      Bricken et al., "Towards Monosemanticity", 2023, with the restarts. Wright and Sharkey,
      "Addressing Feature Suppression in SAEs", 2024, on the shrinking.
    """
    activations = jnp.asarray(activations)
    if activations.ndim != 2 or activations.size == 0:
        raise ValueError(f"expected activations [N, C], got {list(activations.shape)}")
    if min(size, steps, batch_size) < 1:
        raise ValueError(
            f"expected size, steps and batch_size >= 1, got {size}, {steps} and {batch_size}"
        )
    if sparsity < 0 or learning_rate <= 0:
        raise ValueError(
            f"expected sparsity >= 0 and learning_rate > 0, got {sparsity} and {learning_rate}"
        )
    activations = activations.astype(jnp.float32)
    if not jnp.any(activations != activations[0]):
        raise ValueError("expected activations that vary")
    return _train(key, activations, size, sparsity, steps, batch_size, learning_rate)


@functools.partial(jax.jit, static_argnames=("size", "steps", "batch_size"))
def _train(
    key: jax.Array,
    activations: jax.Array,
    size: int,
    sparsity: float,
    steps: int,
    batch_size: int,
    learning_rate: float,
) -> SparseDictionary:
    import optax

    mean = activations.mean(0)
    scale = jnp.sqrt(jnp.mean(jnp.sum(jnp.square(activations - mean), 1)))
    samples = (activations - mean) / scale
    width = samples.shape[1]
    key, first = jax.random.split(key)
    outward = _unit(jax.random.normal(first, (size, width)))
    start = SparseDictionary(
        center=jnp.zeros(width),
        inward=outward.T,
        bias=jnp.zeros(size),
        outward=outward,
        firing=jnp.zeros(size),
    )
    optimizer = optax.adam(optax.linear_schedule(learning_rate, learning_rate / 20, steps))
    period = max(1, steps // 10)

    def loss(dictionary: SparseDictionary, batch: jax.Array) -> tuple[jax.Array, jax.Array]:
        features = dictionary.encode(batch)
        error = jnp.sum(jnp.square(batch - dictionary.decode(features)), 1)
        return jnp.mean(error + sparsity * features.sum(1)), features

    def step(state: _State, index: jax.Array) -> tuple[_State, None]:
        dictionary, moments, fired = state
        draw, restart = jax.random.split(jax.random.fold_in(key, index))
        batch = samples[jax.random.randint(draw, (batch_size,), 0, len(samples))]
        gradient, features = jax.grad(loss, has_aux=True)(dictionary, batch)
        # Only along the sphere that the directions are on: Adam would count the rest as progress.
        away = jnp.sum(gradient.outward * dictionary.outward, 1, keepdims=True)
        gradient = dataclasses.replace(
            gradient, outward=gradient.outward - away * dictionary.outward
        )
        updates, moments = optimizer.update(gradient, moments)
        dictionary = optax.apply_updates(dictionary, updates)
        dictionary = dataclasses.replace(dictionary, outward=_unit(dictionary.outward))
        fired = jnp.where(jnp.any(features > 0, 0), index, fired)

        def revived(dictionary: SparseDictionary, moments: Any) -> tuple[SparseDictionary, Any]:
            missed = batch - dictionary.decode(dictionary.encode(batch))
            chance = jnp.sum(jnp.square(missed), 1)
            rows = jax.random.choice(restart, batch_size, (size,), p=chance / chance.sum())
            directions = _unit(missed[rows])
            fresh = dataclasses.replace(start, inward=directions.T, outward=directions)
            dead = index - fired > period // 2
            adam, *rest = moments
            nothing = jax.tree.map(jnp.zeros_like, dictionary)
            mu, nu = (_renew(dead, moment, nothing) for moment in (adam.mu, adam.nu))
            return _renew(dead, dictionary, fresh), (adam._replace(mu=mu, nu=nu), *rest)

        due = (index % period == period - 1) & (index < 0.7 * steps)
        dictionary, moments = lax.cond(
            due, revived, lambda *unchanged: unchanged, dictionary, moments
        )
        return (dictionary, moments, fired), None

    state = start, optimizer.init(start), jnp.zeros(size, jnp.int32)
    (found, _, _), _ = lax.scan(step, state, jnp.arange(steps))
    gain, firing = _gain(found, samples, batch_size)
    return SparseDictionary(
        center=mean + scale * found.center,
        inward=found.inward * gain,
        bias=found.bias * gain * scale,
        outward=found.outward,
        firing=firing,
    )


_State = tuple[SparseDictionary, Any, jax.Array]
"""The dictionary, Adam's moments, and when each feature last fired."""


def _renew(
    dead: jax.Array, dictionary: SparseDictionary, fresh: SparseDictionary
) -> SparseDictionary:
    """The dictionary, but dead features from `fresh`."""
    return dataclasses.replace(
        dictionary,
        inward=jnp.where(dead, fresh.inward, dictionary.inward),
        bias=jnp.where(dead, fresh.bias, dictionary.bias),
        outward=jnp.where(dead[:, None], fresh.outward, dictionary.outward),
    )


def _gain(
    dictionary: SparseDictionary, samples: jax.Array, batch_size: int
) -> tuple[jax.Array, jax.Array]:
    """The factors by which features fit the samples best, and the share of samples they fire on."""
    size = len(dictionary.bias)

    def add(sums: Any, rows: jax.Array) -> tuple[Any, None]:
        there = (rows < len(samples))[:, None]
        batch = samples[jnp.minimum(rows, len(samples) - 1)]
        features = jnp.where(there, dictionary.encode(batch), 0)
        seen = product(batch - dictionary.center, dictionary.outward.T)
        new = product(features.T, features), jnp.sum(features * seen, 0), jnp.sum(features > 0, 0)
        return jax.tree.map(jnp.add, sums, new), None

    zeros = jnp.zeros((size, size)), jnp.zeros(size), jnp.zeros(size, jnp.int32)
    batches = -(-len(samples) // batch_size)
    rows = jnp.arange(batches * batch_size).reshape(batches, batch_size)
    (moments, seen, fires), _ = lax.scan(add, zeros, rows)
    normal = moments * product(dictionary.outward, dictionary.outward.T)
    # Towards factors of 1: dead features have no equation, and duplicates share one.
    ridge = 1e-4 * jnp.mean(jnp.diag(normal)) + 1e-12
    fitted = jnp.linalg.solve(normal + ridge * jnp.eye(size), seen + ridge)
    # A factor below 1 undoes no shrinking, and a negative one would move zeros.
    return jnp.maximum(fitted, 1), fires / len(samples)


def _unit(rows: jax.Array) -> jax.Array:
    """The rows at norm 1."""
    return rows / jnp.maximum(jnp.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
