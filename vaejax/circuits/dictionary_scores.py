"""What a dictionary is worth: judged by the effects of its features, against labelled directions.

The three axes are those of Makelov, Lange and Nanda: does the network work on what the dictionary
makes of an activation (`approximation`, here), can it be steered by few features
(`dictionary_control`), and do single features say what is in an image (`dictionary_labels`)? Any
basis can be judged. The formulas are [R], for factors in the place of their attributes.

References:
  Makelov, Lange and Nanda, `Towards Principled Evaluations of Sparse Autoencoders for
  Interpretability and Control <https://arxiv.org/abs/2405.08366>`_, 2024.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from vaejax.chunking import even_chunk, map_chunks
from vaejax.circuits.bases import Basis, check_array
from vaejax.estimates import Estimate, bootstrap_mean
from vaejax.interventions import edits, intervene
from vaejax.interventions.passes import Readout, count_examples, read, shapes_of, take


@struct.dataclass
class Approximation:
    """How well a network works on what a basis makes of a site's activations.

    Attributes:
      approximation: `1 - E ||Y(a^) - Y(a)||^2 / E ||Y(mean a) - Y(a)||^2`, `[]`: 1 if the output
        stays as it is, 0 if the mean activation does as well.
      explained_variance: `1 - E ||a^ - a||^2 / E ||mean a - a||^2`, `[]`.
      active: Mean number of features that are not zero, at a position, `[]`.
    """

    approximation: Estimate
    explained_variance: Estimate
    active: Estimate


def approximation(
    apply_fn: Callable[..., Any],
    variables: Any,
    inputs: Any,
    site: str,
    basis: Basis,
    *,
    readout: Readout = None,
    chunk: int | None = None,
    key: jax.Array | None = None,
) -> Approximation:
    """Whether the network works on what the basis makes of a site's activations [R].

    Args:
      apply_fn: The network: `apply_fn(variables, inputs) -> output`.
      variables: Its variables.
      inputs: `[N, ...]` or a pytree of such arrays.
      site: Where; one array `[B, ..., C]`.
      basis: What is judged, such as a `SparseDictionary`.
      readout: From the output to the quantity of interest Y, `[B, ...]`; by default the output.
      chunk: Examples run at once, see `vaejax.chunking.resolve_chunk`.
      key: Draws the bootstrap's resamples.

    Returns:
      An `Approximation`; NaN where the mean activation changes nothing.

    Raises:
      ValueError: An unknown site, or a basis that does not fit it.
    """
    chunk = even_chunk(chunk, count_examples(inputs))
    check_site(apply_fn, variables, inputs, site)
    parts = _approximate(apply_fn, variables, inputs, basis, site, readout, chunk)
    return _summarise(parts, key)


def check_site(apply_fn: Callable[..., Any], variables: Any, inputs: Any, site: str) -> None:
    """Raises a ValueError unless the site is there, one array `[B, ..., C]`."""
    check_array(shapes_of([site], apply_fn, variables, take(inputs, jnp.arange(1)))[site])


def site_activations(
    apply_fn: Callable[..., Any], variables: Any, inputs: Any, site: str, chunk: int | None
) -> jax.Array:
    """The activations `[N, ..., C]` of a site."""
    return _activations(
        apply_fn, variables, inputs, site, even_chunk(chunk, count_examples(inputs))
    )


@functools.partial(jax.jit, static_argnames=("apply_fn", "site", "chunk"))
def _activations(
    apply_fn: Callable[..., Any], variables: Any, inputs: Any, site: str, chunk: int
) -> jax.Array:
    observe = intervene(apply_fn, {}, record=site)
    return map_chunks(
        lambda rows: observe(variables, {}, take(inputs, rows))[1][site],
        count_examples(inputs),
        chunk,
    )


@functools.partial(jax.jit, static_argnames="num_classes")
def conditional_means(activation: jax.Array, classes: jax.Array, num_classes: int) -> jax.Array:
    """The mean of each class of each factor, or of all examples where there are none.

    Args:
      activation: `[N, ...]`.
      classes: `[N, K]` integers.
      num_classes: V.

    Returns:
      `[K, V, ...]`.
    """
    overall = activation.mean(0)
    chosen = jax.nn.one_hot(classes, num_classes, dtype=activation.dtype)  # [N, K, V]
    count = chosen.sum(0).reshape(*chosen.shape[1:], *[1] * overall.ndim)
    # Of deviations, for small differences between large means.
    total = jnp.tensordot(
        chosen, activation - overall, ((0,), (0,)), precision=jax.lax.Precision.HIGHEST
    )
    return overall + total / jnp.maximum(count, 1)


@functools.partial(jax.jit, static_argnames=("apply_fn", "site", "readout", "chunk"))
def _approximate(
    apply_fn: Callable[..., Any],
    variables: Any,
    inputs: Any,
    basis: Basis,
    site: str,
    readout: Readout,
    chunk: int,
) -> tuple[jax.Array, ...]:
    """Of each example `[N]`: errors of Y by basis and by mean, those of a, features active."""
    activation = _activations(apply_fn, variables, inputs, site, chunk)
    mean = activation.mean(0)
    replaced = intervene(apply_fn, {site: edits.replace})

    def run(rows: jax.Array) -> tuple[jax.Array, ...]:
        batch, here = take((inputs, activation), rows)
        features = basis.encode(here)
        made = basis.decode(features).astype(here.dtype)
        worlds = jnp.stack([here, made, jnp.broadcast_to(mean, here.shape)])
        # From one loop, so that equal activations have equal outputs.
        output = jax.lax.map(
            lambda world: read(readout, replaced(variables, {site: world}, batch)[0]), worlds
        )
        errors = [
            jnp.sum(jnp.square(a - b).reshape(len(rows), -1), 1)
            for values in (output, worlds)
            for a, b in ((values[1], values[0]), (values[2], values[0]))
        ]
        active = jnp.sum(features != 0, -1, dtype=jnp.float32)
        return *errors, active.reshape(len(rows), -1).mean(1)

    return map_chunks(run, count_examples(inputs), chunk)


@jax.jit
def _summarise(parts: tuple[jax.Array, ...], key: jax.Array | None) -> Approximation:
    def statistic(means: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        by_basis, by_mean, error, variance, active = means
        return 1 - by_basis / by_mean, 1 - error / variance, active

    value = statistic(jax.tree.map(jnp.mean, parts))
    low, high = bootstrap_mean(statistic, parts, key=key)
    return Approximation(*(Estimate(*ends) for ends in zip(value, low, high, strict=True)))
