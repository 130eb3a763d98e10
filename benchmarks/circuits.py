"""Units and circuits: attribution against exact patches, and what a whole analysis costs.

    python -m benchmarks.circuits [--run DIR] [--analyses demo paper]

First whole analyses, as `experiments.circuits` makes them (units, circuits of every factor at every
site, paths), of networks that have not been trained: these take the same programs, but how many
units change and how large circuits are is another matter. Each in a process of its own: `cold`,
with nothing compiled on disk; `warm`, with everything there, but traced and read anew; `again`, in
the same process once more. The floor is a plain pass of the network for each unit and pair of
images, timed before and after; units alone take so many patches, circuits and paths more. `peak
MiB` is of the process, which has `start MiB` before there is a network.

Then, on a VAE that has been trained (that of `--run`, or else one is), how fast `factor_units` is
exactly, by attribution, and exactly for those that attribution screens; and for each site how well
attribution does:

* `rank correlation`, Spearman's, of effects by attribution and exact, over units and factors; 95%
  intervals by resampling units. `of changing`: without units that are the same in every pair.
* `top 10% in 10%` and `in 50%`: of the 10% of units with most exact effect on a factor, the share
  among the first 10%, or 50%, by attribution; mean over factors. By chance it would be so many.
* `attributed alike` and `screened alike`: the share of units with the exact analysis' label.
  `commonest` is what one label for all would reach; `patched`, the share of units that a screen
  patches.
"""

from __future__ import annotations

import argparse
import functools
import json
import math
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import vaejax
from benchmarks import common
from benchmarks.common import Case
from benchmarks.patching import peak_mebibytes
from experiments import circuit_effects, cli, effects, output, runs
from experiments.presets import PRESETS
from vaejax import circuits, interventions
from vaejax.chunking import even_chunk
from vaejax.circuits import FactorUnits
from vaejax.data import Renderable
from vaejax.interventions.passes import record
from vaejax.training import unstack
from vaejax.types import Variables

RESAMPLES = 1000
TOP = 0.1  # of the units of a site, those that a screen is to find
GRAPH_WIDTH = 32  # the default of `experiments.circuits`

Units = dict[str, FactorUnits]


class Subject(NamedTuple):
    """A model, and the M pairs of images that it is taken apart with."""

    model: Any
    variables: Variables
    source: Renderable
    values: jax.Array  # factors [N, K] of the clean images
    sites: list[str]
    clean: jax.Array  # [M, ...]
    corrupted: jax.Array  # [M, ...]
    changed: np.ndarray  # [M], which factor

    @property
    def network(self) -> tuple[Any, Variables]:
        """From images to reconstructions, and the variables."""
        return effects.reconstruct(self.model), self.variables


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = cli.Parser(prog="benchmarks.circuits", description=__doc__)
    parser.add_argument("--run", metavar="DIR", help="a run of a sweep (default: one is trained)")
    parser.add_argument("--preset", choices=PRESETS, default="demo", help="what is trained else")
    parser.add_argument("--steps", type=cli.positive, help="of that (default: the preset's)")
    parser.add_argument(
        "--analyses", nargs="*", choices=PRESETS, default=["demo", "paper"], metavar="PRESET",
        help="the sizes of whole analyses (default: demo paper)",
    )  # fmt: skip
    parser.add_argument("--pairs", type=cli.positive, default=64, help="of images, per factor")
    parser.add_argument("--screen", type=cli.positive, default=8, help="units, per site and factor")
    parser.add_argument("--sites", nargs="+", metavar="SITE", help="where (default: every layer)")
    parser.add_argument("--rounds", type=cli.positive, default=3)
    parser.add_argument("--alone", choices=PRESETS, help=argparse.SUPPRESS)
    parser.add_argument("--repeats", type=cli.positive, default=1, help=argparse.SUPPRESS)
    args = parser.parse_args(arguments)
    if args.pairs < 4:
        parser.error(f"--pairs: expected at least 4, half of them held out, got {args.pairs}")
    try:
        if args.alone:
            print(json.dumps(_alone(args.alone, args.pairs, args.sites, args.repeats)))
            return
        subject = _restored(args) if args.run else _trained(args)
        analyses = [row for name in args.analyses for row in _analyses(name, args)]
    except cli.UsageError as error:
        parser.error(str(error))
    rows = common.compare(_cases(subject, args.screen), "effects", args.rounds, _PEERS)
    common.report("circuits", rows, (), agreement=agreement(subject, args.screen), whole=analyses)


def _restored(args: argparse.Namespace) -> Subject:
    run, restored = cli.restore(args.run)
    return _subject(run, restored.model, restored.variables, args.pairs, args.sites)


def _trained(args: argparse.Namespace) -> Subject:
    run = runs.Run(PRESETS[args.preset], "dsprites", "vae", 0)
    source, recipe = run.source(), run.recipe()
    states = vaejax.init(recipe, source.image_shape, jax.random.key(run.seed)[None])
    hyper = {name: jnp.full(1, value) for name, value in run.hyper().items()}
    steps = args.steps or run.preset.steps
    states = vaejax.fit(
        recipe, source, states, hyper, steps=steps, chunk=min(steps, run.preset.chunk)
    )
    return _subject(run, recipe.model, unstack(states)[0].variables, args.pairs, args.sites)


def _subject(
    run: runs.Run, model: Any, variables: Variables, pairs: int, sites: Sequence[str] | None
) -> Subject:
    source = run.source()
    if not isinstance(source, Renderable):
        raise cli.UsageError(f"{source.name} cannot draw images with one factor changed")
    model, variables = effects.without_discriminator(model, variables)
    images, values = effects.draw(source, jax.random.key(circuit_effects.KEY), pairs)
    there = circuit_effects.unit_sites(model, variables, images[:1])
    cli.check_names("site", sites or (), there)
    wanted = there if sites is None else [site for site in there if site in sites]
    clean, corrupted = effects.factor_pairs(source, values)
    changed = np.repeat(np.arange(values.shape[1]), pairs)
    return Subject(model, variables, source, values, wanted, clean, corrupted, changed)


# Attribution against exact patches.

_PEERS = ("patch_units", "factor_units, exact", "plain passes")


def _cases(subject: Subject, screen: int) -> dict[str, Case]:
    def at_all(of_pairs: Callable[..., Any]) -> Any:
        pairs = subject.clean, subject.corrupted
        return of_pairs(*subject.network, *pairs, sites=subject.sites)

    calls: dict[str, Callable[[], Any]] = {
        "patch_units": functools.partial(at_all, interventions.patch_units),
        "attribute": functools.partial(at_all, interventions.attribute),
        "factor_units, exact": functools.partial(_units, subject, None),
        f"factor_units, screen of {screen}": functools.partial(_units, subject, screen),
        "factor_units, attributed": functools.partial(_units, subject, 0),
    }
    num, found = len(subject.changed), calls["attribute"]()
    work = num * sum(len(of_site.mediated_fractions) for of_site in found.values())
    cases = {
        name: Case(functools.partial(common.seconds, call), work) for name, call in calls.items()
    }
    # A pass of the whole network for every effect is what a sweep without any thought would take.
    return cases | {"plain passes": Case(_passes(subject), num)}


def _passes(subject: Subject) -> Callable[[], float]:
    """A workload: one pass of the network for each pair."""
    chunk = even_chunk(None, len(subject.clean))
    run = functools.partial(record, *subject.network, subject.clean, (), None, chunk)
    return lambda: common.seconds(run)


def _units(subject: Subject, screen: int | None) -> Units:
    pairs = subject.clean, subject.corrupted, subject.changed
    num_factors = subject.values.shape[1]
    return circuits.factor_units(
        *subject.network, *pairs, num_factors=num_factors, sites=subject.sites, screen=screen
    )


def agreement(subject: Subject, screen: int) -> list[common.Row]:
    """How well attribution does, for each site and, of labels, for all."""
    exact, attributed, screened = (_units(subject, each) for each in (None, 0, screen))
    rows: list[common.Row] = []
    for site in exact:
        effect = _effects(exact[site]), _effects(attributed[site])
        changing = np.any(effect[0] > 0, axis=1)
        rows.append(
            {
                "case": site,
                "units": len(changing),
                "changing": int(changing.sum()),
                "rank correlation": rank_correlation(*effect),
                "of changing": rank_correlation(*(of_all[changing] for of_all in effect)),
                f"top {TOP:.0%} in {TOP:.0%}": recall(*effect, TOP),
                "in 50%": recall(*effect, 0.5),
                **_labels(exact, attributed, screened, [site]),
            }
        )
    units = {column: sum(row[column] for row in rows) for column in ("units", "changing")}
    return [*rows, {"case": "all", **units, **_labels(exact, attributed, screened, list(exact))}]


def _effects(units: FactorUnits) -> np.ndarray:
    """`[S, K]`, without factors that no pair shows."""
    found = np.asarray(units.effect.value)
    return found[:, ~np.isnan(found).any(0)]


def rank_correlation(a: np.ndarray, b: np.ndarray) -> tuple[float, float, float] | None:
    """Spearman's, of effects `[S, K]`, with its 95% bootstrap interval over units.

    Resamples in which nothing varies are left out; None if nothing does in the whole.
    """
    num, rng = len(a), np.random.default_rng(0)
    value = _spearman(a, b)
    if value is None:
        return None
    resampled = (rng.integers(num, size=num) for _ in range(RESAMPLES))
    draws = [draw for rows in resampled if (draw := _spearman(a[rows], b[rows])) is not None]
    low, high = np.percentile(draws, [2.5, 97.5])
    return value, float(low), float(high)


def _spearman(a: np.ndarray, b: np.ndarray) -> float | None:
    from scipy import stats

    if not a.size or np.ptp(a) == 0 or np.ptp(b) == 0:
        return None
    return float(np.corrcoef(stats.rankdata(a), stats.rankdata(b))[0, 1])


def recall(exact: np.ndarray, attributed: np.ndarray, share: float) -> float | None:
    """Of the units with most exact effect on a factor, the share that attribution ranks first.

    Args:
      exact: `[S, K]`; the first `TOP` of the S units are looked for, if they have any effect.
      attributed: `[S, K]`.
      share: How many of the S units are looked at.

    Returns:
      The mean over factors; None if no unit has any effect.
    """
    num = len(exact)
    found = []
    for of_exact, of_attributed in zip(exact.T, attributed.T, strict=True):
        top = np.argsort(-of_exact, kind="stable")[: math.ceil(TOP * num)]
        top = top[of_exact[top] > 0]
        first = np.argsort(-of_attributed, kind="stable")[: math.ceil(share * num)]
        if len(top):
            found.append(np.isin(top, first).mean())
    return float(np.mean(found)) if found else None


def _labels(exact: Units, attributed: Units, screened: Units, sites: Sequence[str]) -> common.Row:
    """What share of labels is that of the exact analysis."""
    labels, by_attribution, by_screen = (
        np.concatenate([found[site].label for site in sites])
        for found in (exact, attributed, screened)
    )
    return {
        "commonest": float(np.bincount(labels).max() / len(labels)),
        "attributed alike": float(np.mean(by_attribution == labels)),
        "screened alike": float(np.mean(by_screen == labels)),
        "patched": float(np.mean(np.concatenate([screened[site].exact for site in sites]))),
    }


# Whole analyses.


def _analyses(name: str, args: argparse.Namespace) -> list[common.Row]:
    """The whole analysis of a preset's model: cold, warm and again."""
    command = [sys.executable, "-m", "benchmarks.circuits", "--alone", name]
    command += ["--pairs", str(args.pairs), *(["--sites", *args.sites] if args.sites else [])]
    rows: list[common.Row] = []
    with tempfile.TemporaryDirectory() as folder:
        environment = {**os.environ, "JAX_COMPILATION_CACHE_DIR": folder}
        for repeats, states in ((1, ("cold",)), (2, ("warm", "again"))):
            process = subprocess.run(
                [*command, "--repeats", str(repeats)],
                cwd=Path(__file__).parents[1],
                env=environment,
                stdout=subprocess.PIPE,
                check=False,
            )
            if process.returncode == 2:
                sys.exit(2)  # it has said what is wrong
            if process.returncode:
                raise RuntimeError(f"the analysis of {name} failed; its error is above")
            found = json.loads(process.stdout.splitlines()[-1])
            rows += [
                {"case": f"{name}, {state}", **row}
                for state, row in zip(states, found, strict=True)
            ]
    return rows


def _alone(
    name: str, pairs: int, sites: Sequence[str] | None, repeats: int
) -> list[dict[str, float]]:
    """What this process takes for the analysis of an untrained VAE, time after time."""
    start = _peak()
    run = runs.Run(PRESETS[name], "dsprites", "vae", 0)
    output.set_up_compiler(run.preset)
    recipe, source = run.recipe(), run.source()
    states = vaejax.init(recipe, source.image_shape, jax.random.key(run.seed)[None])
    subject = _subject(run, recipe.model, unstack(states)[0].variables, pairs, sites)
    passes = _passes(subject)
    rows: list[dict[str, float]] = []
    for _ in range(repeats):
        passes()  # compiles
        floor = [passes()]
        began = time.perf_counter()
        found = circuit_effects.anatomy(*subject[:4], sites=subject.sites)
        taken_apart = time.perf_counter()
        circuit_effects.graph(*subject[:4], found, widest=GRAPH_WIDTH)
        ended = time.perf_counter()
        floor.append(passes())
        units = sum(len(of_site.label) for of_site in found.units.values())
        plain = units * float(np.mean(floor))  # a repetition is a pass for each pair
        rows.append(
            {
                "units": units,
                "patches": units * pairs * subject.values.shape[1],
                "units and circuits, s": taken_apart - began,
                "paths, s": ended - taken_apart,
                "seconds": ended - began,
                "floor, s": plain,
                "time / floor": (ended - began) / plain,
                "start MiB": round(start),
                "peak MiB": round(_peak()),
            }
        )
    return rows


def _peak() -> float:
    """The most memory that this process has held, in MiB."""
    # Where it can be told apart: what getrusage says begins with what the parent held.
    status = Path("/proc/self/status")
    found = re.search(r"VmHWM:\s+(\d+) kB", status.read_text()) if status.exists() else None
    return int(found[1]) / 2**10 if found else peak_mebibytes()


if __name__ == "__main__":
    main()
