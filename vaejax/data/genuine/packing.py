"""A packed copy of a published dataset beside its files, so that it is decoded once."""

from __future__ import annotations

import dataclasses
import errno
import json
import logging
import os
import shutil
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import NamedTuple

import numpy as np

from vaejax.data.genuine import files
from vaejax.data.protocols import Factor

Layout = Mapping[str, tuple[tuple[int, ...], type[np.generic]]]
Progress = Callable[[int, int], None]

VERSION = 1
"""Of how datasets are packed; a new layout gets a new number, and old copies are left alone."""

_SOURCES = "sources.json"

_log = logging.getLogger(__name__)


class Grid(NamedTuple):
    """The images of a complete grid.

    Attributes:
      images: `[N, ...]` uint8 in the order of the factors, the last one fastest.
      factors: The K factors; the product of their sizes is N.
    """

    images: np.ndarray
    factors: tuple[Factor, ...]


def no_progress(done: int, total: int) -> None:
    """Tells nobody."""


def packed_grid(
    path: Path,
    name: str,
    title: str,
    factors: Sequence[Factor],
    row: tuple[int, ...],
    opened: Callable[[Path], AbstractContextManager[files.Rows]],
    progress: Progress = no_progress,
    *,
    also: Sequence[Path] = (),
) -> Grid:
    """A complete grid as it was packed before, or else read and packed now.

    Args:
      path: The published file or prepared directory.
      name: What the copy is called.
      title: What the dataset is called in errors.
      factors: Its factors as published, with the most classes that they may have.
      row: Shape of one image.
      opened: Opens the path; only called if there is no copy.
      progress: Told after each chunk how many rows are done, and how many there are.
      also: Further files that are read; the copy is made anew when one of them changes.

    Raises:
      DataError: The data are damaged or not a complete grid.
    """
    sources = [path, *also]
    sizes = tuple(factor.size for factor in factors)
    images = (kept(sources, name, ["images"]) or {}).get("images")
    if images is None or not _fits(images, sizes, row):
        with opened(path) as rows:
            index, found = files.grid_order(path, title, rows.classes, factors)

            def fill(arrays: Mapping[str, np.ndarray]) -> None:
                ordered = arrays["images"].reshape(-1, *row)
                for start in range(0, len(index), rows.chunk):
                    stop = min(start + rows.chunk, len(index))
                    ordered[index[start:stop]] = rows.read(start, stop)
                    progress(stop, len(index))

            # Without labels, the shape is what a copy says of its factors.
            shape = (*(factor.size for factor in found), *row)
            images = packed(sources, name, {"images": (shape, np.uint8)}, fill)["images"]
    here = tuple(
        dataclasses.replace(factor, size=size)
        for factor, size in zip(factors, images.shape, strict=False)
    )
    return Grid(images.reshape(-1, *row), here)


def _fits(images: np.ndarray, sizes: tuple[int, ...], row: tuple[int, ...]) -> bool:
    """Whether these are images `row` of a grid that has at most these sizes."""
    count = len(sizes)
    return (
        images.dtype == np.uint8
        and images.shape[count:] == row
        and all(0 < size <= most for size, most in zip(images.shape, sizes, strict=False))
    )


def packed(
    sources: Sequence[Path],
    name: str,
    layout: Layout,
    fill: Callable[[Mapping[str, np.ndarray]], None],
) -> Mapping[str, np.ndarray]:
    """Arrays as they were packed before, or else packed now.

    They are `.npy` files in a directory beside the first source (or in it, if it is a directory),
    for as long as every source has the name, size and time of change that it had. A place that
    cannot be written to, or has no room, means packing in memory each time, which is logged.

    Args:
      sources: The published files.
      name: What the copy is called; one for each dataset and split.
      layout: Shape and dtype of each array.
      fill: Writes all of them, given arrays of the layout. Whatever it raises, nothing is left
        behind.

    Returns:
      The arrays, mapped from the files and read-only if there are files.
    """
    found = kept(sources, name, layout)
    if found is not None and all(
        found[key].shape == shape and found[key].dtype == dtype
        for key, (shape, dtype) in layout.items()
    ):
        return found
    directory = _directory(sources, name)
    temporary = directory.with_name(f".{directory.name}.{os.getpid()}")
    described = _described(sources)  # before they are read: a change meanwhile outdates the copy
    try:
        try:
            arrays = _create(temporary, layout)
        except OSError as error:
            _not_kept(directory, error)
            in_memory = {key: np.empty(shape, dtype) for key, (shape, dtype) in layout.items()}
            fill(in_memory)
            return in_memory
        fill(arrays)
        try:
            for array in arrays.values():
                array.flush()  # or a power cut could leave a copy with the right name and no data
                array.flags.writeable = False
            (temporary / _SOURCES).write_text(described)
            shutil.rmtree(directory, ignore_errors=True)
            os.replace(temporary, directory)
        except OSError as error:
            _not_kept(directory, error)
        return arrays
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def kept(sources: Sequence[Path], name: str, keys: Iterable[str]) -> dict[str, np.ndarray] | None:
    """The arrays that `packed` has kept, whatever their layout.

    Args:
      sources: The published files.
      name: What the copy is called.
      keys: Which arrays.

    Returns:
      The arrays, mapped and read-only; None if one is absent or damaged, or a source has changed.
    """
    directory = _directory(sources, name)
    try:
        if (directory / _SOURCES).read_text() != _described(sources):
            return None
        return {
            key: np.load(directory / f"{key}.npy", mmap_mode="r", allow_pickle=False)
            for key in keys
        }
    except (OSError, EOFError, ValueError):
        return None


def _directory(sources: Sequence[Path], name: str) -> Path:
    """Where the copy is kept."""
    first = sources[0]
    return (first if first.is_dir() else first.parent) / f"vaejax_{name}_v{VERSION}"


def _described(sources: Sequence[Path]) -> str:
    """Name, size and time of change of each source, as JSON; of what a directory was made from."""
    facts = []
    for source in sources:
        file = source / "dataset_info.json" if source.is_dir() else source
        status = file.stat()
        facts.append([source.name, status.st_size, status.st_mtime_ns])
    return json.dumps(facts)


def _create(directory: Path, layout: Layout) -> dict[str, np.memmap]:
    """Mapped files to fill, in a new directory, with room for all that will be written.

    Raises:
      OSError: The place cannot be written to, or has no room.
    """
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir()
    arrays = {}
    for key, (shape, dtype) in layout.items():
        path = directory / f"{key}.npy"
        arrays[key] = np.lib.format.open_memmap(path, mode="w+", dtype=dtype, shape=shape)
        # A mapped file has holes until it is written to, and a disk that is full by then would
        # kill the process.
        if sys.platform == "linux":
            try:
                with path.open("r+b") as file:
                    os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
            except OSError as error:
                if error.errno in (errno.ENOSPC, errno.EDQUOT):
                    raise
    return arrays


def _not_kept(directory: Path, error: OSError) -> None:
    _log.warning("%s: not kept, so it is decoded anew each time (%s)", directory, error)
