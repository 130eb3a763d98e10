"""Interventions on discrete latents: a grid of codes, each an index into a codebook.

`encoded [..., P, d]` is what an encoder makes of an image at P positions, `embedding [K, d]` the
codebook, `codes [..., P]` int32 the entries that the vectors are rounded to and
`quantized = embedding[codes]` what the decoder sees. Everything is pure JAX: under `jit` and `vmap`
indices may be traced; those that are not are checked.

Which four interventions there are is from our definitions; their formulas are [R], because the
papers' own could not be read. They are told apart because a small effect of the first may be a
property of the intervention and not of the model: rounding undoes whatever it can.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from vaejax.checks import check_index

Quantize = Callable[[jax.Array, jax.Array], jax.Array]
"""A model's own rounding: a codebook `[K, d]` and vectors `[..., d]` to codes `[...]` int32.

A callable, so that interventions need neither know a model nor repeat its arithmetic: a second copy
that rounds otherwise would move codes that nobody intervened on. Of a codebook with rows left out
it gives indices into the rows that are left.
"""


def postquant(
    quantized: jax.Array,
    position: jax.Array | int,
    coordinate: jax.Array | int,
    *,
    value: jax.Array | float | None = None,
    shift: jax.Array | float | None = None,
) -> jax.Array:
    """Sets or shifts one coordinate of the vector at one position, and does not round again [R].

        q_sc <- value,  or  q_sc <- q_sc + shift

    Args:
      quantized: `[..., P, d]`.
      position: Which of the P positions, `[]`.
      coordinate: Which of the d coordinates, `[]`.
      value: What to set it to, `[...]` or a number.
      shift: What to add to it instead.

    Returns:
      `[..., P, d]`, in general no longer vectors of the codebook.

    Raises:
      ValueError: Not exactly one of `value` and `shift` is given, or an index is out of range.

    Examples:
      >>> postquant(jnp.zeros((2, 2)), 1, 0, value=5.0)
      Array([[0., 0.],
             [5., 0.]], dtype=float32)
    """
    quantized = jnp.asarray(quantized)
    if (value is None) == (shift is None):
        raise ValueError("expected either value or shift, got both or neither")
    check_index("position", position, quantized.shape[-2])
    check_index("coordinate", coordinate, quantized.shape[-1])
    chosen = quantized.at[..., position, coordinate]
    return chosen.set(value) if shift is None else chosen.add(shift)


def prequant(
    quantize: Quantize,
    embedding: jax.Array,
    encoded: jax.Array,
    position: jax.Array | int,
    coordinate: jax.Array | int,
    *,
    value: jax.Array | float | None = None,
    shift: jax.Array | float | None = None,
) -> jax.Array:
    """Sets or shifts one coordinate of the encoder's output and rounds to the codebook again [R].

        k = quantize(e | do(e_sc = value)),  or  quantize(e | do(e_sc = e_sc + shift))

    The papers' intervention on a continuous latent, applied to a discrete one. A step too short to
    cross into another code's cell changes nothing at all.

    Args:
      quantize: The model's rounding, see `Quantize`.
      embedding: `[K, d]`.
      encoded: `[..., P, d]`.
      position: Which of the P positions, `[]`.
      coordinate: Which of the d coordinates, `[]`.
      value: What to set it to, `[...]` or a number.
      shift: What to add to it instead.

    Returns:
      Codes `[..., P]`.

    Raises:
      ValueError: As `postquant`.

    Examples:
      >>> def quantize(embedding, vectors):
      ...     return jnp.argmin(jnp.abs(vectors - embedding[:, 0]), -1)
      >>> embedding, encoded = jnp.array([[0.0], [1.0]]), jnp.array([[0.1], [0.2]])
      >>> prequant(quantize, embedding, encoded, 0, 0, shift=0.3)  # 0.4 is still nearest to 0
      Array([0, 0], dtype=int32)
      >>> prequant(quantize, embedding, encoded, 0, 0, shift=0.5)
      Array([1, 0], dtype=int32)
    """
    return quantize(embedding, postquant(encoded, position, coordinate, value=value, shift=shift))


def code_swap(
    codes: jax.Array, positions: jax.Array | int, new_codes: jax.Array | int
) -> jax.Array:
    """Writes other codes at some positions: `do(k_s = k')` [R].

    Args:
      codes: `[..., P]`.
      positions: Either indices `[]` or `[m]`, or a mask, bool and broadcast against `[..., P]`.
      new_codes: The codes to write, broadcast against `[..., m]` for indices (`[...]` for a single
        one) and against `[..., P]` for a mask. That they are below K is for the caller to see to.

    Returns:
      `[..., P]`.

    Raises:
      ValueError: A position is out of range, or a code negative.

    Examples:
      >>> code_swap(jnp.array([3, 1, 4]), 1, 5)
      Array([3, 5, 4], dtype=int32)
      >>> code_swap(jnp.array([3, 1, 4]), jnp.array([True, False, True]), 0)
      Array([0, 1, 0], dtype=int32)
    """
    codes = jnp.asarray(codes)
    check_index("new code", new_codes)
    if jnp.result_type(positions) == jnp.bool_:
        return jnp.where(positions, jnp.asarray(new_codes, codes.dtype), codes)
    check_index("position", positions, codes.shape[-1])
    return codes.at[..., positions].set(new_codes)


def code_ablate(
    quantize: Quantize, embedding: jax.Array, encoded: jax.Array, entry: jax.Array | int
) -> jax.Array:
    """Removes one entry of the codebook everywhere: what it stood for becomes the next nearest [R].

    Positions with other codes keep them.

    Args:
      quantize: The model's rounding, see `Quantize`.
      embedding: `[K, d]`, K at least 2.
      encoded: `[..., P, d]`.
      entry: Which of the K entries to remove, `[]`.

    Returns:
      Codes `[..., P]`, none of which is `entry`.

    Raises:
      ValueError: The entry is out of range, or there is no other.

    Examples:
      >>> def quantize(embedding, vectors):
      ...     return jnp.argmin(jnp.abs(vectors - embedding[:, 0]), -1)
      >>> embedding, encoded = jnp.array([[0.0], [1.0], [9.0]]), jnp.array([[0.1], [1.1], [7.0]])
      >>> print(quantize(embedding, encoded), code_ablate(quantize, embedding, encoded, 1))
      [0 1 2] [0 0 2]
    """
    size = embedding.shape[0]
    if size < 2:
        raise ValueError(f"expected a codebook of at least 2 entries to remove one, got {size}")
    check_index("entry", entry, size)
    # One row fewer rather than a row at infinity, whose products with vectors are NaN.
    others = jnp.arange(size - 1)
    others = others + (others >= entry)
    codes = quantize(embedding, encoded)
    reassigned = others[quantize(embedding[others], encoded)]
    return jnp.where(codes == entry, reassigned.astype(codes.dtype), codes)
