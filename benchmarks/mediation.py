"""The four worlds of causal mediation through each of the 10 latents, on 64 pairs.

    python -m benchmarks.mediation --peer-python PATH

`mediate` under `vmap` over the masks of the reference network's latents, against PyTorch with a
forward hook and two passes of the whole network for each latent. Natural direct and indirect
effects must be equal to 1e-4 before any time counts, which is why the network has been trained for
a while: the latents of a fresh one change next to nothing. The floor is that of the decoder for two
patched worlds a latent, and of the whole network for the two others.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from benchmarks import common
from benchmarks.common import Case
from benchmarks.reference import (
    Reference,
    arguments,
    check_equal,
    flops,
    reference,
    suffix_flops,
    torch_peer,
)
from vaejax.interventions import Mediation, mediate

STEPS = 200


def main() -> None:
    """The command line."""
    args = arguments(__doc__, rounds=10)
    network = reference(STEPS)
    with torch_peer(args.peer_python, network) as peer:
        pairs, worlds = len(network.clean), 22
        decoder = suffix_flops(network.variables, "encoder/mean")
        needed = pairs * (20 * decoder + 2 * sum(flops(network.variables).values()))
        work: dict[str, Any] = {"work": pairs * worlds, "flops": needed}
        cases = {
            "vaejax": Case(
                lambda: common.seconds(lambda: _mediated(network)),
                **work,
                stages=common.stages(_mediated, network),
            )
        }
        if peer is not None:
            found = _mediated(network)
            ours = jnp.stack([found.nie, found.nde], axis=1)
            check_equal(ours, peer.array("mediate"), "effects")
            cases["PyTorch hooks"] = Case(lambda: peer.ask("mediate"), **work)
        rows = common.compare(cases, "worlds", args.rounds, ["PyTorch hooks"])
    common.report("mediation", rows)


@jax.jit
def _mediated(network: Reference) -> Mediation:
    def through(mask: jax.Array) -> Mediation:
        pair = network.clean, network.corrupted
        return mediate(network.reconstruct, network.variables, *pair, {"z": mask})

    return jax.vmap(through)(jnp.eye(10, dtype=bool))


if __name__ == "__main__":
    main()
