"""What the readers of published files share: finding them, parsing them safely.

Nothing is ever unpickled. Whatever is wrong with a file becomes a `DataError` of one line.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
import os
import struct
import warnings
import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np

from vaejax.data.errors import DataError
from vaejax.data.protocols import Factor


class Rows(NamedTuple):
    """The rows of an opened file, in the order that they have there.

    Attributes:
      classes: `[N, K]` integers.
      read: The images of rows `start` to `stop - 1`, uint8.
      chunk: How many rows to read at a time.
    """

    classes: np.ndarray
    read: Callable[[int, int], np.ndarray]
    chunk: int


def find(
    root: Path, name: str, published: Iterable[str], how_to_get: str, inside: Iterable[str] = ()
) -> Path:
    """Finds a published dataset: `root` itself if it is a file, else the first match inside it.

    In a directory, `root` and `root/name` are searched for the published files, in their order,
    then for data prepared by tensorflow-datasets (the newest version).

    Args:
      root: Where to look.
      name: Name of the dataset's directory.
      published: Names of the published files, any one of which will do.
      how_to_get: What the error says if there is none.
      inside: Further directories in `root` to search.

    Returns:
      A file, or a directory with a tensorflow-datasets `dataset_info.json`.

    Raises:
      DataError: Nothing is found.
    """
    if root.is_file():
        return root
    places = (root, root / name, *(root / place for place in inside))
    for file in published:
        for place in places:
            if (place / file).is_file():
                return place / file
    for place in places:
        versions = sorted(place.glob("*.*.*/dataset_info.json"), key=_version)
        for info in [place / "dataset_info.json", *reversed(versions)]:
            if info.is_file():
                return info.parent
    raise DataError(f"{root}: no genuine {name} found; {how_to_get}")


def _version(info: Path) -> list[int]:
    """Sort key of `.../2.0.0/dataset_info.json`."""
    return [int(part) if part.isdigit() else -1 for part in info.parent.name.split(".")]


@contextlib.contextmanager
def reading(path: Path, kind: str, how_to_get: str) -> Iterator[None]:
    """Turns whatever a parser raises on missing or damaged bytes into a one-line `DataError`."""
    try:
        yield
    except DataError:
        raise
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such file; {how_to_get}") from error
    except ImportError as error:
        raise DataError(f"{path}: {error}; run `pip install 'vaejax[genuine]'`") from error
    # zipfile, zlib, h5py and numpy's header parser raise a dozen unrelated types on damaged bytes.
    except Exception as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise DataError(f"{path}: damaged or not {kind} data ({reason})") from error


@contextlib.contextmanager
def npz_member(
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


def map_member(path: Path, archive: zipfile.ZipFile, name: str) -> np.ndarray | None:
    """An array of an npz, mapped where it lies in the file; None if it is compressed there.

    Nothing checks its bytes, which is for the caller to do: reading the member's stream to its end
    compares its checksum.
    """
    with npz_member(path, archive, name) as (stream, shape, dtype):
        info = archive.getinfo(f"{name}.npy")
        if info.compress_type != zipfile.ZIP_STORED:
            return None
        # The directory does not say how long the header before the member is; the header does.
        with path.open("rb") as file:
            file.seek(info.header_offset)
            name_length, extra_length = struct.unpack("<26x2H", exactly(path, file, 30))
        start = info.header_offset + 30 + name_length + extra_length + stream.tell()
        return np.memmap(path, dtype, "r", start, shape)


def exactly(path: Path, stream: IO[bytes], count: int) -> bytes:
    """Reads `count` bytes; a zip or gzip checks their checksum at the end."""
    data = stream.read(count)
    if len(data) != count:
        raise DataError(f"{path}: truncated, {count - len(data)} bytes are missing")
    return data


@contextlib.contextmanager
def prepared(directory: Path, name: str, features: Iterable[str], how_to_get: str) -> Iterator[Any]:
    """Opens a dataset that tensorflow-datasets has prepared as ArrayRecord, without TensorFlow.

    Args:
      directory: The version directory, with `dataset_info.json` (`.../dsprites/2.0.0`).
      name: What the dataset is called in errors.
      features: What its records must have.
      how_to_get: What the error says if it was prepared in another format.

    Yields:
      The builder; `builder.as_data_source(split=...)` has the records.

    Raises:
      DataError: The data are damaged, not ArrayRecord, or without these features.
    """
    with reading(directory, "tensorflow-datasets", how_to_get):
        import tensorflow_datasets as tfds

        builder = tfds.builder_from_directory(os.fspath(directory))
        file_format = builder.info.file_format.value
        if file_format != "array_record":
            raise DataError(
                f"{directory}: prepared as {file_format}, which has no random access; {how_to_get}"
            )
        missing = sorted(set(features) - set(builder.info.features))
        if missing:
            raise DataError(f"{directory}: not {name}, its records have no {missing[0]!r}")
        yield builder


def records(
    directory: Path,
    builder: Any,
    labels: Sequence[str],
    image_shape: tuple[int, ...],
    split: str = "train",
    chunk: int = 1024,
) -> Rows:
    """The records that tensorflow-datasets has prepared: labels now, images when asked for.

    Labels are read first and alone, for the place of an image is only known once all of them are.

    Args:
      directory: Named in errors.
      builder: From `prepared`.
      labels: The features that are the K classes.
      image_shape: What images must be, `(H, W, C)`.
      split: Which records.
      chunk: How many records to read at a time.

    Raises:
      DataError: The images are of another shape.
    """
    import tensorflow_datasets as tfds

    undecoded = {"image": tfds.decode.SkipDecoding()}
    labelled: Any = builder.as_data_source(split=split, decoders=undecoded)
    pictured: Any = builder.as_data_source(split=split)
    classes = np.empty((len(labelled), len(labels)), np.int64)
    for start in range(0, len(classes), chunk):
        batch = labelled.__getitems__(list(range(start, min(start + chunk, len(classes)))))
        classes[start : start + chunk] = [[record[name] for name in labels] for record in batch]

    def read(start: int, stop: int) -> np.ndarray:
        batch = pictured.__getitems__(list(range(start, stop)))
        images = np.stack([record["image"] for record in batch])
        check_array(directory, "image", images.shape[1:], images.dtype, np.uint8, image_shape)
        return images

    return Rows(classes, read, chunk)


def check_array(
    path: Path,
    name: str,
    shape: tuple[int, ...],
    dtype: np.dtype,
    kind: Any,
    want: tuple[int | str, ...],
    most: int | None = None,
) -> None:
    """Refuses an array of another shape or dtype.

    Args:
      path: File named in errors.
      name: Of the array.
      shape: That it has.
      dtype: That it has.
      kind: What its dtype must be, or be a kind of: `np.uint8`, `np.integer`.
      want: What its shape must be; a letter stands for any size, from 1 to `most`.
      most: The most that the letter may stand for.

    Raises:
      DataError: It is not so.
    """
    fits = len(shape) == len(want) and all(
        0 < size <= (most or size) if isinstance(wanted, str) else size == wanted
        for size, wanted in zip(shape, want, strict=True)
    )
    if fits and np.issubdtype(dtype, kind):
        return
    wanted_shape = ", ".join(map(str, want))
    bound = f", N at most {most}" if most else ""
    raise DataError(
        f"{path}: {name} is {dtype} {list(shape)}, "
        f"but must be {kind.__name__} [{wanted_shape}]{bound}"
    )


@contextlib.contextmanager
def hdf5(
    path: Path, name: str, datasets: Sequence[str], published: tuple[int, str] = (0, "")
) -> Iterator[list[Any]]:
    """Opens datasets of an hdf5 file; needs h5py.

    The format has no checksum of its own, so damaged pixels may go unnoticed. A file of the
    published size, however, must have the published SHA-256.

    Args:
      path: The file.
      name: What the dataset is called in errors.
      datasets: What it must hold.
      published: Size in bytes and SHA-256 of the published file.

    Raises:
      DataError: One of them is missing, or the checksum is another.
    """
    import h5py

    size, checksum = published
    if path.stat().st_size == size:
        with path.open("rb") as stream:
            if hashlib.file_digest(stream, "sha256").hexdigest() != checksum:
                raise DataError(f"{path}: damaged, its SHA-256 is not that of the published file")
    with h5py.File(path, "r") as file:
        for dataset in datasets:
            if not isinstance(file.get(dataset), h5py.Dataset):
                raise DataError(f"{path}: no dataset '/{dataset}', which {name} has")
        yield [file[dataset] for dataset in datasets]


def hdf5_chunk(dataset: Any, rows: int, most: int) -> int:
    """About how many `rows` to read at a time so that none of the file's chunks is read twice."""
    stored = dataset.chunks[0] if dataset.chunks else 1
    return min(stored * max(1, rows // stored), most)


def check_classes(path: Path, name: str, classes: np.ndarray, factors: Sequence[Factor]) -> None:
    """Refuses labels `[N, K]` that are out of their factor's range, or none at all.

    Raises:
      DataError: A class is out of range, or there are no rows.
    """
    if not len(classes):
        raise DataError(f"{path}: holds no images")
    for factor, column in zip(factors, classes.T, strict=True):
        if column.min() < 0 or column.max() >= factor.size:
            found = f"{column.min()} to {column.max()}"
            raise DataError(
                f"{path}: {factor.name} classes are {found}, but {name} has 0 to {factor.size - 1}"
            )


def grid_order(
    path: Path, name: str, classes: np.ndarray, factors: Sequence[Factor]
) -> tuple[np.ndarray, tuple[Factor, ...]]:
    """The place of each row in a complete grid, and the grid's factors.

    A file may hold fewer classes than the published one as long as its rows are every combination
    of its classes exactly once.

    Args:
      path: File named in errors.
      name: What the dataset is called in errors.
      classes: `[N, K]` integers.
      factors: The K factors as published, with the most classes that they may have.

    Returns:
      `[N]` indices, each of `0 .. N - 1` once, and the factors with the sizes found.

    Raises:
      DataError: A class is out of range, or a combination is missing or repeated.
    """
    check_classes(path, name, classes, factors)
    sizes = tuple(int(size) for size in classes.max(axis=0) + 1)
    index = np.ravel_multi_index(tuple(classes.T.astype(np.int64)), sizes)
    counts = np.bincount(index, minlength=math.prod(sizes))
    if (counts != 1).any():
        wrong = f"{(counts == 0).sum()} missing and {(counts > 1).sum()} repeated"
        grid = " x ".join(map(str, sizes))
        raise DataError(f"{path}: not every combination once: {wrong} in a grid of {grid}")
    found_factors = tuple(
        Factor(factor.name, size, factor.categorical)
        for factor, size in zip(factors, sizes, strict=True)
    )
    return index, found_factors
