"""Reads the published CelebA: 202,599 photographs of faces with 40 binary attributes.

Two formats are read: the zip and the lists of Liu et al. (2015), also unzipped, and the `celeb_a`
dataset of tensorflow-datasets prepared as ArrayRecord. The 140x140 at the centre of a photograph is
brought to 64x64 (`celeba_files.face`).

The attributes serve as factors, but they are not factors of variation in the sense of the other
datasets: they are correlated, most of their combinations have no photograph, and much that varies
is none of them. The source is therefore no `Renderable`: no photograph can be asked for by its
attributes, and there is no `do(attribute)`.

Decoding takes minutes, so the result is packed beside the files, 2.5 GB.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from vaejax.data.arrays import ArraySource
from vaejax.data.errors import DataError
from vaejax.data.genuine import celeba_files, files, packing
from vaejax.data.genuine.celeba_files import ATTRIBUTES, HOW_TO_GET, SPLIT_SIZES, Jpeg
from vaejax.data.protocols import Factor
from vaejax.data.sizes import CANVAS, check_image_size
from vaejax.data.storage import store
from vaejax.errors import unknown_name

__all__ = ["FACTORS", "HOW_TO_GET", "NAME", "SPLITS", "find", "load", "read_records"]

NAME = "celeba"

SPLITS = ("all", "train", "validation", "test")

FACTORS = tuple(Factor(name, 2, categorical=True) for name in ATTRIBUTES)
"""The attributes in the published order; class 1 where a face has it."""

_PREPARED = "celeb_a"  # as tensorflow-datasets calls it
_CHUNK = 512  # photographs read at a time: 4 MB of JPEG
_ROW = (CANVAS, CANVAS, 3)

Arrays = Mapping[str, np.ndarray]
Read = Callable[[int, int], list[Jpeg]]


def load(
    root: Path,
    image_size: int = CANVAS,
    *,
    split: str = "all",
    progress: packing.Progress = packing.no_progress,
) -> ArraySource:
    """Loads published CelebA data from disk; 2.5 GB for all photographs.

    Args:
      root: A directory that holds `img_align_celeba.zip` (or what it unzips to) and the two lists,
        directly or in `celeba/`, one of these files, or a directory of data prepared by
        tensorflow-datasets.
      image_size: 64 or 32.
      split: `"train"`, `"validation"`, `"test"`, or `"all"` of them in this order.
      progress: Told how many photographs are done, and how many there are, while they are packed.
        All splits are packed at once.

    Returns:
      The source; photographs have the order of their numbers, or of the prepared records.

    Raises:
      DataError: Nothing is found, the data are damaged or not in the published format, the split
        is unknown or empty, or `image_size` is neither 64 nor 32.

    Example:
      >>> load(Path("no/such/directory"))  # doctest: +ELLIPSIS
      Traceback (most recent call last):
      vaejax.data.errors.DataError: no/such/directory: no genuine celeba found; ...
    """
    check_image_size(NAME, image_size)
    if split not in SPLITS:
        raise DataError(unknown_name("split", split, SPLITS))
    directory = find(root)
    arrays = _packed(directory, progress)
    rows = slice(None)
    if split != "all":
        number = SPLITS.index(split) - 1
        start, stop = np.searchsorted(arrays["partition"], (number, number + 1))
        if start == stop:
            raise DataError(f"{directory}: no images in split {split!r}")
        rows = slice(start, stop)
    return ArraySource(
        store(arrays["images"][rows]),
        jnp.asarray(arrays["labels"][rows], jnp.int32),
        FACTORS,
        NAME,
        "genuine",
        halved=image_size != CANVAS,
    )


def find(root: Path) -> Path:
    """Finds genuine CelebA: the directory of the published files or of prepared data.

    Raises:
      DataError: Nothing is found, or `root` is another file.
    """
    published = (celeba_files.ATTRIBUTE_LIST, f"{celeba_files.IMAGES}.zip")
    found = files.find(root, NAME, published, HOW_TO_GET, inside=[_PREPARED])
    if found.is_dir():
        return found
    if found.name not in (*published, celeba_files.PARTITION_LIST):
        raise DataError(f"{found}: not a file of CelebA; {HOW_TO_GET}")
    return found.parent


def _packed(directory: Path, progress: packing.Progress) -> Arrays:
    """Images, labels and partition of all photographs, ordered by split."""
    prepared = (directory / "dataset_info.json").is_file()
    sources = [directory] if prepared else _sources(directory)
    found = packing.kept(sources, NAME, ("images", "labels", "partition"))
    if found is not None and _layout_of(found) == _layout(len(found["partition"])):
        return found
    return (_pack_prepared if prepared else _pack_published)(directory, sources, progress)


def _layout(count: int) -> packing.Layout:
    """What is kept of so many photographs."""
    return {
        "images": ((count, *_ROW), np.uint8),
        "labels": ((count, len(ATTRIBUTES)), np.uint8),
        "partition": ((count,), np.uint8),
    }


def _layout_of(arrays: Arrays) -> packing.Layout:
    return {key: (array.shape, array.dtype.type) for key, array in arrays.items()}


def _sources(directory: Path) -> list[Path]:
    """The published files; of photographs that are not in a zip, changes go unnoticed."""
    lists = [directory / celeba_files.ATTRIBUTE_LIST, directory / celeba_files.PARTITION_LIST]
    archive = directory / f"{celeba_files.IMAGES}.zip"
    return [*lists, archive] if archive.is_file() else lists


def _pack_published(directory: Path, sources: Sequence[Path], progress: packing.Progress) -> Arrays:
    """Packs the published files."""
    labels = celeba_files.read_attributes(directory / celeba_files.ATTRIBUTE_LIST)
    partition = celeba_files.read_partition(directory / celeba_files.PARTITION_LIST, len(labels))
    with celeba_files.opened(directory, len(labels)) as read:

        def fill(arrays: Arrays) -> None:
            arrays["labels"][:] = labels
            arrays["partition"][:] = partition
            decode(read, arrays["images"], progress)

        return packing.packed(sources, NAME, _layout(len(labels)), fill)


def _pack_prepared(directory: Path, sources: Sequence[Path], progress: packing.Progress) -> Arrays:
    """Packs what tensorflow-datasets has prepared; Pillow decodes it as it does the zip."""
    with files.prepared(directory, "CelebA", {"image", "attributes"}, HOW_TO_GET) as builder:
        import tensorflow_datasets as tfds

        names = set(builder.info.features["attributes"])
        if names != set(ATTRIBUTES):
            odd = min(names ^ set(ATTRIBUTES))
            raise DataError(f"{directory}: not the 40 attributes of CelebA, compare {odd!r}")
        undecoded = {"image": tfds.decode.SkipDecoding()}
        splits = [builder.as_data_source(split=split, decoders=undecoded) for split in SPLITS[1:]]
        count = sum(map(len, splits))
        if not 0 < count <= sum(SPLIT_SIZES):
            raise DataError(f"{directory}: {count} records, but CelebA has {sum(SPLIT_SIZES)}")
        return packing.packed(
            sources,
            NAME,
            _layout(count),
            lambda arrays: read_records(directory, splits, arrays, progress),
        )


def read_records(
    directory: Path,
    splits: Sequence[Any],
    arrays: Arrays,
    progress: packing.Progress = packing.no_progress,
) -> None:
    """Reads all records of prepared data.

    Args:
      directory: Named in errors.
      splits: Data sources of tensorflow-datasets, whose images are not decoded.
      arrays: Written to: `images` `[N, 64, 64, 3]`, `labels` `[N, 40]` and `partition` `[N]`.
      progress: As for `load`.

    Raises:
      DataError: An image is damaged or of another size.
    """
    sizes = [len(records) for records in splits]
    starts = np.cumsum([0, *sizes[:-1]])
    arrays["partition"][:] = np.repeat(np.arange(len(splits)), sizes)

    def read(start: int, stop: int) -> list[Jpeg]:
        batch: list[Any] = []
        for records, first, size in zip(splits, starts, sizes, strict=True):
            rows = range(max(start - first, 0), min(stop - first, size))
            batch += records.__getitems__(list(rows))
        arrays["labels"][start:stop] = [
            [record["attributes"][name] for name in ATTRIBUTES] for record in batch
        ]
        return [
            Jpeg(directory / f"record {start + row}", record["image"])
            for row, record in enumerate(batch)
        ]

    decode(read, arrays["images"], progress)


def decode(read: Read, images: np.ndarray, progress: packing.Progress) -> None:
    """Decodes photographs in parallel, with the bytes of two chunks in memory at a time.

    Pillow decodes outside of Python's lock, so threads suffice.

    Args:
      read: Reads photographs `start` to `stop - 1`; called from this thread alone.
      images: Written to, `[N, 64, 64, 3]` uint8.
      progress: As for `load`.
    """
    for row, image in enumerate(_decoded(read, len(images))):
        images[row] = image
        if (row + 1) % _CHUNK == 0 or row + 1 == len(images):
            progress(row + 1, len(images))


def _decoded(read: Read, count: int) -> Iterator[np.ndarray]:
    """Photographs in their order; the next chunk is read while one is decoded."""
    with ThreadPoolExecutor() as pool:
        waiting: Iterator[np.ndarray] = iter(())
        for start in range(0, count, _CHUNK):
            encoded = read(start, min(start + _CHUNK, count))
            yield from waiting
            waiting = pool.map(celeba_files.face, encoded)
        yield from waiting
