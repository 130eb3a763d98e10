"""Causal metrics: how much of what a decoder draws each latent decides.

Every formula carries its provenance: [P] stated by the papers' abstracts or by a published review
of them, [S] standard in the cited literature, [R] our reconstruction, because the papers' own
formula could not be read. An [R] number can be consistent with the papers' findings; it does not
reproduce their figures.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import struct
from jax import lax

FIXED_VALUES = (-3.0, -2.0, -1.0, 0.0, 1.0, 2.0, 3.0)
"""What `ces_fixed` sets a latent to: `linspace(-3, 3, 7)` [R]."""

CALIBRATED_QUANTILES = (0.05, 0.2, 0.35, 0.5, 0.65, 0.8, 0.95)
"""The quantiles of a latent's aggregate posterior that `ces_calibrated` sets it to [R]."""


@struct.dataclass
class EffectScores:
    """The effect of every latent and its summaries over latents, in one unit.

    Attributes:
      per_latent: `[D]` mean effect of each latent.
      all: `[]` mean over all latents, dead ones included.
      active: `[]` mean over active latents; NaN when no mask was given or no latent is active.
      max: `[]` the largest effect of any latent.
    """

    per_latent: jax.Array
    all: jax.Array
    active: jax.Array
    max: jax.Array


@struct.dataclass
class CES:
    """Causal effect strength. `per_latent`, `all`, `active` and `max` are short for those of `l2`.

    Attributes:
      l2: Scores in the L2 norm of the change of the whole output.
      rms: The same per output element: L2 / sqrt(number of output elements of one example).
      num_active: `[]` int32, the number of active latents; None when no mask was given.
    """

    l2: EffectScores
    rms: EffectScores
    num_active: jax.Array | None

    @property
    def per_latent(self) -> jax.Array:
        """`[D]` L2 effect of each latent."""
        return self.l2.per_latent

    @property
    def all(self) -> jax.Array:
        """`[]` L2 effect, mean over all latents."""
        return self.l2.all

    @property
    def active(self) -> jax.Array:
        """`[]` L2 effect, mean over active latents."""
        return self.l2.active

    @property
    def max(self) -> jax.Array:
        """`[]` L2 effect of the strongest latent."""
        return self.l2.max


def ces(
    decode: Callable[[jax.Array], jax.Array],
    latents: jax.Array,
    values: jax.Array,
    *,
    active: jax.Array | None = None,
    chunk: int | None = None,
) -> CES:
    """Causal effect strength: how far `do(z_i = v)` moves the decoded output.

        CES_i = mean_n mean_v || decode(z_n) - decode(z_n | do(z_i = v)) ||_2

    The form is [P]; which values `v` to take is the caller's choice here, see `ces_fixed` and
    `ces_calibrated`. A latent that `decode` ignores scores exactly 0.

    Pure JAX: works inside `jit`, and under `vmap` over models (`decode` may close over traced
    parameters) or over sets of latents. Wrap it in `jit` with the parameters as arguments, or
    every call compiles afresh. The `N * D * V` intervened latents are decoded `chunk` at a time;
    memory holds the N clean outputs, one chunk, and one number per intervention. `decode` must
    treat the rows of its batch independently (no batch statistics, no noise).

    Args:
      decode: Maps latents `[chunk, D]` to decoded means `[chunk, ...]` of any trailing shape.
      latents: `[N, D]` floating point, usually posterior means.
      values: `[V]` for all latents alike, or `[D, V]` with a row for each latent.
      active: `[D]` bool, the latents that `.active` averages over, see `active_latents`. Without
        it `.active` is NaN rather than silently the mean over all.
      chunk: Latents decoded at once. By default 16 on a CPU, where that keeps a convolutional
        decoder's intermediates in cache, and 512 on an accelerator, which wants hundreds.

    Returns:
      A `CES` in float32, or in the decoder's dtype if that is wider.

    Raises:
      ValueError: A shape or dtype is not the one above; the message names expected and got.

    Examples:
      >>> weight = jnp.array([[3.0, 4.0], [0.0, 0.0]])  # the second latent is dead
      >>> result = ces(lambda z: z @ weight, jnp.zeros((8, 2)), jnp.array([-1.0, 1.0]))
      >>> result.per_latent
      Array([5., 0.], dtype=float32)
      >>> float(result.all), float(result.max), round(float(result.rms.max), 4)
      (2.5, 5.0, 3.5355)

    References:
      Roy, "Causal Intervention Framework for Variational Auto Encoder Mechanistic
      Interpretability", arXiv:2505.03530.
      Roy, Misra, Singh and Roy, "A Multi-Level Causal Intervention Framework for Mechanistic
      Interpretability in Variational Autoencoders".
    """
    latents, values = jnp.asarray(latents), jnp.asarray(values)
    if latents.ndim != 2 or latents.size == 0:
        raise ValueError(f"expected latents [N, D], not empty, got shape {latents.shape}")
    if not jnp.issubdtype(latents.dtype, jnp.floating):
        raise ValueError(f"expected floating-point latents, got {latents.dtype}")
    num_latents = latents.shape[1]
    rows = values.shape[:-1]
    if values.ndim == 0 or values.size == 0 or rows not in ((), (num_latents,)):
        raise ValueError(
            f"expected values [V] or [D, V] with D = {num_latents}, not empty, "
            f"got shape {values.shape}"
        )
    if active is not None:
        active = jnp.asarray(active)
        if active.shape != (num_latents,) or active.dtype != jnp.bool_:
            raise ValueError(
                f"expected active of shape ({num_latents},) and dtype bool, "
                f"got {active.shape} and {active.dtype}"
            )
    if chunk is None:
        chunk = 16 if jax.default_backend() == "cpu" else 512
    if chunk < 1:
        raise ValueError(f"expected chunk >= 1, got {chunk}")

    values = jnp.broadcast_to(values.astype(latents.dtype), (num_latents, values.shape[-1]))
    effects, output_size = _intervention_effects(decode, latents, values, chunk)
    # Values first: two short float32 sums round off less than one long one.
    l2 = _summarise(effects.mean(axis=2).mean(axis=0), active)
    rms = jax.tree.map(lambda score: score / math.sqrt(output_size), l2)
    num_active = None if active is None else jnp.sum(active, dtype=jnp.int32)
    return CES(l2=l2, rms=rms, num_active=num_active)


def ces_fixed(
    decode: Callable[[jax.Array], jax.Array],
    latents: jax.Array,
    *,
    active: jax.Array | None = None,
    chunk: int | None = None,
) -> CES:
    """Causal effect strength with the same values for every latent, `FIXED_VALUES` [R].

        CES_i = mean_n mean_v || decode(z_n) - decode(z_n | do(z_i = v)) ||_2,  v = -3, -2, ..., 3

    The values span the prior N(0, 1), whatever range a model uses in fact: for comparisons between
    architectures prefer `ces_calibrated`.

    Args:
      decode: Maps latents `[chunk, D]` to decoded means `[chunk, ...]`.
      latents: `[N, D]` posterior means.
      active: `[D]` bool, see `ces`.
      chunk: Latents decoded at once, see `ces`.

    Returns:
      A `CES`.

    Raises:
      ValueError: As `ces`.

    Examples:
      >>> result = ces_fixed(lambda z: 7.0 * z, jnp.zeros((4, 1)))  # mean |v| is 12 / 7
      >>> round(float(result.all), 4)
      12.0

    References:
      As `ces`. The grid of values is ours.
    """
    return ces(decode, latents, jnp.array(FIXED_VALUES), active=active, chunk=chunk)


def ces_calibrated(
    decode: Callable[[jax.Array], jax.Array],
    latents: jax.Array,
    posterior_samples: jax.Array,
    *,
    active: jax.Array | None = None,
    chunk: int | None = None,
) -> CES:
    """Causal effect strength over the range that each latent really takes [R].

        CES_i = mean_n mean_q || decode(z_n) - decode(z_n | do(z_i = Q_i(q))) ||_2

    `Q_i` is the quantile function of the aggregate posterior of `z_i` and q runs over
    `CALIBRATED_QUANTILES`. Rescaling or shifting a latent, with the decoder undoing it, changes
    nothing, so this is the variant to compare across architectures.

    Args:
      decode: Maps latents `[chunk, D]` to decoded means `[chunk, ...]`.
      latents: `[N, D]` posterior means.
      posterior_samples: `[M, D]` draws `z ~ q(z|x)`, x over the data: the aggregate posterior.
        Quantiles are interpolated linearly between draws.
      active: `[D]` bool, see `ces`.
      chunk: Latents decoded at once, see `ces`.

    Returns:
      A `CES`.

    Raises:
      ValueError: As `ces`, or `posterior_samples` is not `[M, D]`.

    Examples:
      >>> samples = jnp.linspace(-1.0, 1.0, 101)[:, None]  # Q(q) = 2 q - 1, mean |Q(q)| is 18 / 35
      >>> result = ces_calibrated(lambda z: 35.0 * z, jnp.zeros((4, 1)), samples)
      >>> round(float(result.all), 4)
      18.0

    References:
      As `ces`. "Posterior-calibrated" is the term of the same authors' arXiv:2603.21236; the
      quantiles are ours.
    """
    posterior_samples = jnp.asarray(posterior_samples)
    expected = jnp.shape(latents)[-1:]
    samples_shape = posterior_samples.shape
    if len(samples_shape) != 2 or samples_shape[0] == 0 or samples_shape[1:] != expected:
        raise ValueError(
            f"expected posterior_samples [M, D], not empty, for latents of shape "
            f"{jnp.shape(latents)}, got shape {samples_shape}"
        )
    dtype = _at_least_float32(posterior_samples.dtype)
    quantiles = jnp.array(CALIBRATED_QUANTILES, dtype)
    values = jnp.quantile(posterior_samples.astype(dtype), quantiles, axis=0).T
    return ces(decode, latents, values, active=active, chunk=chunk)


def active_latents(kl: jax.Array, threshold: float = 0.01) -> jax.Array:
    """The latents that carry information: those whose mean KL to the prior exceeds `threshold`.

        active_i = mean_n KL(q(z_i | x_n) || p(z_i)) > threshold

    The criterion is [R], in the spirit of the active units of the literature.

    Args:
      kl: `[N, D]` KL divergence of each example and latent in nats, or its mean `[D]`.
      threshold: In nats.

    Returns:
      `[D]` bool.

    Raises:
      ValueError: `kl` has neither one nor two axes, or is empty.

    Examples:
      >>> active_latents(jnp.array([[2.0, 0.001, 0.0], [1.0, 0.003, 0.04]]))
      Array([ True, False,  True], dtype=bool)

    References:
      Burda, Grosse and Salakhutdinov, "Importance Weighted Autoencoders", arXiv:1509.00519
      (active units).
    """
    kl = jnp.asarray(kl)
    if kl.ndim not in (1, 2) or kl.size == 0:
        raise ValueError(f"expected kl [N, D] or [D], not empty, got shape {kl.shape}")
    mean_kl = kl if kl.ndim == 1 else kl.mean(axis=0)
    return mean_kl > threshold


def _at_least_float32(dtype: jnp.dtype) -> jnp.dtype:
    return jnp.dtype(jnp.float64 if dtype == jnp.float64 else jnp.float32)


def _summarise(per_latent: jax.Array, active: jax.Array | None) -> EffectScores:
    if active is None:
        active = jnp.zeros(per_latent.shape, dtype=bool)  # the mean of none is NaN
    return EffectScores(
        per_latent=per_latent,
        all=per_latent.mean(),
        active=per_latent.mean(where=active),
        max=per_latent.max(),
    )


def _intervention_effects(
    decode: Callable[[jax.Array], jax.Array],
    latents: jax.Array,
    values: jax.Array,
    chunk: int,
) -> tuple[jax.Array, int]:
    """The L2 effect `[N, D, V]` of every `do(z_i = v)`, and the number of output elements."""
    shape = (*latents.shape, values.shape[1])
    total = math.prod(shape)
    # One batch size for the clean and the intervened outputs: another could round differently, and
    # a dead latent would score noise instead of 0.
    chunk = min(chunk, total)

    def decode_flat(z: jax.Array) -> jax.Array:
        output = decode(z)
        if output.shape[:1] != (chunk,):
            raise ValueError(f"expected decode to return [{chunk}, ...], got shape {output.shape}")
        return output.reshape(chunk, -1)

    clean = _map_chunks(lambda n: decode_flat(latents[n]), latents.shape[0], chunk)
    dtype = _at_least_float32(clean.dtype)

    def effect(index: jax.Array) -> jax.Array:
        n, i, v = jnp.unravel_index(index, shape)
        intervened = jnp.arange(shape[1]) == i[:, None]
        after = decode_flat(jnp.where(intervened, values[i, v][:, None], latents[n]))
        before = clean[n]
        change = after.astype(dtype) - before.astype(dtype)
        # XLA may fuse this subtraction into the decoder's last multiplication and round once
        # instead of twice, so that equal outputs differ. Equality is tested on the rounded ones.
        change = jnp.where(after == before, jnp.zeros_like(change), change)
        return jnp.sqrt(jnp.sum(jnp.square(change), axis=1))

    return _map_chunks(effect, total, chunk).reshape(shape), clean.shape[1]


def _map_chunks(fn: Callable[[jax.Array], jax.Array], total: int, chunk: int) -> jax.Array:
    """`fn` of the indices `0 .. total - 1`, `chunk` at a time: `[chunk] -> [chunk, ...]`, stacked.

    `lax.map(batch_size=...)` would vmap `fn` over single indices, and trace and compile it again
    for the remainder. Here the last chunk repeats the last index instead.
    """

    def one_chunk(start: jax.Array) -> jax.Array:
        return fn(jnp.minimum(start + jnp.arange(chunk), total - 1))

    stacked = lax.map(one_chunk, jnp.arange(0, total, chunk))
    return stacked.reshape(-1, *stacked.shape[2:])[:total]
