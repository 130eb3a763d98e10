"""Which factor causes which, as the latents of a network show it.

Marks as in `vaejax.metrics`: [S] standard in the cited literature, [R] our reconstruction.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from vaejax.changes import exact_change
from vaejax.circuits.linear_readout import LinearReadout
from vaejax.estimates import Estimate, bootstrap_mean
from vaejax.interventions.inputs import SetFactor, set_factor

if TYPE_CHECKING:
    import networkx as nx

_DRAWS = 2000
_AT_ONCE = 1000  # draws


@struct.dataclass
class FactorGraph:
    """The factor-level graph: rows are the factors that are set, columns those that are read.

    Attributes:
      effect: How far each factor moves the read-out of each other, with its bootstrap interval over
        examples, both in units of ranges: `[K, K]`. The diagonal is NaN here and in p-values.
      crosstalk: `[K, K]`, how far the read-out of each factor moves when another is set and all
        others are held, mean size per step, both in units of ranges; on the diagonal when it is
        itself set: 1 for a read-out that is right, less for a factor that it cannot read.
      p_examples: `[K, K]`, by flipping the signs of examples.
      p_readout: `[K, K]`, by read-outs of permuted factors.
      adjusted: `[K, K]`, the larger of the two adjusted for all K (K - 1) tests, by Benjamini and
        Hochberg.
      edges: `[K, K]` bool, where that is at most `alpha` and the effect is beyond cross-talk.
    """

    effect: Estimate
    crosstalk: np.ndarray
    p_examples: np.ndarray
    p_readout: np.ndarray
    adjusted: np.ndarray
    edges: np.ndarray

    def to_networkx(self, names: Sequence[str]) -> nx.DiGraph:
        """Its edges, between factors of these names; `weight` is the effect, `p` the adjusted."""
        import networkx as nx

        graph = nx.DiGraph(factors=tuple(names))
        graph.add_nodes_from(names)
        for k, j in np.argwhere(self.edges).tolist():
            weight, p = float(self.effect.value[k, j]), float(self.adjusted[k, j])
            graph.add_edge(names[k], names[j], weight=weight, p=p)
        return graph


def factor_graph(
    encode: Callable[[jax.Array], jax.Array],
    readout: LinearReadout,
    values: Any,
    targets: Any,
    follow: SetFactor,
    *,
    direct: bool = False,
    alpha: float = 0.05,
    margin: float = 2.0,
    draws: int | None = None,
    key: jax.Array | None = None,
) -> FactorGraph:
    """Edge k -> k' when do(g_k) moves the latents that encode k', beyond chance [R].

    The latents that encode k' are the direction in which a linear read-out reads it, as in an
    entangled network no latent is about one factor. For examples of values g and targets v:

        world 1 = g | do(g_k = v), and what depends on it follows
        world 0 = g | do(g_k = v), all others held
        effect[k, k'] = sum sign(v - g_k) (read_k'(world 1) - read_k'(world 0)) / sum |v - g_k|

    with numerator and denominator in units of ranges. So what the read-out of k' makes of k itself
    is not counted, only what follows. With a read-out that is right and linear mechanisms this is
    the total effect of the model, and the edges are those from ancestors. A change that is as often
    up as down when k is raised is none.

    With `direct`, k' alone takes what `follow` gives it, and all others are held. Give a `follow`
    by which children respond to their parents and others do not (`SCM.respond`), and the edges are
    those of the graph itself.

    Beyond chance means beyond each of these:

    * The signs of examples' differences are flipped at random: the effect is none on average.
      Two-sided; a difference that is exactly 0 stays, and where all are, p is 1.
    * The factors that the read-out was fitted to are permuted over images: it reads a direction of
      noise, which moves when anything does. Two-sided, by the normal distribution with the variance
      that all permutations have.
    * Cross-talk: k' may be read out of latents that other descendants of k move, and many examples
      find that however small it is. Of what `effect[k, j] crosstalk[j, k']` is for all other
      factors j the root of the sum of squares is to be expected; an edge has more than `margin`
      times that, as cross-talk differs from place to place, and may be larger where k moves j than
      it is on average. Not with `direct`.

    What the numbers can show: images that are equal in both worlds give no difference. So where k
    has no descendant there is no edge, and with `direct` none but the true ones can be found: there
    only recall says anything.

    Runs on the host; `encode` is called for M factor vectors at a time: g, K world 0s, and as many
    world 1s (with `direct`, one for each two factors of which the first changes the second).

    Args:
      encode: From factor vectors `[M, K]` to codes `[M, D]`: draws images and encodes them. Rows
        that are equal in two calls must have equal codes, so let it be one compiled program.
      readout: From codes to factors, see `fit_readout`.
      values: `[M, K]`, what the examples' factors are.
      targets: `[M, K]`, what each factor is set to in its turn.
      follow: `follow(values [M, K], k, value [M]) -> values [M, K]`, one factor set and others as
        they follow it, such as `SCMSource.set_factor`. k is a number.
      direct: See above.
      alpha: The false discovery rate.
      margin: How many times the cross-talk to expect an effect must be; 0 to let cross-talk count.
      draws: Of signs; by default 2,000, or more if an edge by itself could not be found with these.
      key: Draws signs, and the resamples of intervals.

    Returns:
      The graph.

    Raises:
      ValueError: Shapes do not fit.

    Example:
      >>> def follow(values, k, value):  # factor 1 follows factor 0
      ...     new = values.at[:, k].set(value)
      ...     return new.at[:, 1].add(0.5 * (new[:, 0] - values[:, 0])) if k == 0 else new
      >>> values = jax.random.uniform(jax.random.key(0), (50, 2))
      >>> from vaejax.circuits.linear_readout import fit_readout
      >>> readout = fit_readout(values, values, [2, 2])  # the codes are the factors
      >>> found = factor_graph(lambda codes: codes, readout, values, 1 - values, follow)
      >>> found.edges.tolist(), f"{found.effect.value[0, 1]:.2f}"
      ([[False, True], [False, False]], '0.50')

    References:
      Benjamini and Hochberg, "Controlling the false discovery rate", 1995. Berger, "Multiparameter
      hypothesis testing and acceptance sampling", 1982, of tests that all must reject.
    """
    from scipy.special import erfc
    from scipy.stats import false_discovery_control

    values, targets = jnp.asarray(values, jnp.float32), jnp.asarray(targets, jnp.float32)
    num = len(readout.bias)
    if values.ndim != 2 or values.shape[1] != num or not len(values):
        raise ValueError(f"expected values [M, {num}], not empty, got shape {values.shape}")
    if targets.shape != values.shape:
        raise ValueError(f"expected targets {list(values.shape)}, got {list(targets.shape)}")
    steps = np.asarray((targets - values) / readout.ranges, np.float64)
    weights, noise = np.asarray(readout.weights, np.float64), np.asarray(readout.noise, np.float64)
    own = encode(values)
    crosstalk = np.zeros((num, num))
    reads = np.zeros((len(values), num, num))  # signed
    variance = np.zeros((num, num))  # of the sum over examples, for a read-out of noise
    for k in range(num):
        held = set_factor(values, k, targets[:, k])
        before = encode(held)
        crosstalk[k] = np.abs(np.asarray(exact_change(own, before), np.float64) @ weights).sum(0)
        followed = _followed(follow, values, k, targets[:, k], held)
        for j, change in _changes(encode, before, held, followed, k, direct):
            signed = np.sign(steps[:, k, None]) * np.asarray(change, np.float64)
            reads[:, k, j] = signed @ weights[:, j]
            moved = signed.sum(0)
            variance[k, j] = float(readout.spread[j]) * (moved @ noise @ moved)

    sums = reads.sum(0)
    z = np.abs(sums) / np.sqrt(np.where(variance > 0, variance, np.inf))
    p_readout = erfc(z / np.sqrt(2))
    tests = num * (num - 1)
    draws = max(_DRAWS, math.ceil(tests / alpha)) if draws is None else draws
    p_examples = _flip_signs(reads, draws, key)
    others = ~np.eye(num, dtype=bool)
    adjusted = np.full((num, num), np.nan)
    if tests:
        adjusted[others] = false_discovery_control(np.maximum(p_examples, p_readout)[others])
    means = jnp.asarray(reads, jnp.float32), jnp.asarray(np.abs(steps), jnp.float32)
    effect = _estimate(means, key)
    lengths = np.abs(steps).sum(0)[:, None]
    crosstalk = crosstalk / np.where(lengths > 0, lengths, np.nan)
    # The diagonal of effects is 0; that of cross-talk is what factors do to themselves.
    sizes = np.abs(np.nan_to_num(np.asarray(effect.value)))
    expected = np.sqrt(sizes**2 @ np.nan_to_num(crosstalk * others) ** 2)
    beyond = sizes > (0 if direct else margin) * expected
    blank = np.where(others, 0, np.nan)
    return FactorGraph(
        effect=jax.tree.map(lambda leaf: leaf + blank, effect),
        crosstalk=crosstalk,
        p_examples=p_examples + blank,
        p_readout=p_readout + blank,
        adjusted=adjusted,
        edges=(adjusted <= alpha) & beyond,
    )


@struct.dataclass
class GraphScore:
    """How a found graph compares with the true one.

    Attributes:
      precision: Of the edges found, how many are true; NaN if none was found.
      recall: Of the true edges, how many were found; NaN if there are none.
      shd: Structural Hamming distance: edges to add, remove or reverse.
      true_positives: Edges found that are true.
      false_positives: Edges found that are not, reversed ones among them.
      false_negatives: True edges that were not found, reversed ones among them.
      reversed: Edges found the wrong way round only.
    """

    precision: float
    recall: float
    shd: int
    true_positives: int
    false_positives: int
    false_negatives: int
    reversed: int


def score_graph(found: Any, truth: Any) -> GraphScore:
    """Compares a graph with the true one [S].

    Args:
      found: `[K, K]` bool, from rows to columns; the diagonal does not count.
      truth: Likewise.

    Returns:
      The scores.

    Raises:
      ValueError: A shape is not as above.

    Example:
      >>> score = score_graph([[0, 1, 0], [0, 0, 0], [0, 1, 0]], [[0, 1, 0], [0, 0, 1], [0, 0, 0]])
      >>> score.precision, score.recall, score.shd
      (0.5, 0.5, 1)

    References:
      Tsamardinos et al., "The max-min hill-climbing Bayesian network structure learning algorithm",
      2006, of the distance.
    """
    found, truth = np.asarray(found, bool), np.asarray(truth, bool)
    if found.ndim != 2 or found.shape[0] != found.shape[1] or truth.shape != found.shape:
        raise ValueError(f"expected two graphs [K, K], got shapes {found.shape} and {truth.shape}")
    others = ~np.eye(len(found), dtype=bool)
    found, truth = found & others, truth & others
    right, extra, missing = found & truth, found & ~truth, truth & ~found
    turned = extra & missing.T & ~found.T & ~truth
    positives, true = int(found.sum()), int(truth.sum())
    return GraphScore(
        precision=int(right.sum()) / positives if positives else float("nan"),
        recall=int(right.sum()) / true if true else float("nan"),
        shd=int(extra.sum() + missing.sum() - turned.sum()),
        true_positives=int(right.sum()),
        false_positives=int(extra.sum()),
        false_negatives=int(missing.sum()),
        reversed=int(turned.sum()),
    )


def _followed(
    follow: SetFactor, values: jax.Array, k: int, target: jax.Array, held: jax.Array
) -> jax.Array:
    """World 1, `[M, K]`."""
    followed = jnp.asarray(follow(values, k, target), jnp.float32)
    if followed.shape != values.shape:
        raise ValueError(
            f"expected follow to return {list(values.shape)}, got {list(followed.shape)}"
        )
    if (followed[:, k] != held[:, k]).any():
        raise ValueError(f"expected follow to set factor {k} to what it is given")
    return followed


def _changes(
    encode: Callable[[jax.Array], jax.Array],
    before: jax.Array,
    held: jax.Array,
    followed: jax.Array,
    k: int,
    direct: bool,
) -> Iterator[tuple[int, jax.Array]]:
    """For each other factor that may follow k, how codes change, `[M, D]`."""
    moved = np.flatnonzero(np.asarray(followed != held).any(0)).tolist()
    if direct:
        for j in moved:
            yield j, exact_change(before, encode(held.at[:, j].set(followed[:, j])))
    elif moved:
        change = exact_change(before, encode(followed))
        yield from ((j, change) for j in range(held.shape[1]) if j != k)


def _flip_signs(reads: np.ndarray, draws: int, key: jax.Array | None) -> np.ndarray:
    """How often sums of `[M, K, K]` are as large with their signs flipped: `[K, K]`."""
    bits = jax.random.bits(jax.random.key(0) if key is None else key, (4,))
    rng = np.random.default_rng(np.asarray(bits))
    flat = reads.reshape(len(reads), -1).astype(np.float32)
    observed = np.abs(flat.sum(0)) * (1 - 1e-5)  # equal sums, but for their order
    larger = np.zeros(flat.shape[1], int)
    for start in range(0, draws, _AT_ONCE):
        signs = rng.integers(0, 2, (min(_AT_ONCE, draws - start), len(flat)), np.int8)
        null = (2 * signs - 1).astype(np.float32) @ flat
        larger += (np.abs(null) >= observed).sum(0)
    return ((1 + larger) / (1 + draws)).reshape(reads.shape[1:])


def _effect(means: tuple[jax.Array, jax.Array]) -> jax.Array:
    reads, steps = means
    return reads / jnp.where(steps > 0, steps, jnp.nan)[:, None]


@jax.jit
def _interval(means_of: tuple[jax.Array, jax.Array], key: jax.Array | None) -> Any:
    return bootstrap_mean(_effect, means_of, key=key)


def _estimate(means_of: tuple[jax.Array, jax.Array], key: jax.Array | None) -> Estimate:
    value = _effect(jax.tree.map(lambda leaf: leaf.mean(0), means_of))
    return jax.tree.map(np.asarray, Estimate(value, *_interval(means_of, key)))
