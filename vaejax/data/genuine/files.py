"""What the readers of published files share: finding them, parsing them safely, keeping a copy.

Nothing is ever unpickled. Whatever is wrong with a file becomes a `DataError` of one line.
"""

from __future__ import annotations

import contextlib
import math
import os
import shutil
import warnings
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np

from vaejax.data.errors import DataError
from vaejax.data.protocols import Factor


def find(root: Path, name: str, published: Iterable[str], how_to_get: str) -> Path:
    """Finds a published dataset: `root` itself if it is a file, else the first match inside it.

    In a directory, `root` and `root/name` are searched for the published files, in their order,
    then for data prepared by tensorflow-datasets (the newest version).

    Args:
      root: Where to look.
      name: Name of the dataset's directory.
      published: Names of the published files, any one of which will do.
      how_to_get: What the error says if there is none.

    Returns:
      A file, or a directory with a tensorflow-datasets `dataset_info.json`.

    Raises:
      DataError: Nothing is found.
    """
    if root.is_file():
        return root
    places = (root, root / name)
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
    for factor, column in zip(factors, classes.T, strict=True):
        if column.min() < 0 or column.max() >= factor.size:
            found = f"{column.min()} to {column.max()}"
            raise DataError(
                f"{path}: {factor.name} classes are {found}, but {name} has 0 to {factor.size - 1}"
            )
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


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path beside `path` for a file or a directory, moved there if nothing went wrong.

    Raises:
      OSError: The directory cannot be written to.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        with contextlib.suppress(OSError):
            if temporary.is_dir():
                shutil.rmtree(temporary)
            else:
                temporary.unlink(missing_ok=True)
