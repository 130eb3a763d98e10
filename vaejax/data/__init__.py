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

import os
from collections.abc import Callable, Mapping
from pathlib import Path

from vaejax.data.arrays import ArraySource
from vaejax.data.dsprites import DSprites
from vaejax.data.dsprites_genuine import GenuineDSprites, load_genuine
from vaejax.data.errors import DataError
from vaejax.data.protocols import DataSource, Factor, Renderable
from vaejax.errors import unknown_name

__all__ = [
    "ArraySource",
    "DSprites",
    "DataError",
    "DataSource",
    "Factor",
    "GenuineDSprites",
    "Renderable",
    "names",
    "source",
]


def _dsprites(image_size: int, root: Path | None) -> DataSource:
    return DSprites(image_size) if root is None else load_genuine(root, image_size)


# A factory takes the image size and where the published files are, None to redraw.
_FACTORIES: Mapping[str, Callable[[int, Path | None], DataSource]] = {
    "dsprites": _dsprites,
}


def names() -> tuple[str, ...]:
    """The names that `source` knows.

    >>> "dsprites" in names()
    True
    """
    return tuple(_FACTORIES)


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
        the directory of tensorflow-datasets: `$TFDS_DATA_DIR`, or `~/tensorflow_datasets`.

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
    if name not in _FACTORIES:
        raise DataError(unknown_name("dataset", name, names()))
    if root is None and genuine:
        root = os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
    return _FACTORIES[name](image_size, None if root is None else Path(root).expanduser())
