"""Datasets with known factors of variation: redrawn in JAX, or the published images.

`source("dsprites")` draws the images on the device and needs no download. `genuine=True` or a
`root` reads the published ones from disk. `source("dsprites@chain")` lets a structural causal model
drive the factors. Nothing here imports TensorFlow, and the libraries that read files are imported
when a file is read.

Example:
  >>> import jax
  >>> images, factors = source("dsprites", image_size=32).batch(jax.random.key(0), 16)
  >>> images.shape, factors.shape
  ((16, 32, 32, 1), (16, 5))
"""

from __future__ import annotations

from vaejax.data import worlds
from vaejax.data.arrays import ArraySource
from vaejax.data.errors import DataError
from vaejax.data.grid import GridSource
from vaejax.data.protocols import DataSource, Factor, Masked, Renderable
from vaejax.data.redrawn.source import Redrawn
from vaejax.data.registry import (
    REDRAWN,
    check_name,
    find,
    how_to_get,
    load,
    names,
    root_directory,
    source,
    tfds_name,
)
from vaejax.data.scm import SCM
from vaejax.data.scm_source import SCMSource

__all__ = [
    "REDRAWN",
    "SCM",
    "ArraySource",
    "DataError",
    "DataSource",
    "Factor",
    "GridSource",
    "Masked",
    "Redrawn",
    "Renderable",
    "SCMSource",
    "check_name",
    "find",
    "how_to_get",
    "load",
    "names",
    "root_directory",
    "source",
    "tfds_name",
    "worlds",
]
