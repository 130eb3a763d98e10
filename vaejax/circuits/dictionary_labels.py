"""Whether single features say which class of which factor is in an image."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from vaejax.circuits.bases import Basis
from vaejax.circuits.dictionary_scores import check_site, conditional_means, site_activations
from vaejax.estimates import Estimate, bootstrap_mean
from vaejax.interventions.passes import count_examples


@struct.dataclass
class Interpretability:
    """F1 of the best detectors of the classes of each of K factors, mean over its V classes.

    Attributes:
      features: Of single features, which say yes where they are active, `[K]`.
      supervised: Of the directions from the mean activation to that of the class, `[K]`.
      units: Of single units of the site, `[K]`.
      always: Of always saying yes, `[K]`.
      chosen: The feature for each class, `[K, V]` int32; -1 for a class that was not to be judged.
    """

    features: Estimate
    supervised: Estimate
    units: Estimate
    always: Estimate
    chosen: np.ndarray


def interpretability(
    apply_fn: Callable[..., Any],
    variables: Any,
    inputs: Any,
    factors: Any,
    site: str,
    basis: Basis,
    *,
    chunk: int | None = None,
    key: jax.Array | None = None,
) -> Interpretability:
    """Whether single features say which class of which factor is in an image [R].

    For each class against all others, the detector with the best F1 on every other example, judged
    on the rest. A feature says yes where it is above zero (at any position of a map, if none is
    negative). Units and directions, which are hardly ever zero, say yes above or (units) below a
    threshold that is fitted too; of a unit of a feature map that is the mean over positions.

    Args:
      apply_fn: The network: `apply_fn(variables, inputs) -> output`.
      variables: Its variables.
      inputs: `[N, ...]` or a pytree of such arrays.
      factors: Their classes, `[N, K]` integers from 0.
      site: Where; one array `[B, ..., C]`. Its activations on all inputs are held at once.
      basis: What is judged, such as a `SparseDictionary`.
      chunk: Examples run at once, see `vaejax.chunking.resolve_chunk`.
      key: Draws the bootstrap's resamples of judged examples; detectors stay as they are.

    Returns:
      An `Interpretability`; NaN for a factor none of whose classes is in both halves.

    Raises:
      ValueError: An unknown site, a basis that does not fit, or factors that are no such classes.
    """
    total, classes = count_examples(inputs), np.asarray(factors)
    integers = np.issubdtype(classes.dtype, np.integer)
    if not integers or classes.ndim != 2 or len(classes) != total or classes.min() < 0:
        raise ValueError(
            f"expected factors [{total}, K] of integers from 0, got {classes.shape} {classes.dtype}"
        )
    if total < 2:
        raise ValueError("expected two examples or more")
    check_site(apply_fn, variables, inputs, site)
    activation = site_activations(apply_fn, variables, inputs, site, chunk)
    features, units = (
        np.asarray(values.reshape(total, -1, values.shape[-1]).mean(1))
        for values in (_encode(basis, activation), activation)
    )

    fit = np.arange(total) % 2 == 0
    num_classes = int(classes.max()) + 1
    means = conditional_means(activation[fit], jnp.asarray(classes[fit]), num_classes)
    directions = (means - activation[fit].mean(0)).reshape(-1, activation[0].size)
    along = jnp.matmul(
        activation.reshape(total, -1), directions.T, precision=jax.lax.Precision.HIGHEST
    )
    labels = (classes[:, :, None] == np.arange(num_classes)).reshape(total, -1)
    there = labels[fit].any(0) & labels[~fit].any(0)

    yes = np.zeros((4, total, labels.shape[1]), bool)
    chosen = np.full(labels.shape[1], -1, np.int32)
    above = features > 0
    both_sides = np.concatenate([units, -units], 1)
    for label in np.flatnonzero(there):
        truth = labels[:, label]
        chosen[label] = np.argmax(_f1(above[fit], truth[fit]))
        yes[0, :, label] = above[:, chosen[label]]
        yes[1, :, label] = _thresholded(np.asarray(along)[:, label, None], truth, fit)
        yes[2, :, label] = _thresholded(both_sides, truth, fit)
    yes[3] = True
    shape = (*classes.shape[1:], num_classes)
    estimates = _estimate(
        jnp.asarray(yes[:, ~fit].swapaxes(0, 1).reshape(-1, 4, *shape)),
        jnp.asarray(labels[~fit].reshape(-1, *shape)),
        jnp.asarray(there.reshape(shape)),
        key,
    )
    features_f1, supervised, units_f1, always = (
        jax.tree.map(lambda ends, i=i: ends[i], estimates) for i in range(4)
    )
    return Interpretability(features_f1, supervised, units_f1, always, chosen.reshape(shape))


@jax.jit
def _encode(basis: Basis, activation: jax.Array) -> jax.Array:
    return basis.encode(activation)


def _f1(yes: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """F1 of each column of `[N, S]` bool for `[N]` bool."""
    hits = (yes & truth[:, None]).sum(0)
    return 2 * hits / np.maximum(yes.sum(0) + truth.sum(), 1)


def _thresholded(scores: np.ndarray, truth: np.ndarray, fit: np.ndarray) -> np.ndarray:
    """What the best column of `[N, S]` says at its best threshold, `[N]`, both of those to fit."""
    order = np.argsort(-scores[fit], axis=0, kind="stable")
    falling = np.take_along_axis(scores[fit], order, 0)
    hits = np.cumsum(truth[fit][order], 0)
    f1 = 2 * hits / (np.arange(1, len(order) + 1)[:, None] + truth[fit].sum())
    # No threshold is between equal scores.
    f1[:-1][falling[:-1] == falling[1:]] = -1
    cut, column = np.unravel_index(np.argmax(f1), f1.shape)
    lowest = falling[cut, column]
    below = falling[cut + 1, column] if cut + 1 < len(falling) else -np.inf
    threshold = (lowest + below) / 2 if np.isfinite(below) else below
    # Rounding may take the middle to the lower of two neighbours.
    return scores[:, column] >= (threshold if threshold > below else lowest)


@jax.jit
def _estimate(
    yes: jax.Array, labels: jax.Array, there: jax.Array, key: jax.Array | None
) -> Estimate:
    """Mean F1 over classes, `[4, K]`, of what detectors say `[N, 4, K, V]` of `[N, K, V]`."""
    labels = labels[:, None]
    parts = tuple(x.astype(jnp.float32) for x in (yes & labels, yes, labels))

    def statistic(means: tuple[jax.Array, ...]) -> jax.Array:
        hits, said, true = means
        f1 = jnp.where(there & (true > 0), 2 * hits / (said + true), jnp.nan)
        return jnp.nanmean(f1, -1)

    value = statistic(jax.tree.map(lambda part: part.mean(0), parts))
    return Estimate(value, *bootstrap_mean(statistic, parts, key=key))
