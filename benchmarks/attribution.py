"""Attribution patching of every channel of every layer, on 64 pairs, against the exact sweep.

    python -m benchmarks.attribution --peer-python PATH

The reference network; PyTorch does the same by one backward pass through all activations. Mediated
fractions must be equal to 1e-4 before any time counts. The network has been trained for a while, as
the units of a fresh one change next to nothing.
"""

from __future__ import annotations

import numpy as np

from benchmarks import common
from benchmarks.common import Case, Goal
from benchmarks.patching import sweep
from benchmarks.reference import (
    SITES,
    Reference,
    arguments,
    check_equal,
    flops,
    reference,
    torch_peer,
)
from vaejax.estimates import estimate_means
from vaejax.interventions import Attribution, attribute

STEPS = 200
GOALS = (Goal("vaejax attribution", "x vaejax exact", 100),)


def main() -> None:
    """The command line."""
    args = arguments(__doc__, rounds=5)
    network = reference(STEPS)
    with torch_peer(args.peer_python, network) as peer:
        found = _attribution(network)
        pairs = len(network.clean)
        units = pairs * sum(len(of_site.mediated_fractions) for of_site in found.values())
        fractions = {site: of_site.mediated_fractions.T for site, of_site in found.items()}
        # Two passes, and one back with regard to activations alone.
        needed = 3 * pairs * sum(flops(network.variables).values())
        cases = {
            "vaejax attribution": Case(
                lambda: common.seconds(lambda: _attribution(network)), units, needed
            ),
            "vaejax intervals alone": Case(
                lambda: common.seconds(lambda: estimate_means(fractions)), units
            ),
            "vaejax exact": Case(lambda: common.seconds(lambda: sweep(network)), units),
        }
        if peer is not None:
            theirs = peer.array("attribute")
            for site in SITES:
                check_equal(np.asarray(found[site].mediated_fractions), theirs[site], site)
            cases["PyTorch attribution"] = Case(lambda: peer.ask("attribute"), units, needed)
        peers = ["vaejax exact", "PyTorch attribution"]
        rows = common.compare(cases, "effects", args.rounds, peers)
    common.report("attribution", rows, GOALS)


def _attribution(network: Reference) -> dict[str, Attribution]:
    images = network.clean, network.corrupted
    return attribute(network.reconstruct, network.variables, *images, sites=SITES)


if __name__ == "__main__":
    main()
