"""Joint patches of any units of some sites, by masks: what a search for circuits is made of."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from vaejax.chunking import even_chunk, map_chunks, resolve_chunk
from vaejax.errors import unknown_name
from vaejax.interventions import intervene, unit_sites
from vaejax.interventions import sites as all_sites
from vaejax.interventions.edits import By, replace, unit_ids
from vaejax.interventions.passes import (
    Readout,
    count_examples,
    mediated_fractions,
    read,
    take,
    take_now,
)
from vaejax.interventions.unit_sweep import Network, changed_units

AT_ONCE = 4
"""Joint patches in one call of a program."""

_CACHED = 2**19  # numbers
_MOST_AT_ONCE = 64  # on a CPU

_OF_PAIRS = ("inputs", "donor_inputs", "base", "donor", "output", "donor_output")


@struct.dataclass
class JointPatches:
    """M pairs, and what joint patches of a network need to know of them.

    Attributes:
      sites: Those whose units are patched, in the order of the network: U units in all.
      apply_fn: The network.
      variables: Its variables.
      inputs: Those that are patched, `[M, ...]`.
      donor_inputs: Those that units take their values from.
      base: For each site its activations on the inputs.
      donor: Those on the donors.
      output: The quantity of interest on them, `[M, F]`.
      donor_output: That of the donors.
      readout: See `find_circuits`.
      by: See there.
      tau: See there.
      chunk: Passes at once.
    """

    sites: tuple[str, ...] = struct.field(pytree_node=False)
    apply_fn: Callable[..., Any] = struct.field(pytree_node=False)
    variables: Any
    inputs: Any
    donor_inputs: Any
    base: dict[str, jax.Array]
    donor: dict[str, jax.Array]
    output: jax.Array
    donor_output: jax.Array
    readout: Readout = struct.field(pytree_node=False)
    by: By = struct.field(pytree_node=False)
    tau: float = struct.field(pytree_node=False)
    chunk: int = struct.field(pytree_node=False)

    def of_pairs(self, rows: Any) -> JointPatches:
        """Those of some pairs."""
        arrays = {name: getattr(self, name) for name in _OF_PAIRS}
        return dataclasses.replace(self, **take_now(arrays, np.asarray(rows)))

    def of_sites(self, sites: Iterable[str]) -> JointPatches:
        """Those of the units of some of the sites."""
        names = tuple(site for site in self.sites if site in set(sites))
        base, donor = ({site: of[site] for site in names} for of in (self.base, self.donor))
        return dataclasses.replace(self, sites=names, base=base, donor=donor)

    def reversed(self) -> JointPatches:
        """Patches of the donors, with what the inputs have."""
        return dataclasses.replace(
            self,
            inputs=self.donor_inputs,
            donor_inputs=self.inputs,
            base=self.donor,
            donor=self.base,
            output=self.donor_output,
            donor_output=self.output,
        )

    @property
    def sizes(self) -> dict[str, int]:
        """The number of units of each site."""
        return {site: int(self._ids(site).max()) + 1 for site in self.sites}

    @property
    def num(self) -> int:
        """The number of units of all sites, U."""
        return sum(self.sizes.values())

    def changing(self) -> dict[str, np.ndarray]:
        """Which units of each site take another value in which pairs, `[S, M]` bool."""
        return {
            site: np.asarray(
                changed_units(self.base[site], self.donor[site], self._ids(site), size)
            )
            for site, size in self.sizes.items()
        }

    def units_of(self, sites: Iterable[str]) -> np.ndarray:
        """Which units are those of some of the sites, `[U]` bool."""
        wanted = set(sites)
        return np.repeat([site in wanted for site in self.sites], list(self.sizes.values()))

    def named(self, units: np.ndarray) -> dict[str, np.ndarray]:
        """The indices at each site of units that are counted through all sites."""
        starts = np.cumsum([0, *self.sizes.values()])
        return {
            site: units[(units >= start) & (units < end)] - start
            for site, start, end in zip(self.sizes, starts[:-1], starts[1:], strict=True)
        }

    def fractions(self, masks: np.ndarray) -> np.ndarray:
        """Mediated fractions `[A, M]` of the joint patches of masks `[A, U]`."""
        found = [np.asarray(_fractions(self, jnp.asarray(rows))) for rows in _in_blocks(masks)]
        return np.concatenate(found)[: len(masks)] if found else np.zeros((0, len(self.output)))

    def gradient(self, mask: np.ndarray) -> np.ndarray:
        """The derivative of the mean mediated fraction by how far each unit is patched, `[U]`."""
        return np.asarray(_gradient(self, jnp.asarray(mask)))

    def run(self, amounts: jax.Array, rows: jax.Array) -> jax.Array:
        """Mediated fractions `[B]` when units are patched by amounts `[B, U]` in [0, 1]."""
        edits: dict[str, Any] = {}
        values: dict[str, Any] = {}
        start = 0
        for site, size in self.sizes.items():
            share = _spread(amounts[:, start : start + size], self.base[site].shape[1:], self.by)
            start += size
            donor = self.donor[site][rows]
            if not edits:  # here the activation is known, and what lies before it need not be run
                edits[site] = replace
                values[site] = _mixed(self.base[site][rows], (share, donor))
            else:
                edits[site], values[site] = _mixed, (share, donor)
        patched = intervene(self.apply_fn, edits)
        output, _ = patched(self.variables, values, take(self.inputs, rows))
        effect = read(self.readout, output) - self.output[rows]
        total = self.donor_output[rows] - self.output[rows]
        return mediated_fractions(effect, total, self.tau)

    def _ids(self, site: str) -> np.ndarray:
        """Which unit each element of a site belongs to."""
        return unit_ids(self.base[site].shape[1:], self.by)


def joint_patches(
    apply_fn: Callable[..., Any],
    variables: Any,
    clean: Any,
    corrupted: Any,
    sites: Iterable[str],
    *,
    by: By,
    readout: Readout,
    tau: float,
    chunk: int | None,
) -> JointPatches:
    """Records all pairs, for patches of the clean run.

    Raises:
      ValueError: An unknown site, or inputs that do not fit.
    """
    count_examples(clean, corrupted)
    names = network_order(apply_fn, variables, clean, sites)
    # By the program that `patch_units` has, if it has been called.
    (output, base), (donor_output, donor) = (
        Network(apply_fn, variables, inputs, readout, resolve_chunk(chunk)).record(names)
        for inputs in (clean, corrupted)
    )
    chunk = _chunk(apply_fn, variables, clean) if chunk is None else resolve_chunk(chunk)
    return JointPatches(
        names,
        apply_fn,
        variables,
        clean,
        corrupted,
        base,
        donor,
        output,
        donor_output,
        readout,
        by,
        tau,
        chunk,
    )


def _chunk(apply_fn: Callable[..., Any], variables: Any, inputs: Any) -> int:
    """By default, as many passes at once as a CPU's caches hold, if that is more than usual.

    Whole layers run here, and those of a small network are too small for several cores to share.
    """
    found = all_sites(apply_fn, variables, take(inputs, jnp.arange(1)))
    largest = max(math.prod(leaf.shape) for leaf in jax.tree.leaves(found))
    return max(resolve_chunk(None), min(_MOST_AT_ONCE, _CACHED // largest))


def network_order(
    apply_fn: Callable[..., Any], variables: Any, inputs: Any, sites: Iterable[str] | None
) -> tuple[str, ...]:
    """Sites in the order of the network; by default all that contain no other.

    Raises:
      ValueError: There is no such site.
    """
    one = take(inputs, jnp.arange(1))
    if sites is None:
        return tuple(unit_sites(apply_fn, variables, one))
    known = all_sites(apply_fn, variables, one)
    wanted = set(sites)
    for site in wanted - known.keys():
        raise ValueError(unknown_name("site", site, known))
    return tuple(site for site in known if site in wanted)


def _spread(amounts: jax.Array, shape: tuple[int, ...], by: By) -> jax.Array:
    """Amounts of units `[B, S]` as those of the elements of activations `[B, ...]`."""
    if by == "channel" and shape:  # as the gather below, which is slow
        return amounts.reshape(len(amounts), *[1] * (len(shape) - 1), -1)
    return amounts[:, unit_ids(shape, by)]


def _mixed(activation: jax.Array, value: tuple[jax.Array, jax.Array]) -> jax.Array:
    """The activation and a donor's, by shares that are 0 or 1 but for derivatives."""
    share, donor = value
    # The sum of both, and not one plus a difference, is exact for a share of 0 or 1.
    return (1 - share) * activation + share * donor


def _in_blocks(masks: np.ndarray) -> Iterator[np.ndarray]:
    """Masks in blocks of one size, the last filled up, so that one program serves all."""
    for start in range(0, len(masks), AT_ONCE):
        yield np.resize(masks[start : start + AT_ONCE], (AT_ONCE, masks.shape[1]))


@jax.jit
def _fractions(patches: JointPatches, masks: jax.Array) -> jax.Array:
    pairs = len(patches.output)

    def run(cells: jax.Array) -> jax.Array:
        return patches.run(masks[cells // pairs].astype(jnp.float32), cells % pairs)

    # Masks and pairs together, or an accelerator would have too few of them to work on at once.
    cells = len(masks) * pairs
    found = map_chunks(run, cells, even_chunk(patches.chunk, cells))
    return found.reshape(len(masks), pairs)


@jax.jit
def _gradient(patches: JointPatches, mask: jax.Array) -> jax.Array:
    def run(rows: jax.Array) -> jax.Array:
        amounts = jnp.broadcast_to(mask.astype(jnp.float32), (len(rows), len(mask)))
        found, pull = jax.vjp(lambda amounts: patches.run(amounts, rows), amounts)
        return pull((~jnp.isnan(found)).astype(found.dtype))[0]

    pairs = len(patches.output)
    return map_chunks(run, pairs, even_chunk(patches.chunk, pairs)).mean(0)
