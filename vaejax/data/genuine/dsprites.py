"""Reads the published dSprites files into packed bits, in bounded memory.

Three formats are read: the `.npz` and `.hdf5` of google-deepmind/dsprites-dataset, and the
`dsprites` dataset of tensorflow-datasets prepared as ArrayRecord. Whatever order their rows have,
the result is in the order of the factors. A file may hold fewer classes than the published one as
long as its rows are a complete grid: every combination of its classes exactly once.

Nothing is ever unpickled: the npz's `metadata` member, a pickle, is not read.
"""

from __future__ import annotations

import contextlib
import math
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from vaejax.data.errors import DataError
from vaejax.data.genuine import files, packing
from vaejax.data.grid import GridSource
from vaejax.data.protocols import Factor
from vaejax.data.redrawn.dsprites import FACTORS
from vaejax.data.sizes import CANVAS, check_image_size
from vaejax.data.storage import store

NAME = "dsprites"

PUBLISHED = "dsprites_ndarray_co1sh3sc6or40x32y32_64x64"
"""Name of the published files, before `.npz` or `.hdf5`."""

HOW_TO_GET = (
    f"get {PUBLISHED}.npz from the GitHub project google-deepmind/dsprites-dataset, or run "
    "`tfds build dsprites --file_format=array_record`, or use the redrawn source: "
    "source('dsprites')"
)

PUBLISHED_HDF5 = (28_024_106, "729fa22e884c9c500e1f17415d580746b4c5894fbbb780a1319bbcfa39a745bb")
"""Size in bytes and SHA-256 of the published hdf5, as tensorflow-datasets lists them."""

_TITLE = "dSprites"
_PIXELS = CANVAS * CANVAS
_MAX_ROWS = math.prod(factor.size for factor in FACTORS)
_CHUNK = 4096  # rows read at a time: 16 MB of images
_LABELS = (
    "label_shape",
    "label_scale",
    "label_orientation",
    "label_x_position",
    "label_y_position",
)


def load(
    root: Path, image_size: int = CANVAS, *, progress: packing.Progress = packing.no_progress
) -> GridSource:
    """Loads published dSprites data from disk; 377 MB for all 737,280 images.

    The first time, the images are packed into a directory beside the data, from which they are
    read from then on.

    Args:
      root: A published `.npz` or `.hdf5` file, or a directory that holds one (directly or in
        `dsprites/`), or a directory of data prepared by tensorflow-datasets.
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
      vaejax.data.errors.DataError: no/such/directory: no genuine dsprites found; ...
    """
    check_image_size(NAME, image_size)
    bits, factors = packing.packed_grid(
        find(root), NAME, _TITLE, FACTORS, (_PIXELS // 8,), _opened, progress
    )
    return GridSource(store(bits), NAME, factors, image_size)


def find(root: Path) -> Path:
    """Finds genuine dSprites: `root` itself if it is a file, else as `files.find` does.

    Raises:
      DataError: Nothing is found.
    """
    return files.find(root, NAME, (f"{PUBLISHED}.npz", f"{PUBLISHED}.hdf5"), HOW_TO_GET)


def _opened(path: Path) -> contextlib.AbstractContextManager[files.Rows]:
    """Opens what `find` returned, by the kind of path it is, as rows of packed bits `[n, 512]`."""
    if path.is_dir():
        return _opened_prepared(path)
    if path.suffix == ".npz":
        return _opened_npz(path)
    if path.suffix in (".hdf5", ".h5"):
        return _opened_hdf5(path)
    raise DataError(f"{path}: not a dSprites file; a published one ends in .npz or .hdf5")


@contextlib.contextmanager
def _opened_npz(path: Path) -> Iterator[files.Rows]:
    """The published npz, whose 3 GB of images are streamed out of the zip in small chunks.

    Its members: `imgs` (u1 `[N, 64, 64]`) and `latents_classes` (integer `[N, 6]`).
    """
    with files.reading(path, "npz", HOW_TO_GET), zipfile.ZipFile(path) as archive:
        with files.npz_member(path, archive, "latents_classes") as (stream, shape, dtype):
            _check_classes(path, "latents_classes", shape, dtype)
            labels = files.exactly(path, stream, math.prod(shape) * dtype.itemsize)
            classes = _coloured(path, np.frombuffer(labels, dtype).reshape(shape))
        with files.npz_member(path, archive, "imgs") as (stream, shape, dtype):
            _check_images(path, "imgs", shape, dtype, len(classes))

            def read(start: int, stop: int) -> np.ndarray:
                pixels = files.exactly(path, stream, (stop - start) * _PIXELS)
                return _bits(path, np.frombuffer(pixels, np.uint8))

            yield files.Rows(classes, read, _CHUNK)


@contextlib.contextmanager
def _opened_hdf5(path: Path) -> Iterator[files.Rows]:
    """The published hdf5; needs h5py.

    Its datasets: `/imgs` (u1 `[N, 64, 64]`) and `/latents/classes` (integer `[N, 6]`).
    """
    with (
        files.reading(path, "hdf5", HOW_TO_GET),
        files.hdf5(path, _TITLE, ("imgs", "latents/classes"), PUBLISHED_HDF5) as (images, labels),
    ):
        _check_classes(path, "/latents/classes", labels.shape, labels.dtype)
        _check_images(path, "/imgs", images.shape, images.dtype, len(labels))
        yield files.Rows(
            _coloured(path, labels[...]),
            lambda start, stop: _bits(path, images[start:stop]),
            files.hdf5_chunk(images, _CHUNK, 8 * _CHUNK),
        )


@contextlib.contextmanager
def _opened_prepared(directory: Path) -> Iterator[files.Rows]:
    """Data prepared by tensorflow-datasets: the directory `.../dsprites/2.0.0`."""
    with files.prepared(directory, _TITLE, {"image", *_LABELS}, HOW_TO_GET) as builder:
        rows = files.records(directory, builder, _LABELS, (CANVAS, CANVAS, 1))
        yield rows._replace(read=lambda start, stop: _bits(directory, rows.read(start, stop)))


def _check_classes(path: Path, name: str, shape: tuple[int, ...], dtype: np.dtype) -> None:
    """Refuses labels other than integers `[N, 6]`, N at most the published number."""
    files.check_array(path, name, shape, dtype, np.integer, ("N", 6), _MAX_ROWS)


def _check_images(
    path: Path, name: str, shape: tuple[int, ...], dtype: np.dtype, rows: int
) -> None:
    """Refuses images other than uint8 `[rows, 64, 64]`."""
    files.check_array(path, name, shape, dtype, np.uint8, (rows, CANVAS, CANVAS))


def _coloured(path: Path, classes: np.ndarray) -> np.ndarray:
    """The classes without the first, the colour, of which there is one."""
    files.check_classes(path, _TITLE, classes[:, :1], (Factor("colour", 1),))
    return classes[:, 1:]


def _bits(path: Path, images: np.ndarray) -> np.ndarray:
    """Packs any number of images, 0 or 1, into `[n, 512]`."""
    if images.max() > 1:
        raise DataError(f"{path}: a pixel is {images.max()}, but dSprites has only 0 and 1")
    return np.packbits(images.reshape(-1, _PIXELS), axis=1)
