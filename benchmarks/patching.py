"""Exact patching of all units of all sites of the reference network, 64x64x1, on 64 pairs.

    python -m benchmarks.patching

One process patches whole sites, then channels, then positions: ever more units. Its peak memory
after each is what must not grow with their number. Seconds are of a second call, which compiles
nothing. Patches are counted that change the output; those that change nothing at their own site
need no pass.
"""

from __future__ import annotations

import argparse
import resource
import sys
import time
from typing import Any, get_args

import jax
import numpy as np

import vaejax
from benchmarks import common
from vaejax.interventions import patch_units
from vaejax.interventions.edits import By


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=64)
    parser.add_argument("--by", nargs="+", choices=get_args(By), metavar="KIND")
    args = parser.parse_args()

    source = vaejax.data.source("dsprites")
    model = vaejax.zoo.recipe("vae", vaejax.zoo.Network(source.image_shape)).model
    (base, _), (donor, _) = (source.batch(jax.random.key(i), args.pairs) for i in (0, 1))
    variables = jax.jit(model.init)(jax.random.key(2), base)

    def reconstruct(variables: Any, images: jax.Array) -> jax.Array:
        out: Any = model.apply(variables, images)
        return out.reconstruction

    rows = []
    for by in args.by or ("site", "channel", "position"):

        def sweep(by: By = by) -> Any:
            return patch_units(reconstruct, variables, base, donor, by=by)

        first = common.seconds(sweep)
        began = time.perf_counter()
        found = sweep()
        seconds = time.perf_counter() - began
        units = sum(len(effects.effects) for effects in found.values())
        patches = sum(int(np.count_nonzero(effects.effects)) for effects in found.values())
        rows.append(
            {
                "by": by,
                "units": units,
                "patches": patches,
                "seconds": seconds,
                "patches per second": patches / seconds,
                "compile s": first - seconds,
                "peak MiB": _peak_mebibytes(),
            }
        )
    common.report("patching", rows)


def _peak_mebibytes() -> float:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)


if __name__ == "__main__":
    main()
