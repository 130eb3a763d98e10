"""What every disentanglement metric takes and gives: examples in, a `Score` out.

One policy for what is degenerate. Dead latents (constant over the examples) and constant factors
are taken out before anything is computed, and counted: adding one changes no score. Where the
reference counts dead latents all the same, its figure is `Score.with_dead`. What is undefined is
NaN and comes with a reason; nothing raises or warns but for arguments of a wrong shape or type.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

Latents = NDArray[Any]  # float64 numbers, or integer codes


@dataclasses.dataclass(frozen=True, eq=False)
class Score:
    """A score of D latents and K factors, and what it is made of.

    Attributes:
      score: The metric.
      per_latent: `[D]` part of each latent, NaN where it has none; None if the metric has no such
        parts.
      per_factor: `[K]` part of each factor, likewise.
      matrix: `[D, K]` of what the metric is computed from (information, importances, accuracies),
        NaN for dead latents and constant factors; None if there is no such matrix.
      with_dead: The score of the reference implementation, which differs where it counts dead
        latents; NaN where it fails on them.
      estimator: What estimated the matrix, with its settings, and of what kind of latents.
      num_dead_latents: Latents left out because they are constant.
      num_passive_latents: Latents left out on request.
      num_skipped_factors: Factors left out because they are constant.
      reason: Why the score or a part of it is NaN; None when nothing is.
    """

    score: float
    per_latent: NDArray[np.float64] | None
    per_factor: NDArray[np.float64] | None
    matrix: NDArray[np.float64] | None
    with_dead: float
    estimator: str
    num_dead_latents: int
    num_passive_latents: int
    num_skipped_factors: int
    reason: str | None


@dataclasses.dataclass(frozen=True, eq=False)
class Examples:
    """N examples of D' live latents and K' factors that vary, of D and K there were.

    Attributes:
      latents: `[N, D']` float64; codes `0 .. size - 1` if discrete.
      classes: `[N, K']` codes `0 .. size - 1` of the factors.
      asked: `[D]` bool, latents that are not left out on request.
      live: `[D]` bool, those of them that vary.
      varying: `[K]` bool.
      latent_labels: The original values of each live latent's codes; empty unless discrete.
      class_labels: The original classes of each varying factor.
      discrete: Whether latents are classes and not numbers.
    """

    latents: Latents
    classes: NDArray[np.intp]
    asked: NDArray[np.bool_]
    live: NDArray[np.bool_]
    varying: NDArray[np.bool_]
    latent_labels: tuple[NDArray[np.integer], ...]
    class_labels: tuple[NDArray[np.integer], ...]
    discrete: bool

    @property
    def num_dead(self) -> int:
        """Latents that were asked for and are constant."""
        return int((self.asked & ~self.live).sum())


def read(
    latents: ArrayLike,
    factors: ArrayLike,
    *,
    active: ArrayLike | None = None,
    discrete: bool = False,
) -> Examples:
    """Checks the arguments that all metrics share, and takes out what is dead or constant.

    Args:
      latents: `[N, D]` finite numbers, or integer codes if `discrete`.
      factors: `[N, K]` integer classes, with any labels.
      active: `[D]` bool, the latents to score; None for all.
      discrete: Whether latents are codes, that is classes without an order.

    Raises:
      ValueError: A shape or dtype is not the one above, or a latent is not finite.
    """
    numbers, classes = _checked(latents, factors, discrete)
    n, d = numbers.shape
    asked = asked_for(active, d)
    live = asked & (numbers != numbers[0]).any(axis=0)
    varying = (classes != classes[0]).any(axis=0)
    latent_labels: tuple[NDArray[np.integer], ...] = ()
    kept = numbers[:, live]
    if discrete:
        latent_labels, kept = _encode(numbers[:, live], n)
    class_labels, codes = _encode(classes[:, varying], n)
    return Examples(kept, codes, asked, live, varying, latent_labels, class_labels, discrete)


def asked_for(active: ArrayLike | None, d: int) -> NDArray[np.bool_]:
    """The mask `[D]` of the latents to score; all if `active` is None.

    Raises:
      ValueError: It is not `[D]` bool.
    """
    asked = np.ones(d, bool) if active is None else np.asarray(active)
    if asked.shape != (d,) or asked.dtype != bool:
        raise ValueError(f"expected active [D] bool, D = {d}, got {asked.dtype} {asked.shape}")
    return asked


def held_out(
    examples: Examples, test: tuple[ArrayLike, ArrayLike]
) -> tuple[Latents, NDArray[np.intp]]:
    """The latents `[M, D']` and classes `[M, K']` of a held-out set, as those of `examples`.

    A class or code that `examples` do not have is -1.

    Args:
      examples: The examples that classifiers are trained on.
      test: Latents `[M, D]` and factors `[M, K]`.

    Raises:
      ValueError: A shape or dtype is not the one above, or a latent is not finite.
    """
    if not isinstance(test, tuple) or len(test) != 2:
        raise ValueError("expected test = (latents, factors)")
    numbers, classes = _checked(*test, examples.discrete)
    if numbers.shape[1] != len(examples.live) or classes.shape[1] != len(examples.varying):
        raise ValueError(
            f"expected test latents [M, {len(examples.live)}] and factors "
            f"[M, {len(examples.varying)}], got {numbers.shape} and {classes.shape}"
        )
    kept = numbers[:, examples.live]
    if examples.discrete:
        kept = _look_up(kept, examples.latent_labels)
    return kept, _look_up(classes[:, examples.varying], examples.class_labels)


def features(latents: Latents, examples: Examples) -> tuple[NDArray[np.float64], NDArray[np.intp]]:
    """What a classifier sees: columns `[N, F]` and the live latent `[F]` that each belongs to.

    Numbers are a column each, codes one column for each of their values.

    Args:
      latents: `[N, D']` of `examples` or of their held-out set.
      examples: The examples that classifiers are trained on.
    """
    if not examples.discrete:
        return np.asarray(latents, np.float64), np.arange(latents.shape[1])
    sizes = [len(labels) for labels in examples.latent_labels]
    columns = [
        code[:, None] == np.arange(size) for code, size in zip(latents.T, sizes, strict=True)
    ]
    owners = np.repeat(np.arange(len(sizes)), sizes)
    if not columns:
        return np.zeros((len(latents), 0)), owners
    return np.concatenate(columns, axis=1).astype(np.float64), owners


def score(
    examples: Examples,
    value: float,
    *,
    estimator: str,
    per_latent: NDArray[np.float64] | None = None,
    per_factor: NDArray[np.float64] | None = None,
    matrix: NDArray[np.float64] | None = None,
    with_dead: float | None = None,
    reason: str | None = None,
) -> Score:
    """The record of a score, its parts spread over all latents and factors.

    Args:
      examples: What was scored.
      value: The score.
      estimator: What estimated it.
      per_latent: `[D']`.
      per_factor: `[K']`.
      matrix: `[D', K']`.
      with_dead: As in `Score`; None where dead latents make no difference to the reference.
      reason: Why something is NaN, other than that latents are dead or factors constant.
    """
    live, varying = examples.live, examples.varying
    reasons = [] if reason is None else [reason]
    if not varying.all() and (per_factor is not None or matrix is not None):
        reasons.append(f"constant factors: {np.flatnonzero(~varying).tolist()}")
    if not live.all() and (per_latent is not None or matrix is not None):
        reasons += left_out(examples)
    kind = "codes" if examples.discrete else "numbers"
    return Score(
        score=float(value),
        per_latent=None if per_latent is None else _spread(per_latent, live),
        per_factor=None if per_factor is None else _spread(per_factor, varying),
        matrix=None if matrix is None else _spread(_spread(matrix, live).T, varying).T,
        with_dead=float(value if with_dead is None else with_dead),
        estimator=f"{estimator}, latents are {kind}",
        num_dead_latents=examples.num_dead,
        num_passive_latents=int((~examples.asked).sum()),
        num_skipped_factors=int((~varying).sum()),
        reason="; ".join(reasons) or None,
    )


def left_out(examples: Examples) -> list[str]:
    """Which latents are not scored, and why."""
    dead = np.flatnonzero(examples.asked & ~examples.live).tolist()
    not_asked = np.flatnonzero(~examples.asked).tolist()
    reasons = [f"dead latents: {dead}"] if dead else []
    return reasons + ([f"latents left out: {not_asked}"] if not_asked else [])


def _spread(part: NDArray[np.float64], where: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Rows of `part` at the places where `where` is true, NaN elsewhere."""
    whole = np.full((len(where), *part.shape[1:]), np.nan)
    whole[where] = part
    return whole


def _checked(
    latents: ArrayLike, factors: ArrayLike, discrete: bool
) -> tuple[Latents, NDArray[np.integer]]:
    numbers, classes = np.asarray(latents), np.asarray(factors)
    if numbers.ndim != 2 or numbers.size == 0:
        raise ValueError(f"expected latents [N, D], not empty, got shape {numbers.shape}")
    if classes.ndim != 2 or classes.size == 0 or len(classes) != len(numbers):
        raise ValueError(
            f"expected factors [N, K], not empty, with N = {len(numbers)}, "
            f"got shape {classes.shape}"
        )
    if classes.dtype.kind not in "biu":
        raise ValueError(f"expected integer factors, got {classes.dtype}")
    if discrete:
        if numbers.dtype.kind not in "biu":
            raise ValueError(f"expected integer latents, as they are discrete, got {numbers.dtype}")
        return numbers, classes
    numbers = numbers.astype(np.float64)
    if not np.isfinite(numbers).all():
        raise ValueError(
            f"expected finite latents, got {(~np.isfinite(numbers)).sum()} that are not"
        )
    return numbers, classes


def _encode(
    columns: NDArray[np.integer], n: int
) -> tuple[tuple[NDArray[np.integer], ...], NDArray[np.intp]]:
    """The sorted values of each column, and the columns as indices into them."""
    pairs = [np.unique(column, return_inverse=True) for column in columns.T]
    codes = np.stack([code for _, code in pairs], axis=1) if pairs else np.zeros((n, 0), np.intp)
    return tuple(labels for labels, _ in pairs), codes


def _look_up(
    columns: NDArray[np.integer], labels: tuple[NDArray[np.integer], ...]
) -> NDArray[np.intp]:
    """`columns` as indices into the labels of each, -1 where a value is none of them."""
    codes = np.full(columns.shape, -1, np.intp)
    for index, known in enumerate(labels):
        found = np.searchsorted(known, columns[:, index]).clip(max=len(known) - 1)
        codes[:, index] = np.where(known[found] == columns[:, index], found, -1)
    return codes
