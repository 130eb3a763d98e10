"""Where in a feature map each factor acts.

Marks as in `vaejax.metrics`: [R] is our reconstruction.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax import lax

from vaejax.checks import check_changed
from vaejax.chunking import resolve_chunk
from vaejax.estimates import Estimate, bootstrap_mean, ratio
from vaejax.interventions.attribution import attributions
from vaejax.interventions.passes import TAU, Readout, count_examples, shape_of
from vaejax.interventions.patching import sweep_units
from vaejax.interventions.unit_sweep import Network, Progress

_COLUMNS = 1024  # units whose intervals are computed at once


@struct.dataclass
class SelectivityMaps:
    """Where in a feature map each factor acts: K factors.

    Attributes:
      effect: `[..., K]` for positions, `[..., C, K]` for elements, of a site `[B, ..., C]`; with
        its bootstrap interval over pairs. NaN for a factor without pairs.
      total: Mean `||TE||` of each factor's pairs, `[K]`.
      pairs: Pairs of each factor that count, `[K]` int32.
      skipped: Those left out, without a total effect, `[K]` int32.
    """

    effect: Estimate
    total: jax.Array
    pairs: jax.Array
    skipped: jax.Array


def selectivity_maps(
    apply_fn: Callable[..., Any],
    variables: Any,
    clean: Any,
    corrupted: Any,
    changed: Any,
    sites: Iterable[str],
    *,
    num_factors: int,
    by: Literal["position", "element"] = "position",
    method: Literal["patching", "attribution"] = "patching",
    readout: Readout = None,
    tau: float = TAU,
    chunk: int | None = None,
    key: jax.Array | None = None,
    progress: Progress | None = None,
) -> dict[str, SelectivityMaps]:
    """Which places of a feature map carry a change of each factor [R].

        E[u, k] = mean_{pairs of k} ||NIE_u|| / mean_{pairs of k} ||TE||

    By `"patching"` every unit of every pair is patched: exact, and quick for positions. By
    `"attribution"` a pair costs three passes whatever the number of units; what is averaged is then
    `|<NIE_u, TE>| / ||TE||` to first order: only the part of the effect along the total one. Both
    agree where the network is linear from the site on and the quantity of interest one number.

    Args:
      apply_fn: The network, `readout` to the quantity of interest, `tau` and `chunk` as for
        `vaejax.interventions.patch_units`.
      variables: Its variables.
      clean: M inputs: an array `[M, ...]` or a pytree of them.
      corrupted: The same with one factor changed.
      changed: Which factor that is, `[M]` integers below `num_factors`.
      sites: Sites with places, `[B, ..., C]`, such as feature maps `[B, H, W, C]`.
      num_factors: K.
      by: Whether a unit is a `"position"`, all its channels together, or an `"element"`.
      method: See above.
      readout: See there.
      tau: See there; the pairs below it are left out and counted.
      chunk: See there.
      key: Draws the bootstrap's resamples.
      progress: Called now and then by patching.

    Returns:
      For each site its maps.

    Raises:
      ValueError: `by` or `method` is none of these, a site has no places, `changed` is not `[M]`
        factors, or as `patch_units`.
    """
    _one_of("by", by, ("position", "element"))
    _one_of("method", method, ("patching", "attribution"))
    factors, _ = check_changed(changed, num_factors, count_examples(clean, corrupted))
    shapes = {site: shape_of(apply_fn, variables, clean, site) for site in sites}
    for site, shape in shapes.items():
        if len(shape) < 2:
            raise ValueError(f"site {site!r}: expected a site with places, got {['B', *shape]}")
    network, other = (
        Network(apply_fn, variables, inputs, readout, resolve_chunk(chunk))
        for inputs in (clean, corrupted)
    )
    if method == "patching":
        patched, total = sweep_units(network, other.record, list(shapes), by, tau, progress)
        norms = np.asarray(jnp.linalg.norm(total, axis=1))
        effects = {site: of_site.T for site, (of_site, _) in patched.items()}
    else:
        found = attributions(
            apply_fn, variables, clean, corrupted, shapes,
            by=by, readout=readout, tau=tau, chunk=chunk,
        )  # fmt: skip
        total = other.record(())[0] - network.record(())[0]
        norms = np.asarray(jnp.linalg.norm(total, axis=1))
        effects = {site: np.abs(of_site) * norms[:, None] for site, of_site in found.items()}
    skipped = (norms < tau) | (norms == 0)
    of_factor = factors[:, None] == np.arange(num_factors)
    counted = of_factor & ~skipped[:, None]
    # Of all sites at once, for one program.
    effects = {site: effects[site] for site in shapes}  # what is compiled sorts them
    ratios, mean_total = _ratios(np.concatenate(list(effects.values()), 1), norms, counted, key)
    ratios = jax.tree.map(np.asarray, ratios)  # a part is taken without a program for each
    maps, start = {}, 0
    for site, of_units in effects.items():
        rows = slice(start, start := start + of_units.shape[1])
        effect = jax.tree.map(lambda leaf, rows=rows: jnp.asarray(leaf[rows]), ratios)
        shape = shapes[site] if by == "element" else shapes[site][:-1]
        maps[site] = SelectivityMaps(
            effect=jax.tree.map(lambda leaf, to=shape: leaf.reshape(*to, num_factors), effect),
            total=mean_total,
            pairs=jnp.asarray(counted.sum(0), jnp.int32),
            skipped=jnp.asarray((of_factor & skipped[:, None]).sum(0), jnp.int32),
        )
    return maps


@jax.jit
def _ratios(
    effects: jax.Array, norms: jax.Array, counted: jax.Array, key: jax.Array | None
) -> tuple[Estimate, jax.Array]:
    """Ratios `[S, K]` of effects `[M, S]` and norms `[M]`, by pairs `[M, K]`; norms `[K]`."""
    num = effects.shape[1]
    blocks = jnp.pad(effects, ((0, 0), (0, -num % _COLUMNS))).reshape(len(effects), -1, _COLUMNS)
    blocks = jnp.moveaxis(blocks, 1, 0)

    def of_factor(pairs: jax.Array) -> Estimate:
        def of_block(block: jax.Array) -> Estimate:
            sums = jnp.where(pairs[:, None], block, 0), jnp.where(pairs, norms, 0)
            value = sums[0].mean(0) / sums[1].mean()
            return Estimate(value, *bootstrap_mean(ratio, sums, key=key))

        found = lax.map(of_block, blocks)
        return jax.tree.map(lambda leaf: leaf.reshape(-1)[:num], found)

    found = jax.tree.map(lambda leaf: leaf.T, lax.map(of_factor, counted.T))
    return found, jnp.where(counted, norms[:, None], 0).sum(0) / counted.sum(0)


def _one_of(name: str, value: str, expected: Sequence[str]) -> None:
    if value not in expected:
        raise ValueError(f"expected {name} to be one of {', '.join(expected)}, got {value!r}")
