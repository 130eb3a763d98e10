"""Reads the published dSprites files into packed bits, on the host and in bounded memory.

Three formats are read: the `.npz` and `.hdf5` of google-deepmind/dsprites-dataset, and the
`dsprites` dataset of tensorflow-datasets prepared as ArrayRecord. Whatever order their rows have,
the result is in the order of the factors. A file may hold fewer classes than the published one as
long as its rows are a complete grid: every combination of its classes exactly once.

Nothing is ever unpickled: the npz's `metadata` member, a pickle, is not read.
"""

from __future__ import annotations

import dataclasses
import logging
import math
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from vaejax.data.errors import DataError
from vaejax.data.genuine import files
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

CACHE_NAME = "vaejax_dsprites_bits_v1.npy"
"""Packed images kept beside prepared data: `[*sizes, 512]` uint8. A new layout gets a new name."""

_PIXELS = CANVAS * CANVAS
_BYTES = _PIXELS // 8
_MAX_SIZES = tuple(factor.size for factor in FACTORS)
_MAX_ROWS = math.prod(_MAX_SIZES)
_CHUNK = 4096  # rows read at a time: 16 MB of images
_LABELS = (
    "label_shape",
    "label_scale",
    "label_orientation",
    "label_x_position",
    "label_y_position",
)

_log = logging.getLogger(__name__)


class PackedGrid(NamedTuple):
    """A complete grid of binary images.

    Attributes:
      bits: `[N, 512]` uint8, one packed image a row, last factor fastest.
      factors: The five factors; the product of their sizes is `N`.
    """

    bits: np.ndarray
    factors: tuple[Factor, ...]


def load(root: Path, image_size: int = CANVAS) -> GridSource:
    """Loads published dSprites data from disk; 377 MB for all 737,280 images.

    Args:
      root: A published `.npz` or `.hdf5` file, or a directory that holds one (directly or in
        `dsprites/`), or a directory of data prepared by tensorflow-datasets.
      image_size: 64 or 32.

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
    bits, factors = read(find(root))
    return GridSource(store(bits), NAME, factors, image_size)


def find(root: Path) -> Path:
    """Finds genuine dSprites: `root` itself if it is a file, else as `files.find` does.

    Raises:
      DataError: Nothing is found.
    """
    return files.find(root, NAME, (f"{PUBLISHED}.npz", f"{PUBLISHED}.hdf5"), HOW_TO_GET)


def read(path: Path) -> PackedGrid:
    """Reads what `find` returned, by the kind of path it is.

    Raises:
      DataError: The file is of another kind, damaged, or not a complete grid of dSprites.
    """
    if path.is_dir():
        return read_prepared(path)
    if path.suffix == ".npz":
        return read_npz(path)
    if path.suffix in (".hdf5", ".h5"):
        return read_hdf5(path)
    raise DataError(f"{path}: not a dSprites file; a published one ends in .npz or .hdf5")


def read_npz(path: Path) -> PackedGrid:
    """Reads the published npz, streaming its 3 GB of images out of the zip in small chunks.

    Args:
      path: File with members `imgs` (u1 `[N, 64, 64]`) and `latents_classes` (integer `[N, 6]`).

    Raises:
      DataError: The file is missing, damaged, or not a complete grid of dSprites.
    """
    with files.reading(path, "npz", HOW_TO_GET), zipfile.ZipFile(path) as archive:
        with files.npz_member(path, archive, "latents_classes") as (stream, shape, dtype):
            _check_classes(path, "latents_classes", shape, dtype)
            classes = np.frombuffer(
                files.exactly(path, stream, math.prod(shape) * dtype.itemsize), dtype
            )
        index, factors = _grid(path, classes.reshape(shape))
        with files.npz_member(path, archive, "imgs") as (stream, shape, dtype):
            _check_images(path, "imgs", shape, dtype, len(index))

            def load(start: int, stop: int) -> np.ndarray:
                return np.frombuffer(
                    files.exactly(path, stream, (stop - start) * _PIXELS), np.uint8
                )

            return PackedGrid(_pack(path, load, index, _CHUNK), factors)


def read_hdf5(path: Path) -> PackedGrid:
    """Reads the published hdf5; needs h5py.

    Args:
      path: File with datasets `/imgs` (u1 `[N, 64, 64]`) and `/latents/classes` (integer `[N, 6]`).

    Raises:
      DataError: The file is missing, damaged, or not a complete grid of dSprites, or h5py is
        missing.
    """
    with files.reading(path, "hdf5", HOW_TO_GET):
        import h5py

        with h5py.File(path, "r") as file:
            for name in ("imgs", "latents/classes"):
                if not isinstance(file.get(name), h5py.Dataset):
                    raise DataError(f"{path}: no dataset '/{name}', which dSprites has")
            images, classes = file["imgs"], file["latents/classes"]
            _check_classes(path, "/latents/classes", classes.shape, classes.dtype)
            _check_images(path, "/imgs", images.shape, images.dtype, len(classes))
            index, factors = _grid(path, classes[...])
            # Reading across the file's own chunks would decompress each of them more than once.
            stored = images.chunks[0] if images.chunks else 1
            chunk = min(stored * max(1, _CHUNK // stored), 8 * _CHUNK)
            return PackedGrid(_pack(path, lambda a, b: images[a:b], index, chunk), factors)


def read_prepared(directory: Path) -> PackedGrid:
    """Reads dSprites prepared by tensorflow-datasets as ArrayRecord, without TensorFlow.

    Decoding every record takes minutes, so the packed result is kept beside the data, in
    `CACHE_NAME`, and used for as long as the data are not prepared anew. A directory that cannot be
    written to is read in full each time.

    Args:
      directory: The version directory, with `dataset_info.json` (`.../dsprites/2.0.0`).

    Raises:
      DataError: The data are damaged, not ArrayRecord, or not a complete grid of dSprites.
    """
    cached = _load_cache(directory)
    if cached is not None:
        return cached
    with files.prepared(directory, "dSprites", {"image", *_LABELS}, HOW_TO_GET) as builder:
        records: Any = builder.as_data_source(split="train")
        rows = len(records)
        if rows > _MAX_ROWS:
            raise DataError(f"{directory}: {rows} records, but dSprites has at most {_MAX_ROWS}")
        classes = np.zeros((rows, 1 + len(_LABELS)), np.int64)

        def load(start: int, stop: int) -> np.ndarray:
            batch = records.__getitems__(list(range(start, stop)))
            classes[start:stop, 1:] = [[record[name] for name in _LABELS] for record in batch]
            return np.stack([record["image"] for record in batch])

        # A record holds image and labels together, so the order is known only at the end.
        shuffled = _pack(directory, load, np.arange(rows), _CHUNK // 4)
        index, factors = _grid(directory, classes)
        bits = np.empty_like(shuffled)
        bits[index] = shuffled
    _save_cache(directory, PackedGrid(bits, factors))
    return PackedGrid(bits, factors)


def _check_classes(path: Path, name: str, shape: tuple[int, ...], dtype: np.dtype) -> None:
    """Refuses labels other than integers `[N, 6]`, N at most the published number."""
    if dtype.kind not in "iu" or len(shape) != 2 or shape[1] != 6 or not 0 < shape[0] <= _MAX_ROWS:
        want = f"integer [N, 6], N at most {_MAX_ROWS}"
        raise DataError(f"{path}: {name} is {dtype} {list(shape)}, but must be {want}")


def _check_images(
    path: Path, name: str, shape: tuple[int, ...], dtype: np.dtype, rows: int
) -> None:
    """Refuses images other than uint8 `[rows, 64, 64]`."""
    if dtype != np.uint8 or shape != (rows, CANVAS, CANVAS):
        want = f"uint8 {[rows, CANVAS, CANVAS]}"
        raise DataError(f"{path}: {name} is {dtype} {list(shape)}, but must be {want}")


def _grid(path: Path, classes: np.ndarray) -> tuple[np.ndarray, tuple[Factor, ...]]:
    """The place of each row `[6]` in a complete grid, and the grid's five factors."""
    index, found = files.grid_order(path, "dSprites", classes, (Factor("colour", 1), *FACTORS))
    return index, found[1:]


def _pack(
    path: Path, load: Callable[[int, int], np.ndarray], index: np.ndarray, chunk: int
) -> np.ndarray:
    """Packs images chunk by chunk: row `i` of the file becomes row `index[i]` of `[N, 512]`."""
    bits = np.empty((len(index), _BYTES), np.uint8)
    for start in range(0, len(index), chunk):
        stop = min(start + chunk, len(index))
        images = load(start, stop).reshape(stop - start, _PIXELS)
        if images.max() > 1:
            raise DataError(f"{path}: a pixel is {images.max()}, but dSprites has only 0 and 1")
        bits[index[start:stop]] = np.packbits(images, axis=1)
    return bits


def _load_cache(directory: Path) -> PackedGrid | None:
    """The cached grid, unless it is absent, damaged or older than the data."""
    cache = directory / CACHE_NAME
    try:
        if cache.stat().st_mtime_ns < (directory / "dataset_info.json").stat().st_mtime_ns:
            return None
        bits = np.load(cache, allow_pickle=False)
    except (OSError, EOFError, ValueError):
        return None
    sizes = bits.shape[:-1]
    fits = len(sizes) == len(_MAX_SIZES) and all(
        0 < size <= top for size, top in zip(sizes, _MAX_SIZES, strict=True)
    )
    if not fits or bits.shape[-1] != _BYTES or bits.dtype != np.uint8:
        return None
    factors = tuple(
        dataclasses.replace(factor, size=size) for factor, size in zip(FACTORS, sizes, strict=True)
    )
    return PackedGrid(bits.reshape(-1, _BYTES), factors)


def _save_cache(directory: Path, grid: PackedGrid) -> None:
    """Writes the cache atomically, or logs why it could not."""
    sizes = (factor.size for factor in grid.factors)
    try:
        with files.replacing(directory / CACHE_NAME) as temporary, temporary.open("wb") as file:
            np.save(file, grid.bits.reshape(*sizes, _BYTES), allow_pickle=False)
    except OSError as error:
        _log.warning("%s: not cached, so it is decoded anew each time (%s)", directory, error)
