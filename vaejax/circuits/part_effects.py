"""What units of a decoder do to the parts of the image that they match.

Marks as in `vaejax.metrics`: [S] is standard in the literature, [R] our reconstruction.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax import lax

from vaejax.changes import exact_change
from vaejax.chunking import even_chunk, map_chunks
from vaejax.circuits.dissection import stack_masks
from vaejax.estimates import Estimate, bootstrap_mean, ratio
from vaejax.interventions.edits import replace, swap, unit_mask
from vaejax.interventions.intercept import intervene
from vaejax.interventions.passes import Readout, count_examples, record, shape_of, take
from vaejax.interventions.patching import check_quantile, high_values


@struct.dataclass
class PartChanges:
    """How much a unit that is set to a value changes the image where: U units, P parts.

    Attributes:
      inside: Mean absolute change of a pixel of the part, `[U, P]`, with its bootstrap interval
        over images. NaN for a part that is nowhere.
      outside: The same of all other pixels of the images that show the part.
      ratio: Inside over outside; infinite where nothing changes outside, NaN where nothing at all.
    """

    inside: Estimate
    outside: Estimate
    ratio: Estimate


@struct.dataclass
class PartEffects:
    """What some units of a site do to the parts of the image: U units, P parts.

    Attributes:
      parts: The names of the parts.
      units: The units, `[U]`.
      ablation: Each unit alone at zero, at all its places.
      insertion: Each unit alone at a high value of its own, at all its places.
    """

    parts: tuple[str, ...] = struct.field(pytree_node=False)
    units: jax.Array
    ablation: PartChanges
    insertion: PartChanges


def part_effects(
    apply_fn: Callable[..., Any],
    variables: Any,
    inputs: Any,
    masks: Mapping[str, Any],
    site: str,
    units: Sequence[int] | None = None,
    *,
    quantile: float = 0.99,
    readout: Readout = None,
    chunk: int | None = None,
    key: jax.Array | None = None,
) -> PartEffects:
    """Whether units that match a part of the image also make it: GAN dissection [S].

    Each unit alone is ablated, and inserted as by `vaejax.interventions.insert_units`; a ratio
    whose interval lies above 1 says that the image changes more inside the part than outside. Bau
    et al. have a segmenter count the pixels of the part in both images; here there is none, and
    the change itself is compared [R].

    Args:
      apply_fn: The network: `apply_fn(variables, inputs) -> output`; give the same function again
        (not a fresh lambda) to have it compiled once.
      variables: Its variables.
      inputs: N inputs: an array `[N, ...]` or a pytree of them.
      masks: Where the parts are in the images of these inputs, as for `match_masks`.
      site: A site `[B, ..., C]`, whose units are its C channels.
      units: Which of them; by default all.
      quantile: See `insert_units`.
      readout: From the output to the image, `[B, H, W]` or `[B, H, W, C]`; by default the output.
      chunk: Inputs run at once, see `vaejax.chunking.resolve_chunk`.
      key: Draws the bootstrap's resamples.

    Returns:
      The changes inside and outside of each part.

    Raises:
      ValueError: An unknown site or unit, or a shape that is not one of these.

    References:
      Bau et al., `GAN Dissection <https://arxiv.org/abs/1811.10597>`_, 2019.
    """
    check_quantile(quantile)
    n = count_examples(inputs, *masks.values())
    marks = stack_masks(masks)
    chunk = even_chunk(chunk, n)
    shape = shape_of(apply_fn, variables, inputs, site)
    chosen = np.arange(shape[-1]) if units is None else np.asarray(units)
    if chosen.ndim != 1 or not chosen.size:
        raise ValueError(f"expected units [U], at least one, got shape {list(chosen.shape)}")
    unit_mask(shape, chosen)  # for what it raises
    output = jax.eval_shape(apply_fn, variables, take(inputs, jnp.arange(1)))
    image = output if readout is None else jax.eval_shape(readout, output)
    size = marks.shape[2:]
    if not hasattr(image, "shape") or image.shape[1:3] != size or len(image.shape) > 4:
        got = image.shape if hasattr(image, "shape") else type(image).__name__
        raise ValueError(f"expected images [N, {size[0]}, {size[1]}, C] as the masks, got {got}")
    own = record(apply_fn, variables, inputs, (site,), _nothing, chunk)[1][site]
    sums = _part_sums(
        apply_fn, variables, inputs, marks, own, high_values(own, quantile), jnp.asarray(chosen),
        site=site, readout=readout, chunk=chunk,
    )  # fmt: skip
    ablation, insertion = _part_changes(sums, marks, key)
    return PartEffects(tuple(masks), jnp.asarray(chosen), ablation, insertion)


@functools.partial(jax.jit, static_argnames=("apply_fn", "site", "readout", "chunk"))
def _part_sums(
    apply_fn: Callable[..., Any],
    variables: Any,
    inputs: Any,
    marks: jax.Array,
    own: jax.Array,
    high: jax.Array,
    units: jax.Array,
    *,
    site: str,
    readout: Readout,
    chunk: int,
) -> jax.Array:
    """Absolute change summed over parts, then over what is outside of them: `[N, 2, U, 2, P]`."""
    # The activations before the site are given, so that its part of the network is not run again.
    replaced = intervene(apply_fn, {site: replace})
    donors = jnp.stack([jnp.zeros_like(high), high])
    # First none, for the image without a change: it comes from the same loop.
    num = len(units)
    settings = (
        jnp.concatenate([jnp.full(1, -1, units.dtype), units, units]),
        jnp.array([0] * (1 + num) + [1] * num),
    )

    def run(rows: jax.Array) -> jax.Array:
        given, values, where = take(inputs, rows), own[rows], _areas(marks[rows])

        def image(unit: jax.Array, donor: jax.Array) -> jax.Array:
            changed = swap(values, (unit_mask(values.shape[1:], unit), donors[donor]))
            output, _ = replaced(variables, {site: changed}, given)
            return output if readout is None else readout(output)

        def step(before: jax.Array, setting: tuple[jax.Array, jax.Array]) -> Any:
            after = image(*setting)
            before = jnp.where(setting[0] < 0, after, before)
            change = jnp.abs(exact_change(before, after)).reshape(*after.shape[:3], -1).mean(-1)
            found = jnp.einsum("bhw,bsphw->bsp", change, where, precision=lax.Precision.HIGHEST)
            return before, found

        of_one = jax.eval_shape(image, *(leaf[0] for leaf in settings))
        _, found = lax.scan(step, jnp.zeros(of_one.shape, of_one.dtype), settings)
        found = found[1:].reshape(2, num, *found.shape[1:])
        return jnp.moveaxis(found, 2, 0)

    return map_chunks(run, count_examples(inputs), chunk)


@jax.jit
def _part_changes(
    sums: jax.Array, marks: jax.Array, key: jax.Array | None
) -> tuple[PartChanges, PartChanges]:
    """The records of sums `[N, 2, U, 2, P]` over parts `[N, P, H, W]`, for both interventions."""
    areas = _areas(marks).sum((3, 4))

    def statistic(means: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, ...]:
        inside, outside = jnp.moveaxis(ratio(means), 2, 0)
        return inside, outside, inside / outside

    value = statistic((sums.mean(0), areas.mean(0)))
    found = zip(value, *bootstrap_mean(statistic, (sums, areas), key=key), strict=True)
    both = PartChanges(*(Estimate(*of_field) for of_field in found))
    ablation, insertion = (jax.tree.map(lambda leaf, i=i: leaf[i], both) for i in (0, 1))
    return ablation, insertion


def _areas(marks: jax.Array) -> jax.Array:
    """The pixels inside of parts and outside, where the image shows them: `[N, 2, P, H, W]`."""
    return jnp.stack([marks, (1 - marks) * marks.any((2, 3), keepdims=True)], 1)


def _nothing(output: Any) -> jax.Array:
    """A readout for passes of which only activations are wanted."""
    return jnp.zeros((len(jax.tree.leaves(output)[0]), 1))
