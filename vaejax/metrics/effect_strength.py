"""Causal effect strength (CES): how much of what a decoder draws each latent decides.

Every formula carries its provenance: [P] stated by the papers' abstracts or by a published review
of them, [S] standard in the cited literature, [R] our reconstruction, because the papers' own
formula could not be read. An [R] number can be consistent with the papers' findings; it does not
reproduce their figures.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from vaejax.changes import at_least_float32, l2_norm
from vaejax.checks import check_active, check_batch, check_latents, check_values
from vaejax.chunking import even_chunk, map_chunks
from vaejax.interventions.latents import quantile_grid
from vaejax.metrics._interventions import map_interventions
from vaejax.metrics.effect_scores import CES, effect_scores

FIXED_VALUES = (-3.0, -2.0, -1.0, 0.0, 1.0, 2.0, 3.0)
"""What `ces_fixed` sets a latent to: `linspace(-3, 3, 7)` [R]."""

CALIBRATED_QUANTILES = (0.05, 0.2, 0.35, 0.5, 0.65, 0.8, 0.95)
"""The quantiles of a latent's aggregate posterior that `ces_calibrated` sets it to [R]."""


def ces(
    decode: Callable[[jax.Array], Any],
    latents: jax.Array,
    values: jax.Array,
    *,
    active: jax.Array | None = None,
    chunk: int | None = None,
    key: jax.Array | None = None,
) -> CES:
    """Causal effect strength: how far `do(z_i = v)` moves the decoded output.

        CES_i = mean_n mean_v || decode(z_n) - decode(z_n | do(z_i = v)) ||_2

    The form is [P]; which values `v` to take is the caller's choice here, see `ces_fixed` and
    `ces_calibrated`. A latent that `decode` ignores scores exactly 0.

    Effects on factors instead of pixels [R]: compose `decode` with a read-out whose answers are in
    units of factors, `ces(lambda z: readout(decode(z)), ...)`.

    Pure JAX: works inside `jit`, and under `vmap` over models (`decode` may close over traced
    parameters) or over sets of latents. Wrap it in `jit` with the parameters as arguments, or
    every call compiles afresh. The `N * D * V` intervened latents are decoded `chunk` at a time;
    memory holds the clean outputs of one chunk and one number per example and latent. `decode`
    must treat the rows of its batch independently (no batch statistics, no noise).

    Args:
      decode: Maps latents `[chunk, D]` to decoded means `[chunk, ...]` of any trailing shape, or a
        pytree of them; the norm is then that of all its arrays together.
      latents: `[N, D]` floating point, usually posterior means.
      values: `[V]` for all latents alike, or `[D, V]` with a row for each latent.
      active: `[D]` bool, the latents that `.active` averages over, see `active_latents`. Without
        it `.active` is NaN rather than silently the mean over all.
      chunk: Examples decoded at once, at most. By default 16 on a CPU, where that keeps a
        convolutional decoder's intermediates in cache, and 512 on an accelerator, which wants
        hundreds.
      key: Draws the resamples of the intervals; `jax.random.key(0)` by default.

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
    latents = check_latents(latents)
    values = check_values(values, latents)
    active = check_active(active, latents)

    def norm(change: Any) -> tuple[jax.Array, None]:
        return l2_norm(change), None

    effects, _, output = map_interventions(decode, latents, values, norm, chunk)
    return effect_scores(effects, output, active, key)


def ces_fixed(
    decode: Callable[[jax.Array], Any],
    latents: jax.Array,
    *,
    active: jax.Array | None = None,
    chunk: int | None = None,
    key: jax.Array | None = None,
) -> CES:
    """Causal effect strength with the same values for every latent, `FIXED_VALUES` [R].

        CES_i = mean_n mean_v || decode(z_n) - decode(z_n | do(z_i = v)) ||_2,  v = -3, -2, ..., 3

    The values span the prior N(0, 1), whatever range a model uses in fact: for comparisons between
    architectures prefer `ces_calibrated`.

    Args:
      decode: Maps latents `[chunk, D]` to decoded means `[chunk, ...]`.
      latents: `[N, D]` posterior means.
      active: `[D]` bool, see `ces`.
      chunk: Examples decoded at once, see `ces`.
      key: Draws the resamples of the intervals, see `ces`.

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
    return ces(decode, latents, jnp.array(FIXED_VALUES), active=active, chunk=chunk, key=key)


def ces_calibrated(
    decode: Callable[[jax.Array], Any],
    latents: jax.Array,
    posterior_samples: jax.Array,
    *,
    active: jax.Array | None = None,
    chunk: int | None = None,
    key: jax.Array | None = None,
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
      chunk: Examples decoded at once, see `ces`.
      key: Draws the resamples of the intervals, see `ces`.

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
    values = quantile_grid(posterior_samples, CALIBRATED_QUANTILES)
    return ces(decode, latents, values, active=active, chunk=chunk, key=key)


def ces_infinitesimal(
    decode: Callable[[jax.Array], Any],
    latents: jax.Array,
    scale: jax.Array,
    *,
    active: jax.Array | None = None,
    chunk: int | None = None,
    key: jax.Array | None = None,
) -> CES:
    """Causal effect strength of a small step, in units of the range that each latent takes [R].

        CES_i = mean_n || d decode(z_n) / d z_i ||_2 * scale_i

    The limit of `ces` for values close to where the latent is. Where the decoder is linear it is
    the effect of a step of `scale_i`; where it saturates, less than what larger steps show. One
    forward-mode pass per latent, linearised once per chunk.

    Args:
      decode: As in `ces`, differentiable.
      latents: `[N, D]` posterior means.
      scale: `[D]` floating point, the standard deviation of the aggregate posterior.
      active: `[D]` bool, see `ces`.
      chunk: Examples decoded at once, see `ces`.
      key: Draws the resamples of the intervals, see `ces`.

    Returns:
      A `CES`. Dead latents are those whose derivative is exactly 0 at every example.

    Raises:
      ValueError: As `ces`, or `scale` is not `[D]` or not floating point.

    Examples:
      >>> weight = jnp.array([[3.0, 4.0], [0.0, 1.0]])
      >>> result = ces_infinitesimal(lambda z: z @ weight, jnp.zeros((8, 2)), jnp.array([1.0, 2.0]))
      >>> result.per_latent
      Array([5., 2.], dtype=float32)

    References:
      As `ces`. The linearisation and the scale are ours.
    """
    latents, scale = check_latents(latents), jnp.asarray(scale)
    num_examples, num_latents = latents.shape
    active = check_active(active, latents)
    if scale.shape != (num_latents,) or not jnp.issubdtype(scale.dtype, jnp.floating):
        raise ValueError(
            f"expected scale of shape ({num_latents},) and floating point, "
            f"got {scale.shape} and {scale.dtype}"
        )
    chunk = even_chunk(chunk, num_examples)

    def checked(z: jax.Array) -> Any:
        return check_batch(decode(z), chunk)

    def one_chunk(n: jax.Array) -> jax.Array:
        _, push_forward = jax.linearize(checked, latents[n])

        def slope(direction: jax.Array) -> jax.Array:
            change = push_forward(jnp.broadcast_to(direction, (chunk, num_latents)))
            return l2_norm(jax.tree.map(at_least_float32, change))

        return lax.map(slope, jnp.eye(num_latents, dtype=latents.dtype)).T

    slopes = map_chunks(one_chunk, num_examples, chunk)
    output = jax.eval_shape(checked, latents[:chunk])
    return effect_scores(slopes * scale.astype(slopes.dtype), output, active, key)


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
