"""The datasets: what is there, how to get the rest, what they look like.

python -m experiments.data list
python -m experiments.data prepare shapes3d          reads published files once, keeps a quick copy
python -m experiments.data show shapes3d             samples, each factor traversed, masks
python -m experiments.data show celeba --source genuine --root DIR
python -m experiments.data show                      all redrawn ones in one picture
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from experiments import cli
from experiments.presets import SOURCES

if TYPE_CHECKING:
    import numpy as np
    from rich.console import Console

    from vaejax.data import DataSource, Masked, Renderable

_COLUMNS = 10  # images of a row
_GALLERY_COLUMNS = 6
_GALLERY = (("dsprites", "smallnorb"), ("shapes3d", "mpi3d"), ("celeba",))  # about as high
_EXAMPLE = 222  # seed of the example that factors are changed of


def parser() -> argparse.ArgumentParser:
    """The options."""
    parser = cli.Parser(prog="data", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    listing = commands.add_parser("list", help="what there is, where, and how to get the rest")
    prepare = commands.add_parser("prepare", help="bring a published dataset into its quick form")
    prepare.add_argument("dataset", type=cli.dataset_name, metavar="NAME")
    show = commands.add_parser("show", help="write pictures of a dataset")
    show.add_argument("dataset", type=cli.dataset_name, metavar="NAME", nargs="?")
    show.add_argument("--source", choices=SOURCES, default="redrawn", help="(default: redrawn)")
    show.add_argument("--size", type=int, choices=(64, 32), default=64, help="(default: 64)")
    show.add_argument(
        "--out", metavar="DIR", default="pictures", help="where to (default: pictures)"
    )
    for command in (listing, prepare, show):
        command.add_argument(
            "--root",
            metavar="DIR",
            help="where published images are (default: $TFDS_DATA_DIR or ~/tensorflow_datasets)",
        )
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    args = parser().parse_args(arguments)

    def command() -> None:
        from experiments import output
        from vaejax import data

        console = output.console()
        root = Path(args.root).expanduser() if args.root else data.root_directory()
        if args.command == "list":
            list_datasets(console, root)
        elif args.command == "prepare":
            prepare(console, args.dataset, root)
        else:
            output.set_up_compiler()
            if args.dataset is None:
                written = [gallery(Path(args.out), args.size)]
            else:
                where = root if args.source == "genuine" else None
                written = show(data.source(args.dataset, args.size, root=where), Path(args.out))
            for path in written:
                console.print(f"wrote {path}")

    cli.run("data", command)


def list_datasets(console: Console, root: Path) -> None:
    """Prints every dataset, where its published images are, and how to get those that are not."""
    from vaejax import data

    console.print(f"published images are looked for in {root}")
    for name in data.names():
        redrawn = "redrawn" if name in data.REDRAWN else "not redrawn"
        console.print(f"\n{name} ({redrawn})", style="bold")
        if name in data.REDRAWN:
            factors = data.source(name).factors
            console.print("  " + ", ".join(f"{f.name} {f.size}" for f in factors))
        try:
            console.print(f"  published: {data.find(name, root)}", soft_wrap=True)
        except data.DataError:
            console.print(f"  published: not there; {data.how_to_get(name)}", soft_wrap=True)
    console.print(f"\nworlds, as in dsprites@chain: {', '.join(data.worlds.names())}")


def prepare(console: Console, name: str, root: Path) -> None:
    """Reads a published dataset once, so that it opens at once from then on.

    Downloads it with tensorflow-datasets if it is not there, where that has it.

    Raises:
      DataError: It is damaged.
      UsageError: It is not there, and cannot be downloaded without TensorFlow, or at all.
    """
    from experiments.progress import counting
    from vaejax import data

    name = name.partition("@")[0]
    try:
        data.find(name, root)
    except data.DataError as error:
        _download(console, name, root, str(error))
    with counting(console, f"reading {name}") as update:
        source = data.load(name, root, progress=update)
    console.print(f"{name}: {len(source):,} images, ready in {data.find(name, root)}")


def _download(console: Console, name: str, root: Path, missing: str) -> None:
    """Downloads and prepares a dataset with tensorflow-datasets, which needs TensorFlow for it."""
    from vaejax import data

    builder_name = data.tfds_name(name)
    if builder_name is None:
        raise cli.UsageError(missing)
    if importlib.util.find_spec("tensorflow") is None:
        raise cli.UsageError(f"{missing}; `pip install 'vaejax[prepare]'` lets this command do it")
    import tensorflow_datasets as tfds

    console.print(f"{name}: downloading and preparing with tensorflow-datasets, in {root}")
    builder = tfds.builder(builder_name, data_dir=root, file_format="array_record")
    try:
        builder.download_and_prepare()
    # Whatever goes wrong there is the network's or the host's affair, and there is another way.
    except Exception as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise cli.UsageError(f"{name}: tensorflow-datasets failed ({reason}); {missing}") from error


def show(source: DataSource, out: Path) -> list[Path]:
    """Writes pictures of a source: samples, each factor traversed, and masks if it has them.

    Args:
      source: The source.
      out: The directory.

    Returns:
      What was written: `NAME_samples.png`, `NAME_factors.png`, `NAME_masks.png`.
    """
    import jax
    import numpy as np

    from experiments import files, pictures
    from vaejax.data import Masked, Renderable

    drawn_images, drawn_factors = source.batch(jax.random.key(0), _COLUMNS * 6)
    images, factors = np.asarray(drawn_images), np.asarray(drawn_factors)
    samples = {f"{r + 1}": row for r, row in enumerate(np.split(images, 6))}
    title = f"{source.name} ({source.origin})"
    drawn = {"samples": pictures.grid(samples, f"{title}, samples")}
    if isinstance(source, Renderable):
        drawn["factors"] = pictures.grid(traversals(source), f"{title}, each factor traversed")
    else:
        drawn["factors"] = pictures.grid(
            _by_class(source, images, factors), f"{title}, examples from the lowest class on"
        )
    if isinstance(source, Masked):
        drawn["masks"] = pictures.grid(_masks(source, factors), f"{title}, masks")
    out.mkdir(parents=True, exist_ok=True)
    name = source.name.replace("@", "_in_")
    paths = {kind: out / f"{name}_{kind}.png" for kind in drawn}
    for kind, picture in drawn.items():
        files.write_bytes(paths[kind], picture)
    return list(paths.values())


def gallery(out: Path, image_size: int) -> Path:
    """Writes one picture of all redrawn datasets, each factor traversed."""
    from experiments import files, pictures
    from vaejax import data

    def traversed(name: str) -> dict[str, np.ndarray]:
        source = data.source(name, image_size)
        assert isinstance(source, data.Renderable)
        return traversals(source, columns=_GALLERY_COLUMNS)

    columns = [{name: traversed(name) for name in column} for column in _GALLERY]
    out.mkdir(parents=True, exist_ok=True)
    path = out / "gallery.png"
    files.write_bytes(path, pictures.side_by_side(columns))
    return path


def traversals(source: Renderable, columns: int = _COLUMNS) -> dict[str, np.ndarray]:
    """For each factor a row of images `[columns, H, W, C]` of one example with that factor changed.

    Factors of fewer classes than columns show each of them, and then nothing.
    """
    import jax
    import numpy as np

    _, example = source.batch(jax.random.key(_EXAMPLE), 1)
    settings = np.tile(np.asarray(example, np.float32), (len(source.factors), columns, 1))
    shown = np.zeros((len(source.factors), columns), bool)
    for k, factor in enumerate(source.factors):
        count = min(columns, factor.size)
        settings[k, :count, k] = np.linspace(0, factor.size - 1, count).round()
        shown[k, :count] = True
    images = np.asarray(jax.jit(jax.vmap(jax.vmap(source.render)))(settings))
    images = np.where(shown[..., None, None, None], images, 1.0)
    return {factor.name: row for factor, row in zip(source.factors, images, strict=True)}


def _by_class(source: DataSource, images: np.ndarray, factors: np.ndarray) -> dict[str, np.ndarray]:
    """For each factor a row of images, from its lowest class to its highest."""
    import numpy as np

    rows = {}
    for k, factor in enumerate(source.factors):
        order = np.argsort(factors[:, k], kind="stable")
        chosen = order[np.linspace(0, len(order) - 1, _COLUMNS).round().astype(int)]
        rows[factor.name] = images[chosen]
    return rows


def _masks(source: Masked, factors: np.ndarray) -> dict[str, np.ndarray]:
    """The first images, and a row for each mask."""
    import jax
    import numpy as np

    some = factors[:_COLUMNS]
    rows = {"image": np.asarray(jax.jit(jax.vmap(source.render))(some))}
    for name, mask in jax.jit(jax.vmap(source.masks))(some).items():
        rows[name] = np.asarray(mask)[..., None]
    return rows


if __name__ == "__main__":
    main(sys.argv[1:])
