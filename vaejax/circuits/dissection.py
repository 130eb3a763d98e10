"""Network dissection: which part of the image each unit of a network marks.

Marks as in `vaejax.metrics`: [S] is standard in the literature, [R] our reconstruction.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax import lax

from vaejax.estimates import Estimate, bootstrap_mean, p_value

SHARES = tuple(float(share) for share in 1 / (1 + np.exp(np.linspace(5, -5, 24))))
"""Shares of a unit's values that thresholds leave above them: even in log-odds, 0.7% to 99.3%."""

_SAMPLE = 2**14  # values of a unit that its quantiles are taken of
_AT_ONCE = 2**20  # comparisons of values with thresholds held at once, 4 MiB


@struct.dataclass
class MaskMatches:
    """How well each unit of one site marks each part of the image: S units, P parts, R shuffles.

    Attributes:
      parts: The names of the parts.
      iou: Intersection over union on the second half of the images, `[S, P]`, with its bootstrap
        interval over these; the threshold is held. NaN for a unit that is constant, and for a part
        that is not in both halves.
      threshold: Chosen on the first half, `[S, P]`.
      above: Whether the unit marks the part by values above it, or by those that are not: `[S, P]`
        bool.
      null: The same IoU with the masks of other images, thresholds chosen again: `[R, S, P]`.
      p_value: How often that is as large, `[S, P]`; at least `1 / (1 + R)`, not corrected for the
        number of units and parts.
      best: The part that each unit matches best, `[S]` int32: whose IoU exceeds the mean of its
        null most, both on the first half, so that `iou` is not what it was chosen by. -1: none.
    """

    parts: tuple[str, ...] = struct.field(pytree_node=False)
    iou: Estimate
    threshold: jax.Array
    above: jax.Array
    null: jax.Array
    p_value: jax.Array
    best: jax.Array


def match_masks(
    activations: Mapping[str, Any],
    masks: Mapping[str, Any],
    *,
    shuffles: int = 40,
    key: jax.Array | None = None,
) -> dict[str, MaskMatches]:
    """Network dissection: which part of the image each unit marks [S], by thresholds of ours [R].

        IoU = sum_n |{a_n > t} & part_n| / sum_n |{a_n > t} | part_n|

    A unit's map is brought to the size of the masks bilinearly, and marks the pixels where it is
    above a threshold; or those where it is not, as a unit that is off at the part shows where it is
    just as well. Which of both, and which of the `SHARES` quantiles of the unit (of 2^14 of its
    values, if it has more), is chosen for each part to maximise IoU on the first half of the
    images; IoU is reported on the second, so the images must come in random order. Bau et al. take
    values above only, and their 0.995 quantile (2017) or the threshold that tells most about the
    part (2019).

    The null exchanges the masks of images within each half, no image keeping its own. A part that
    is always at one place, such as a sky, has its IoU there too: a small p-value says that the unit
    follows the part from image to image, and how far IoU exceeds the null says how much.

    Args:
      activations: For each site `[N, h, w, C]`, as `intervene` records them; at least 4 images.
      masks: For each part the share of each pixel that it covers, `[N, H, W]` in [0, 1], of the
        same images; above 1/2 a pixel is the part's.
      shuffles: R, exchanges of masks for the null.
      key: Draws these, the values that quantiles are taken of, and the bootstrap's resamples.

    Returns:
      For each site, the matches of its units.

    Raises:
      ValueError: A shape is not one of these, or an activation is not finite.

    Example:
      >>> part = jnp.zeros((8, 4, 4)).at[jnp.arange(8), jnp.arange(8) % 4].set(1.0)
      >>> found = match_masks({"site": 5 - 2 * part[..., None]}, {"row": part})["site"]
      >>> print(found.iou.value, found.above, found.p_value)
      [[1.]] [[False]] [[0.02439024]]

    References:
      Bau et al., `Network Dissection <https://arxiv.org/abs/1704.05796>`_, 2017, and `GAN
      Dissection <https://arxiv.org/abs/1811.10597>`_, 2019.
    """
    if shuffles < 1:
        raise ValueError(f"expected shuffles >= 1, got {shuffles}")
    covered = stack_masks(masks)
    n = len(covered)
    if n < 4:
        raise ValueError(f"expected at least 4 images, 2 in each half, got {n}")
    # On the host, where the sorts that random orders need are not compiled.
    words = jax.random.key_data(jax.random.key(0) if key is None else key)
    rng = np.random.default_rng(np.asarray(words))
    others = np.stack([_exchange(rng, n) for _ in range(shuffles)])
    pixels = covered.shape[2] * covered.shape[3]
    sample = _sample(rng, n // 2, pixels)
    found, overlaps = {}, {}
    for site, given in activations.items():
        values = jnp.asarray(given)
        if values.ndim != 4 or len(values) != n or 0 in values.shape:
            raise ValueError(
                f"site {site!r}: expected activations [{n}, h, w, C], got {list(values.shape)}"
            )
        if not bool(jnp.all(jnp.isfinite(values))):
            raise ValueError(f"site {site!r}: expected finite activations, got NaN or infinity")
        counts = jax.tree.map(np.asarray, _count(values, covered, others, sample))
        found[site], overlaps[site] = _match(counts, pixels)
    intervals = _intervals(overlaps, key)
    return {
        site: MaskMatches(parts=tuple(masks), iou=intervals[site], **jax.tree.map(jnp.asarray, of))
        for site, of in found.items()
    }


def _exchange(rng: np.random.Generator, n: int) -> np.ndarray:
    """Another image of the same half for each of N images, `[N]`."""
    others = np.empty(n, np.int32)
    for rows in np.split(np.arange(n), [n // 2]):
        order = rng.permutation(rows)
        others[order] = np.roll(order, rng.integers(1, len(rows)))
    return others


def _sample(rng: np.random.Generator, images: int, pixels: int) -> np.ndarray:
    """Of which pixels of each image quantiles are taken, `[images, V]`; of all if they are few."""
    if images * pixels <= _SAMPLE:
        return np.broadcast_to(np.arange(pixels), (images, pixels))
    return rng.integers(pixels, size=(images, max(1, _SAMPLE // images)))


@struct.dataclass
class _Counts:
    """Numbers of pixels: N images, S units, T thresholds, P parts, R shuffles.

    Attributes:
      thresholds: `[S, T]`.
      varies: Whether a unit does in the first half, `[S]`.
      marked: Above the threshold, `[N, S, T]`.
      part: In the part, `[N, P]`.
      both: `[N, S, T, P]`.
      of_others: Both, with the masks of others, summed over each half, `[2, S, T, P, R]`.
    """

    thresholds: Any
    varies: Any
    marked: Any
    part: Any
    both: Any
    of_others: Any


@jax.jit
def _count(
    activations: jax.Array, masks: jax.Array, others: jax.Array, sample: jax.Array
) -> _Counts:
    """Counts pixels of activations `[N, h, w, C]` in masks `[N, P, H, W]`.

    One image after another, and all masks that it is compared with at once: a matrix product, of
    numbers that are 0 or 1 and so exact.
    """
    n, num_parts, height, width = masks.shape
    num, levels, pixels = activations.shape[-1], len(SHARES), height * width
    marks = masks.reshape(n, num_parts, pixels)

    def resized(i: jax.Array) -> jax.Array:
        image = activations[i].astype(jnp.float32)
        return jax.image.resize(image, (height, width, num), "bilinear").reshape(pixels, num).T

    sampled = lax.map(lambda row: resized(row[0])[:, row[1]], (jnp.arange(n // 2), sample))
    sampled = jnp.sort(jnp.moveaxis(sampled, 1, 0).reshape(num, -1))
    ranks = ((1 - np.array(SHARES)) * sampled.shape[1]).astype(int)
    thresholds = sampled[:, ranks]

    at_once = min(num, max(1, _AT_ONCE // (levels * pixels)))
    padding = -num % at_once
    filled = jnp.pad(thresholds, ((0, padding), (0, 0))).reshape(-1, at_once, levels)

    def one(sums: jax.Array, i: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        values = jnp.pad(resized(i), ((0, padding), (0, 0)))
        compared = marks[jnp.concatenate([i[None], others[:, i]])].reshape(-1, pixels)
        compared = jnp.concatenate([compared, jnp.ones((1, pixels))])

        def some(of_units: tuple[jax.Array, jax.Array]) -> jax.Array:
            value, threshold = of_units
            above = value[:, None] > threshold[..., None]
            return above.reshape(-1, pixels).astype(jnp.float32) @ compared.T

        counts = lax.map(some, (values.reshape(-1, at_once, pixels), filled))
        counts = counts.reshape(-1, levels, len(compared))[:num]
        both, of_others, marked = jnp.split(counts, [num_parts, len(compared) - 1], -1)
        return sums.at[(i >= n // 2).astype(int)].add(of_others), (both, marked[..., 0])

    empty = jnp.zeros((2, num, levels, len(others) * num_parts))
    sums, (both, marked) = lax.scan(one, empty, jnp.arange(n))
    of_others = jnp.moveaxis(sums.reshape(2, num, levels, len(others), num_parts), 3, 4)
    flat = activations[: n // 2].reshape(-1, num)
    varies = (flat != flat[0]).any(0)
    return _Counts(thresholds, varies, marked, marks.sum(-1), both, of_others)


def _match(counts: _Counts, pixels: int) -> tuple[dict[str, Any], tuple[np.ndarray, ...]]:
    """The fields of `MaskMatches` but `iou`; and intersections and unions, `[N / 2, S, P]` each."""
    n, levels = len(counts.part), counts.thresholds.shape[1]
    # All as `[S, T, P, ...]`, the last axis for images or shuffles.
    halves = []
    for of_others, rows in zip(counts.of_others, np.split(np.arange(n), [n // 2]), strict=True):
        part, marked = counts.part[rows].T, np.moveaxis(counts.marked[rows], 0, -1)[:, :, None]
        both = np.moveaxis(counts.both[rows], 0, -1)
        sums = part.sum(-1, keepdims=True), marked.sum(-1, keepdims=True)
        own = _Overlap(both, marked, part, pixels)
        whole = _Overlap(both.sum(-1, keepdims=True), sums[1], sums[0], pixels * len(rows))
        halves.append((own, whole, _Overlap(of_others, sums[1], sums[0], pixels * len(rows))))
    (_, first, null_first), (own, _, null_second) = halves

    chosen, score = first.choose()
    null_chosen, null_score = null_first.choose()
    both, either = own.at(chosen)
    null_both, null_either = null_second.at(null_chosen)

    there = counts.varies[:, None] & np.all([of.part[:, 0] > 0 for _, of, _ in halves], 0)
    with np.errstate(invalid="ignore"):
        iou = both.sum(-1) / either.sum(-1)
        null = np.where(there, np.moveaxis(null_both / null_either, -1, 0), np.nan)
    iou = np.where(there, iou, np.nan)
    excess = np.where(there, score[..., 0] - null_score.mean(-1), -np.inf)
    threshold = np.take_along_axis(counts.thresholds, chosen[..., 0] % levels, 1)
    fields = {
        "threshold": np.where(there, threshold, np.nan),
        "above": chosen[..., 0] < levels,
        "null": null,
        "p_value": p_value(jnp.asarray(iou), jnp.asarray(null)),
        "best": np.where(there.any(1), excess.argmax(1), -1).astype(np.int32),
    }
    # NaN, where there is nothing to match, goes on to the intervals.
    overlaps = tuple(np.where(there, np.moveaxis(a, -1, 0), np.nan) for a in (both, either))
    return fields, overlaps


class _Overlap(NamedTuple):
    """Pixels that units mark, those of parts, and both; a unit may also mark all the others.

    Attributes:
      both: `[S, T, P, X]`.
      marked: `[S, T, 1, X]`.
      part: `[P, X]`.
      pixels: Of all images together.
    """

    both: np.ndarray
    marked: np.ndarray
    part: np.ndarray
    pixels: int

    def choose(self) -> tuple[np.ndarray, np.ndarray]:
        """Which of the thresholds, or T + which for the others, has the largest IoU; and that."""
        others = self.part - self.both, self.pixels - self.marked
        with np.errstate(invalid="ignore"):
            ious = np.concatenate(
                [
                    both / (marked + self.part - both)
                    for both, marked in ((self.both, self.marked), others)
                ],
                axis=1,
            )
        ious = np.nan_to_num(ious, nan=-1.0)
        return ious.argmax(1), ious.max(1)

    def at(self, chosen: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Intersection and union, `[S, P, X]`, at what `choose` found."""
        above = chosen < self.both.shape[1]
        level = (chosen % self.both.shape[1])[:, None]
        both, marked = (
            np.take_along_axis(np.broadcast_to(a, self.both.shape), level, 1)[:, 0]
            for a in (self.both, self.marked)
        )
        both = np.where(above, both, self.part - both)
        marked = np.where(above, marked, self.pixels - marked)
        return both, marked + self.part - both


@jax.jit
def _intervals(
    overlaps: dict[str, tuple[jax.Array, jax.Array]], key: jax.Array | None
) -> dict[str, Estimate]:
    """IoU of sums over images `[N / 2, S, P]` of each site, in one loop for all."""

    def statistic(means: dict[str, tuple[jax.Array, jax.Array]]) -> dict[str, jax.Array]:
        return {site: both / either for site, (both, either) in means.items()}

    value = statistic(jax.tree.map(lambda leaf: leaf.sum(0), overlaps))
    low, high = bootstrap_mean(statistic, overlaps, key=key)
    return {site: Estimate(value[site], low[site], high[site]) for site in overlaps}


def stack_masks(masks: Mapping[str, Any]) -> jax.Array:
    """Masks as one array of 0 and 1, `[N, P, H, W]`."""
    shapes = {name: jnp.shape(mask) for name, mask in masks.items()}
    if len(set(shapes.values())) != 1 or len(next(iter(shapes.values()))) != 3:
        got = ", ".join(f"{name} {list(shape)}" for name, shape in shapes.items())
        raise ValueError(f"expected masks [N, H, W] of one shape, got {got or 'none'}")
    return (jnp.stack([jnp.asarray(mask) for mask in masks.values()], 1) > 0.5).astype(jnp.float32)
