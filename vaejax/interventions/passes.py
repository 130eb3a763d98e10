"""What the analyses of this package share: passes of a network over many examples."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from vaejax.chunking import map_chunks
from vaejax.errors import unknown_name
from vaejax.interventions.edits import replace
from vaejax.interventions.intercept import intervene, sites

TAU = 1e-6
"""Total effects of a smaller norm are taken for rounding, and their pairs skipped."""

Readout = Callable[[Any], jax.Array] | None
"""From the output of `apply_fn` to the quantity of interest `[B, ...]`; None for the output."""

Components = Mapping[str, Any] | Iterable[str] | str
"""Whole sites by name, or a mapping from sites to masks of units (see `edits.unit_mask`)."""


def as_masks(components: Components) -> dict[str, Any]:
    """The mask of each site of a component set; True for all of a site.

    >>> as_masks(["z", "decoder/dense_1"])
    {'z': True, 'decoder/dense_1': True}
    """
    if isinstance(components, str):
        return {components: True}
    if isinstance(components, Mapping):
        return dict(components)
    return dict.fromkeys(components, True)


def read(readout: Readout, output: Any) -> jax.Array:
    """The quantity of interest, with all axes but the first flattened: `[B, F]`.

    Raises:
      ValueError: It is not one array `[B, ...]`.
    """
    value = output if readout is None else readout(output)
    if not hasattr(value, "shape") or not value.shape:
        what = "the output" if readout is None else "what readout returns"
        hint = "; give readout=, a function of the output" if readout is None else ""
        raise ValueError(
            f"expected {what} to be one array [B, ...], got {type(value).__name__}{hint}"
        )
    return value.reshape(value.shape[0], -1)


def count_examples(*inputs: Any) -> int:
    """The length N of the first axis, which all arrays of all inputs must share.

    Raises:
      ValueError: They do not, or N is 0.
    """
    lengths = {leaf.shape[0] if jnp.ndim(leaf) else None for leaf in jax.tree.leaves(inputs)}
    if len(lengths) != 1 or not (length := lengths.pop()):
        shapes = ", ".join(str(list(jnp.shape(leaf))) for leaf in jax.tree.leaves(inputs))
        raise ValueError(f"expected inputs [N, ...] with one N above 0, got shapes {shapes}")
    return length


def take(tree: Any, rows: jax.Array) -> Any:
    """The examples `rows` of a pytree of arrays `[N, ...]`."""
    return jax.tree.map(lambda leaf: leaf[rows], tree)


take_now = jax.jit(take)
"""`take` in one program, for use outside of others: by itself it is one for each array."""


def shapes_of(
    names: Iterable[str], apply_fn: Callable[..., Any], variables: Any, inputs: Any
) -> dict[str, Any]:
    """What `sites` finds for these names.

    Raises:
      ValueError: There is no such site; the message lists those that there are.
    """
    found = sites(apply_fn, variables, inputs)
    for name in names:
        if name not in found:
            raise ValueError(unknown_name("site", name, found))
    return {name: found[name] for name in names}


def shape_of(
    apply_fn: Callable[..., Any], variables: Any, inputs: Any, site: str
) -> tuple[int, ...]:
    """The shape of one example's activation at a site.

    Raises:
      ValueError: There is no such site, or its output is not one array.
    """
    shape = shapes_of([site], apply_fn, variables, take(inputs, jnp.arange(1)))[site]
    if not isinstance(shape, jax.ShapeDtypeStruct):
        raise ValueError(f"site {site!r}: its output is not one array, so it has no units")
    return shape.shape[1:]


def unit_sites(apply_fn: Callable[..., Any], variables: Any, inputs: Any) -> list[str]:
    """The sites whose units make up a network: modules that contain no other.

    A module whose only part is `pre` (the value before its activation function) counts, and its
    `pre` does not. Sites of integers or of several arrays are left out.
    """
    found = sites(apply_fn, variables, take(inputs, jnp.arange(1)))
    paths = {name: re.sub(r"#\d+$", "", name).split("/") for name in found}  # of whatever call
    paths = {name: path for name, path in paths.items() if path[-1] != "pre"}
    outer = {tuple(path[:n]) for path in paths.values() for n in range(len(path))}
    return [
        name
        for name, path in paths.items()
        if tuple(path) not in outer
        and isinstance(found[name], jax.ShapeDtypeStruct)
        and jnp.issubdtype(found[name].dtype, jnp.floating)
    ]


@functools.partial(jax.jit, static_argnames=("apply_fn", "names", "readout", "chunk"))
def record(
    apply_fn: Callable[..., Any],
    variables: Any,
    inputs: Any,
    names: tuple[str, ...],
    readout: Readout,
    chunk: int,
) -> tuple[jax.Array, dict[str, Any]]:
    """The quantity of interest `[N, F]` and the activations `[N, ...]` of some sites."""
    recorded = intervene(apply_fn, {}, record=names)

    def run(rows: jax.Array) -> tuple[jax.Array, dict[str, Any]]:
        output, activations = recorded(variables, {}, take(inputs, rows))
        return read(readout, output), activations

    return map_chunks(run, count_examples(inputs), chunk)


@functools.partial(jax.jit, static_argnames=("apply_fn", "name", "chunk"))
def recompute(
    apply_fn: Callable[..., Any],
    variables: Any,
    inputs: Any,
    given: dict[str, Any],
    name: str,
    chunk: int,
) -> Any:
    """The activation `[N, ...]` of a site where those of others are `given` likewise."""
    edited = intervene(apply_fn, dict.fromkeys(given, replace), record=name)

    def run(rows: jax.Array) -> Any:
        return edited(variables, take(given, rows), take(inputs, rows))[1][name]

    return map_chunks(run, count_examples(inputs), chunk)


def mediated_fractions(effects: jax.Array, total: jax.Array, tau: float) -> jax.Array:
    """`<effect, TE> / ||TE||^2` of each pair [S], NaN where `||TE|| < tau`.

    Args:
      effects: `[..., N, F]`.
      total: The total effects TE `[N, F]`.
      tau: Total effects below it are taken for none.

    Returns:
      `[..., N]`.
    """
    square = jnp.sum(jnp.square(total), -1)
    share = jnp.sum(effects * total, -1) / jnp.where(square > 0, square, 1)
    return jnp.where((square < tau**2) | (square == 0), jnp.nan, share)
