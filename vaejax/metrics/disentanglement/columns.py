"""Columns of numbers, brought to a common scale without overflow."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def scaled(columns: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.int32]]:
    """The columns `[N, D]`, each over a power of two `[D]` that brings its largest below 1.

    Exact but for numbers below the smallest that are normal, and nothing overflows thereafter.
    """
    exponents = np.frexp(np.abs(columns).max(axis=0))[1]
    return np.ldexp(columns, -exponents), exponents


def standardised(columns: NDArray[np.float64]) -> NDArray[np.float64]:
    """Columns `[N, D]`, none of them constant, with mean 0 and variance 1 (`N` in it)."""
    centred = scaled(columns)[0]
    # Twice: rounding the mean matters to a column whose range is a few units of its last place.
    for _ in range(2):
        centred = centred - centred.mean(axis=0)
    return centred / centred.std(axis=0)


def unit_range(
    columns: NDArray[np.float64], held: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Columns `[N, F]`, none of them constant, mapped to [0, 1], and `[M, F]` by the same map.

    For estimators that do not depend on scale but fail on numbers far from 1. Held-out numbers end
    a million ranges away from 0.
    """
    scale = np.abs(columns).max(axis=0)  # first, as a range may exceed the largest float
    low, high = columns.min(axis=0) / scale, columns.max(axis=0) / scale
    with np.errstate(over="ignore"):
        held = (held / scale - low) / (high - low)
    return (columns / scale - low) / (high - low), np.clip(held, -1e6, 1e6)
