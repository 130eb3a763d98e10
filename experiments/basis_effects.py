"""What other bases of a model's layers are worth, as records for tables and files."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments import effects
from experiments.circuit_report import finite
from vaejax import circuits
from vaejax.circuits import InteractionBasis, LinearBasis, SparseDictionary
from vaejax.circuits.dictionary_scores import site_activations
from vaejax.data import Renderable
from vaejax.estimates import Estimate

Update = Callable[[int, int], None]
Network = tuple[Callable[..., Any], Any]
Record = dict[str, Any]

SIZES = (1, 8)  # numbers of features that a factor is steered by
ROWS = ("dictionary", "directions", "units", "supervised", "chance")
ENDS = ("value", "low", "high")
COUNTS = ("units", "vary", "read", "both", "99%")
SCORES = ("active", "explained_variance", "approximation")

_DRAWS = 20  # networks that modularity is compared with
_SAMPLES = 4096  # images whose activations a dictionary is trained on
_STEPS = 5000
_JUDGED = 1024  # images that it is judged by
_PARTS = 8  # classes that factors of more are put together to


def count_directions(found: InteractionBasis) -> Record:
    """How many directions of a site matter."""
    shares = np.cumsum(np.asarray(found.eigenvalues.value, np.float64))
    most = int((shares < 0.99 * shares[-1]).sum()) + 1
    counts = (len(found.basis.center), found.variance_rank, found.gradient_rank, found.rank, most)
    return {**dict(zip(COUNTS, counts, strict=True)), "effective": _at(found.effective)}


def _that_matter(found: InteractionBasis) -> LinearBasis:
    """The directions that both vary and are read."""
    basis, rank = found.basis, found.rank
    return LinearBasis(basis.center, basis.inward[:, :rank], basis.outward[:rank])


def modularity(
    network: Network, images: jax.Array, found: Mapping[str, InteractionBasis], update: Update
) -> Record:
    """Of every two neighbouring sites, and of them all, in either basis."""
    matrices: dict[str, list[Any]] = {"units": [], "directions": []}
    neighbours = list(itertools.pairwise(found))
    for done, (name, pair) in enumerate(itertools.product(matrices, neighbours), 1):
        bases = [_that_matter(found[site]) if name == "directions" else None for site in pair]
        matrices[name].append(
            circuits.feature_interactions(
                *network, images, *pair, sender_basis=bases[0], receiver_basis=bases[1]
            )
        )
        update(done, 2 * len(neighbours))
    parts = {f"{a} to {b}": [number] for number, (a, b) in enumerate(neighbours)}
    if len(neighbours) > 1:
        parts["all"] = list(range(len(neighbours)))
    record: Record = {}
    for part, numbers in parts.items():
        for name, of_basis in matrices.items():
            judged = circuits.network_modularity([of_basis[n] for n in numbers], draws=_DRAWS)
            record.setdefault(part, {})[name] = {
                "modularity": finite(judged.modularity),
                "null": finite(judged.null.mean()),
                "z": finite(judged.z),
                "p": finite(judged.p),
                "communities": len(np.unique(np.concatenate(judged.communities))),
            }
    return record


def judge_dictionary(
    network: Network,
    source: Renderable,
    keys: jax.Array,
    site: str,
    size: int | None,
    pairs: int,
    directions: InteractionBasis,
    update: Update,
) -> tuple[Record, SparseDictionary]:
    """Trains a dictionary; judges it, the directions that matter and the units on new images."""
    images, _ = effects.draw(source, keys[0], _SAMPLES)
    maps = site_activations(*network, images, site, None)
    samples = maps.reshape(-1, maps.shape[-1])
    trained = circuits.train_dictionary(keys[0], samples, size or 2 * maps.shape[-1], steps=_STEPS)
    update(1, 4)
    images, values = effects.draw(source, keys[1], _JUDGED)
    _, of_clean = effects.draw(source, keys[2], pairs)
    names = [factor.name for factor in source.factors]
    changed = np.repeat(np.arange(len(names)), pairs)
    before = np.tile(_classes(source, of_clean), (len(names), 1))
    after = _classes(source, effects.changed_factors(source, of_clean))
    clean, corrupted = effects.factor_pairs(source, of_clean)
    bases: dict[str, Any] = {
        "units": circuits.unit_basis(jnp.zeros(maps.shape[-1])),
        "directions": _that_matter(directions),
        "dictionary": trained,
    }
    of_bases: Record = dict.fromkeys(reversed(bases))
    factors: Record = {name: dict.fromkeys(ROWS) for name in names}
    for done, (name, basis) in enumerate(bases.items(), 2):
        whole = circuits.approximation(*network, images, site, basis)
        scores = {part: _at(getattr(whole, part)) for part in SCORES}
        of_bases[name] = {"features": len(basis.outward), **scores}
        if name != "units":  # which are judged beside the others
            found = circuits.control(
                *network, clean, corrupted, changed, before, after, site, basis, sizes=SIZES
            )
            labels = circuits.interpretability(
                *network, images, _classes(source, values), site, basis
            )
            rows = {
                name: (found.features, labels.features),
                "units": (found.units, labels.units),
                "supervised": (found.supervised, labels.supervised),
                "chance": (found.random, labels.always),  # in the end, of the dictionary
            }
            for k, (row, (steered, f1)) in itertools.product(range(len(names)), rows.items()):
                few = range(len(SIZES) if steered.value.ndim > 1 else 1)
                of_sizes = {f"mf_{SIZES[n]}": _at(steered, k, n) for n in few}
                factors[names[k]][row] = {**of_sizes, "f1": _at(f1, k)}
        update(done, 4)
    dead = int((trained.firing == 0).sum())
    return {"site": site, "dead": dead, "bases": of_bases, "factors": factors}, trained


def _at(found: Estimate, *index: int) -> Record:
    """One of several estimates."""
    ends = (getattr(found, end) for end in ENDS)
    return {name: finite(end[index[: end.ndim]]) for name, end in zip(ENDS, ends, strict=True)}


def _classes(source: Renderable, values: jax.Array) -> np.ndarray:
    """The classes of factors, those of factors of many put together: few examples are of each."""
    sizes = np.array([factor.size for factor in source.factors])
    classes = np.clip(np.round(np.asarray(values)), 0, sizes - 1)
    return np.asarray(classes * np.minimum(sizes, _PARTS) // sizes, np.int32)


def arrays(name: str, of: Any) -> dict[str, np.ndarray]:
    """The arrays of a record, by its name and theirs."""
    return {f"{name}_{part}": np.asarray(array) for part, array in vars(of).items()}
