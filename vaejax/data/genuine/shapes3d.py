"""Reads the published 3DShapes into uint8 images on disk, in bounded memory.

Two formats are read: the `3dshapes.h5` of google-deepmind/3d-shapes, and the `shapes3d` dataset of
tensorflow-datasets prepared as ArrayRecord. Whatever order their rows have, the result is in the
order of the factors. A file may hold fewer classes than the published one as long as its rows are
a complete grid: every combination of its classes exactly once.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from vaejax.data.errors import DataError
from vaejax.data.genuine import files, packing
from vaejax.data.grid import GridSource
from vaejax.data.redrawn.shapes3d import FACTORS
from vaejax.data.sizes import CANVAS, check_image_size
from vaejax.data.storage import store

NAME = "shapes3d"

PUBLISHED = "3dshapes.h5"
"""Name of the published file."""

PUBLISHED_HDF5 = (267_573_662, "0a0f6ed98baff276a50f3a081a7434d788da63cb135a98189b2a5b5769be1785")
"""Its size in bytes and SHA-256, as tensorflow-datasets lists them."""

HOW_TO_GET = (
    f"get {PUBLISHED} from the storage bucket that the GitHub project google-deepmind/3d-shapes "
    "links to, or run `tfds build shapes3d --file_format=array_record`, or use the redrawn "
    "source: source('shapes3d')"
)

VALUES = (
    np.arange(10) / 10,
    np.arange(10) / 10,
    np.arange(10) / 10,
    np.linspace(0.75, 1.25, 8),
    np.arange(4.0),
    np.linspace(-30, 30, 15),
)
"""What the classes of each factor stand for in `labels`: hues, scale, shape, degrees."""

_TITLE = "3DShapes"
_SHAPE = (CANVAS, CANVAS, 3)
_MAX_ROWS = math.prod(factor.size for factor in FACTORS)
_CHUNK = 1024  # rows read at a time: 13 MB of images
_MAX_CHUNK = 32 * _CHUNK  # if the file's own chunks are that long: 400 MB
_TOLERANCE = 1e-4  # values may have been float32; two of one factor are 0.07 apart or more
_LABELS = tuple(
    f"label_{name}"
    for name in ("floor_hue", "wall_hue", "object_hue", "scale", "shape", "orientation")
)


def load(
    root: Path, image_size: int = CANVAS, *, progress: packing.Progress = packing.no_progress
) -> GridSource:
    """Loads published 3DShapes data from disk; 5.9 GB for all 480,000 images.

    The first time, the images are packed into a directory beside the data, from which they are
    read from then on: they are mapped, not loaded, if they do not fit on the device.

    Args:
      root: The published `3dshapes.h5`, or a directory that holds it (directly or in `shapes3d/`),
        or a directory of data prepared by tensorflow-datasets.
      image_size: 64 or 32.
      progress: Told how many rows are packed, and how many there are.

    Returns:
      The source, with its images in the order of their factors whatever their order in the file.

    Raises:
      DataError: Nothing is found, the data are damaged or not in the published format, or
        `image_size` is neither 64 nor 32.

    Example:
      >>> load(Path("no/such/directory"))  # doctest: +ELLIPSIS
      Traceback (most recent call last):
      vaejax.data.errors.DataError: no/such/directory: no genuine shapes3d found; ...
    """
    check_image_size(NAME, image_size)
    images, factors = packing.packed_grid(
        find(root), NAME, _TITLE, FACTORS, _SHAPE, _opened, progress
    )
    return GridSource(store(images), NAME, factors, image_size)


def find(root: Path) -> Path:
    """Finds genuine 3DShapes: `root` itself if it is a file, else as `files.find` does.

    Raises:
      DataError: Nothing is found.
    """
    return files.find(root, NAME, (PUBLISHED,), HOW_TO_GET)


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[files.Rows]:
    """Opens what `find` returned: the directory `.../shapes3d/2.0.0`, or the published hdf5.

    The hdf5's datasets: `images` (u1 `[N, 64, 64, 3]`) and `labels` (float `[N, 6]`, values).
    """
    if path.is_dir():
        with files.prepared(path, _TITLE, {"image", *_LABELS}, HOW_TO_GET) as builder:
            yield files.records(path, builder, _LABELS, _SHAPE, chunk=_CHUNK)
        return
    with (
        files.reading(path, "hdf5", HOW_TO_GET),
        files.hdf5(path, _TITLE, ("images", "labels"), PUBLISHED_HDF5) as (images, labels),
    ):
        files.check_array(
            path, "/labels", labels.shape, labels.dtype, np.floating, ("N", 6), _MAX_ROWS
        )
        files.check_array(
            path, "/images", images.shape, images.dtype, np.uint8, (len(labels), *_SHAPE)
        )
        yield files.Rows(
            _classes(path, labels[...]),
            lambda start, stop: images[start:stop],
            files.hdf5_chunk(images, _CHUNK, _MAX_CHUNK),
        )


def _classes(path: Path, values: np.ndarray) -> np.ndarray:
    """The classes `[N, 6]` of published values: their places among those of their factor.

    Raises:
      DataError: A value is none of them.
    """
    columns = []
    for factor, known, column in zip(FACTORS, VALUES, values.T, strict=True):
        nearest = np.abs(column[:, None] - known).argmin(axis=1)
        wrong = ~(np.abs(column - known[nearest]) < _TOLERANCE)  # so that NaN is wrong
        if wrong.any():
            raise DataError(
                f"{path}: {factor.name} is {column[wrong][0]:.6g}, but {_TITLE} has "
                f"{', '.join(f'{value:.4g}' for value in known)}"
            )
        columns.append(nearest)
    return np.stack(columns, axis=1)
