"""Reads the published dSprites files into packed bits, on the host and in bounded memory.

Three formats are read: the `.npz` and `.hdf5` of google-deepmind/dsprites-dataset, and the
`dsprites` dataset of tensorflow-datasets prepared as ArrayRecord. Whatever order their rows have,
the result is in the order of the factors. A file may hold fewer classes than the published one as
long as its rows are a complete grid: every combination of its classes exactly once.

Nothing is ever unpickled: the npz's `metadata` member, a pickle, is not read.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import warnings
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np

from vaejax.data.dsprites import CANVAS, FACTORS
from vaejax.data.errors import DataError

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
      sizes: Number of classes of each of the five factors; their product is `N`.
    """

    bits: np.ndarray
    sizes: tuple[int, ...]


def find(root: Path) -> Path:
    """Finds genuine dSprites: `root` itself if it is a file, else the first match inside it.

    In a directory, `root` and `root/dsprites` are searched for the published npz, then hdf5, then
    for prepared data (the newest version).

    Returns:
      An `.npz` or `.hdf5` file, or a directory with a tensorflow-datasets `dataset_info.json`.

    Raises:
      DataError: Nothing is found.
    """
    if root.is_file():
        return root
    places = (root, root / "dsprites")
    for suffix in (".npz", ".hdf5"):
        for place in places:
            if (place / f"{PUBLISHED}{suffix}").is_file():
                return place / f"{PUBLISHED}{suffix}"
    for place in places:
        versions = sorted(place.glob("*.*.*/dataset_info.json"), key=_version)
        for info in [place / "dataset_info.json", *reversed(versions)]:
            if info.is_file():
                return info.parent
    raise DataError(f"{root}: no genuine dSprites found; {HOW_TO_GET}")


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
    with _reading(path, "npz"), zipfile.ZipFile(path) as archive:
        with _member(path, archive, "latents_classes") as (stream, shape, dtype):
            _check_classes(path, "latents_classes", shape, dtype)
            classes = np.frombuffer(
                _exactly(path, stream, math.prod(shape) * dtype.itemsize), dtype
            )
        index, sizes = _grid(path, classes.reshape(shape))
        with _member(path, archive, "imgs") as (stream, shape, dtype):
            _check_images(path, "imgs", shape, dtype, len(index))

            def load(start: int, stop: int) -> np.ndarray:
                return np.frombuffer(_exactly(path, stream, (stop - start) * _PIXELS), np.uint8)

            return PackedGrid(_pack(path, load, index, _CHUNK), sizes)


def read_hdf5(path: Path) -> PackedGrid:
    """Reads the published hdf5; needs h5py.

    Args:
      path: File with datasets `/imgs` (u1 `[N, 64, 64]`) and `/latents/classes` (integer `[N, 6]`).

    Raises:
      DataError: The file is missing, damaged, or not a complete grid of dSprites, or h5py is
        missing.
    """
    with _reading(path, "hdf5"):
        import h5py

        with h5py.File(path, "r") as file:
            for name in ("imgs", "latents/classes"):
                if not isinstance(file.get(name), h5py.Dataset):
                    raise DataError(f"{path}: no dataset '/{name}', which dSprites has")
            images, classes = file["imgs"], file["latents/classes"]
            _check_classes(path, "/latents/classes", classes.shape, classes.dtype)
            _check_images(path, "/imgs", images.shape, images.dtype, len(classes))
            index, sizes = _grid(path, classes[...])
            # Reading across the file's own chunks would decompress each of them more than once.
            stored = images.chunks[0] if images.chunks else 1
            chunk = min(stored * max(1, _CHUNK // stored), 8 * _CHUNK)
            return PackedGrid(_pack(path, lambda a, b: images[a:b], index, chunk), sizes)


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
    with _reading(directory, "tensorflow-datasets"):
        import tensorflow_datasets as tfds

        builder = tfds.builder_from_directory(os.fspath(directory))
        file_format = builder.info.file_format.value
        if file_format != "array_record":
            raise DataError(
                f"{directory}: prepared as {file_format}, which has no random access; run "
                "`tfds build dsprites --file_format=array_record`"
            )
        missing = sorted({"image", *_LABELS} - set(builder.info.features))
        if missing:
            raise DataError(f"{directory}: not dSprites, its records have no {missing[0]!r}")
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
        index, sizes = _grid(directory, classes)
        bits = np.empty_like(shuffled)
        bits[index] = shuffled
    _save_cache(directory, PackedGrid(bits, sizes))
    return PackedGrid(bits, sizes)


@contextlib.contextmanager
def _reading(path: Path, kind: str) -> Iterator[None]:
    """Turns whatever a parser raises on missing or damaged bytes into a one-line `DataError`."""
    try:
        yield
    except DataError:
        raise
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such file; {HOW_TO_GET}") from error
    except ImportError as error:
        raise DataError(f"{path}: {error}; run `pip install 'vaejax[genuine]'`") from error
    # zipfile, zlib, h5py and numpy's header parser raise a dozen unrelated types on damaged bytes.
    except Exception as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise DataError(f"{path}: damaged or not {kind} data ({reason})") from error


@contextlib.contextmanager
def _member(
    path: Path, archive: zipfile.ZipFile, name: str
) -> Iterator[tuple[IO[bytes], tuple[int, ...], np.dtype]]:
    """Opens one array of an npz: a stream placed at its data, its shape and its dtype."""
    if f"{name}.npy" not in archive.namelist():
        held = ", ".join(map(repr, archive.namelist()[:8])) or "nothing"
        raise DataError(f"{path}: no member '{name}.npy'; the file holds {held}")
    info = archive.getinfo(f"{name}.npy")
    with archive.open(info) as stream:
        shape, fortran, dtype = _header(stream)
        if dtype.hasobject:
            raise DataError(f"{path}: {name} holds pickled Python objects, which are not loaded")
        if fortran or info.file_size != stream.tell() + math.prod(shape) * dtype.itemsize:
            raise DataError(f"{path}: {name} does not have the C-order bytes that its header says")
        yield stream, shape, dtype


def _header(stream: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype]:
    """Shape, Fortran order and dtype of the npy array that starts here."""
    version = np.lib.format.read_magic(stream)
    with warnings.catch_warnings():
        # The published file was written by Python 2, of which numpy warns.
        warnings.simplefilter("ignore", UserWarning)
        if version == (1, 0):
            return np.lib.format.read_array_header_1_0(stream)
        return np.lib.format.read_array_header_2_0(stream)


def _exactly(path: Path, stream: IO[bytes], count: int) -> bytes:
    """Reads `count` bytes; the zip checks their checksum at the end of the member."""
    data = stream.read(count)
    if len(data) != count:
        raise DataError(f"{path}: truncated, {count - len(data)} bytes are missing")
    return data


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


def _grid(path: Path, classes: np.ndarray) -> tuple[np.ndarray, tuple[int, ...]]:
    """The place of each row in a complete grid, and the grid's sizes.

    Args:
      path: File named in errors.
      classes: `[N, 6]` integers: colour, which is always 0, and the five factors.

    Returns:
      `[N]` indices, each of `0 .. N - 1` once, and the five sizes.

    Raises:
      DataError: A class is out of range, or a combination is missing or repeated.
    """
    highest = (0, *(size - 1 for size in _MAX_SIZES))
    names = ("colour", *(factor.name for factor in FACTORS))
    for name, column, top in zip(names, classes.T, highest, strict=True):
        if column.min() < 0 or column.max() > top:
            found = f"{column.min()} to {column.max()}"
            raise DataError(f"{path}: {name} classes are {found}, but dSprites has 0 to {top}")
    sizes = tuple(int(size) for size in classes[:, 1:].max(axis=0) + 1)
    index = np.ravel_multi_index(tuple(classes[:, 1:].T.astype(np.int64)), sizes)
    counts = np.bincount(index, minlength=math.prod(sizes))
    if (counts != 1).any():
        wrong = f"{(counts == 0).sum()} missing and {(counts > 1).sum()} repeated"
        grid = " x ".join(map(str, sizes))
        raise DataError(f"{path}: not every combination once: {wrong} in a grid of {grid}")
    return index, sizes


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


def _version(info: Path) -> list[int]:
    """Sort key of `.../2.0.0/dataset_info.json`."""
    return [int(part) if part.isdigit() else -1 for part in info.parent.name.split(".")]


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
    return PackedGrid(bits.reshape(-1, _BYTES), sizes)


def _save_cache(directory: Path, grid: PackedGrid) -> None:
    """Writes the cache atomically, or logs why it could not."""
    temporary = directory / f".{CACHE_NAME}.{os.getpid()}"
    try:
        with open(temporary, "wb") as file:
            np.save(file, grid.bits.reshape(*grid.sizes, _BYTES), allow_pickle=False)
        os.replace(temporary, directory / CACHE_NAME)
    except OSError as error:
        _log.warning("%s: not cached, so it is decoded anew each time (%s)", directory, error)
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
