"""Causal mediation: how much of an effect goes through a set of components."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jax import lax

from vaejax.chunking import even_chunk, map_chunks
from vaejax.estimates import Estimate, estimate_mean
from vaejax.interventions.edits import swap
from vaejax.interventions.intercept import intervene
from vaejax.interventions.passes import (
    TAU,
    Components,
    Readout,
    as_masks,
    count_examples,
    mediated_fractions,
    read,
    take,
)


@struct.dataclass
class Mediation:
    """The effect of an input and its parts through and around a component set C [P].

    With the quantity of interest Y, clean input x, corrupted input x~, and `Y(x; C <- C(x~))` for
    Y when the components take the values that they have on x~:

        te = Y(x~) - Y(x)                  total effect
        nie = Y(x; C <- C(x~)) - Y(x)      natural indirect effect
        nde = Y(x~; C <- C(x)) - Y(x)      natural direct effect
        tde = te - nie                     total direct effect
        tie = te - nde                     total indirect effect
        interaction = te - nde - nie

    Attributes:
      te: `[N, F]`, a row for each pair, Y flattened; and so are the next five.
      nie: See above.
      nde: See above.
      tde: See above.
      tie: See above.
      interaction: See above.
      mediated_fraction: `<nie, te> / ||te||^2`, mean over pairs, with its bootstrap interval.
      interaction_share: `||interaction|| / ||te||`, mean over pairs, with its bootstrap interval.
      mediated_fractions: The mediated fraction of each pair, `[N]`; NaN where it is skipped.
      skipped: `[]` int32, pairs without a total effect, `||te|| < tau`; no mean includes them.
    """

    te: jax.Array
    nie: jax.Array
    nde: jax.Array
    tde: jax.Array
    tie: jax.Array
    interaction: jax.Array
    mediated_fraction: Estimate
    interaction_share: Estimate
    mediated_fractions: jax.Array
    skipped: jax.Array


def mediate(
    apply_fn: Callable[..., Any],
    variables: Any,
    clean: Any,
    corrupted: Any,
    components: Components,
    *,
    readout: Readout = None,
    tau: float = TAU,
    chunk: int | None = None,
    key: jax.Array | None = None,
) -> Mediation:
    """Splits the effect of a change of the input into what goes through components and what not.

    Four passes for each pair. The identities hold to the last bit where a patch changes nothing:
    the empty set has NIE = 0, and `corrupted = clean` has no effect. Works under `jit`, and under
    `vmap` over masks, which share two of the passes, or over variables.

    Args:
      apply_fn: The network: `apply_fn(variables, inputs) -> output`; give the same function again
        (not a fresh lambda) to have it compiled once.
      variables: Its variables.
      clean: The inputs x: an array `[N, ...]` or a pytree of them.
      corrupted: The inputs x~, paired with `clean`.
      components: Names of sites, or a mapping from sites to masks of units, boolean, of the shape
        of one example's activation (see `edits.unit_mask`).
      readout: From the output of `apply_fn` to the quantity of interest `[B, ...]`; by default the
        output itself.
      tau: Pairs with `||TE||` below it are skipped and counted.
      chunk: Pairs run at once, see `vaejax.chunking.resolve_chunk`.
      key: Draws the bootstrap's resamples.

    Returns:
      A `Mediation`.

    Raises:
      ValueError: An unknown site, or a mask or an input of a wrong shape.

    Example:
      >>> from flax import linen as nn
      >>> model = nn.Dense(1)  # without a hidden site there is nothing but a direct effect
      >>> x = jnp.ones((2, 3))
      >>> variables = model.init(jax.random.key(0), x)
      >>> result = mediate(model.apply, variables, x, 2 * x, ())
      >>> float(result.mediated_fraction.value)
      0.0

    References:
      Pearl, "Direct and Indirect Effects", 2001. Vig et al., `Causal Mediation Analysis for
      Interpreting Neural NLP <https://arxiv.org/abs/2004.12265>`_, 2020.
    """
    chunk = even_chunk(chunk, count_examples(clean, corrupted))
    masks = as_masks(components)
    base, total, indirect, direct = _four_worlds(
        apply_fn, variables, clean, corrupted, masks, readout, chunk
    )
    te, nie, nde = total - base, indirect - base, direct - base
    interaction = te - nde - nie
    fractions = mediated_fractions(nie, te, tau)
    norms = jnp.linalg.norm(te, axis=-1)
    shares = jnp.linalg.norm(interaction, axis=-1) / jnp.where(norms > 0, norms, 1)
    skipped = jnp.isnan(fractions)
    return Mediation(
        te=te,
        nie=nie,
        nde=nde,
        tde=total - indirect,
        tie=total - direct,
        interaction=interaction,
        mediated_fraction=estimate_mean(fractions, key),
        interaction_share=estimate_mean(jnp.where(skipped, jnp.nan, shares), key),
        mediated_fractions=fractions,
        skipped=jnp.sum(skipped, dtype=jnp.int32),
    )


@functools.partial(jax.jit, static_argnames=("apply_fn", "readout", "chunk"))
def _four_worlds(
    apply_fn: Callable[..., Any],
    variables: Any,
    clean: Any,
    corrupted: Any,
    masks: dict[str, Any],
    readout: Readout,
    chunk: int,
) -> jax.Array:
    """`Y(x), Y(x~), Y(x; C <- C(x~)), Y(x~; C <- C(x))`: `[4, N, F]`."""
    plain = intervene(apply_fn, {}, record=masks)
    patched = intervene(apply_fn, dict.fromkeys(masks, swap))

    def world(inputs: Any) -> tuple[jax.Array, dict[str, Any]]:
        output, activations = plain(variables, {}, inputs)
        return read(readout, output), activations

    def patched_world(of_world: tuple[Any, ...]) -> jax.Array:
        inputs, unpatched, own, others = of_world
        values = {site: (mask, others[site]) for site, mask in masks.items()}
        output, _ = patched(variables, values, inputs)
        # A patch that changes nothing has no effect, not even of rounding in another program.
        changed = _differ(masks, own, others, len(unpatched))
        return jnp.where(changed[:, None], read(readout, output), unpatched)

    def run(rows: jax.Array) -> jax.Array:
        # The two worlds that nothing is patched in depend on no mask: under `vmap` over masks they
        # are computed once.
        pair = take(clean, rows), take(corrupted, rows)
        inputs = jax.tree.map(lambda x, y: jnp.stack([x, y]), *pair)
        outputs, own = lax.map(world, inputs)
        others = jax.tree.map(lambda leaf: leaf[::-1], own)
        mixed = lax.map(patched_world, (inputs, outputs, own, others))
        return jnp.moveaxis(jnp.concatenate([outputs, mixed]), 0, 1)

    return jnp.moveaxis(map_chunks(run, count_examples(clean), chunk), 0, 1)


def _differ(masks: dict[str, Any], a: dict[str, Any], b: dict[str, Any], total: int) -> jax.Array:
    """In which of the examples any unit in the masks differs between two records: `[total]`."""
    found = jnp.zeros(total, bool)
    for site, mask in masks.items():
        for x, y in zip(jax.tree.leaves(a[site]), jax.tree.leaves(b[site]), strict=True):
            found |= jnp.any((mask & (x != y)).reshape(total, -1), axis=1)
    return found
