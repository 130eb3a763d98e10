"""Causal effect strength where latents are codes: four interventions, side by side.

A continuous latent has one obvious intervention, a code has several, and a small effect of one of
them may be a property of the intervention and not of the model. So they are reported together.
Which four there are is from our definitions; every formula here is [R].
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from vaejax.chunking import even_chunk, map_chunks
from vaejax.interventions.codes import Quantize, code_ablate, code_swap
from vaejax.interventions.latents import quantile_grid
from vaejax.metrics._code_effects import CodeScores, Decode, code_effects, code_scores
from vaejax.metrics.code_swap import CodeSwap, active_positions, ces_code_swap
from vaejax.metrics.effect_scores import CES
from vaejax.metrics.effect_strength import CALIBRATED_QUANTILES, ces


@struct.dataclass
class CodeAblate:
    """What `ces_code_ablate` found.

    Attributes:
      l2: Effects of removing each entry `[K]`, mean over the examples that use it, L2 norm of the
        change of the whole output; NaN for an entry that none uses.
      rms: The same per output element.
      active: `[K]` bool, entries in use. The others are dead.
      frequency: `[K]` share of the examples that use an entry. As removing it changes no other
        example, the mean over all examples is `frequency * l2.each`, or 0 for a dead entry.
    """

    l2: CodeScores
    rms: CodeScores
    active: jax.Array
    frequency: jax.Array


@struct.dataclass
class DiscreteCES:
    """Causal effect strength by each of the four interventions on codes.

    Attributes:
      prequant: Of the P d coordinates of the encoder's output, rounded to the codebook again.
      postquant: Of the P d coordinates of the codes' vectors, not rounded again.
      code_swap: Of other codes at a position, or at several.
      code_ablate: Of the entries of the codebook.
    """

    prequant: CES
    postquant: CES
    code_swap: CodeSwap
    code_ablate: CodeAblate


def discrete_ces(
    decode_quantized: Decode,
    quantize: Quantize,
    embedding: jax.Array,
    encoded: jax.Array,
    *,
    positions: int = 1,
    draws: int = 16,
    continuous_examples: int | None = None,
    key: jax.Array | None = None,
    chunk: int | None = None,
) -> DiscreteCES:
    """The effects of all four interventions on discrete latents [R].

        prequant_sc  = mean_n mean_q || D(quantize(e_n)) - D(quantize(e_n | do(e_sc = Q_sc(q)))) ||
        postquant_sc = mean_n mean_q || D(e[k_n]) - D(e[k_n] | do(q_sc = Q'_sc(q))) ||

    `Q_sc` and `Q'_sc` are the quantile functions, over all N examples, of coordinate c at position
    s of the encoder's output and of the codes' vectors; q runs over `CALIBRATED_QUANTILES`, so the
    first two are `ces_calibrated` of those coordinates, the active ones being those of positions at
    which more than one code occurs. The others are `ces_code_swap` and `ces_code_ablate`.

    Pure JAX, best under `jit`. The first two take `2 * 7 P d` decodes an example, the third
    `P draws` at most and the last P.

    Args:
      decode_quantized: See `Decode`.
      quantize: The model's rounding, see `Quantize`.
      embedding: The codebook, `[K, d]`.
      encoded: Outputs of the encoder, `[N, P, d]`.
      positions: See `ces_code_swap`.
      draws: See `ces_code_swap`.
      continuous_examples: Intervene on the first so many examples only in `prequant` and
        `postquant`, which cost most. Quantiles are still those of all N.
      key: Draws swaps and bootstrap resamples; `jax.random.key(0)` by default.
      chunk: Examples decoded at once, at most, see `ces`.

    Returns:
      A `DiscreteCES`.

    Raises:
      ValueError: A shape, dtype or number is not one of the above.

    Examples:
      >>> def quantize(embedding, vectors):
      ...     return jnp.argmin(jnp.abs(vectors - embedding[:, 0]), -1)
      >>> embedding, encoded = jnp.array([[0.0], [1.0]]), jnp.array([[[0.1]], [[0.9]]])
      >>> result = discrete_ces(lambda q: 4 * q.sum(1), quantize, embedding, encoded)
      >>> float(result.code_swap.l2.all), float(result.code_ablate.l2.all)
      (4.0, 4.0)

    References:
      As `ces`. van den Oord et al., "Neural Discrete Representation Learning", arXiv:1711.00937.
    """
    embedding, encoded = jnp.asarray(embedding), jnp.asarray(encoded)
    codes = _quantize(quantize, embedding, encoded, chunk)
    key = jax.random.key(0) if key is None else key
    keys = jax.random.split(key, 4)
    num_examples, _, dim = encoded.shape
    if continuous_examples is None:
        continuous_examples = num_examples
    if not 1 <= continuous_examples <= num_examples:
        raise ValueError(
            f"expected continuous_examples from 1 to {num_examples}, got {continuous_examples}"
        )
    active = jnp.repeat(active_positions(codes), dim)

    def continuous_ces(decode: Decode, vectors: jax.Array, key: jax.Array) -> CES:
        latents = vectors.reshape(num_examples, -1)
        return ces(
            lambda z: decode(z.reshape(len(z), -1, dim)),
            latents[:continuous_examples],
            quantile_grid(latents, CALIBRATED_QUANTILES),
            active=active,
            chunk=chunk,
            key=key,
        )

    def decode_encoded(vectors: jax.Array) -> Any:
        return decode_quantized(embedding[quantize(embedding, vectors)])

    return DiscreteCES(
        prequant=continuous_ces(decode_encoded, encoded, keys[0]),
        postquant=continuous_ces(decode_quantized, embedding[codes], keys[1]),
        code_swap=ces_code_swap(
            decode_quantized,
            embedding,
            codes,
            positions=positions,
            draws=draws,
            key=keys[2],
            chunk=chunk,
        ),
        code_ablate=ces_code_ablate(
            decode_quantized, quantize, embedding, encoded, key=keys[3], chunk=chunk
        ),
    )


def ces_code_ablate(
    decode_quantized: Decode,
    quantize: Quantize,
    embedding: jax.Array,
    encoded: jax.Array,
    *,
    key: jax.Array | None = None,
    chunk: int | None = None,
) -> CodeAblate:
    """Causal effect strength of the entries of the codebook, each removed in turn [R].

        CES_k = mean_{n: k in k_n} || D(k_n) - D(k_n without k) ||

    Where an example uses entry k, `code_ablate` puts the next nearest in its place, at all of its
    positions at once. The mean is over the examples that use k, for how often an entry is in use is
    another question, see `CodeAblate.frequency`.

    Args:
      decode_quantized: See `Decode`.
      quantize: The model's rounding, see `Quantize`.
      embedding: The codebook, `[K, d]`, K at least 2.
      encoded: Outputs of the encoder, `[N, P, d]`.
      key: Draws bootstrap resamples; `jax.random.key(0)` by default.
      chunk: Examples decoded at once, at most, see `ces`.

    Returns:
      A `CodeAblate`.

    Raises:
      ValueError: A shape, dtype or number is not one of the above.

    Examples:
      >>> def quantize(embedding, vectors):
      ...     return jnp.argmin(jnp.abs(vectors - embedding[:, 0]), -1)
      >>> embedding, encoded = jnp.array([[0.0], [1.0], [9.0]]), jnp.array([[[0.1]], [[1.2]]])
      >>> result = ces_code_ablate(lambda q: q.sum(1), quantize, embedding, encoded)
      >>> print(result.l2.each, result.frequency)
      [ 1.  1. nan] [0.5 0.5 0. ]
    """
    embedding, encoded = jnp.asarray(embedding), jnp.asarray(encoded)
    codes = _quantize(quantize, embedding, encoded, chunk)
    vectors, flat_codes = encoded.reshape(codes.size, -1), codes.reshape(-1)
    ablate = jax.vmap(functools.partial(code_ablate, quantize, embedding))
    next_nearest = map_chunks(
        lambda i: ablate(vectors[i], flat_codes[i]), codes.size, even_chunk(chunk, codes.size)
    ).reshape(codes.shape)

    # Only the entries that an example uses change it: those at its positions, removed in turn.
    def remove(n: jax.Array, position: jax.Array, draw: jax.Array) -> tuple[jax.Array, jax.Array]:
        del draw
        mask = codes[n] == codes[n, position][:, None]
        return code_swap(codes[n], mask, next_nearest[n]), jnp.ones(n.shape)

    by_position, size = code_effects(decode_quantized, embedding, codes, remove, 1, chunk)
    rows = jnp.arange(len(codes))[:, None]
    by_entry = (len(codes), len(embedding))
    # An entry at several positions was removed as often, with equal effects.
    effects = jnp.zeros(by_entry, by_position.dtype).at[rows, codes].max(by_position)
    used = jnp.zeros(by_entry, bool).at[rows, codes].set(True)
    active = used.any(axis=0)
    l2, rms = code_scores(effects, used, active, size, key)
    return CodeAblate(l2=l2, rms=rms, active=active, frequency=used.mean(axis=0))


def _quantize(
    quantize: Quantize, embedding: jax.Array, encoded: jax.Array, chunk: int | None
) -> jax.Array:
    """The codes `[N, P]` of encoder outputs `[N, P, d]`, rounded `chunk` examples at a time."""
    if encoded.ndim != 3 or encoded.size == 0 or not jnp.issubdtype(encoded.dtype, jnp.floating):
        raise ValueError(
            f"expected floating-point encoded [N, P, d], not empty, got {encoded.dtype} of shape "
            f"{encoded.shape}"
        )
    if embedding.ndim != 2 or embedding.shape[1] != encoded.shape[2]:
        raise ValueError(
            f"expected embedding [K, d] with d = {encoded.shape[2]}, got shape {embedding.shape}"
        )
    num_examples = len(encoded)
    chunk = even_chunk(chunk, num_examples)
    return map_chunks(lambda n: quantize(embedding, encoded[n]), num_examples, chunk)
