"""Which factors every unit of a network carries, and whether it is one.

Marks as in `vaejax.metrics`: [R] is our reconstruction.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax import lax

from vaejax.checks import check_changed
from vaejax.chunking import resolve_chunk
from vaejax.estimates import Estimate, bootstrap_mean
from vaejax.interventions import unit_sites
from vaejax.interventions.attribution import attributions
from vaejax.interventions.edits import By
from vaejax.interventions.passes import TAU, Readout, count_examples
from vaejax.interventions.patching import sweep_units
from vaejax.interventions.unit_sweep import Network, Progress

INACTIVE, MONOSEMANTIC, POLYSEMANTIC = 0, 1, 2
"""Labels of units."""

NEGLIGIBLE = 0.01
"""An effect below this share of the largest at its site counts for nothing."""

ALPHA = 0.05
"""The false discovery rate that labels are given at."""

_PERMUTATIONS = 9_999
_AT_ONCE = 16  # permutations


@struct.dataclass
class FactorUnits:
    """What the units of one site do for each factor: S units, K factors.

    Attributes:
      effect: `E[n, k]`, the mean of `||NIE_n||` over the pairs of factor k, divided by that of
        `||TE||`, with its bootstrap interval over pairs: `[S, K]`. NaN for a factor without pairs,
        or whose pairs all look the same.
      mediated_fraction: Mean of `<NIE_n, TE> / ||TE||^2` over the pairs of factor k, `[S, K]`.
      exact: `[S]` bool, whether the unit was patched; else it was attributed, and its effect is the
        part of it along the total effect, to first order, times what makes such parts norms in the
        units of the site that were patched.
      monosemanticity: `1 - H(E_n / sum E_n) / ln K`, `[S]`: 1 if all effect is on one factor, 0 if
        it is the same on all. NaN for a unit without effect.
      p_monosemanticity: `[S]`, how often it is as large with labels of pairs permuted, adjusted.
      p_effect: `[S, K]`, how often the effect is as large with labels of pairs permuted, adjusted.
      beyond_null: `[S, K]` bool, which factors stand out: their effect is neither chance nor
        negligible.
      label: `[S]` int8: `INACTIVE`, `MONOSEMANTIC` or `POLYSEMANTIC`.
    """

    effect: Estimate
    mediated_fraction: Estimate
    exact: np.ndarray
    monosemanticity: np.ndarray
    p_monosemanticity: np.ndarray
    p_effect: np.ndarray
    beyond_null: np.ndarray
    label: np.ndarray


def factor_units(
    apply_fn: Callable[..., Any],
    variables: Any,
    clean: Any,
    corrupted: Any,
    changed: Any,
    *,
    num_factors: int | None = None,
    sites: Iterable[str] | None = None,
    by: By = "channel",
    readout: Readout = None,
    screen: int | None = None,
    tau: float = TAU,
    chunk: int | None = None,
    key: jax.Array | None = None,
    progress: Progress | None = None,
) -> dict[str, FactorUnits]:
    """The effect of every unit for every factor, and which units are about a single one [R].

        E[n, k] = mean ||NIE_n|| / mean ||TE||       over the pairs that differ in factor k
        mono(n) = 1 - H(E_n / sum_k E[n, k]) / ln K

    A unit is *monosemantic* when mono is beyond the null and one factor stands out, with more than
    twice the effect of all others together; else *polysemantic* when it has an effect on two
    factors or more that is not negligible, nor is the lower end of its interval; else *inactive*.
    The null permutes which factor a pair is said to differ in, for all units alike, and a factor
    stands out when its effect is beyond that null and not negligible: at least 1% of the largest of
    the site. P-values are adjusted over all units of all sites at once (Benjamini and Hochberg), to
    a false discovery rate of 5%.

    By how much a factor stands out is asked because the null alone would not do: with enough pairs,
    it calls a unit monosemantic whose effects hardly differ.

    Exact, by `patch_units`; or, with `screen`, by attribution for all units and exactly for those
    that have most effect on some factor.

    Args:
      apply_fn: The network, as for `patch_units`; and so are the others.
      variables: See there.
      clean: The inputs x of M pairs, `[M, ...]` or a pytree of such arrays.
      corrupted: The inputs x~, in each of which one factor was intervened on.
      changed: `[M]` integers, which factor.
      num_factors: K; by default one more than the largest of them.
      sites: Which sites; by default all that contain no other.
      by: What a unit is, see `vaejax.interventions.unit_ids`.
      readout: From the output to the quantity of interest.
      screen: For each site and factor, how many units to patch.
      tau: See `patch_units`.
      chunk: See `patch_units`.
      key: Draws permutations and the bootstrap's resamples.
      progress: See `patch_units`.

    Returns:
      For each site, what its units do.

    Raises:
      ValueError: As `patch_units`; or `changed` is not as above.

    Example:
      >>> from flax import linen as nn
      >>> model = nn.Sequential([nn.Dense(2, kernel_init=nn.initializers.ones), jnp.tanh])
      >>> clean = jax.random.normal(jax.random.key(0), (40, 3))
      >>> changed = jnp.arange(40) % 2  # of three inputs, in turn the first and the second
      >>> corrupted = jnp.where(jnp.arange(3) == changed[:, None], clean + 1, clean)
      >>> variables = model.init(jax.random.key(1), clean)
      >>> found = factor_units(model.apply, variables, clean, corrupted, changed)["layers_0"]
      >>> found.label.tolist()  # each unit sums all inputs
      [2, 2]
    """
    changed, num_factors = check_changed(changed, num_factors, count_examples(clean, corrupted))
    names = unit_sites(apply_fn, variables, clean) if sites is None else list(sites)
    attributed: dict[str, np.ndarray] = {}
    patched: Any = names
    if screen is not None:
        found = attributions(
            apply_fn, variables, clean, corrupted, names,
            by=by, readout=readout, tau=tau, chunk=chunk,
        )  # fmt: skip
        attributed = {site: np.asarray(of_site).T for site, of_site in found.items()}
        patched = {
            site: _strongest(of_site, changed, num_factors, screen)
            for site, of_site in attributed.items()
        }
    network, other = (
        Network(apply_fn, variables, inputs, readout, resolve_chunk(chunk))
        for inputs in (clean, corrupted)
    )
    exact, total_effects = sweep_units(network, other.record, patched, by, tau, progress)
    effects, fractions, done = {}, {}, {}
    total = np.asarray(jnp.linalg.norm(total_effects, axis=1))
    for site in names:
        effects[site], fractions[site] = exact[site]
        done[site] = ~np.isnan(effects[site]).all(1)
        if site in attributed:
            first_order = attributed[site]
            along = np.nan_to_num(np.abs(first_order)) * total
            # Of the size that norms have, or units would differ by whether they were patched.
            part = along[done[site]].sum()
            along *= effects[site][done[site]].sum() / part if part > 0 else 1
            effects[site] = np.where(done[site][:, None], effects[site], along)
            fractions[site] = np.where(done[site][:, None], fractions[site], first_order)
    return label_units(
        effects, fractions, total, changed, num_factors=num_factors, exact=done, key=key
    )


def label_units(
    effects: dict[str, np.ndarray],
    mediated_fractions: dict[str, np.ndarray],
    total: np.ndarray,
    changed: np.ndarray,
    *,
    num_factors: int,
    exact: dict[str, np.ndarray] | None = None,
    key: jax.Array | None = None,
) -> dict[str, FactorUnits]:
    """Labels units by effects that are known already, see `factor_units`.

    Args:
      effects: For each site `||NIE_n||` of every unit in every pair, `[S, M]`.
      mediated_fractions: Likewise, `[S, M]`; NaN where a pair is skipped.
      total: `||TE||` of every pair, `[M]`.
      changed: `[M]` integers, the factor in which a pair differs.
      num_factors: K.
      exact: `[S]` bool for each site, which are of units that were patched; by default all.
      key: Draws permutations and resamples.

    Returns:
      For each site, what its units do.
    """
    key = jax.random.key(0) if key is None else key
    together = np.concatenate(list(effects.values()))
    observed = _ratios(together, total, changed, num_factors)
    mono = np.asarray(_monosemanticity(jnp.asarray(observed)))
    above = _exceedances(
        jnp.asarray(together), jnp.asarray(total), jnp.asarray(changed), jnp.asarray(observed),
        key, num_factors=num_factors,
    )  # fmt: skip
    p_mono, p_effect = ((1 + np.asarray(count)) / (1 + _PERMUTATIONS) for count in above)
    dead = np.isnan(mono)
    p_mono, p_effect = _adjusted(p_mono, dead), _adjusted(p_effect, dead[:, None] | (observed == 0))
    # Of all sites at once, for one program.
    all_fractions = np.concatenate(list(mediated_fractions.values()))
    there = ~np.isnan(all_fractions).all(0)
    all_effects = _estimate(together, total, changed, num_factors, key)
    all_means = _estimate(
        np.nan_to_num(all_fractions), there.astype(np.float32), changed, num_factors, key
    )
    found, start = {}, 0
    for site, of_site in effects.items():
        rows = slice(start, start := start + len(of_site))
        effect, fraction = (
            jax.tree.map(lambda leaf, rows=rows: jnp.asarray(leaf[rows]), of_all)
            for of_all in (all_effects, all_means)
        )
        value = np.nan_to_num(effect.value)
        negligible = np.maximum(NEGLIGIBLE * value.max(), np.finfo(np.float32).tiny)
        beyond_null = (p_effect[rows] <= ALPHA) & (value >= negligible)
        mostly = beyond_null & (value > 2 / 3 * value.sum(1, keepdims=True))
        several = (np.nan_to_num(effect.low) >= negligible).sum(1) > 1
        monosemantic = mostly.any(1) & (p_mono[rows] <= ALPHA)
        labels = np.select([monosemantic, several], [MONOSEMANTIC, POLYSEMANTIC], INACTIVE)
        found[site] = FactorUnits(
            effect=effect,
            mediated_fraction=fraction,
            exact=np.ones(len(of_site), bool) if exact is None else exact[site],
            monosemanticity=mono[rows],
            p_monosemanticity=p_mono[rows],
            p_effect=p_effect[rows],
            beyond_null=beyond_null,
            label=labels.astype(np.int8),
        )
    return found


def _strongest(
    attributed: np.ndarray, changed: np.ndarray, num_factors: int, screen: int
) -> np.ndarray:
    """The units with the `screen` largest attributed effects `[S, M]` on any of the factors."""
    size = np.abs(np.nan_to_num(attributed))
    of_factors = [size[:, changed == k].sum(1) for k in range(num_factors)]
    return np.unique([np.argsort(-of_factor)[:screen] for of_factor in of_factors])


def _ratios(
    effects: np.ndarray, total: np.ndarray, changed: np.ndarray, num_factors: int
) -> np.ndarray:
    """Sums of effects `[S, M]` over the pairs of each factor by those of totals: `[S, K]`."""
    of_factor = np.eye(num_factors, dtype=np.float32)[changed]
    whole = total @ of_factor
    return (effects @ of_factor) / np.where(whole > 0, whole, np.nan)


def _monosemanticity(effect: jax.Array) -> jax.Array:
    """`1 - H / ln K` of effects `[..., K]`; factors that have none defined do not count."""
    there = ~jnp.isnan(effect)
    share = jnp.where(there, effect, 0)
    whole = share.sum(-1, keepdims=True)
    share /= jnp.where(whole > 0, whole, 1)
    entropy = -jnp.sum(share * jnp.log(jnp.where(share > 0, share, 1)), -1)
    num = there.sum(-1)
    mono = 1 - entropy / jnp.log(jnp.maximum(num, 2))
    return jnp.where((whole[..., 0] > 0) & (num > 1), mono, jnp.nan)


@functools.partial(jax.jit, static_argnames="num_factors")
def _exceedances(
    effects: jax.Array,
    total: jax.Array,
    changed: jax.Array,
    observed: jax.Array,
    key: jax.Array,
    *,
    num_factors: int,
) -> tuple[jax.Array, jax.Array]:
    """How often permuted labels give a monosemanticity `[S]`, an effect `[S, K]`, as large."""
    # Sums in another order round differently, and a label that changes nothing is no less.
    slack = 1 - 1e-5
    mono = _monosemanticity(observed) * slack

    def count(sums: tuple[jax.Array, jax.Array], key: jax.Array) -> tuple[Any, None]:
        order = jax.vmap(lambda key: jax.random.permutation(key, len(changed)))(
            jax.random.split(key, _AT_ONCE)
        )
        of_factor = jax.nn.one_hot(changed[order], num_factors)  # [A, M, K]
        product = functools.partial(jnp.einsum, precision=lax.Precision.HIGHEST)
        whole = product("m,amk->ak", total, of_factor)[:, None]
        null = product("sm,amk->ask", effects, of_factor) / jnp.where(whole > 0, whole, jnp.nan)
        # Permuted labels may leave a factor without any total effect, which says nothing.
        larger = (
            jnp.sum(~(null < observed * slack), 0),
            jnp.sum(~(_monosemanticity(null) < mono), 0),
        )
        return (sums[0] + larger[1], sums[1] + larger[0]), None

    calls = -(-_PERMUTATIONS // _AT_ONCE)
    zeros = jnp.zeros(len(effects), jnp.int32), jnp.zeros(observed.shape, jnp.int32)
    (larger_mono, larger), _ = lax.scan(count, zeros, jax.random.split(key, calls))
    scale = _PERMUTATIONS / (calls * _AT_ONCE)
    return larger_mono * scale, larger * scale


def _adjusted(p: np.ndarray, untested: np.ndarray) -> np.ndarray:
    """P-values adjusted for false discoveries (Benjamini and Hochberg); 1 where none is tested."""
    from scipy import stats

    tested = ~np.broadcast_to(untested, p.shape)
    adjusted = np.ones(p.shape)
    if tested.any():
        adjusted[tested] = stats.false_discovery_control(p[tested])
    return adjusted


def _estimate(
    values: np.ndarray,
    weights: np.ndarray,
    changed: np.ndarray,
    num_factors: int,
    key: jax.Array,
) -> Estimate:
    """`sum values / sum weights` over the pairs of each factor, `[S, K]`, resampled by factor.

    Arrays of NumPy, of which a part is taken without a program for each.
    """
    columns = []
    for k in range(num_factors):
        rows = np.flatnonzero(changed == k)
        if not len(rows) or not weights[rows].sum():
            columns.append([np.full(len(values), np.nan)] * 3)
            continue
        columns.append(_ratio_estimate(values[:, rows].T, weights[rows], key))
    ends: Any = (np.stack([column[i] for column in columns], 1) for i in range(3))
    return Estimate(*ends)


@jax.jit
def _ratio_estimate(values: jax.Array, weights: jax.Array, key: jax.Array) -> Any:
    def ratio(means: tuple[jax.Array, jax.Array]) -> jax.Array:
        return means[0] / jnp.where(means[1] > 0, means[1], jnp.nan)

    examples = values, weights[:, None]
    value = ratio(jax.tree.map(lambda leaf: leaf.mean(0), examples))
    return value, *bootstrap_mean(ratio, examples, key=key)
