"""Reads the published SmallNORB: photographs of 50 toys, every combination of five factors once.

Two formats are read: the `.mat.gz` files of Huang and LeCun (2005), also un-gzipped, and the
`smallnorb` dataset of tensorflow-datasets prepared as ArrayRecord. Of each pair of images the left
one is taken. It is brought from 96x96 to 64x64 with Pillow's Lanczos filter, as disentanglement_lib
does (Locatello et al. 2019).

Each split has five of the ten toys of every category. On its own it is a complete grid whose
instances are renumbered 0 to 4 in ascending order; joined, they have the published numbers.

What is read is packed beside the files, for gunzipping and resizing them takes several seconds.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from vaejax.data.errors import DataError
from vaejax.data.genuine import files, norb_format, packing
from vaejax.data.grid import GridSource
from vaejax.data.protocols import Factor
from vaejax.data.redrawn.smallnorb import FACTORS
from vaejax.data.sizes import CANVAS, check_image_size
from vaejax.data.storage import store
from vaejax.errors import unknown_name

NAME = "smallnorb"

SPLITS = ("all", "train", "test")

PUBLISHED = {
    "train": "smallnorb-5x46789x9x18x6x2x96x96-training",
    "test": "smallnorb-5x01235x9x18x6x2x96x96-testing",
}
"""Names of the published files, before `-dat.mat.gz`, `-cat.mat.gz` and `-info.mat.gz`."""

INSTANCES = {"train": (4, 6, 7, 8, 9), "test": (0, 1, 2, 3, 5)}
"""Published numbers of the toys in each split."""

HOW_TO_GET = (
    f"get the six files {PUBLISHED['train']}-dat.mat.gz and so on from the SmallNORB page of "
    "New York University (norb-v1.0-small), or run "
    "`tfds build smallnorb --file_format=array_record`, or use the look-alike: source('smallnorb')"
)

_TITLE = "SmallNORB"
_SIDE = 96
_MOST = 24_300  # images in a split
_CHUNK = 300  # rows read at a time: 5.5 MB of image pairs
_LABELS = ("label_category", "instance", "label_elevation", "label_azimuth", "label_lighting")
_KINDS = ("dat", "cat", "info")
_SUFFIXES = (".mat.gz", ".mat")


def load(
    root: Path,
    image_size: int = CANVAS,
    *,
    split: str = "all",
    progress: packing.Progress = packing.no_progress,
) -> GridSource:
    """Loads published SmallNORB data from disk; 199 MB for all 48,600 images.

    Args:
      root: A directory that holds the published files (directly or in `smallnorb/`), one of these
        files, or a directory of data prepared by tensorflow-datasets.
      image_size: 64 or 32.
      split: `"train"` or `"test"`, with instances 0 to 4, or `"all"`, with instances 0 to 9.
      progress: Told how many images of a split are done, and how many there are, while it is
        packed.

    Returns:
      The source, with its images in the order of their factors whatever their order in the file.

    Raises:
      DataError: Nothing is found, the data are damaged or not in the published format, the split
        is unknown, or `image_size` is neither 64 nor 32.

    Example:
      >>> load(Path("no/such/directory"))  # doctest: +ELLIPSIS
      Traceback (most recent call last):
      vaejax.data.errors.DataError: no/such/directory: no genuine smallnorb found; ...
    """
    check_image_size(NAME, image_size)
    if split not in SPLITS:
        raise DataError(unknown_name("split", split, SPLITS))
    directory = find(root)
    if split == "all":
        grid = _joined(
            directory, _part(directory, "train", progress), _part(directory, "test", progress)
        )
    else:
        grid = _part(directory, split, progress)
    return GridSource(store(grid.images), NAME, grid.factors, image_size)


def find(root: Path) -> Path:
    """Finds genuine SmallNORB: the directory of the published files or of prepared data.

    Raises:
      DataError: Nothing is found, or `root` is another file.
    """
    published = [f"{stem}-dat{suffix}" for suffix in _SUFFIXES for stem in PUBLISHED.values()]
    found = files.find(root, NAME, published, HOW_TO_GET)
    if found.is_dir():
        return found
    if not found.name.startswith(tuple(PUBLISHED.values())):
        raise DataError(f"{found}: not a file of SmallNORB, whose names start with 'smallnorb-5x'")
    return found.parent


def _part(directory: Path, split: str, progress: packing.Progress) -> packing.Grid:
    """One split, packed."""
    prepared = (directory / "dataset_info.json").is_file()
    opened = _prepared if prepared else _published
    path, *also = [directory] if prepared else [_file(directory, split, kind) for kind in _KINDS]
    return packing.packed_grid(
        path,
        f"{NAME}_{split}",
        _TITLE,
        _factors(split),
        (CANVAS, CANVAS, 1),
        lambda _: opened(directory, split),
        progress,
        also=also,
    )


def _factors(split: str) -> tuple[Factor, ...]:
    """The factors of one split: those of all, with fewer instances."""
    category, instance, *rest = FACTORS
    return (category, dataclasses.replace(instance, size=len(INSTANCES[split])), *rest)


def _joined(path: Path, train: packing.Grid, test: packing.Grid) -> packing.Grid:
    """Both splits in one grid, where instances have their published numbers."""
    if train.factors != test.factors or train.factors[1] != _factors("train")[1]:
        sizes = [" x ".join(str(factor.size) for factor in part.factors) for part in (train, test)]
        raise DataError(f"{path}: cannot join a grid of {sizes[0]} and one of {sizes[1]}")
    category, instance, *rest = (factor.size for factor in train.factors)
    within = (*rest, *train.images.shape[1:])
    images = np.empty((category, 2 * instance, *within), np.uint8)
    for part, split in ((train, "train"), (test, "test")):
        images[:, INSTANCES[split]] = part.images.reshape(category, instance, *within)
    factors = (train.factors[0], FACTORS[1], *train.factors[2:])
    return packing.Grid(images.reshape(-1, *train.images.shape[1:]), factors)


def _file(directory: Path, split: str, kind: str) -> Path:
    """A published file, gzipped or not."""
    paths = [directory / f"{PUBLISHED[split]}-{kind}{suffix}" for suffix in _SUFFIXES]
    return next((path for path in paths if path.is_file()), paths[0])


@contextlib.contextmanager
def _published(directory: Path, split: str) -> Iterator[files.Rows]:
    """Opens the three files of a split; images are streamed, so the file is never held whole."""
    dat, cat, info = (_file(directory, split, kind) for kind in _KINDS)
    columns = []
    for path, row in ((cat, ()), (info, (4,))):
        with norb_format.opened(path, np.int32, row, _MOST, HOW_TO_GET) as matrix:
            rows = matrix.shape[0]
            columns.append(matrix.read(rows).reshape(rows, -1).astype(np.int64))
    if len(columns[0]) != len(columns[1]):
        raise DataError(f"{info}: {len(columns[1])} rows, but {cat.name} has {len(columns[0])}")
    classes = np.concatenate(columns, axis=1)
    if (classes[:, 3] % 2).any():
        raise DataError(f"{info}: an azimuth is odd, but SmallNORB has 0, 2, ... 34")
    classes[:, 3] //= 2
    classes[:, 1] = _renumbered(info, split, classes[:, 1])
    shape = (2, _SIDE, _SIDE)
    with norb_format.opened(dat, np.uint8, shape, _MOST, HOW_TO_GET) as matrix:
        if matrix.shape[0] != len(classes):
            raise DataError(
                f"{dat}: {matrix.shape[0]} images, but {cat.name} has {len(classes)} rows"
            )
        yield files.Rows(
            classes, lambda start, stop: resized(matrix.read(stop - start)[:, 0]), _CHUNK
        )


@contextlib.contextmanager
def _prepared(directory: Path, split: str) -> Iterator[files.Rows]:
    """Opens a split that tensorflow-datasets has prepared."""
    with files.prepared(directory, _TITLE, {"image", *_LABELS}, HOW_TO_GET) as builder:
        import tensorflow_datasets as tfds

        skipped = {"image2"} & set(builder.info.features)
        undecoded = dict.fromkeys(skipped, tfds.decode.SkipDecoding())
        rows = read_records(directory, builder.as_data_source(split=split, decoders=undecoded))
        rows.classes[:, 1] = _renumbered(directory, split, rows.classes[:, 1])
        yield rows


def read_records(directory: Path, records: Any) -> files.Rows:
    """Reads the records of a split into memory, 100 MB for 24,300 of them.

    Where an image belongs is only known once all labels are read, and a record has both.

    Args:
      directory: Named in errors.
      records: A data source of tensorflow-datasets.

    Returns:
      Images `[64, 64, 1]`, and classes `[N, 5]` with the published numbers of instances.

    Raises:
      DataError: There are too many records, or an image has another shape.
    """
    if len(records) > _MOST:
        raise DataError(f"{directory}: {len(records)} records, but a split has at most {_MOST}")
    classes = np.empty((len(records), len(_LABELS)), np.int64)
    images = np.empty((len(records), CANVAS, CANVAS, 1), np.uint8)
    for start in range(0, len(records), _CHUNK):
        stop = min(start + _CHUNK, len(records))
        batch = records.__getitems__(list(range(start, stop)))
        classes[start:stop] = [[record[name] for name in _LABELS] for record in batch]
        left = np.stack([record["image"] for record in batch])
        files.check_array(
            directory, "image", left.shape[1:], left.dtype, np.uint8, (_SIDE, _SIDE, 1)
        )
        images[start:stop] = resized(left[..., 0])
    return files.Rows(classes, lambda start, stop: images[start:stop], _CHUNK)


def _renumbered(path: Path, split: str, instances: np.ndarray) -> np.ndarray:
    """Published numbers of a split's toys, as 0 to 4."""
    known = np.array(INSTANCES[split])
    strange = np.setdiff1d(instances, known)
    if len(strange):
        raise DataError(
            f"{path}: instance {strange[0]}, but the toys of split {split!r} are "
            f"{', '.join(map(str, known))}"
        )
    return np.searchsorted(known, instances)


def resized(images: np.ndarray) -> np.ndarray:
    """Images `[n, 96, 96]` uint8 as `[n, 64, 64, 1]`, by Pillow's Lanczos filter."""
    from PIL import Image

    small = np.empty((len(images), CANVAS, CANVAS, 1), np.uint8)
    for row, image in enumerate(images):
        whole = Image.fromarray(np.ascontiguousarray(image))
        small[row, ..., 0] = np.asarray(whole.resize((CANVAS, CANVAS), Image.Resampling.LANCZOS))
    return small
