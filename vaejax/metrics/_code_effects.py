"""How effects of interventions on codes are measured and summarised."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jax import lax

from vaejax.changes import exact_change, l2_norm
from vaejax.checks import check_batch
from vaejax.chunking import even_chunk, map_chunks
from vaejax.estimates import bootstrap_mean

Decode = Callable[[jax.Array], Any]
"""Vectors `[B, P, d]`, of the codebook or not, to decoded means `[B, ...]`, row by row."""


@struct.dataclass
class CodeScores:
    """The effect of every position or entry and its summaries, in one unit.

    Attributes:
      each: Mean effect of every position `[P]` or of every entry `[K]`.
      all: `[]` mean over all of them, in which an entry that is not in use counts as 0.
      active: `[]` mean over the active ones; NaN if there is none.
      max: `[]` the largest.
      low: The same numbers at the lower end of their 95% bootstrap intervals over examples, each
        number for itself; None inside `low` and `high`.
      high: The same at the upper end.
    """

    each: jax.Array
    all: jax.Array
    active: jax.Array
    max: jax.Array
    low: CodeScores | None = None
    high: CodeScores | None = None


def code_effects(
    decode_quantized: Decode,
    embedding: jax.Array,
    codes: jax.Array,
    intervene: Callable[[jax.Array, jax.Array, jax.Array], tuple[jax.Array, jax.Array]],
    draws: int,
    chunk: int | None,
) -> tuple[jax.Array, int]:
    """The L2 effects of `draws` interventions at every position, as their weighted sum.

    Args:
      decode_quantized: See `Decode`.
      embedding: `[K, d]`.
      codes: `[N, P]`.
      intervene: Maps the indices of examples `[B]`, of a position `[]` and of a draw `[]` to the
        codes `[B, P]` that the intervention leads to and its weights `[B]`.
      draws: Interventions at each position.
      chunk: Examples decoded at once, at most.

    Returns:
      `[N, P]`, and the number of output elements of one example.
    """
    num_examples, num_positions = codes.shape
    chunk = even_chunk(chunk, num_examples)

    def decode(codes: jax.Array) -> Any:
        return check_batch(decode_quantized(embedding[codes]), chunk)

    output = jax.eval_shape(decode, codes[:chunk])
    dtype = jax.eval_shape(lambda x: l2_norm(exact_change(x, x)), output).dtype

    def one_chunk(n: jax.Array) -> jax.Array:
        # Clean and intervened outputs come from the same loop: decoded by another program, equal
        # codes could differ in the last digit.
        def step(carry: tuple[Any, jax.Array], index: jax.Array) -> tuple[Any, None]:
            before, total = carry
            first = index == 0  # no intervention
            position, draw = (index - 1) // draws, (index - 1) % draws
            new_codes, weight = intervene(n, position, draw)
            after = decode(jnp.where(first, codes[n], new_codes))
            before = jax.tree.map(lambda new, old: jnp.where(first, new, old), after, before)
            effect = weight * l2_norm(exact_change(before, after))
            # The first step adds its 0 to the last position.
            return (before, total.at[position].add(effect.astype(dtype))), None

        before = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), output)
        steps = jnp.arange(1 + num_positions * draws)
        (_, total), _ = lax.scan(step, (before, jnp.zeros((num_positions, chunk), dtype)), steps)
        return total.T

    size = sum(math.prod(leaf.shape[1:]) for leaf in jax.tree.leaves(output))
    return map_chunks(one_chunk, num_examples, chunk), size


def code_scores(
    effects: jax.Array,
    counted: jax.Array,
    active: jax.Array,
    size: int,
    key: jax.Array | None,
) -> tuple[CodeScores, CodeScores]:
    """The scores, L2 and RMS, of effects `[N, U]` on outputs of `size` elements.

    `counted [N, U]` bool are the examples over which the mean is taken; the effects on others are
    0. `active [U]` is the mask of `CodeScores.active`.
    """

    def scores(means: tuple[jax.Array, jax.Array]) -> CodeScores:
        effect, frequency = means
        each = effect / frequency  # NaN if it is never counted
        or_zero = jnp.where(frequency > 0, each, 0)
        mean_active = each.mean(where=active & (frequency > 0))
        return CodeScores(each, or_zero.mean(), mean_active, or_zero.max())

    means_of = (effects, counted.astype(effects.dtype))
    low, high = bootstrap_mean(scores, means_of, key=key)
    means = jax.tree.map(lambda leaf: leaf.mean(axis=0), means_of)
    l2 = dataclasses.replace(scores(means), low=low, high=high)
    return l2, jax.tree.map(lambda score: score / math.sqrt(size), l2)
