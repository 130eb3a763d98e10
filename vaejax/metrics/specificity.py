"""Intervention specificity: whether a latent moves one thing or everything.

Marks as in `effect_strength`: [P] stated by the papers' abstracts or by a published review of them,
[R] our reconstruction.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jax.scipy.special import entr

from vaejax.checks import check_active, check_latents, check_values
from vaejax.estimates import bootstrap_mean
from vaejax.metrics._interventions import map_interventions

EPSILON = 1e-6
"""What `specificity_pixel` adds to the entropy before it divides by it [P]."""


@struct.dataclass
class Specificity:
    """The specificity of every latent and its summaries over latents.

    Attributes:
      per_latent: `[D]`; NaN for a dead latent, one that changes nothing at all.
      mean: `[]` mean over the latents that are not dead; NaN when all are.
      active: `[]` mean over those that are active and not dead; NaN when no mask was given or
        there are none.
      num_dead: `[]` int32, the number of dead latents; None inside `low` and `high`.
      low: The same numbers at the lower end of their 95% bootstrap intervals over examples, each
        number for itself; None inside `low` and `high`.
      high: The same at the upper end.
    """

    per_latent: jax.Array
    mean: jax.Array
    active: jax.Array
    num_dead: jax.Array | None = None
    low: Specificity | None = None
    high: Specificity | None = None


def specificity_pixel(
    decode: Callable[[jax.Array], Any],
    latents: jax.Array,
    values: jax.Array,
    *,
    active: jax.Array | None = None,
    chunk: int | None = None,
    key: jax.Array | None = None,
) -> Specificity:
    """How few output elements a latent changes: the inverse entropy of where its effect falls [P].

        S_i = 1 / (H(p_i) + EPSILON)
        p_i(e) ~ mean_n mean_v (decode(z_n | do(z_i = v))(e) - decode(z_n)(e))^2

    with H in nats over the output elements e. The form is a third party's. A latent that spreads
    its effect evenly over m elements scores `1 / ln m`; only one that changes a single element
    reaches `1 / EPSILON`. The scale depends on the size of the image and of its objects and has no
    upper bound of use: to compare models prefer `specificity_factor`.

    A dead latent has no p. It is NaN and counted, where the formula would give it `1 / EPSILON`.

    Pure JAX and chunked as `ces`; memory holds N * D clean outputs, for the intervals.

    Args:
      decode: Maps latents `[chunk, D]` to decoded means `[chunk, ...]`, or a pytree of them.
      latents: `[N, D]` floating point, usually posterior means.
      values: `[V]` for all latents alike, or `[D, V]` with a row for each latent.
      active: `[D]` bool, the latents that `.active` averages over, see `active_latents`.
      chunk: Examples decoded at once, see `ces`.
      key: Draws the resamples of the intervals; `jax.random.key(0)` by default.

    Returns:
      A `Specificity`, at least 0.

    Raises:
      ValueError: A shape or dtype is not the one above; the message names expected and got.

    Examples:
      >>> weight = jnp.array([[1.0, 1.0, 0.0, 0.0], [1.0, 1.0, 1.0, 1.0], [0.0, 0.0, 0.0, 0.0]])
      >>> result = specificity_pixel(lambda z: z @ weight, jnp.zeros((8, 3)), jnp.array([1.0]))
      >>> [round(float(s), 3) for s in result.per_latent]  # 1 / ln 2, 1 / ln 4, dead
      [1.443, 0.721, nan]
      >>> int(result.num_dead)
      1

    References:
      Roy, "Causal Intervention Framework for Variational Auto Encoder Mechanistic
      Interpretability", arXiv:2505.03530.
    """
    changes = _changes(decode, latents, values, squares, active, chunk)
    return pixel_scores(*changes, key)


def specificity_factor(
    read: Callable[[jax.Array], jax.Array | Sequence[jax.Array]],
    latents: jax.Array,
    values: jax.Array,
    *,
    active: jax.Array | None = None,
    chunk: int | None = None,
    key: jax.Array | None = None,
) -> Specificity:
    """How few factors a latent changes, in [0, 1] [R].

        S_i = 1 - H(p_i) / ln K
        p_i(k) ~ mean_n mean_v |read_k(z_n | do(z_i = v)) - read_k(z_n)|

    1: the latent moves one factor. 0: it moves all alike. The changes of different factors are
    weighed against each other, so `read` should state each in units of its range.

    Pure JAX and chunked as `ces`.

    Args:
      read: Maps latents `[chunk, D]` to factors `[chunk, K]`: a read-out of the decoded image. Or
        to K arrays `[chunk, w_k]`, where the change of factor k is the sum over its `w_k` numbers;
        half the class probabilities of a categorical factor count as a distance in total variation.
      latents: `[N, D]` floating point, usually posterior means.
      values: `[V]` for all latents alike, or `[D, V]` with a row for each latent.
      active: `[D]` bool, the latents that `.active` averages over, see `active_latents`.
      chunk: Examples decoded and read at once, see `ces`.
      key: Draws the resamples of the intervals; `jax.random.key(0)` by default.

    Returns:
      A `Specificity`.

    Raises:
      ValueError: A shape or dtype is not the one above, or K is 1; the message names expected and
        got.

    Examples:
      >>> weight = jnp.array([[0.0, 5.0, 0.0, 0.0], [1.0, 1.0, 0.0, 0.0], [1.0, 1.0, 1.0, 1.0]])
      >>> result = specificity_factor(lambda z: z @ weight, jnp.zeros((8, 3)), jnp.array([1.0]))
      >>> [round(float(s), 3) for s in result.per_latent]
      [1.0, 0.5, 0.0]

    References:
      As `specificity_pixel`. The read-out and the bounded form are ours.
    """
    changes = _changes(read, latents, values, distances, active, chunk)
    return factor_scores(*changes, key)


def squares(change: Any) -> jax.Array:
    """The squared change `[B, E]` of every output element."""
    flat = [leaf.reshape(len(leaf), -1) for leaf in jax.tree.leaves(change)]
    return jnp.square(jnp.concatenate(flat, axis=1))


def distances(change: Any) -> jax.Array:
    """How far every factor moves `[B, K]`, from changes of what `specificity_factor` reads."""
    if isinstance(change, (tuple, list)):
        for leaf in change:
            if leaf.ndim != 2:
                raise ValueError(f"expected read to return arrays [B, w], got {leaf.shape}")
        moved = jnp.stack([jnp.abs(leaf).sum(axis=1) for leaf in change], axis=1)
    elif change.ndim != 2:
        raise ValueError(f"expected read to return [B, K], got shape {change.shape}")
    else:
        moved = jnp.abs(change)
    if moved.shape[1] < 2:
        raise ValueError(f"expected at least 2 factors, got {moved.shape[1]}")
    return moved


def pixel_scores(
    changes: jax.Array, active: jax.Array | None, key: jax.Array | None
) -> Specificity:
    """`specificity_pixel` of mean `squares` `[N, D, E]`."""
    return _summarise(changes, active, key, score=_inverse_entropy)


def factor_scores(
    changes: jax.Array, active: jax.Array | None, key: jax.Array | None
) -> Specificity:
    """`specificity_factor` of mean `distances` `[N, D, K]`."""
    return _summarise(changes, active, key, score=_concentration)


def _changes(
    decode: Callable[[jax.Array], Any],
    latents: jax.Array,
    values: jax.Array,
    amounts: Callable[[Any], jax.Array],
    active: jax.Array | None,
    chunk: int | None,
) -> tuple[jax.Array, jax.Array | None]:
    """The mean `amounts` `[N, D, E]` of changes, and `active`, checked."""
    latents = check_latents(latents)
    values = check_values(values, latents)
    active = check_active(active, latents)
    changes, _, _ = map_interventions(
        decode, latents, values, lambda change: (amounts(change), None), chunk
    )
    return changes, active


def _inverse_entropy(p: jax.Array) -> jax.Array:
    entropy = jnp.maximum(entr(p).sum(axis=-1), 0)  # rounding can make it -1e-7
    return 1 / (entropy + EPSILON)


def _concentration(p: jax.Array) -> jax.Array:
    evenness = entr(p).sum(axis=-1) / math.log(p.shape[-1])
    return jnp.maximum(1 - evenness, 0)  # rounding can make it -1e-7


# Outside of `jit` every small step would be compiled by itself.
@functools.partial(jax.jit, static_argnames="score")
def _summarise(
    changes: jax.Array,
    active: jax.Array | None,
    key: jax.Array | None,
    *,
    score: Callable[[jax.Array], jax.Array],
) -> Specificity:
    # The mean of no latents is NaN.
    mask = jnp.zeros(changes.shape[1], bool) if active is None else active

    def of_mean(mean: jax.Array) -> Specificity:
        total = mean.sum(axis=1)
        alive = total > 0
        p = mean / jnp.where(alive, total, 1)[:, None]
        per_latent = jnp.where(alive, score(p), jnp.nan)
        return Specificity(
            per_latent=per_latent,
            mean=per_latent.mean(where=alive),
            active=per_latent.mean(where=alive & mask),
        )

    mean = changes.mean(axis=0)
    low, high = bootstrap_mean(of_mean, changes, key=key)
    num_dead = jnp.sum(mean.sum(axis=1) == 0, dtype=jnp.int32)
    return dataclasses.replace(of_mean(mean), num_dead=num_dead, low=low, high=high)
