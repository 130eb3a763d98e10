"""Circuit modularity: whether latents (or factors) act through units of their own.

Not the modularity of Ridgeway and Mozer, which is about what latents encode. Marks as in
`effect_strength`: [P] stated by the papers' abstracts or by a published review of them, [R] our
reconstruction.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jax import lax

from vaejax.changes import at_least_float32
from vaejax.checks import check_active, check_latents, check_values
from vaejax.estimates import RESAMPLES, Estimate, bootstrap_mean, central_interval, p_value
from vaejax.metrics._interventions import map_interventions

_TIE = 1e-5  # scores that differ by less are equal


@struct.dataclass
class CircuitModularity:
    """Circuit modularity over the sites of a network; "latent" stands for factor in the encoder.

    A pair of latents counts at a site where the changes of both vary over units, a site counts if
    it has a pair, and the rest is left out of the means. `num_latents` and `num_sites` count what
    was used.

    Attributes:
      score: Mean over sites of one minus the mean absolute correlation of the latents' profiles
        over units, with its 95% bootstrap interval over examples; NaN when no site counts.
      signed: The same for signed changes, over examples, values and units.
      per_site: The score of every site; NaN for one that does not count.
      null: Mean of the score when the units of every latent are shuffled, and the central 95% of
        the shuffles (not an interval of the mean).
      p_value: `[]` how often shuffled units are shared as much as the observed ones, or more:
        small when latents share units more than chance would have it.
      num_latents: `[]` int32, the number of latents compared at one site at least.
      num_dead: `[]` int32, the number of latents that change nothing at any site.
      num_sites: `[]` int32, the number of sites in the mean of `score`.
    """

    score: Estimate
    signed: Estimate
    per_site: dict[str, Estimate]
    null: Estimate
    p_value: jax.Array
    num_latents: jax.Array
    num_dead: jax.Array
    num_sites: jax.Array


def circuit_modularity(
    activations: Callable[[jax.Array], Mapping[str, jax.Array]],
    latents: jax.Array,
    values: jax.Array,
    *,
    active: jax.Array | None = None,
    chunk: int | None = None,
    key: jax.Array | None = None,
) -> CircuitModularity:
    """How little the latents share the decoder's units [P], in the reading of it that is [R].

        M_l = 1 - mean_{i<j} |rho(a_i, a_j)|
        a_i(c) = mean_n mean_v |A_l(z_n | do(z_i = v))(c) - A_l(z_n)(c)|

    with rho the Pearson correlation over the channels c of site l, changes averaged over spatial
    axes, and the score the mean over sites. 1: the latents' profiles are unrelated. 0: all latents
    act through the same channels in the same proportions. Channels of one's own are not the
    maximum: D latents with disjoint blocks of equal size correlate by `-1 / (D - 1)` and score
    `1 - 1 / (D - 1)`.

    The correlation is a third party's [P]. [R]: activations are the decoder's, since setting z
    cannot change the encoder's; they are pooled to channels; and, since profiles that are nowhere
    negative share a baseline, there are a signed variant and a null. `signed` correlates signed
    changes, pooled over space, over all of (n, v, c). `null` shuffles the channels of every latent
    at each site.

    Pure JAX and chunked as `ces`; memory holds the pooled changes `[N, D, V, C]` of every site.

    Args:
      activations: Maps latents `[chunk, D]` to named activations `[chunk, ..., C]` of the decoder.
      latents: `[N, D]` floating point, usually posterior means.
      values: `[V]` for all latents alike, or `[D, V]` with a row for each latent.
      active: `[D]` bool, the latents to compare. By default all. A latent that is dead at a site
        is left out there either way.
      chunk: Examples decoded at once, see `ces`.
      key: Draws resamples and shuffles; `jax.random.key(0)` by default.

    Returns:
      A `CircuitModularity`.

    Raises:
      ValueError: A shape or dtype is not the one above; the message names expected and got.

    Examples:
      >>> shared = jnp.array([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 2.0, 0.0]])
      >>> def activations(z):
      ...     return {"hidden": z @ shared}
      >>> result = circuit_modularity(activations, jnp.zeros((8, 3)), jnp.array([-1.0, 1.0]))
      >>> result.score.value.round(4)  # correlations -1/2, -1/2 and 1
      Array(0.3333, dtype=float32)

    References:
      Roy, "Causal Intervention Framework for Variational Auto Encoder Mechanistic
      Interpretability", arXiv:2505.03530.
    """
    latents = check_latents(latents)
    values = check_values(values, latents)
    active = check_active(active, latents)

    _, pooled, _ = map_interventions(
        activations, latents, values, lambda change: (None, pool(change)), chunk
    )
    return modularity(pooled, active, key)


def encoder_modularity(
    changes: Mapping[str, jax.Array], *, key: jax.Array | None = None
) -> CircuitModularity:
    """`circuit_modularity` of an encoder, with factors under input manipulation for latents [R].

    Args:
      changes: Named changes `A_l(x_n | do(g_k = v)) - A_l(x_n)` of the encoder's activations,
        `[N, K, V, ..., C]` floating point for N images, K factors and V values of each. A factor
        that changes nothing must change exactly nothing to be left out.
      key: Draws resamples and shuffles; `jax.random.key(0)` by default.

    Returns:
      A `CircuitModularity`, with factors for latents.

    Raises:
      ValueError: There are no changes, or they are not of the shape above.

    Examples:
      >>> changes = jnp.ones((8, 2, 1, 1)) * jnp.array([[[1.0, 2.0, 4.0]], [[2.0, 4.0, 8.0]]])
      >>> float(encoder_modularity({"conv_1": changes}).score.value.round(4))  # in proportion
      0.0

    References:
      As `circuit_modularity`.
    """
    changes = {site: jnp.asarray(array) for site, array in changes.items()}
    if not changes:
        raise ValueError("expected the changes of at least one site, got none")
    expected = next(iter(changes.values())).shape[:3]
    for site, array in changes.items():
        if array.ndim < 4 or array.size == 0 or array.shape[:3] != expected:
            raise ValueError(
                f"expected changes [N, K, V, ..., C], not empty, with the same N, K, V at all "
                f"sites, got shape {array.shape} at {site}"
            )
    pooled = {site: _pool(at_least_float32(array), 3) for site, array in changes.items()}
    return modularity(pooled, None, key)


@struct.dataclass
class _Pooled:
    """Changes `[..., C]` of a site's channels: means over space of their absolute and own value."""

    absolute: jax.Array
    signed: jax.Array


def pool(change: Any) -> dict[str, _Pooled]:
    """Changes of named activations `[B, ..., C]`, pooled to channels."""
    if not isinstance(change, Mapping) or not change:
        raise ValueError(f"expected activations {{site: array}}, got {type(change).__name__}")
    for site, leaf in change.items():
        if leaf.ndim < 2:
            raise ValueError(f"expected activations [B, ..., C] of {site}, got {leaf.shape}")
    return {site: _pool(leaf, 1) for site, leaf in change.items()}


def _pool(change: jax.Array, batch_axes: int) -> _Pooled:
    space = tuple(range(batch_axes, change.ndim - 1))
    return _Pooled(jnp.abs(change).mean(axis=space), change.mean(axis=space))


@jax.jit  # outside of `jit` every small step would be compiled by itself
def modularity(
    pooled: dict[str, _Pooled], active: jax.Array | None, key: jax.Array | None
) -> CircuitModularity:
    """The record of pooled changes `[N, D, V, C]` of every site."""
    num_latents = next(iter(pooled.values())).signed.shape[1]
    mask = jnp.ones(num_latents, bool) if active is None else active
    resample_key, null_key = jax.random.split(jax.random.key(0) if key is None else key)

    # Everything is a function of means over examples: of profiles [N, D, C], and of the moments of
    # signed changes at the S sites, [N, S, D] and [N, S, D, D].
    moments = [_moments(changes.signed) for changes in pooled.values()]
    mean, product = (jnp.stack(moment, axis=1) for moment in zip(*moments, strict=True))
    examples = ({site: p.absolute.mean(axis=2) for site, p in pooled.items()}, mean, product)
    powers = jnp.stack([jnp.square(p.signed).mean(axis=(0, 2, 3)) for p in pooled.values()])

    def scores(means: Any) -> dict[str, jax.Array]:
        profiles, mean, product = means
        absolute = jnp.stack([_covariance(profile) for profile in profiles.values()])
        signed = product - mean[:, :, None] * mean[:, None, :]
        squares = jnp.stack([jnp.square(profile).mean(axis=1) for profile in profiles.values()])
        sharing = _sharing(jnp.stack([absolute, signed]), jnp.stack([squares, powers]), mask)
        score, signed_score = jnp.nanmean(1 - sharing, axis=1)
        return {"score": score, "signed": signed_score, "sites": 1 - sharing[0]}

    means = jax.tree.map(lambda leaf: leaf.mean(axis=0), examples)
    observed = scores(means)
    low, high = bootstrap_mean(scores, examples, key=resample_key)
    score, signed, sites = (
        Estimate(observed[name], low[name], high[name]) for name in ("score", "signed", "sites")
    )

    units = [_standardise(profile, mask) for profile in means[0].values()]
    null = _null(units, null_key)
    compared = jnp.stack([jnp.any(u != 0, axis=1) for u in units])  # [S, D]
    compared &= ~jnp.isnan(sites.value)[:, None]
    dead = jnp.stack([jnp.all(profile == 0, axis=1) for profile in means[0].values()])
    return CircuitModularity(
        score=score,
        signed=signed,
        per_site={
            site: jax.tree.map(lambda leaf, s=s: leaf[s], sites) for s, site in enumerate(pooled)
        },
        null=Estimate(null.mean(), *central_interval(null)),
        # Sharing is a low score. With few units many shuffles are as good, up to rounding.
        p_value=p_value(-score.value, _TIE - null),
        num_latents=jnp.sum(compared.any(axis=0), dtype=jnp.int32),
        num_dead=jnp.sum(dead.all(axis=0), dtype=jnp.int32),
        num_sites=jnp.sum(~jnp.isnan(sites.value), dtype=jnp.int32),
    )


def _moments(signed: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Each example's first and second moments of its changes `[N, D, V, C]`: `[N, D]`, `[N, D, D]`.

    Relative to the mean over examples, which loses fewer digits and cancels in a covariance.
    """
    signed = signed - signed.mean(axis=(0, 2, 3), keepdims=True)
    flat = signed.reshape(*signed.shape[:2], -1)
    product = jnp.einsum("nis,njs->nij", flat, flat, precision=lax.Precision.HIGHEST)
    return flat.mean(axis=2), product / flat.shape[2]


def _covariance(profile: jax.Array) -> jax.Array:
    """Covariance `[D, D]` over the units of profiles `[D, C]`."""
    centred = profile - profile.mean(axis=1, keepdims=True)
    product = jnp.matmul(centred, centred.T, precision=lax.Precision.HIGHEST)
    return product / profile.shape[1]


def _standardise(profile: jax.Array, mask: jax.Array) -> jax.Array:
    """Profiles `[D, C]` of mean 0 and length 1; all 0 for a latent that is not to be compared."""
    centred = profile - profile.mean(axis=1, keepdims=True)
    square = jnp.square(centred).sum(axis=1)
    varies = mask & _varies(square, jnp.square(profile).sum(axis=1))
    return jnp.where(varies, 1 / jnp.sqrt(jnp.where(varies, square, 1)), 0)[:, None] * centred


def _sharing(covariance: jax.Array, power: jax.Array, mask: jax.Array) -> jax.Array:
    """The mean absolute correlation `[...]` of the pairs in the mask, NaN if there are none.

    Args:
      covariance: `[..., D, D]`.
      power: `[..., D]` mean squares, of which variances are a part.
      mask: `[D]`.
    """
    variance = jnp.diagonal(covariance, axis1=-2, axis2=-1)
    varies = mask & _varies(variance, power)
    scale = jnp.sqrt(jnp.where(varies, variance, 1))
    correlation = covariance / (scale[..., :, None] * scale[..., None, :])
    pairs = jnp.triu(varies[..., :, None] & varies[..., None, :], k=1)
    return jnp.minimum(jnp.abs(correlation), 1).mean(axis=(-2, -1), where=pairs)


def _varies(variance: jax.Array, power: jax.Array) -> jax.Array:
    """Whether a variance is more than rounding makes of a constant with the same mean square."""
    return variance > (10 * jnp.finfo(variance.dtype).eps) ** 2 * power


def _null(units: list[jax.Array], key: jax.Array) -> jax.Array:
    """Scores `[RESAMPLES]` of standardised profiles whose units are shuffled at each site.

    Every latent has a few shuffled copies, and a draw picks one of each latent's: sorting is slow,
    while the correlations of all copies are one product per site. Two latents meet in as many
    ways as there are pairs of copies.
    """
    num_latents = len(units[0])
    copies = max(2, min(32, 2048 // num_latents))
    shuffle_key, draw_key = jax.random.split(key)
    draws = jax.random.randint(draw_key, (RESAMPLES, num_latents), 0, copies)
    picks = jax.nn.one_hot(draws, copies, dtype=units[0].dtype).reshape(RESAMPLES, -1)
    # One sort for all sites: its keys are the number of the site and a random fraction.
    sizes = [u.shape[1] for u in units]
    site = jnp.repeat(jnp.arange(len(units)), jnp.array(sizes), total_repeat_length=sum(sizes))
    fraction = jax.random.uniform(shuffle_key, (num_latents, copies, sum(sizes)))
    order = jnp.argsort(site.astype(fraction.dtype) + fraction, axis=2)
    shuffled = jnp.take_along_axis(jnp.concatenate(units, axis=1)[:, None], order, axis=2)

    other = jnp.kron(1 - jnp.eye(num_latents), jnp.ones((copies, copies)))
    scores, start = [], 0
    for u, size in zip(units, sizes, strict=True):
        rows = shuffled[:, :, start : start + size].reshape(-1, size)
        start += size
        sharing = jnp.abs(jnp.matmul(rows, rows.T, precision=lax.Precision.HIGHEST)) * other
        num = jnp.any(u != 0, axis=1).sum().astype(rows.dtype)
        total = jnp.sum(jnp.matmul(picks, sharing, precision=lax.Precision.HIGHEST) * picks, axis=1)
        scores.append(1 - total / (num * (num - 1)))
    return jnp.nanmean(jnp.stack(scores), axis=0)
