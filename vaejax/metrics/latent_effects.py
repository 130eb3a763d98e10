"""All metrics of the same interventions on latents, for the price of one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
from flax import struct

from vaejax.changes import l2_norm
from vaejax.checks import check_active, check_latents, check_values
from vaejax.metrics._interventions import map_interventions
from vaejax.metrics.circuits import CircuitModularity, modularity, pool
from vaejax.metrics.effect_scores import CES, effect_scores
from vaejax.metrics.specificity import (
    Specificity,
    distances,
    factor_scores,
    pixel_scores,
    squares,
)


@struct.dataclass
class LatentEffects:
    """What `latent_effects` found.

    Attributes:
      ces: As `ces` of the decoded image.
      ces_factor: As `ces` of the factors read off it.
      specificity_pixel: As `specificity_pixel`.
      specificity_factor: As `specificity_factor`.
      circuit_modularity: As `circuit_modularity`.
    """

    ces: CES
    ces_factor: CES
    specificity_pixel: Specificity
    specificity_factor: Specificity
    circuit_modularity: CircuitModularity


def latent_effects(
    decode: Callable[[jax.Array], tuple[Any, Mapping[str, jax.Array]]],
    readout: Callable[[Any], Any],
    latents: jax.Array,
    values: jax.Array,
    *,
    active: jax.Array | None = None,
    chunk: int | None = None,
    key: jax.Array | None = None,
) -> LatentEffects:
    """Strength, specificity and circuit modularity of the same interventions, decoded once.

    Pure JAX, as each of the five alone; see there for what they are and for the memory they take.

    Args:
      decode: Maps latents `[chunk, D]` to decoded means `[chunk, ...]` and named activations of the
        decoder `[chunk, ..., C]`, such as `vaejax.intervene` records.
      readout: Maps decoded means to factors, see `specificity_factor`.
      latents: `[N, D]` floating point, usually posterior means.
      values: `[V]` for all latents alike, or `[D, V]` with a row for each latent.
      active: `[D]` bool, see `active_latents`.
      chunk: Examples decoded at once, see `ces`.
      key: Draws the resamples of the intervals; `jax.random.key(0)` by default.

    Returns:
      A `LatentEffects`.

    Raises:
      ValueError: As each of the five.

    Examples:
      >>> import jax.numpy as jnp
      >>> def decode(z):
      ...     hidden = z @ jnp.array([[1.0, 2.0, 0.0], [0.0, 3.0, 4.0]])
      ...     return 2 * hidden, {"hidden": hidden}
      >>> found = latent_effects(decode, lambda x: x, jnp.zeros((4, 2)), jnp.ones(1))
      >>> found.ces.per_latent
      Array([ 4.472136, 10.      ], dtype=float32)
    """
    latents = check_latents(latents)
    values = check_values(values, latents)
    active = check_active(active, latents)

    def everything(z: jax.Array) -> dict[str, Any]:
        image, activations = decode(z)
        return {"image": image, "factors": readout(image), "activations": dict(activations)}

    def measure(change: dict[str, Any]) -> tuple[dict[str, jax.Array], Any]:
        average = {
            "effects": l2_norm(change["image"]),
            "factor_effects": l2_norm(change["factors"]),
            "squares": squares(change["image"]),
            "distances": distances(change["factors"]),
        }
        return average, pool(change["activations"])

    average, pooled, output = map_interventions(everything, latents, values, measure, chunk)
    return LatentEffects(
        ces=effect_scores(average["effects"], output["image"], active, key),
        ces_factor=effect_scores(average["factor_effects"], output["factors"], active, key),
        specificity_pixel=pixel_scores(average["squares"], active, key),
        specificity_factor=factor_scores(average["distances"], active, key),
        circuit_modularity=modularity(pooled, active, key),
    )
