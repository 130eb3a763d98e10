"""The disentanglement metrics of one trained model: columns of the table, arrays and a record."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from experiments.cli import UsageError
from vaejax import metrics
from vaejax.data import ArraySource, Factor
from vaejax.data.storage import OnDevice
from vaejax.metrics import Score

_SEED = 0  # of trees and of the nearest neighbours' tie-breaking noise
_KEY = 20_261_122  # of the votes


@dataclasses.dataclass(frozen=True, eq=False)
class Representation:
    """What is scored: N examples, D latents, K factors.

    Attributes:
      name: `"means"` or `"samples"` of the posterior, `"codes"` by position, or `"pooled"` codes
        (for each entry of the codebook, the share of positions that hold it).
      latents: `[N, D]` numbers, or integer codes.
      factors: `[N, K]` classes.
      active: `[D]` bool, the latents that are scored; None for all.
    """

    name: str
    latents: NDArray[Any]
    factors: NDArray[np.integer]
    active: NDArray[np.bool_] | None = None

    @property
    def discrete(self) -> bool:
        """Whether latents are codes, without an order."""
        return self.name == "codes"


@dataclasses.dataclass(frozen=True, eq=False)
class _Problem:
    """Arguments of the metrics: all examples, those to train on and those to test on."""

    all: tuple[NDArray[Any], NDArray[np.integer]]
    train: tuple[NDArray[Any], NDArray[np.integer]]
    test: tuple[NDArray[Any], NDArray[np.integer]]
    votes: tuple[int, int]
    options: dict[str, Any]


def _dci(problem: _Problem) -> dict[str, Score]:
    try:
        found = metrics.dci(*problem.train, test=problem.test, seed=_SEED, **problem.options)
    except ImportError as error:  # LightGBM needs a library that not every system has
        raise UsageError(str(error)) from error
    return {
        "dci_disentanglement": found.disentanglement,
        "dci_completeness": found.completeness,
        "dci_informativeness": found.informativeness,
    }


def _infomec(problem: _Problem) -> dict[str, Score]:
    found = metrics.infomec(*problem.train, seed=_SEED, **problem.options)
    return {"infom": found.infom, "infoc": found.infoc, "infoe": found.infoe}


def _voted(metric: Callable[..., Score], problem: _Problem) -> Score:
    latents, factors = problem.all
    # The sets are made of the examples there are: drawing each anew would encode a million images.
    images = OnDevice(jnp.asarray(latents[:, None, None, :], jnp.float32))
    names = tuple(Factor(str(k), int(top) + 1) for k, top in enumerate(factors.max(axis=0)))
    pool = ArraySource(images, jnp.asarray(factors, jnp.int32), names)
    key = jax.random.key(_KEY)
    options = {"votes": problem.votes, "pool": len(latents), **problem.options}
    encode = _codes if problem.options["discrete"] else _numbers
    return metric(encode, None, pool, key=key, **options)


def _numbers(_: None, images: jax.Array) -> jax.Array:
    return images.reshape(len(images), -1)


def _codes(_: None, images: jax.Array) -> jax.Array:
    return images.reshape(len(images), -1).astype(int)


# Names of `presets.DISENTANGLEMENT`, and what computes their columns.
_METRICS: Mapping[str, Callable[[_Problem], dict[str, Score]]] = {
    "mig": lambda p: {"mig": metrics.mig(*p.all, **p.options)},
    "dci": _dci,
    "sap": lambda p: {"sap": metrics.sap(*p.train, test=p.test, **p.options)},
    "factor_vae_score": lambda p: {"factor_vae_score": _voted(metrics.factor_vae_score, p)},
    "beta_vae_score": lambda p: {"beta_vae_score": _voted(metrics.beta_vae_score, p)},
    "modularity_rm": lambda p: {"modularity_rm": metrics.modularity(*p.all, **p.options)},
    "explicitness": lambda p: {
        "explicitness": metrics.explicitness(*p.train, test=p.test, **p.options)
    },
    "irs": lambda p: {"irs": metrics.irs(*p.all, **p.options)},
    "infomec": _infomec,
}


def disentanglement(
    representation: Representation, *, names: Collection[str], scored: int, votes: int
) -> tuple[dict[str, Any], dict[str, NDArray[np.float64]], dict[str, Any]]:
    """Scores a representation.

    Information, IRS and the sets of the voting metrics take all examples; what is trained and
    tested (trees, support vectors, regressions) takes two thirds and one third of the first
    `scored` of them, and so does InfoMEC the two thirds.

    Args:
      representation: What to score.
      names: Which of `presets.DISENTANGLEMENT`.
      scored: Examples to train and test on.
      votes: Sets that the voting metrics learn from; half as many are judged.

    Returns:
      Columns; the matrices and parts of each score; and, for `disentanglement.json`, how each was
      estimated, how many latents were dead and why something is undefined.
    """
    everything = representation.latents, representation.factors
    scored = min(scored, len(representation.latents))
    cut = 2 * scored // 3
    problem = _Problem(
        everything,
        (everything[0][:cut], everything[1][:cut]),
        (everything[0][cut:scored], everything[1][cut:scored]),
        (votes, max(votes // 2, 1)),
        {"active": representation.active, "discrete": representation.discrete},
    )
    columns: dict[str, Any] = {"representation": representation.name}
    arrays: dict[str, NDArray[np.float64]] = {}
    record: dict[str, Any] = {}
    for name in _METRICS:
        if name not in names:
            continue
        for column, found in _METRICS[name](problem).items():
            columns[column] = _number(found.score)
            for part in ("per_latent", "per_factor", "matrix"):
                if (array := getattr(found, part)) is not None:
                    arrays[f"{column}_{part}"] = array
            record[column] = {
                "representation": representation.name,
                "score": _number(found.score),
                "with_dead": _number(found.with_dead),
                "estimator": found.estimator,
                "dead_latents": found.num_dead_latents,
                "passive_latents_left_out": found.num_passive_latents,
                "constant_factors": found.num_skipped_factors,
                "reason": found.reason,
            }
    return columns, arrays, record


def _number(value: float) -> float | None:
    return None if np.isnan(value) else float(value)
