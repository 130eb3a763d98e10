"""Datasets with known factors of variation: redrawn in JAX, or the published images.

`source("dsprites")` draws the images on the device and needs no download. `genuine=True` or a
`root` reads the published ones from disk. Nothing here imports TensorFlow, and the libraries that
read files are imported when a file is read.

Example:
  >>> import jax
  >>> images, factors = source("dsprites", image_size=32).batch(jax.random.key(0), 16)
  >>> images.shape, factors.shape
  ((16, 32, 32, 1), (16, 5))
"""

from __future__ import annotations

import importlib
import os
from pathlib import Path
from types import ModuleType
from typing import Any

from vaejax.data.arrays import ArraySource
from vaejax.data.errors import DataError
from vaejax.data.grid import GridSource
from vaejax.data.protocols import DataSource, Factor, Masked, Renderable
from vaejax.data.redrawn.source import Redrawn
from vaejax.errors import unknown_name

__all__ = [
    "ArraySource",
    "DataError",
    "DataSource",
    "Factor",
    "GridSource",
    "Masked",
    "Redrawn",
    "Renderable",
    "names",
    "root_directory",
    "source",
]

_NAMES = ("dsprites",)


def names() -> tuple[str, ...]:
    """The names that `source` knows.

    >>> "dsprites" in names()
    True
    """
    return _NAMES


def root_directory() -> Path:
    """Where published images are looked for: `$TFDS_DATA_DIR`, or `~/tensorflow_datasets`."""
    return Path(os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets").expanduser()


def source(
    name: str,
    image_size: int = 64,
    *,
    genuine: bool = False,
    root: str | os.PathLike[str] | None = None,
) -> DataSource:
    """Opens a dataset by name.

    Args:
      name: One of `names()`.
      image_size: Side of the square images, in pixels.
      genuine: Whether to read the published images instead of redrawing them.
      root: Where they are, which implies `genuine`: a file, or a directory to search. By default
        `root_directory()`.

    Returns:
      The source, a pytree to pass to jitted functions.

    Raises:
      DataError: The name is unknown, the dataset does not come in `image_size`, or its published
        files are missing or damaged.

    Example:
      >>> source("dsprites").origin
      'redrawn'
      >>> source("dsprite")  # doctest: +ELLIPSIS
      Traceback (most recent call last):
      vaejax.data.errors.DataError: unknown dataset 'dsprite': did you mean 'dsprites'? (one of ...)
    """
    if name not in names():
        raise DataError(unknown_name("dataset", name, names()))
    if genuine or root is not None:
        where = root_directory() if root is None else Path(root).expanduser()
        return _module("genuine", name).load(where, image_size)
    drawing = _module("redrawn", name)
    return Redrawn(
        name, drawing.FACTORS, drawing.draw, drawing.segment, drawing.CHANNELS, image_size
    )


def _module(origin: str, name: str) -> Any:
    module: ModuleType = importlib.import_module(f"vaejax.data.{origin}.{name}")
    return module
