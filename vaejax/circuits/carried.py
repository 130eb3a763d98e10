"""What units pass on from site to site, and what of it reaches the end."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np

from vaejax.chunking import map_chunks
from vaejax.interventions.passes import count_examples, mediated_fractions, take
from vaejax.interventions.paths import Recorded
from vaejax.interventions.unit_sweep import Network, after_site


@dataclasses.dataclass(frozen=True)
class Layer:
    """Some units of one site.

    Attributes:
      site: Its name.
      units: Which, `[S]`.
      ids: Which unit each number of an activation belongs to, `[...]`.
    """

    site: str
    units: np.ndarray
    ids: np.ndarray


@dataclasses.dataclass(frozen=True)
class Relay:
    """Effects carried from site to site.

    Attributes:
      pairs: Recorded at the sites.
      layers: These, in the order of the network.
      tau: See `unit_graph`.
    """

    pairs: Recorded
    layers: tuple[Layer, ...]
    tau: float

    def fractions(self, changed: np.ndarray, senders: Sequence[np.ndarray]) -> np.ndarray:
        """The mediated fraction of each pair, `[M]`.

        Args:
          changed: `[M]`.
          senders: Between each two sites, which unit sends to which for each factor, `[K, S, T]`.
        """
        pairs, last = self.pairs, self.layers[-1]
        values = pairs.corrupted[self.layers[0].site]
        for (first, second), sends in zip(pairwise(self.layers), senders, strict=True):
            values = self._receive(first, second, values, changed, sends)
        mask = np.isin(last.ids, last.units)
        sent, differs = _sent(mask, values, pairs.clean[last.site])
        patched = _output(pairs.network, last.site, sent)
        effect = jnp.where(differs[:, None], patched - pairs.output, 0)
        return np.asarray(mediated_fractions(effect, pairs.total, self.tau))

    def _receive(
        self,
        first: Layer,
        second: Layer,
        values: jax.Array,
        changed: np.ndarray,
        sends: np.ndarray,
    ) -> jax.Array:
        """What units of the second site take, given what those of the first have, `[M, ...]`."""
        clean, received = self.pairs.clean[first.site], self.pairs.clean[second.site]
        # Units with the same senders in all factors share a pass.
        groups, group_of = np.unique(sends, axis=2, return_inverse=True)
        for group in np.flatnonzero(groups.any((0, 1))):
            member = np.zeros((len(sends), int(first.ids.max()) + 1), bool)
            member[:, first.units] = groups[:, :, group]
            sent, differs = _sent(member[changed][:, first.ids], values, clean)
            new = self.pairs.recompute({first.site: sent}, second.site)
            takes = np.isin(second.ids, second.units[group_of.reshape(-1) == group])
            received = _received(differs, takes, new, received)
        return received


@jax.jit
def _sent(mask: np.ndarray, values: jax.Array, clean: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The clean values but for those in the mask `[M, ...]`, and in which pairs they differ."""
    sent = jnp.where(mask, values, clean)
    return sent, (sent != clean).reshape(len(sent), -1).any(1)


@jax.jit
def _received(
    differs: jax.Array, takes: np.ndarray, new: jax.Array, received: jax.Array
) -> jax.Array:
    """What units have received: new where they take it, in pairs whose senders differ `[M]`."""
    return jnp.where(differs.reshape(-1, *[1] * takes.ndim) & takes, new, received)


@functools.partial(jax.jit, static_argnames="site")
def _output(network: Network, site: str, values: jax.Array) -> jax.Array:
    """The quantity of interest where the activations of a site are given, `[M, F]`."""

    def run(rows: jax.Array) -> jax.Array:
        return after_site(network, site, take(network.inputs, rows))(values[rows])

    return map_chunks(run, count_examples(network.inputs), network.chunk)
