"""Activation patching of all units of all sites: exact effects, one patch at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from vaejax.chunking import resolve_chunk
from vaejax.estimates import Estimate, estimate_means
from vaejax.interventions.edits import By, unit_mask
from vaejax.interventions.passes import (
    TAU,
    Readout,
    count_examples,
    mediated_fractions,
    shapes_of,
    take,
    unit_sites,
)
from vaejax.interventions.unit_sweep import Network, Progress, patch_site

Sites = Iterable[str] | Mapping[str, Any]
"""Sites by name, or a mapping from sites to the indices of some of their units."""


@struct.dataclass
class UnitEffects:
    """The effect of each unit of one site on the quantity of interest: S units, N pairs.

    Attributes:
      effect: `||NIE||_2` of each unit, mean over pairs, with its bootstrap interval: `[S]`.
      mediated_fraction: `<NIE, TE> / ||TE||^2` likewise, `[S]`.
      effects: `||NIE||_2` of each pair, `[S, N]`.
      mediated_fractions: `[S, N]`; NaN where the pair is skipped.
      total: `||TE||_2` of each pair, `[N]`; 0 for an ablation, which has none.
      skipped: `[]` int32, pairs without a total effect: they have no mediated fraction.
    """

    effect: Estimate
    mediated_fraction: Estimate
    effects: jax.Array
    mediated_fractions: jax.Array
    total: jax.Array
    skipped: jax.Array


def patch_units(
    apply_fn: Callable[..., Any],
    variables: Any,
    base: Any,
    donor: Any,
    *,
    sites: Sites | None = None,
    by: By = "channel",
    readout: Readout = None,
    donor_variables: Any = None,
    tau: float = TAU,
    chunk: int | None = None,
    key: jax.Array | None = None,
    progress: Progress | None = None,
) -> dict[str, UnitEffects]:
    """Activation patching: the effect of every unit alone, each taken from another input [P].

        NIE_u = Y(base; u <- u(donor)) - Y(base),    TE = Y(donor) - Y(base)

    With the clean input as base and the corrupted one as donor this is *noising*, and NIE the
    natural indirect effect; exchanged it is *denoising*, and the mediated fraction the share of the
    clean output that the unit restores.

    Exact: each of the units x pairs gets a pass of its own, `chunk` at a time, of that part of the
    network that the patch reaches; where a patch would change nothing (a ReLU that is zero on both
    inputs) the effect is zero without one. Memory holds the activations of the sites on the 2 N
    inputs, those of the network for `chunk` patches and, for each unit, two numbers a pair. Runs on
    the host and calls compiled programs, one for each site, so it cannot itself be jitted.

    Args:
      apply_fn: The network: `apply_fn(variables, inputs) -> output`. Give the same function again
        (not a fresh lambda) to have it compiled once.
      variables: Its variables.
      base: The inputs that are patched, `[N, ...]` or a pytree of such arrays.
      donor: The inputs that units are taken from, paired with them.
      sites: Which sites; by default all that contain no other (see `vaejax.sites` for all). A
        mapping names the units of each, by their indices; what it leaves out is NaN.
      by: What a unit is: a `"channel"`, a `"position"`, an `"element"` or the whole `"site"`; see
        `vaejax.interventions.unit_ids`.
      readout: From the output to the quantity of interest Y, `[B, ...]`; by default the output.
      donor_variables: Those of another network of the same shape (another seed, say), which then
        makes the donor's activations, and its output in TE.
      tau: Pairs with `||TE||` below it have no mediated fraction, and are counted.
      chunk: Patches run at once, see `vaejax.chunking.resolve_chunk`.
      key: Draws the bootstrap's resamples.
      progress: Called now and then.

    Returns:
      For each site, the effects of its units.

    Raises:
      ValueError: An unknown site, or one whose output is not one array `[N, ...]`; or inputs that
        do not fit.

    Example:
      >>> from flax import linen as nn
      >>> model = nn.Sequential([nn.Dense(3), nn.Dense(2)])
      >>> base, donor = jnp.ones((4, 5)), jnp.zeros((4, 5))
      >>> variables = model.init(jax.random.key(0), base)
      >>> found = patch_units(model.apply, variables, base, donor)
      >>> print(found["layers_0"].effects.shape)
      (3, 4)
      >>> print(f"{found['layers_0'].mediated_fraction.value.sum():.4f}")  # a linear network
      1.0000

    References:
      Vig et al., `Causal Mediation Analysis for Interpreting Neural NLP
      <https://arxiv.org/abs/2004.12265>`_, 2020. Heimersheim and Nanda, `How to use and interpret
      activation patching <https://arxiv.org/abs/2404.15255>`_, 2024.
    """
    chunk = resolve_chunk(chunk)
    donor_variables = variables if donor_variables is None else donor_variables

    count_examples(base, donor)
    network = Network(apply_fn, variables, base, readout, chunk)
    other = Network(apply_fn, donor_variables, donor, readout, chunk)
    return _summarise(*sweep_units(network, other.record, sites, by, tau, progress), tau, key)


def ablate_units(
    apply_fn: Callable[..., Any],
    variables: Any,
    inputs: Any,
    donor: Literal["zero", "mean", "resample"],
    *,
    sites: Sites | None = None,
    by: By = "channel",
    readout: Readout = None,
    chunk: int | None = None,
    key: jax.Array | None = None,
    progress: Progress | None = None,
) -> dict[str, UnitEffects]:
    """Ablation: the effect of every unit alone, each put out of action.

    As `patch_units`, with activations that no input produced, and so without a total effect to
    compare with: mediated fractions are NaN.

    Args:
      apply_fn: The network.
      variables: Its variables.
      inputs: `[N, ...]` or a pytree of such arrays.
      donor: What units become: `"zero"`; `"mean"`, their mean over these N inputs; or `"resample"`,
        their value on another of these inputs, drawn once for all units.
      sites: As for `patch_units`, and so are the others.
      by: See there.
      readout: See there.
      chunk: See there.
      key: Draws the resampled inputs and the bootstrap's resamples.
      progress: See there.

    Returns:
      For each site, the effects of its units.

    Raises:
      ValueError: `donor` is none of these, or as `patch_units`.
    """
    key = jax.random.key(0) if key is None else key
    chunk = resolve_chunk(chunk)
    n = count_examples(inputs)
    # A shift along a random order gives every input another one.
    order = jax.random.permutation(key, n)
    other = jnp.zeros(n, order.dtype).at[order].set(jnp.roll(order, 1))
    ablations: dict[str, Callable[[jax.Array], jax.Array]] = {
        "zero": jnp.zeros_like,
        "mean": lambda a: jnp.broadcast_to(a.mean(0), a.shape),
        "resample": lambda a: a[other],
    }
    if donor not in ablations:
        raise ValueError(f"expected donor to be one of {', '.join(ablations)}, got {donor!r}")

    network = Network(apply_fn, variables, inputs, readout, chunk)
    return _sweep_forced(network, ablations[donor], sites, by, key, progress)


def insert_units(
    apply_fn: Callable[..., Any],
    variables: Any,
    inputs: Any,
    quantile: float = 0.99,
    *,
    sites: Sites | None = None,
    by: By = "channel",
    readout: Readout = None,
    chunk: int | None = None,
    key: jax.Array | None = None,
    progress: Progress | None = None,
) -> dict[str, UnitEffects]:
    """Insertion: the effect of every unit alone, each forced on [S].

    The counterpart of `ablate_units`, and a function of its own since nothing is put out of action:
    at all its places a unit gets a high quantile of its own values, those over these N inputs, and
    for a channel (or a `"site"`, channel by channel) over all places. A ReLU that is on at fewer
    than 1% of them has the 0.99 quantile 0, and its insertion is an ablation: give a higher one.
    Bau et al. insert a fixed high value; that it is this one is our choice [R].

    Args:
      apply_fn: The network.
      variables: Its variables.
      inputs: `[N, ...]` or a pytree of such arrays.
      quantile: Which one, in [0, 1].
      sites: As for `patch_units`, and so are the others.
      by: See there.
      readout: See there.
      chunk: See there.
      key: Draws the bootstrap's resamples.
      progress: See there.

    Returns:
      For each site, the effects of its units; mediated fractions are NaN, as of an ablation.

    Raises:
      ValueError: `quantile` is not in [0, 1], or as `patch_units`.

    References:
      Bau et al., `GAN Dissection <https://arxiv.org/abs/1811.10597>`_, 2019.
    """
    check_quantile(quantile)
    chunk = resolve_chunk(chunk)
    count_examples(inputs)
    network = Network(apply_fn, variables, inputs, readout, chunk)

    def insertion(activations: jax.Array) -> jax.Array:
        return jnp.broadcast_to(high_values(activations, quantile, by), activations.shape)

    return _sweep_forced(network, insertion, sites, by, key, progress)


def high_values(activations: jax.Array, quantile: float, by: By = "channel") -> jax.Array:
    """What `insert_units` sets the units of a site `[N, ..., C]` to: `[..., C]`.

    >>> print(high_values(jnp.array([[[1.0, 5.0], [2.0, 6.0]], [[3.0, 7.0], [4.0, 8.0]]]), 1.0))
    [[4. 8.]
     [4. 8.]]
    """
    places = tuple(range(max(1, activations.ndim - 1))) if by in ("channel", "site") else (0,)
    high = jnp.quantile(activations.astype(jnp.float32), quantile, axis=places)
    return jnp.broadcast_to(high, activations.shape[1:]).astype(activations.dtype)


def check_quantile(quantile: float) -> None:
    """Checks that it is one.

    Raises:
      ValueError: It is not in [0, 1].
    """
    if not 0 <= quantile <= 1:
        raise ValueError(f"expected quantile in [0, 1], got {quantile}")


def _sweep_forced(
    network: Network,
    force: Callable[[jax.Array], jax.Array],
    names: Sites | None,
    by: By,
    key: jax.Array | None,
    progress: Progress | None,
) -> dict[str, UnitEffects]:
    """The effects of units whose donors are made of the network's own activations `[N, ...]`."""

    def donors(sites: tuple[str, ...]) -> tuple[None, dict[str, jax.Array]]:
        return None, jax.tree.map(force, network.record(sites)[1])

    return _summarise(*sweep_units(network, donors, names, by, TAU, progress), TAU, key)


def sweep_units(
    network: Network,
    donors: Callable[[tuple[str, ...]], tuple[jax.Array | None, dict[str, jax.Array]]],
    names: Sites | None,
    by: By,
    tau: float,
    progress: Progress | None,
) -> tuple[dict[str, tuple[np.ndarray, np.ndarray]], jax.Array]:
    """`patch_units` before the means.

    Args:
      network: What is patched.
      donors: Gives donor activations of sites, and their output if they have one.
      names: See `patch_units`, and so are the others.
      by: See there.
      tau: See there.
      progress: See there.

    Returns:
      For each site `||NIE||` and mediated fractions, each `[S, N]`; and total effects, `[N, F]`.
    """
    if names is None:
        names = unit_sites(network.apply_fn, network.variables, network.inputs)
    one = take(network.inputs, jnp.arange(1))
    shapes = shapes_of(list(names), network.apply_fn, network.variables, one)
    for site, shape in shapes.items():
        if not isinstance(shape, jax.ShapeDtypeStruct):
            raise ValueError(f"site {site!r}: its output is not one array, so it has no units")
    output, base = network.record(tuple(shapes))
    donor_output, donor = donors(tuple(shapes))
    total = jnp.zeros_like(output) if donor_output is None else donor_output - output
    found = {}
    for site in shapes:
        if donor[site].shape != base[site].shape:
            expected, got = list(base[site].shape), list(donor[site].shape)
            raise ValueError(f"site {site!r}: expected donor activations {expected}, got {got}")
        wanted = names[site] if isinstance(names, Mapping) else None
        given = donor[site]
        if wanted is not None:
            # A unit that is given what it has changes nothing, and takes no pass.
            given = jnp.where(unit_mask(given.shape[1:], wanted, by), given, base[site])
        found[site] = patch_site(network, site, base[site], given, total, by, tau, progress)
        if wanted is not None:
            left_out = ~np.isin(np.arange(len(found[site][0])), wanted)
            for of_site in found[site]:
                of_site[left_out] = np.nan
    return found, total


@jax.jit
def _summarise(
    found: dict[str, tuple[jax.Array, jax.Array]],
    total: jax.Array,
    tau: float,
    key: jax.Array | None,
) -> dict[str, UnitEffects]:
    """Adds intervals to what `sweep_units` found."""
    skipped = jnp.isnan(mediated_fractions(jnp.zeros_like(total), total, tau))
    means = estimate_means({(s, i): found[s][i].T for s in found for i in (0, 1)}, key)
    return {
        site: UnitEffects(
            effect=means[site, 0],
            mediated_fraction=means[site, 1],
            effects=effects,
            mediated_fractions=fractions,
            total=jnp.linalg.norm(total, axis=-1),
            skipped=jnp.sum(skipped, dtype=jnp.int32),
        )
        for site, (effects, fractions) in found.items()
    }
