"""A packed copy of a published dataset beside its files, so that it is decoded once."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from vaejax.data.genuine import files

Layout = Mapping[str, tuple[tuple[int, ...], type[np.generic]]]
Progress = Callable[[int, int], None]

VERSION = 1
"""Of how datasets are packed; a new layout gets a new number, and old copies are left alone."""

_log = logging.getLogger(__name__)


def no_progress(done: int, total: int) -> None:
    """Tells nobody."""


def packed(
    sources: Sequence[Path],
    name: str,
    layout: Layout,
    fill: Callable[[Mapping[str, np.ndarray]], None],
) -> Mapping[str, np.ndarray]:
    """Arrays as they were packed before, or else packed now.

    They are `.npy` files in a directory beside the first source (or in it, if it is a directory),
    for as long as they are newer than every source. A place that cannot be written to, or has no
    room, means packing in memory each time, which is logged.

    Args:
      sources: The published files.
      name: What the copy is called; one for each dataset and split.
      layout: Shape and dtype of each array.
      fill: Writes all of them, given arrays of the layout; may raise `DataError`, in which case
        nothing is left behind.

    Returns:
      The arrays, mapped from the files and read-only if there are files.
    """
    first = sources[0]
    directory = (first if first.is_dir() else first.parent) / f"vaejax_{name}_v{VERSION}"
    found = _load(directory, sources, layout)
    if found is not None:
        return found
    try:
        with files.replacing(directory) as temporary:
            temporary.mkdir()
            fill(
                {
                    key: np.lib.format.open_memmap(
                        temporary / f"{key}.npy", mode="w+", dtype=dtype, shape=shape
                    )
                    for key, (shape, dtype) in layout.items()
                }
            )
            shutil.rmtree(directory, ignore_errors=True)
    except OSError as error:
        _log.warning("%s: not kept, so it is decoded anew each time (%s)", directory, error)
        arrays = {key: np.empty(shape, dtype) for key, (shape, dtype) in layout.items()}
        fill(arrays)
        return arrays
    found = _load(directory, sources, layout)
    assert found is not None
    return found


def _load(
    directory: Path, sources: Sequence[Path], layout: Layout
) -> Mapping[str, np.ndarray] | None:
    """The packed arrays, unless they are absent, damaged, of another layout or out of date."""
    try:
        packed_at = directory.stat().st_mtime_ns
        if any(_modified(source) > packed_at for source in sources):
            return None
        arrays = {
            key: np.load(directory / f"{key}.npy", mmap_mode="r", allow_pickle=False)
            for key in layout
        }
    except (OSError, EOFError, ValueError):
        return None
    as_wanted = all(
        arrays[key].shape == shape and arrays[key].dtype == dtype
        for key, (shape, dtype) in layout.items()
    )
    return arrays if as_wanted else None


def _modified(source: Path) -> int:
    """When a published file, or a prepared directory, was last changed, in nanoseconds."""
    return (source / "dataset_info.json" if source.is_dir() else source).stat().st_mtime_ns
