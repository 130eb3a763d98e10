"""Exact patching of every channel of every layer of the reference network, 64x64x1, on 64 pairs.

    python -m benchmarks.patching --peer-python PATH

Against PyTorch with a forward hook and a pass of the whole network for each unit; nnsight with a
trace for each unit, if PATH has it; and PyTorch with many patches in a batch, from the patched
layer on, in batches of the size that was fastest, with and without leaving out the patches that
change nothing at their layer, which `patch_units` leaves out. PyTorch patches every 32nd unit of
each layer, for the time of all. A fresh network, and one trained for 500 steps, in which fewer
units are active. Effects must be equal to 1e-4 before any time counts. Then where the time goes,
site by site, and how time and memory grow with the number of patches.
"""

from __future__ import annotations

import functools
import resource
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np

from benchmarks import common, plot
from benchmarks.common import Case, Goal
from benchmarks.reference import (
    SITES,
    Peer,
    Reference,
    arguments,
    check_equal,
    reference,
    suffix_flops,
    torch_peer,
)
from vaejax.interventions import UnitEffects, patch_units

BATCHES = (32, 64, 128, 256)
STRIDE = 32
GOALS = (
    Goal("fresh: vaejax", "x fresh: PyTorch hooks", 6),
    Goal("trained: vaejax", "x trained: PyTorch hooks", 10),
    Goal("fresh: vaejax", "x fresh: PyTorch batched", 3),
    Goal("trained: vaejax", "x trained: PyTorch batched", 3),
)


def main() -> None:
    """The command line."""
    args = arguments(__doc__, rounds=3)
    rows = []
    for state, steps in {"fresh": 0, "trained": 500}.items():
        network = reference(steps)
        with torch_peer(args.peer_python, network) as peer:
            cases = {f"{state}: {k}": case for k, case in _cases(network, peer).items()}
            peers = [name for name in cases if "PyTorch" in name]
            rows += common.compare(cases, "patches", args.rounds, peers)
    sites = _sites(reference(), args.rounds)
    growth, fit = _growth(reference())
    common.report("patching", rows, GOALS, sites=sites, growth=growth, fit=[fit])
    plot.cost("patching", "patches", growth, fit)


def sweep(
    network: Reference, pairs: int = 64, sites: Sequence[str] = SITES
) -> dict[str, UnitEffects]:
    """The effects of all units of some sites on the reconstruction."""
    images = network.clean[:pairs], network.corrupted[:pairs]
    return patch_units(network.reconstruct, network.variables, *images, sites=sites)


def _cases(network: Reference, peer: Peer | None) -> dict[str, Case]:
    found = sweep(network)
    units = {site: len(of_site.effects) for site, of_site in found.items()}
    pairs = len(network.clean)
    work = pairs * sum(units.values())
    # The floor is of what has to be run: patches that change something at their layer.
    needed = sum(_changing(e) * suffix_flops(network.variables, site) for site, e in found.items())
    cases = {"vaejax": Case(lambda: common.seconds(lambda: sweep(network)), work, needed)}
    if peer is None:
        return cases
    sampled = {site: list(range(0, n, STRIDE)) for site, n in units.items()}
    ours = np.concatenate([found[site].effects[np.array(u)] for site, u in sampled.items()])
    tasks: dict[str, dict[str, Any]] = {"hooks": {}, "batched": {"chunk": 64, "skip": True}}
    if peer.ask("has", package="nnsight"):
        tasks["nnsight"] = {}
    else:
        print("skipped nnsight: PyTorch's environment has none")
    for task, options in tasks.items():
        answers = [peer.array(task, site=site, units=u, **options) for site, u in sampled.items()]
        check_equal(ours, np.concatenate(answers), "effects")

    def times(task: str, **options: Any) -> float:
        """Seconds that all units would take, from those that are sampled."""
        return sum(
            peer.ask(task, site=site, units=of_site, **options) * units[site] / len(of_site)
            for site, of_site in sampled.items()
        )

    site, of_site = "decoder/dense_2", sampled["decoder/dense_2"]
    best = min(
        BATCHES,
        key=lambda size: peer.ask("batched", site=site, units=of_site, chunk=size, skip=False),
    )
    print(f"PyTorch was fastest with batches of {best}")
    batched = {"chunk": best}
    if "nnsight" in tasks:
        cases["PyTorch nnsight"] = Case(lambda: times("nnsight"), work)
    return cases | {
        "PyTorch hooks": Case(lambda: times("hooks"), work),
        "PyTorch batched": Case(lambda: times("batched", skip=False, **batched), work),
        "PyTorch batched, skipping": Case(lambda: times("batched", skip=True, **batched), work),
    }


def _changing(effects: UnitEffects) -> int:
    """How many patches change something; the others are left out."""
    return int(np.count_nonzero(np.asarray(effects.effects)))


def _sites(network: Reference, rounds: int) -> list[common.Row]:
    """The speed of each site alone, and its share of the time of all; the base passes included."""
    cases = {}
    for site in SITES:
        patches = _changing(sweep(network, sites=[site])[site])
        needed = patches * suffix_flops(network.variables, site)
        run = functools.partial(sweep, network, sites=[site])
        cases[site] = Case(functools.partial(common.seconds, run), patches, needed)
    rows = common.compare(cases, "patches", rounds)
    spent = np.array([cases[row["case"]].work / row["patches/s"] for row in rows])
    for row, share in zip(rows, spent / spent.sum(), strict=True):
        row["share"] = float(share)
    return rows


def _growth(network: Reference) -> tuple[list[common.Row], common.Row]:
    rows = []
    for pairs in (8, 16, 32, 64):
        found = sweep(network, pairs)
        patches = sum(map(_changing, found.values()))
        again = functools.partial(sweep, network, pairs)
        taken = min(common.seconds(again) for _ in range(2))
        rows.append({"patches": patches, "seconds": taken, "memory MiB": peak_mebibytes()})
    return rows, common.linear_fit([r["patches"] for r in rows], [r["seconds"] for r in rows])


def peak_mebibytes() -> float:
    """The most memory that this process has held."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)


if __name__ == "__main__":
    main()
