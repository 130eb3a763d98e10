"""Patching all units of one site: which patches run together, and the program that runs them."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax import lax

from vaejax.chunking import map_chunks
from vaejax.devices import count
from vaejax.interventions.edits import By, replace, unit_ids
from vaejax.interventions.intercept import intervene
from vaejax.interventions.local import block_size, follow
from vaejax.interventions.passes import (
    Readout,
    mediated_fractions,
    read,
    record,
    take,
    take_now,
)
from vaejax.interventions.windows import Index, Window, cut, unravel

# Patches of each device in one call of a compiled program: between two calls there is time to show
# progress, or to be interrupted.
_CALL_PATCHES = 2048
_CALL_EXAMPLES = 128  # likewise, as their activations are copied for the call


class Progress(Protocol):
    """Told how far a sweep has got."""

    def __call__(self, site: str, done: int, total: int) -> None:
        """`done` of `total` patches of a site have been run."""
        ...


@struct.dataclass
class Network:
    """What is patched, and how; fields as the arguments of `patch_units`."""

    apply_fn: Callable[..., Any] = struct.field(pytree_node=False)
    variables: Any
    inputs: Any
    readout: Readout = struct.field(pytree_node=False)
    chunk: int = struct.field(pytree_node=False)

    def record(self, sites: tuple[str, ...]) -> tuple[jax.Array, dict[str, jax.Array]]:
        """The output `[N, F]` and the activations `[N, ...]` of sites."""
        return record(self.apply_fn, self.variables, self.inputs, sites, self.readout, self.chunk)


def patch_site(
    network: Network,
    site: str,
    base: jax.Array,
    donor: jax.Array,
    total: jax.Array,
    by: By,
    tau: float,
    progress: Progress | None,
) -> tuple[np.ndarray, np.ndarray]:
    """Patches every unit of one site: `||NIE||` and mediated fraction, each `[S, N]`.

    Args:
      network: What is patched.
      site: Where.
      base: The site's activations on the network's inputs, `[N, ...]`.
      donor: Those that units are taken from, `[N, ...]`.
      total: What mediated fractions are of, `[N, F]`.
      by: See `patch_units`.
      tau: See `patch_units`.
      progress: See `patch_units`.
    """
    ids = unit_ids(base.shape[1:], by)
    n, num = len(total), int(ids.max()) + 1
    # On the host: JAX would compile anew for every number of patches.
    changed = np.asarray(changed_units(base, donor, ids, num))
    # A patch that changes nothing has no effect and mediates nothing.
    effects = np.zeros((num, n), np.float32)
    nothing = mediated_fractions(jnp.zeros_like(total), total, tau)
    fractions = np.broadcast_to(nothing, (num, n)).copy()
    block = _block(network, site, base, by)
    width = min(network.chunk, block)
    most = num // block * -(-block // width)  # chunks of one example
    at_once = max(1, network.chunk // (most * width))
    rounds = max(1, min(_CALL_PATCHES // (most * width), _CALL_EXAMPLES) // at_once)
    per_call = count() * at_once * rounds
    some, done = np.flatnonzero(changed.any(0)), 0
    for start in range(0, len(some), per_call):
        examples = some[start : start + per_call]
        units = np.zeros((per_call, most, width), np.int32)
        chunks = np.zeros(per_call, np.int32)
        for i, example in enumerate(examples):
            of_example = _in_chunks(np.flatnonzero(changed[:, example]), block, width)
            chunks[i] = len(of_example)
            units[i, : chunks[i]] = of_example
        # The program need not know how many examples there are in all.
        arrays = network.inputs, base, donor, total
        inputs, *values = take_now(arrays, np.resize(examples, per_call))
        norms, shares = _patch(
            dataclasses.replace(network, inputs=inputs), site, *values, units, chunks, tau,
            by=by, block=block, at_once=at_once,
        )  # fmt: skip
        rows = [(i, k) for i, count in enumerate(chunks) for k in range(count)]
        for found, of_patches in ((effects, norms), (fractions, shares)):
            of_call = np.asarray(of_patches)
            for i, k in rows:
                found[units[i, k], examples[i]] = of_call[i, k]
        done += int(changed[:, examples].sum())
        if progress is not None:
            progress(site, done, int(changed.sum()))
    return effects, fractions


def after_site(network: Network, site: str, inputs: Any) -> Callable[[jax.Array], jax.Array]:
    """From the activation of a site to the quantity of interest."""
    replaced = intervene(network.apply_fn, {site: replace})

    def after(value: jax.Array) -> jax.Array:
        output, _ = replaced(network.variables, {site: value}, inputs)
        return read(network.readout, output)

    return after


def _block(network: Network, site: str, base: jax.Array, by: By) -> int:
    """How many units in a row lie at one place, so that one slice serves all their windows."""
    if by in ("site", "position") or base.ndim < 2:
        return int(unit_ids(base.shape[1:], by).max()) + 1
    if base.ndim > 2:
        return base.shape[-1]
    one = dataclasses.replace(network, inputs=take(network.inputs, jnp.arange(1)))
    return int(_dense_block(one, site, base[:1]))


@functools.partial(jax.jit, static_argnames="site")  # for its cache: nothing is computed
def _dense_block(network: Network, site: str, base: jax.Array) -> int:
    return block_size(after_site(network, site, network.inputs), base)


def _in_chunks(units: np.ndarray, block: int, width: int) -> np.ndarray:
    """Units of one example in chunks `[n, width]`, each of one block; repeated to fill it up."""
    chunks = []
    for of_block in np.split(units, np.flatnonzero(np.diff(units // block)) + 1):
        rows = -(-len(of_block) // width)
        filled = np.minimum(np.arange(rows * width), len(of_block) - 1)
        chunks.append(of_block[filled].reshape(rows, width))
    return np.concatenate(chunks)


@functools.partial(jax.jit, static_argnames="num")
def changed_units(base: jax.Array, donor: jax.Array, ids: jax.Array, num: int) -> jax.Array:
    """Whether a patch of a unit changes anything at its site, `[S, N]` bool."""
    differs = (base != donor).reshape(len(base), -1)
    return jax.ops.segment_max(differs.T, ids.reshape(-1), num_segments=num)


@functools.partial(jax.jit, static_argnames=("site", "by", "block", "at_once"))
def _patch(
    network: Network,
    site: str,
    base: jax.Array,
    donor: jax.Array,
    total: jax.Array,
    units: jax.Array,
    chunks: jax.Array,
    tau: float,
    *,
    by: By,
    block: int,
    at_once: int,
) -> tuple[jax.Array, jax.Array]:
    """Norm and mediated fraction of patches, each `[E, most, width]`.

    Args:
      network: What is patched, with E inputs.
      site: Where.
      base: `[E, ...]`.
      donor: `[E, ...]`.
      total: `[E, F]`.
      units: `[E, most, width]`, of each example the units to patch, those of a chunk in one block.
      chunks: `[E]`, how many chunks of each are to be run.
      tau: See `patch_units`.
      by: See `patch_units`.
      block: See `_block`.
      at_once: Examples to run at once.
    """

    def one(i: jax.Array) -> tuple[jax.Array, jax.Array]:
        after = after_site(network, site, take(network.inputs, i[None]))
        given, follower = donor[i][None], follow(after, base[i][None])

        def run(k: jax.Array, found: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
            first = units[i, k, 0] // block * block

            def patch(unit: jax.Array) -> tuple[jax.Array, jax.Array]:
                window = _window(given, by, Index(first, unit - first, block))
                effect = follower.change(window).reshape(-1)
                return jnp.linalg.norm(effect), mediated_fractions(effect, total[i], tau)

            return jax.tree.map(
                lambda all_, new: all_.at[k].set(new), found, jax.vmap(patch)(units[i, k])
            )

        empty = jnp.zeros(units.shape[1:])
        return lax.fori_loop(0, chunks[i], run, (empty, empty))

    def some(rows: jax.Array) -> tuple[jax.Array, jax.Array]:
        if at_once > 1:
            return jax.vmap(one)(rows)
        # Not under `vmap`: it would make gathers of all slices.
        return jax.tree.map(lambda leaf: leaf[None], one(rows[0]))

    return map_chunks(some, len(chunks), at_once)


def _window(donor: jax.Array, by: By, unit: Index) -> Window:
    """What a unit takes from a donor `[1, ...]`."""
    shape = donor.shape
    if by == "site" or len(shape) == 1:
        return Window((0,) * len(shape), donor)
    space = shape[1:-1]
    if by == "channel" or (by == "element" and not space):
        start: tuple[Any, ...] = (*[0] * (1 + len(space)), unit)
        size = (1, *space, 1)
    elif by == "element":
        start = (0, *unravel(unit.block // shape[-1], space), unit.offset)
        size = (1,) * len(shape)
    else:
        start = (0, *unravel(unit.block + unit.offset, space), 0)
        size = (1, *[1] * len(space), shape[-1])
    return Window(start, cut(donor, start, size))
