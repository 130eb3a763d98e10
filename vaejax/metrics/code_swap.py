"""Causal effect strength of other codes, at one position of the grid or at several at once.

What L2 and RMS are is in `ces`. Every formula is [R].
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from vaejax.checks import check_index
from vaejax.interventions.codes import code_swap
from vaejax.metrics._code_effects import CodeScores, Decode, code_effects, code_scores


@struct.dataclass
class CodeSwap:
    """What `ces_code_swap` found.

    Attributes:
      l2: Effects of swaps at each position `[P]`, L2 norm of the change of the whole output.
      rms: The same per output element.
      active: `[P]` bool, positions at which more than one code occurs. The others are dead.
      positions: m, the number of positions swapped at once.
      information: `[]` nats, the expected sum of the code entropies of m random positions. An upper
        bound of what they say together: codes may predict one another.
      total_information: `[]` nats, the same of all P positions.
    """

    l2: CodeScores
    rms: CodeScores
    active: jax.Array
    positions: int = struct.field(pytree_node=False)
    information: jax.Array
    total_information: jax.Array


def ces_code_swap(
    decode_quantized: Decode,
    embedding: jax.Array,
    codes: jax.Array,
    *,
    positions: int = 1,
    draws: int = 16,
    key: jax.Array | None = None,
    chunk: int | None = None,
) -> CodeSwap:
    """Causal effect strength of other codes, drawn from those that occur at a position [R].

        CES_s = mean_n sum_{k' != k_ns} p_s(k') / (1 - p_s(k_ns)) effect_ns(k')
        effect_ns(k') = || D(k_n) - D(k_n | do(k_s = k')) ||_2

    `p_s` is the marginal of the code at position s over the N examples, on the condition that the
    code changes: a code that occurs often is otherwise mostly swapped for itself. A position with
    one code only is dead: there is nothing to swap, and its effect is exactly 0.

    One position of a grid is a small part of what the codes say. With `positions` m above 1 a swap
    at s takes along m - 1 random other positions, drawn anew for every swap, each code from its own
    marginal; so every set of m is as likely as any other, and `all` is their mean effect. See
    `matched_positions` for which m to compare with a continuous latent.

    With m = 1 and no more codes than draws, K <= `draws`, the sum over k' is exact. Otherwise it is
    the mean of `draws` random swaps. Intervals are those of other examples with the same marginals
    and draws.

    Args:
      decode_quantized: See `Decode`.
      embedding: The codebook, `[K, d]`.
      codes: `[N, P]` int32.
      positions: m, from 1 to P.
      draws: Swaps of each example and position, if not all of them are made.
      key: Draws swaps and bootstrap resamples; `jax.random.key(0)` by default.
      chunk: Examples decoded at once, at most, see `ces`.

    Returns:
      A `CodeSwap`.

    Raises:
      ValueError: A shape, dtype or number is not one of the above.

    Examples:
      >>> embedding, codes = jnp.array([[0.0], [2.0]]), jnp.array([[0, 1], [1, 1]])
      >>> result = ces_code_swap(lambda q: q.sum(1), embedding, codes)
      >>> print(result.l2.each, result.active)  # the second position is dead
      [2. 0.] [ True False]
      >>> print(round(float(result.total_information), 4))  # ln 2
      0.6931
    """
    embedding, codes = jnp.asarray(embedding), jnp.asarray(codes)
    if codes.ndim != 2 or codes.size == 0 or not jnp.issubdtype(codes.dtype, jnp.integer):
        raise ValueError(f"expected integer codes [N, P], got {codes.dtype} of shape {codes.shape}")
    num_examples, num_positions = codes.shape
    num_codes = embedding.shape[0]
    check_index("codes", codes, num_codes)
    if not 1 <= positions <= num_positions:
        raise ValueError(f"expected positions from 1 to {num_positions}, got {positions}")
    if draws < 1:
        raise ValueError(f"expected draws >= 1, got {draws}")
    key = jax.random.key(0) if key is None else key
    draw_key, bootstrap_key = jax.random.split(key)
    counts = _count(codes, num_codes)
    # Of each example's code: how many examples have it, and how many a smaller one.
    same = jnp.take_along_axis(counts.T, codes, axis=0)
    smaller = jnp.take_along_axis(counts.T.cumsum(axis=0), codes, axis=0) - same
    ordered = jnp.sort(codes, axis=0)
    others = jnp.maximum(num_examples - same, 1)  # at a dead position there are none

    def every_swap(
        n: jax.Array, position: jax.Array, new_code: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        changed = codes[n, position] != new_code
        weight = jnp.where(changed, counts[position, new_code] / others[n, position], 0)
        return code_swap(codes[n], position, new_code), weight

    def random_swap(key: jax.Array, n: jax.Array, position: jax.Array) -> jax.Array:
        order, uniform = jax.random.uniform(key, (2, num_positions))
        chosen = jnp.argsort(order.at[position].set(-1))[:positions]
        # A rank among the examples whose code differs, then past those whose code is the same. At a
        # dead position that is past all of them, and the last one's code is the same.
        rank = jnp.floor(uniform[chosen] * others[n, chosen]).astype(same.dtype)
        rank = rank + jnp.where(rank >= smaller[n, chosen], same[n, chosen], 0)
        return code_swap(codes[n], chosen, ordered[jnp.minimum(rank, num_examples - 1), chosen])

    def random_swaps(
        n: jax.Array, position: jax.Array, draw: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        # A key for every swap, whatever the chunk that it is made in.
        index = (n * num_positions + position) * draws + draw
        keys = jax.vmap(jax.random.fold_in, (None, 0))(draw_key, index)
        new_codes = jax.vmap(random_swap, (0, 0, None))(keys, n, position)
        return new_codes, jnp.full(n.shape, 1 / draws)

    exact = positions == 1 and num_codes <= draws
    swaps, num_swaps = (every_swap, num_codes) if exact else (random_swaps, draws)
    effects, size = code_effects(decode_quantized, embedding, codes, swaps, num_swaps, chunk)
    active = active_positions(codes)
    everyone = jnp.ones(codes.shape, bool)
    l2, rms = code_scores(effects, everyone, active, size, bootstrap_key)
    information = code_entropies(codes, num_codes).sum()
    return CodeSwap(
        l2=l2,
        rms=rms,
        active=active,
        positions=positions,
        information=information * positions / num_positions,
        total_information=information,
    )


def matched_positions(
    codes: jax.Array,
    num_codes: int,
    *,
    latents: int | None = None,
    nats: float | None = None,
) -> int:
    """How many positions to swap at once, to compare with one latent of a continuous model [R].

    There are two readings of "an intervention of the same size":

    *   `latents`, the same share: one of the D active latents of the other model is 1/D of what it
        says, and m positions are on average m/P of what the codes say.
    *   `nats`, the same amount: the mean KL of one latent of the other model, to be equalled by the
        expected sum of the entropies of m random positions, m/P times that of all. Entropies of
        single positions add up to an upper bound of their joint information.

    Neither is exact, because m is an integer: `CodeSwap.information` says what it came to. Not for
    use under `jit`, where m must be known.

    Args:
      codes: `[N, P]` int32.
      num_codes: The number of entries K of the codebook.
      latents: D, for the first reading.
      nats: A KL, for the second.

    Returns:
      m, from 1 to P: the nearest, the smaller of two equally near.

    Raises:
      ValueError: Not exactly one of `latents` and `nats` is given, or it is not above 0.

    Examples:
      >>> codes = jnp.arange(64).reshape(8, 8) % 2  # every position has one code only
      >>> matched_positions(codes, 2, latents=4)
      2
      >>> matched_positions((codes + jnp.arange(8)[:, None]) % 2, 2, nats=2.0)  # 2 / ln 2 is 2.9
      3
    """
    if (latents is None) == (nats is None):
        raise ValueError("expected either latents or nats, got both or neither")
    total, target = 1.0, 0.0
    if latents is not None:
        target = 1 / latents if latents >= 1 else 0.0
    if nats is not None:
        total, target = float(code_entropies(codes, num_codes).sum()), nats
    if target <= 0:
        raise ValueError(f"expected latents >= 1 or nats above 0, got {latents} and {nats}")
    num_positions = codes.shape[1]
    information = total * np.arange(1, num_positions + 1) / num_positions
    return int(np.argmin(np.abs(information - target))) + 1


def active_positions(codes: jax.Array) -> jax.Array:
    """The positions at which more than one code occurs, `[P]` bool, of codes `[N, P]`.

    Example:
      >>> print(active_positions(jnp.array([[0, 1], [1, 1]])))
      [ True False]
    """
    return jnp.any(codes != codes[:1], axis=0)


def code_entropies(codes: jax.Array, num_codes: int) -> jax.Array:
    """Entropy of the code at each position over the examples, `[P]` in nats, of codes `[N, P]`.

    Example:
      >>> print(code_entropies(jnp.array([[0, 1], [1, 1]]), num_codes=2).round(4))
      [0.6931 0.    ]
    """
    return jax.scipy.special.entr(_count(codes, num_codes) / len(codes)).sum(axis=1)


def _count(codes: jax.Array, num_codes: int) -> jax.Array:
    """How many examples have each code at each position, `[P, K]`."""
    return jax.vmap(lambda column: jnp.bincount(column, length=num_codes))(codes.T)
