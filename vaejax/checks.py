"""What the functions of vaejax demand of their arguments, each said in one line."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def check_index(name: str, index: jax.Array | int, size: int | None = None) -> None:
    """Checks that indices are in `0 .. size - 1`, where JAX would clamp them silently.

    Traced ones pass: they are not known yet.

    Raises:
      ValueError: One is out of range.
    """
    if isinstance(index, jax.core.Tracer):
        return
    given = np.asarray(index)
    if given.size and (given.min() < 0 or (size is not None and given.max() >= size)):
        bound = "" if size is None else f" and below {size}"
        raise ValueError(f"expected {name} at least 0{bound}, got {given.tolist()}")


def check_latents(latents: Any) -> jax.Array:
    """`latents` as an array `[N, D]`, or a ValueError."""
    latents = jnp.asarray(latents)
    if latents.ndim != 2 or latents.size == 0:
        raise ValueError(f"expected latents [N, D], not empty, got shape {latents.shape}")
    if not jnp.issubdtype(latents.dtype, jnp.floating):
        raise ValueError(f"expected floating-point latents, got {latents.dtype}")
    return latents


def check_values(values: Any, latents: jax.Array) -> jax.Array:
    """`values` as an array `[D, V]` of the dtype of the latents `[N, D]`, or a ValueError."""
    values = jnp.asarray(values)
    num_latents = latents.shape[1]
    if values.ndim == 0 or values.size == 0 or values.shape[:-1] not in ((), (num_latents,)):
        raise ValueError(
            f"expected values [V] or [D, V] with D = {num_latents}, not empty, "
            f"got shape {values.shape}"
        )
    return jnp.broadcast_to(values.astype(latents.dtype), (num_latents, values.shape[-1]))


def check_active(active: Any, latents: jax.Array) -> jax.Array | None:
    """`active` as an array `[D]` of bool or None, or a ValueError."""
    if active is None:
        return None
    active, num_latents = jnp.asarray(active), latents.shape[1]
    if active.shape != (num_latents,) or active.dtype != jnp.bool_:
        raise ValueError(
            f"expected active of shape ({num_latents},) and dtype bool, "
            f"got {active.shape} and {active.dtype}"
        )
    return active


def check_batch(output: Any, batch: int) -> Any:
    """`output` if all of its arrays are `[batch, ...]`, or a ValueError."""
    for leaf in jax.tree.leaves(output):
        if leaf.shape[:1] != (batch,):
            raise ValueError(
                f"expected outputs [{batch}, ...] of {batch} latents, got {leaf.shape}"
            )
    return output


def check_changed(changed: Any, num_factors: int | None, pairs: int) -> tuple[np.ndarray, int]:
    """Which factor each pair differs in, `[M]`, and the number of factors; or a ValueError."""
    changed = np.asarray(changed)
    if changed.shape != (pairs,) or not np.issubdtype(changed.dtype, np.integer):
        raise ValueError(
            f"expected changed [{pairs}] of integers, the factor that each pair differs in, "
            f"got shape {changed.shape} and {changed.dtype}"
        )
    num_factors = int(changed.max()) + 1 if num_factors is None else num_factors
    if changed.min() < 0 or changed.max() >= num_factors:
        raise ValueError(
            f"expected changed from 0 to {num_factors - 1}, got {changed.min()} to {changed.max()}"
        )
    return changed, num_factors
