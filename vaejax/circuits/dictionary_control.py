"""How few features of a basis carry the effect of a factor."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from vaejax.chunking import even_chunk, map_chunks
from vaejax.circuits.bases import Basis, in_basis
from vaejax.circuits.dictionary_scores import check_site, conditional_means, site_activations
from vaejax.estimates import Estimate, estimate_means
from vaejax.interventions import edits, intervene, patch_units
from vaejax.interventions.passes import (
    TAU,
    Readout,
    count_examples,
    mediated_fractions,
    read,
    take,
)


@struct.dataclass
class Control:
    """How much of the effect of each of K factors few features carry.

    Mediated fractions, mean over judged pairs, of patches from the corrupted input.

    Attributes:
      sizes: The numbers n of features, `[n]`.
      features: Of the n features that helped most on the other pairs, `[K, n]`.
      random: Of n random features, mean over draws, `[K, n]`.
      units: Of the n units of the site that helped most on the other pairs, `[K, n]`.
      supervised: Of the activation moved by `mu[k, v'] - mu[k, v]`, with the mean activations of
        the classes of factor k on the other pairs, `[K]`.
      site: Of the whole site, `[K]`: what could be had.
      chosen: Those features, the best first, `[K, max n]` int32; -1 where there are no pairs.
      chosen_units: Those units likewise.
      pairs: Pairs judged, without those that have no total effect, `[K]` int32.
    """

    sizes: tuple[int, ...] = struct.field(pytree_node=False)
    features: Estimate
    random: Estimate
    units: Estimate
    supervised: Estimate
    site: Estimate
    chosen: np.ndarray
    chosen_units: np.ndarray
    pairs: np.ndarray


def control(
    apply_fn: Callable[..., Any],
    variables: Any,
    clean: Any,
    corrupted: Any,
    changed: Any,
    clean_factors: Any,
    corrupted_factors: Any,
    site: str,
    basis: Basis,
    *,
    sizes: tuple[int, ...] = (1, 2, 4, 8),
    draws: int = 4,
    readout: Readout = None,
    tau: float = TAU,
    chunk: int | None = None,
    seed: int = 0,
    key: jax.Array | None = None,
) -> Control:
    """How few features carry the effect of a factor, against units and labelled directions [R].

    Every other pair of each factor serves to choose and to fit, the rest to judge. Features and
    units are ranked one at a time, by exact patches (`patch_units`); they need not be the best set.

    Args:
      apply_fn: The network, as for `approximation`.
      variables: See there.
      clean: The inputs that are patched, `[M, ...]` or a pytree of such arrays.
      corrupted: The inputs that features are taken from, paired with them.
      changed: Which of the K factors was intervened on in each pair, `[M]` integers.
      clean_factors: The classes of all factors on the clean inputs, `[M, K]` integers.
      corrupted_factors: Likewise.
      site: See `approximation`.
      basis: See there.
      sizes: How many features; of fewer that there are, all.
      draws: Random sets of each size.
      readout: See `approximation`.
      tau: Pairs with a total effect below it are left out.
      chunk: See `approximation`.
      seed: Draws the random features.
      key: Draws the bootstrap's resamples.

    Returns:
      A `Control`; NaN for a factor without pairs to choose by or to judge.

    Raises:
      ValueError: As `approximation`, or arrays that do not fit.
    """
    changed, before, after = _check_pairs(
        changed, clean_factors, corrupted_factors, count_examples(clean, corrupted)
    )
    num_factors = before.shape[1]
    if not sizes or min(sizes) < 1 or draws < 1:
        raise ValueError(f"expected sizes and draws >= 1, got {sizes} and {draws}")
    check_site(apply_fn, variables, clean, site)
    choosing = _every_other(changed)
    fit, judge = np.flatnonzero(choosing), np.flatnonzero(~choosing)
    if not len(fit) or not len(judge):
        raise ValueError("expected two pairs or more of some factor")
    names = f"{site}/features", site
    rewritten, both = in_basis(apply_fn, site), (variables, basis)
    fitted = take((clean, corrupted), jnp.asarray(fit))
    # The site's own units on the same network: where they are patched, features are of no account.
    found = patch_units(
        rewritten, both, *fitted, sites=names, readout=readout, tau=tau, chunk=chunk
    )
    features, units = (
        _rank(np.asarray(found[name].mediated_fractions), changed[fit], num_factors)
        for name in names
    )
    shuffled = np.random.default_rng(seed).permuted(
        np.broadcast_to(np.arange(features.shape[1]), (draws, *features.shape)), axis=-1
    )
    feature_masks = [_first(order, n) for order in (features, *shuffled) for n in sizes]
    unit_masks = [_first(units, n) for n in (*sizes, units.shape[1])]

    activation = site_activations(
        apply_fn,
        variables,
        jax.tree.map(lambda x, y: jnp.concatenate([x, y]), *fitted),
        site,
        chunk,
    )
    classes = np.concatenate([before[fit], after[fit]])
    num_classes = int(max(before.max(), after.max())) + 1
    by_features, by_units, moved = (
        np.asarray(part)
        for part in _judge(
            rewritten,
            both,
            take(
                (clean, corrupted, *map(jnp.asarray, (changed, before, after))), jnp.asarray(judge)
            ),
            conditional_means(activation, jnp.asarray(classes), num_classes),
            jnp.asarray(np.stack(feature_masks)),
            jnp.asarray(np.stack(unit_masks)),
            names,
            readout,
            tau,
            even_chunk(chunk, len(judge)),
        )
    )
    by_features = by_features.reshape(len(judge), 1 + draws, len(sizes))
    has_both = np.isin(np.arange(num_factors), changed[fit])
    of = (changed[judge, None] == np.arange(num_factors)) & has_both

    def of_factors(values: np.ndarray) -> jax.Array:
        """`[M, ...]` to `[M, K, ...]`, NaN for factors that a pair does not change."""
        where = of.reshape(*of.shape, *[1] * (values.ndim - 1))
        return jnp.asarray(np.where(where, values[:, None], np.nan))

    values = {
        "features": by_features[:, 0],
        "random": by_features[:, 1:].mean(1),
        "units": by_units[:, :-1],
        "supervised": moved,
        "site": by_units[:, -1],
    }
    means = estimate_means({name: of_factors(array) for name, array in values.items()}, key)

    def chosen(ranking: np.ndarray) -> np.ndarray:
        return np.where(has_both[:, None], ranking[:, : max(sizes)], -1).astype(np.int32)

    return Control(
        sizes=tuple(sizes),
        **means,
        chosen=chosen(features),
        chosen_units=chosen(units),
        pairs=np.sum(of & ~np.isnan(moved)[:, None], 0).astype(np.int32),
    )


def _check_pairs(
    changed: Any, before: Any, after: Any, total: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    changed, before, after = (np.asarray(array) for array in (changed, before, after))
    integers = all(np.issubdtype(a.dtype, np.integer) for a in (changed, before, after))
    if not integers or before.ndim != 2 or before.shape != after.shape or len(before) != total:
        raise ValueError(
            f"expected integer factors [{total}, K] twice, got {before.shape} {before.dtype} and "
            f"{after.shape} {after.dtype}"
        )
    if changed.shape != (total,) or changed.min() < 0 or changed.max() >= before.shape[1]:
        raise ValueError(
            f"expected changed [{total}] of factors below {before.shape[1]}, got {changed.shape}"
        )
    if min(before.min(), after.min()) < 0:
        raise ValueError("expected classes of factors that are not negative")
    return changed, before, after


def _every_other(groups: np.ndarray) -> np.ndarray:
    """`[M]` bool: the first, third, ... of each group."""
    found = np.zeros(len(groups), bool)
    for group in np.unique(groups):
        found[np.flatnonzero(groups == group)[::2]] = True
    return found


def _rank(fractions: np.ndarray, changed: np.ndarray, num_factors: int) -> np.ndarray:
    """Units by their mean mediated fraction, the largest first: `[S, N]` to `[K, S]`."""
    scores = np.zeros((num_factors, len(fractions)))
    for factor in range(num_factors):
        of_factor = fractions[:, changed == factor]
        of_factor = of_factor[:, ~np.isnan(of_factor).any(0)]
        if of_factor.size:
            scores[factor] = of_factor.mean(1)
    return np.argsort(-scores, axis=1, kind="stable")


def _first(ranking: np.ndarray, n: int) -> np.ndarray:
    """The masks of the first n: `[K, S]` bool."""
    mask = np.zeros(ranking.shape, bool)
    np.put_along_axis(mask, ranking[:, :n], True, axis=1)
    return mask


@functools.partial(jax.jit, static_argnames=("rewritten", "names", "readout", "chunk"))
def _judge(
    rewritten: Callable[..., Any],
    variables: Any,
    pairs: tuple[Any, ...],
    means: jax.Array,
    feature_masks: jax.Array,
    unit_masks: jax.Array,
    names: tuple[str, str],
    readout: Readout,
    tau: float,
    chunk: int,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Mediated fractions `[M, J]` of masks `[J, K, S]` of features and units, `[M]` of moves."""
    features, site = names
    observe = intervene(rewritten, {}, record=names)
    patch = {name: intervene(rewritten, {name: edits.swap}) for name in names}
    move = intervene(rewritten, {site: edits.add})

    def run(rows: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        clean, corrupted, changed, before, after = take(pairs, rows)
        output, _ = observe(variables, {}, clean)
        donor_output, donors = observe(variables, {}, corrupted)
        output = read(readout, output)
        total = read(readout, donor_output) - output

        def share(patched: Any) -> jax.Array:
            return mediated_fractions(read(readout, patched) - output, total, tau)

        def of_masks(name: str, masks: jax.Array) -> jax.Array:
            donor = donors[name]

            def of_mask(mask: jax.Array) -> jax.Array:
                units = mask[changed].reshape(len(rows), *[1] * (donor.ndim - 2), donor.shape[-1])
                value = {name: (jnp.broadcast_to(units, donor.shape), donor)}
                return share(patch[name](variables, value, clean)[0])

            return jax.lax.map(of_mask, masks).T

        def class_of(factors: jax.Array) -> jax.Array:
            return jnp.take_along_axis(factors, changed[:, None], 1)[:, 0]

        shift = means[changed, class_of(after)] - means[changed, class_of(before)]
        moved = share(move(variables, {site: shift}, clean)[0])
        return of_masks(features, feature_masks), of_masks(site, unit_masks), moved

    return map_chunks(run, count_examples(pairs), chunk)
