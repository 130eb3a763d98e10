"""Disentanglement metrics of 10 latents on 10,000 examples with dSprites' factors, 5,000 held out.

    python -m benchmarks.metrics [--gbt]

Latents follow factors with noise, mix them, or are unused, drawn by NumPy from a seed. `first`
includes imports and compilation, as in a script that scores one model; `again` is the median of
later calls. Both sums are to stay below 20 s.

Then scikit-learn's boosted trees, the reference's estimator of DCI, against LightGBM: on the one
factor of 32 classes and a fifth of the examples, as the whole of it (`--gbt`) takes minutes. Then
how the time of each metric grows with the number of examples N and of latents D: seconds, and the
exponent of a straight line through their logarithms.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from numpy.typing import NDArray

from benchmarks import common
from benchmarks.common import Goal
from vaejax import metrics
from vaejax.data import ArraySource

SIZES = (3, 6, 40, 32, 32)
GOAL = 20.0  # seconds for all metrics

Split = tuple[NDArray[np.float64], NDArray[np.int64]]  # latents [N, D] and factors [N, K]


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--examples", type=int, default=10_000, help="to train on; half to test on")
    parser.add_argument("--repeats", type=int, default=3, help="calls that the median is of")
    parser.add_argument("--gbt", action="store_true", help="boosted trees in full: minutes")
    parser.add_argument("--no-growth", action="store_true")
    args = parser.parse_args()
    n = args.examples

    # First, as what it times first includes imports and compilation.
    rows = _all_metrics(n, args.repeats)
    further = {"estimators_of_DCI": _boosted_trees(n, full=args.gbt)}
    if not args.no_growth:
        sizes = [n // 8, n // 4, n // 2, n]
        further["growth_with_N"] = _growth("N", sizes, lambda n: _splits(n, 10), args.repeats)
        further["growth_with_D"] = _growth(
            "D", [5, 10, 20], lambda d: _splits(n // 4, d), args.repeats
        )
    goals = [Goal("all", column, -GOAL) for column in ("first, s", "again, s")]
    common.report("metrics", rows, goals, **further)


def _all_metrics(n: int, repeats: int) -> list[common.Row]:
    rows: list[common.Row] = []
    for name, call in _calls(*_splits(n, 10)).items():
        rows.append({"case": name, "first, s": _seconds(call), "again, s": _median(call, repeats)})
    sums = {column: sum(row[column] for row in rows) for column in ("first, s", "again, s")}
    return [*rows, {"case": "all", **sums}]


def _boosted_trees(n: int, *, full: bool) -> list[common.Row]:
    train, test = _splits(n, 10)
    if not full:
        n //= 5
        train, test = ((z[:n], g[:n, 3:4]) for z, g in (train, test))
    lightgbm = _median(lambda: metrics.dci(*train, test=test), 1)
    reference = _seconds(lambda: metrics.dci(*train, test=test, estimator="sklearn-gbt"))
    factors = "all" if full else f"the one of {SIZES[3]} classes"
    return [
        {"case": name, "N": n, "factors": factors, "seconds": seconds, "ratio": seconds / lightgbm}
        for name, seconds in {"lightgbm": lightgbm, "sklearn-gbt": reference}.items()
    ]


def _growth(
    what: str,
    sizes: Sequence[int],
    splits: Callable[[int], tuple[Split, Split]],
    repeats: int,
) -> list[common.Row]:
    times: dict[str, list[float]] = {}
    for size in sizes:
        for name, call in _calls(*splits(size)).items():
            call()  # compiles
            times.setdefault(name, []).append(_median(call, repeats))
    return [
        {
            "case": name,
            **{f"{what} = {size}": taken for size, taken in zip(sizes, seconds, strict=True)},
            "exponent": common.linear_fit(sizes, seconds)["exponent"],
        }
        for name, seconds in times.items()
    ]


def _calls(train: Split, test: Split) -> Mapping[str, Callable[[], Any]]:
    z, g = train
    span = np.ptp(z, axis=0)
    pixels = (z - z.min(axis=0)) / np.where(span > 0, span, 1)
    source = ArraySource.of(pixels[:, None, None], g)
    sampled: dict[str, Any] = {"source": source, "key": jax.random.key(0), "pool": len(z)}
    return {
        "mig": lambda: metrics.mig(z, g),
        "modularity": lambda: metrics.modularity(z, g),
        "dci": lambda: metrics.dci(z, g, test=test),
        "sap": lambda: metrics.sap(z, g, test=test),
        "explicitness": lambda: metrics.explicitness(z, g, test=test),
        "irs": lambda: metrics.irs(z, g),
        "infomec": lambda: metrics.infomec(z, g),
        "unsupervised_scores": lambda: metrics.unsupervised_scores(z),
        "factor_vae_score": lambda: metrics.factor_vae_score(_encode, None, **sampled),
        "beta_vae_score": lambda: metrics.beta_vae_score(_encode, None, **sampled),
    }


def _encode(variables: None, images: jax.Array) -> jax.Array:
    """The latents, which are the pixels but for their scale."""
    return images[:, 0, 0]


def _splits(n: int, d: int) -> tuple[Split, Split]:
    """Latents `[N, D]` and factors of `n` examples to train on, and of half as many to test on."""
    rng = np.random.default_rng(0)
    factors = rng.integers(SIZES, size=(n + n // 2, len(SIZES)))
    shape, scale, orientation, x, y = (factors / (np.array(SIZES) - 1)).T
    turn = 2 * np.pi * orientation
    # Latents of one factor each, then shared ones, then unused ones; and so on, the noise doubled.
    means = [x, y, scale, np.sin(turn), shape, np.cos(turn) + shape, x + y - scale]
    means += 3 * [np.zeros(len(x))]
    noises = [0.05, 0.05, 0.1, 0.2, 0.2, 0.3, 0.2, 0.02, 0.02, 0.02]
    latents = np.stack([3 * means[i % 10] for i in range(d)], axis=1)
    latents += rng.normal(size=latents.shape) * [noises[i % 10] * 2 ** (i // 10) for i in range(d)]
    return (latents[:n], factors[:n]), (latents[n:], factors[n:])


def _median(call: Callable[[], Any], repeats: int) -> float:
    return float(np.median([_seconds(call) for _ in range(repeats)]))


def _seconds(call: Callable[[], Any]) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


if __name__ == "__main__":
    main()
