"""Whether the latents of models trained on causal worlds show the worlds' graphs.

    python -m experiments.sweep --preset quick --datasets dsprites@chain --models vae --out DIR
    python -m experiments.factor_graphs DIR

For each run that was trained on a world: a linear read-out of the factors is fitted to the latents
of images whose factors are independent; each factor is set in images of the world, and an edge is
found where the read-out of another factor follows (`vaejax.circuits.factor_graph`). The graph found
is compared with the world's: `total`, of which factors have any effect on which, and `direct`, the
graph of the model itself. Controls: the same network untrained, and a read-out of shuffled factors.

Precision is undefined where no edge is found, and 1 by construction in the direct graph: factors
that do not respond leave images as they are.
"""

from __future__ import annotations

import argparse
import functools
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from experiments import cli
from vaejax.types import Variables

if TYPE_CHECKING:
    from etils import epath

    from experiments.runs import Run
    from vaejax.data import Renderable, SCMSource

KINDS = ("total", "direct")
CASES = ("trained", "untrained", "shuffled factors")
SCORES = ("precision", "recall", "shd")
COLUMNS = ("dataset", "model", "seed", "kind", "case", *SCORES, "found", "edges")
_KEY = 20_261_124
_IMAGES = 5_000  # that read-outs are fitted to
_CHUNK = 50


def parser() -> argparse.ArgumentParser:
    """The options."""
    parser = cli.Parser(prog="factor_graphs", description=__doc__)
    parser.add_argument("results", metavar="DIR", help="output directory of a sweep over worlds")
    parser.add_argument(
        "--examples", type=cli.positive, default=500, metavar="N",
        help="images in which each factor is set (default: 500)",
    )  # fmt: skip
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    args = parser().parse_args(arguments)

    def command() -> None:
        from etils import epath

        factor_graphs(epath.Path(args.results), args.examples)

    cli.run("factor_graphs", command)


def factor_graphs(directory: epath.Path, examples: int) -> None:
    """Finds and scores the graphs of all runs on worlds, prints and writes `factor_graphs.csv`.

    Raises:
      UsageError: There is no such run.
    """
    from experiments import files, output
    from experiments.progress import counting

    paths = sorted(path.parent for path in directory.glob("runs/*@*/*/seed_*/metrics.json"))
    if not paths:
        raise cli.UsageError(
            f"{directory} has no finished run on a world; "
            "python -m experiments.sweep --datasets dsprites@chain makes some"
        )
    console = output.console()
    rows: list[dict[str, Any]] = []
    with counting(console, "factor graphs") as update:
        for done, path in enumerate(paths, 1):
            run, restored = cli.restore(str(path))
            output.set_up_compiler(run.preset)
            rows += _of_run(run, path, restored.model, restored.variables, examples)
            update(done, len(paths))
    files.write_csv(directory / "factor_graphs.csv", COLUMNS, rows)
    _show(console, rows)


def _of_run(
    run: Run, path: epath.Path, model: nn.Module, variables: Variables, examples: int
) -> list[dict[str, Any]]:
    """Rows of all cases and kinds of one run; leaves its graphs beside it."""
    from experiments import effects, files
    from vaejax import circuits
    from vaejax.training import init, unstack

    source: Any = run.source()
    names = [factor.name for factor in source.factors]
    key = jax.random.key(run.seed)
    first = init(run.recipe(), source.image_shape, jax.random.split(key, 1))
    untrained = effects.without_discriminator(model, unstack(first)[0].variables)[1]
    model, variables = effects.without_discriminator(model, variables)
    total = np.abs(np.asarray(source.scm.total_effects().value)) > 0
    np.fill_diagonal(total, False)
    truths = {"total": total, "direct": source.scm.graph}
    rows = []
    for case in CASES:
        of_case = untrained if case == "untrained" else variables
        found = _find(model, of_case, source, case == "shuffled factors", examples)
        for kind, graph in found.items():
            score = circuits.score_graph(graph.edges, truths[kind])
            head = run.dataset, run.model, run.seed, kind, case
            scores = [_or_none(getattr(score, name)) for name in SCORES]
            counts = int(graph.edges.sum()), int(truths[kind].sum())
            rows.append(dict(zip(COLUMNS, (*head, *scores, *counts), strict=True)))
            if case == "trained":
                text = circuits.to_graphml(graph.to_networkx(names))
                files.write_bytes(path / f"factor_graph_{kind}.graphml", text.encode())
    return rows


def _find(
    model: nn.Module, variables: Variables, source: SCMSource, shuffled: bool, examples: int
) -> dict[str, Any]:
    """The total and the direct graph that the latents of a model show."""
    from vaejax import circuits

    sizes = [factor.size for factor in source.factors]
    keys = jax.random.split(jax.random.key(_KEY), 6)
    classes = jnp.asarray(sizes)
    encode = functools.partial(_encode, model, variables, source)
    independent = jax.random.randint(keys[0], (_IMAGES, len(sizes)), 0, classes).astype(float)
    answers = jax.random.permutation(keys[1], independent) if shuffled else independent
    readout = circuits.fit_readout(encode(independent), answers, sizes)
    values = source.sample(keys[2], examples).values
    targets = jax.random.randint(keys[3], (examples, len(sizes)), 0, classes).astype(float)

    def respond(values: jax.Array, k: Any, value: Any) -> jax.Array:
        return _respond(source, keys[4], values, k, value)

    pairs = encode, readout, values, targets
    total = circuits.factor_graph(*pairs, source.set_factor, key=keys[5])
    direct = circuits.factor_graph(*pairs, respond, direct=True, key=keys[5])
    return {"total": total, "direct": direct}


def _respond(source: SCMSource, key: jax.Array, values: jax.Array, k: Any, value: Any) -> jax.Array:
    """Values with one factor set, to which its children respond and nothing else does."""
    noise = source.scm.abduct(key, values)
    held = source.scm.set_factor(values, k, value, propagate=False)
    before, after = source.scm.respond(noise, values), source.scm.respond(noise, held)
    return jnp.where(after == before, held, held + (after - before)).at[:, k].set(value)


@functools.partial(jax.jit, static_argnames="model")
def _encode(
    model: nn.Module, variables: Variables, source: Renderable, values: jax.Array
) -> jax.Array:
    """The latents `[M, D]` of the images of factor vectors `[M, K]`."""
    from vaejax.chunking import map_chunks

    def run(rows: jax.Array) -> Any:
        images = jax.vmap(source.render)(values[rows])
        latents: Any = model.apply(variables, images, method="latents")
        return latents.reshape(len(rows), -1)

    return map_chunks(run, len(values), _CHUNK)


def _show(console: Any, rows: Sequence[dict[str, Any]]) -> None:
    """A table of means over seeds, with intervals, for each dataset and model."""
    from rich import box
    from rich.table import Table

    for dataset, model in dict.fromkeys((row["dataset"], row["model"]) for row in rows):
        here = [row for row in rows if (row["dataset"], row["model"]) == (dataset, model)]
        seeds = len({row["seed"] for row in here})
        table = Table(title=f"{dataset}, {model}, seeds: {seeds}", title_justify="left")
        table.box, table.padding = box.SIMPLE_HEAD, (0, 1, 0, 0)
        for name in ("graph", "case", "precision", "recall", "structural distance"):
            table.add_column(name, no_wrap=True)
        for kind, case in dict.fromkeys((row["kind"], row["case"]) for row in here):
            group = [row for row in here if (row["kind"], row["case"]) == (kind, case)]
            table.add_row(kind, case, *(_mean(group, score) for score in SCORES))
        console.print(table)


def _mean(rows: Sequence[dict[str, Any]], score: str) -> str:
    from experiments.report import interval

    mean, low, high = interval([row[score] for row in rows if row[score] is not None])
    if mean is None:
        return "-"
    return f"{mean:.2f}" if low is None else f"{mean:.2f} ({low:.2f}, {high:.2f})"


def _or_none(value: float) -> float | None:
    return None if np.isnan(value) else value


if __name__ == "__main__":
    main(sys.argv[1:])
