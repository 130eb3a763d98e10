"""Reads the published MPI3D into uint8 images: from the npz where they lie, or from a packed copy.

Two formats are read: the npz of rr-learning/disentanglement_dataset, and data that
`vaejax.data.genuine.mpi3d_builder` has prepared (tensorflow-datasets has no builder of its own).

The npz has no labels: its rows are in the order of the factors, and how many there are says how
many classes each factor has. 1,036,800 rows are the simple shapes of `FACTORS`. 460,800 rows, of
four colours and four shapes, are one of two sets that only their names tell apart: the files of the
2019 challenge (green, red, blue, brown; cone, cube, hexagonal prism, sphere) or the "real complex"
set (yellow, green, olive, red; coffee cup, tennis ball, croissant, beer cup). Both lists are from
the project's README at the time.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np

from vaejax.data.errors import DataError
from vaejax.data.genuine import files, packing
from vaejax.data.grid import GridSource
from vaejax.data.redrawn.mpi3d import FACTORS
from vaejax.data.sizes import CANVAS, check_image_size
from vaejax.data.storage import store

NAME = "mpi3d"

VARIANTS = ("toy", "realistic", "real")
"""Simplistic renderings, realistic renderings, and photographs."""

HOW_TO_GET = (
    "get mpi3d_toy.npz, mpi3d_realistic.npz or mpi3d_real.npz, to which the GitHub project "
    "rr-learning/disentanglement_dataset links, or use the redrawn source: source('mpi3d')"
)

GRIDS: tuple[tuple[int, ...], ...] = ((6, 6, 2, 3, 3, 40, 40), (4, 4, 2, 3, 3, 40, 40))
"""Sizes of the factors in the files there are, told apart by their products."""

LABELS = tuple(f"label_{factor.name}" for factor in FACTORS)
"""Features of prepared data beside `image`, in the order of the factors."""

SHAPE = (CANVAS, CANVAS, 3)
"""Of an image."""

_TITLE = "MPI3D"
_CHUNK = 1024  # rows read at a time: 13 MB of images


def load(
    root: Path,
    image_size: int = CANVAS,
    *,
    variant: str = "toy",
    progress: packing.Progress = packing.no_progress,
) -> GridSource:
    """Loads published MPI3D data from disk; 12.7 GB for all 1,036,800 images.

    Images that the npz holds uncompressed are mapped where they lie, once their checksum has been
    compared. Others are packed, the first time, into a directory beside the data.

    Args:
      root: A published npz, or a directory that holds `mpi3d_<variant>.npz` (directly or in
        `mpi3d/`), or data that `mpi3d_builder` prepared.
      image_size: 64 or 32.
      variant: Which of `VARIANTS` to look for; of no account if `root` is a file.
      progress: Told how many rows are checked or packed, and how many there are.

    Returns:
      The source.

    Raises:
      DataError: Nothing is found, the data are damaged or not in the published format, or
        an argument is none of the above.

    Example:
      >>> load(Path("no/such/directory"))  # doctest: +ELLIPSIS
      Traceback (most recent call last):
      vaejax.data.errors.DataError: no/such/directory: no genuine mpi3d found; ...
    """
    check_image_size(NAME, image_size)
    path = find(root, variant)
    if path.is_dir():
        images, factors = packing.packed_grid(
            path,
            f"{NAME}_{variant}",
            _TITLE,
            FACTORS,
            SHAPE,
            lambda path: _opened_prepared(path, variant),
            progress,
        )
    else:
        images, factors = _read_npz(path, progress)
    name = NAME if variant == "toy" else f"{NAME}_{variant}"
    return GridSource(store(images), name, factors, image_size)


def find(root: Path, variant: str = "toy") -> Path:
    """Finds genuine MPI3D: `root` itself if it is a file, else as `files.find` does.

    Raises:
      DataError: Nothing is found, or there is no such variant.
    """
    if variant not in VARIANTS:
        raise DataError(f"{NAME}: variant is {variant!r}, but must be one of {', '.join(VARIANTS)}")
    inside = (f"{NAME}/{variant}", variant)
    return files.find(root, NAME, (f"{NAME}_{variant}.npz",), HOW_TO_GET, inside)


@contextlib.contextmanager
def opened_npz(path: Path) -> Iterator[tuple[tuple[int, ...], Callable[[int], bytes]]]:
    """Opens the published npz as a stream.

    Args:
      path: File with a member `images` (u1 `[N, 64, 64, 3]`), where `N` is the size of a grid.

    Yields:
      The sizes of the factors, and what returns the bytes of that many further images. The zip's
      checksum is compared after the last of them.

    Raises:
      DataError: The file is missing, damaged or of another kind.
    """
    with (
        files.reading(path, "npz", HOW_TO_GET),
        zipfile.ZipFile(path) as archive,
        files.npz_member(path, archive, "images") as (stream, shape, dtype),
    ):
        files.check_array(path, "images", shape, dtype, np.uint8, ("N", *SHAPE))
        sizes = {math.prod(grid): grid for grid in GRIDS}
        if shape[0] not in sizes:
            known = " or ".join(f"{rows:,}" for rows in sorted(sizes, reverse=True))
            raise DataError(f"{path}: holds {shape[0]:,} images, but {_TITLE} has {known}")
        size = math.prod(SHAPE)
        yield sizes[shape[0]], lambda count: files.exactly(path, stream, count * size)


def _read_npz(path: Path, progress: packing.Progress) -> packing.Grid:
    """The images of an npz, mapped where they lie or else packed."""
    with opened_npz(path) as (sizes, read):
        rows = math.prod(sizes)
        with zipfile.ZipFile(path) as archive:
            mapped = files.map_member(path, archive, "images")

        def fill(arrays: Mapping[str, np.ndarray]) -> None:
            for start in range(0, rows, _CHUNK):
                stop = min(start + _CHUNK, rows)
                pixels = read(stop - start)
                if mapped is None:
                    arrays["images"][start:stop] = np.frombuffer(pixels, np.uint8).reshape(
                        -1, *SHAPE
                    )
                progress(stop, rows)
            if mapped is not None:
                arrays["checked"][:] = True

        if mapped is None:
            layout: packing.Layout = {"images": ((rows, *SHAPE), np.uint8)}
            images = packing.packed([path], path.stem, layout, fill)["images"]
        else:
            # Only that the checksum is right is kept, for which the whole file has been read.
            packing.packed([path], f"{path.stem}_checked", {"checked": ((1,), np.bool_)}, fill)
            images = mapped
    factors = tuple(
        dataclasses.replace(factor, size=size) for factor, size in zip(FACTORS, sizes, strict=True)
    )
    return packing.Grid(images, factors)


@contextlib.contextmanager
def _opened_prepared(directory: Path, variant: str) -> Iterator[files.Rows]:
    """Data that `mpi3d_builder` prepared: the directory `.../mpi3d/toy/1.0.0`."""
    with files.prepared(directory, _TITLE, {"image", *LABELS}, HOW_TO_GET) as builder:
        config = builder.info.config_name
        if config != variant:
            raise DataError(f"{directory}: the variant is {config!r}, not {variant!r}")
        yield files.records(directory, builder, LABELS, SHAPE, chunk=_CHUNK)
