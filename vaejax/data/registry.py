"""Datasets by name."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

from vaejax.data import worlds
from vaejax.data.arrays import ArraySource
from vaejax.data.errors import DataError
from vaejax.data.genuine.packing import no_progress
from vaejax.data.grid import GridSource
from vaejax.data.protocols import Renderable
from vaejax.data.redrawn.source import Redrawn
from vaejax.data.scm_source import SCMSource
from vaejax.errors import unknown_name

Source = Redrawn | GridSource | ArraySource | SCMSource
"""What `source` opens; each is a `DataSource` that also says whether its factors are `correlated`:
disentanglement metrics cannot tell a factor from what it is correlated with."""

REDRAWN = ("dsprites", "shapes3d", "mpi3d", "smallnorb", "celeba")
"""Datasets that can be redrawn; each can be read as published, too."""

_TFDS_NAMES = {name: name for name in ("dsprites", "shapes3d", "smallnorb")} | {"celeba": "celeb_a"}

_PUBLISHED_ONLY = ("mpi3d_realistic", "mpi3d_real")


def names() -> tuple[str, ...]:
    """The names that `source` knows, without worlds.

    >>> "dsprites" in names()
    True
    """
    return (*REDRAWN, *_PUBLISHED_ONLY)


def root_directory() -> Path:
    """Where published images are looked for: `$TFDS_DATA_DIR`, or `~/tensorflow_datasets`."""
    return Path(os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets").expanduser()


def source(
    name: str,
    image_size: int = 64,
    *,
    genuine: bool = False,
    root: str | os.PathLike[str] | None = None,
    split: str = "all",
) -> Source:
    """Opens a dataset by name.

    Args:
      name: One of `names()`. `name@world` drives its factors by a structural causal model, one of
        `worlds.names()`.
      image_size: Side of the square images, in pixels.
      genuine: Whether to read the published images instead of redrawing them.
      root: Where they are, which implies `genuine`: a file, or a directory to search. By default
        `root_directory()`.
      split: Part of the published images, where they come in parts: `"train"` or `"test"` of
        smallnorb, `"train"`, `"validation"` or `"test"` of celeba.

    Returns:
      The source, a pytree to pass to jitted functions.

    Raises:
      DataError: The name, the world or the split is unknown, the dataset does not come in
        `image_size`, its published files are missing or damaged, or it has no images of factor
        combinations that a world asks for.

    Example:
      >>> source("dsprites").origin
      'redrawn'
      >>> source("dsprites@chain").name
      'dsprites@chain'
      >>> source("dsprite")  # doctest: +ELLIPSIS
      Traceback (most recent call last):
      vaejax.data.errors.DataError: unknown dataset 'dsprite': did you mean 'dsprites'? (one of ...)
    """
    dataset, at, world = name.partition("@")
    check_name(name)
    if genuine or root is not None:
        where = root_directory() if root is None else Path(root).expanduser()
        opened: Source = load(dataset, where, image_size, split)
    else:
        opened = _redraw(dataset, image_size, split)
        if dataset == "celeba" and not at:
            # Attributes of people are correlated; here by a known graph.
            opened = dataclasses.replace(_in_world(opened, "attributes"), world="")
    if at:
        return _in_world(opened, world)
    return opened


def check_name(name: str) -> None:
    """Refuses a name that `source` does not know.

    Raises:
      DataError: The dataset or the world is unknown.
    """
    dataset, at, world = name.partition("@")
    if dataset not in names():
        raise DataError(unknown_name("dataset", dataset, names()))
    if at and world not in worlds.names():
        raise DataError(unknown_name("world", world, worlds.names()))


def load(
    dataset: str,
    root: Path,
    image_size: int = 64,
    split: str = "all",
    *,
    progress: Callable[[int, int], None] = no_progress,
) -> Source:
    """Reads a published dataset.

    Args:
      dataset: One of `names()`.
      root: A file, or a directory to search.
      image_size: Side of the images.
      split: Part of the images, see `source`.
      progress: Told how many images are read, and of how many, while they are read.

    Raises:
      DataError: As `source`.
    """
    reader, options = _reader(dataset)
    if hasattr(reader, "SPLITS"):
        options["split"] = split
    elif split != "all":
        raise DataError(unknown_name(f"split of {dataset}", split, ["all"]))
    return reader.load(root, image_size, progress=progress, **options)


def find(dataset: str, root: Path) -> Path:
    """Where a published dataset is: a file, or a directory.

    Raises:
      DataError: It is not there; the message says how to get it.
    """
    reader, options = _reader(dataset)
    return reader.find(root, **options)


def how_to_get(dataset: str) -> str:
    """One line on how to get the published images of a dataset."""
    return _reader(dataset)[0].HOW_TO_GET


def tfds_name(dataset: str) -> str | None:
    """What tensorflow-datasets calls a dataset; None if it cannot download it."""
    return _TFDS_NAMES.get(dataset)


def _reader(dataset: str) -> tuple[Any, dict[str, Any]]:
    base, _, variant = dataset.partition("_")
    return import_module(f"vaejax.data.genuine.{base}"), {"variant": variant} if variant else {}


def _redraw(dataset: str, image_size: int, split: str) -> Source:
    if dataset not in REDRAWN:
        raise DataError(
            f"{dataset} cannot be redrawn: read the published images, with genuine=True or a root, "
            "or use 'mpi3d'"
        )
    if split != "all":
        raise DataError(f"{dataset}: only the published images have a split {split!r}")
    drawing: Any = import_module(f"vaejax.data.redrawn.{dataset}")
    return Redrawn(
        dataset, drawing.FACTORS, drawing.draw, drawing.segment, drawing.CHANNELS, image_size
    )


def _in_world(base: Source, world: str) -> SCMSource:
    if not isinstance(base, Renderable):
        raise DataError(
            f"{base.name}@{world}: the published images do not hold every combination of factors; "
            f"a world needs the redrawn {base.name}"
        )
    benchmark = base.name.partition("_")[0]  # all variants of MPI3D have its roles
    return SCMSource(base, worlds.world(world, benchmark, base.factors), world)
