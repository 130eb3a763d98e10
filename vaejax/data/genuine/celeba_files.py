"""The published files of CelebA (Liu et al. 2015): two lists, and photographs in a zip.

A zip has a checksum of every photograph. Nothing protects the lists, or photographs that were
unzipped: what is checked of a list is its form (names, counts, and which values there are), so that
a value that was changed into another valid one goes unnoticed.
"""

from __future__ import annotations

import contextlib
import io
import zipfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from vaejax.data.errors import DataError
from vaejax.data.genuine import files
from vaejax.data.sizes import CANVAS

_ATTRIBUTES = (
    "5_o_Clock_Shadow Arched_Eyebrows Attractive Bags_Under_Eyes Bald Bangs Big_Lips Big_Nose "
    "Black_Hair Blond_Hair Blurry Brown_Hair Bushy_Eyebrows Chubby Double_Chin Eyeglasses "
    "Goatee Gray_Hair Heavy_Makeup High_Cheekbones Male Mouth_Slightly_Open Mustache "
    "Narrow_Eyes No_Beard Oval_Face Pale_Skin Pointy_Nose Receding_Hairline Rosy_Cheeks "
    "Sideburns Smiling Straight_Hair Wavy_Hair Wearing_Earrings Wearing_Hat Wearing_Lipstick "
    "Wearing_Necklace Wearing_Necktie Young"
)
ATTRIBUTES = tuple(_ATTRIBUTES.split())
"""The 40 attributes in the published order."""

SPLIT_SIZES = (162_770, 19_867, 19_962)
"""Photographs for training, validation and testing."""

IMAGES = "img_align_celeba"
"""Name of the published zip, before `.zip`, and of the directory in it."""

ATTRIBUTE_LIST = "list_attr_celeba.txt"
PARTITION_LIST = "list_eval_partition.txt"

HOW_TO_GET = (
    f"get {IMAGES}.zip, {ATTRIBUTE_LIST} and {PARTITION_LIST} from the CelebA page of the "
    "Multimedia Laboratory, CUHK, or run `tfds build celeb_a --file_format=array_record`, or use "
    "the look-alike: source('celeba')"
)

_SIZE = (178, 218)  # width and height of a published photograph
_BOX = (19, 39, 159, 179)  # the 140x140 at its centre
_MOST_BYTES = 1 << 20  # of a JPEG; without compression a photograph is 116 kB


class Jpeg(NamedTuple):
    """An encoded photograph.

    Attributes:
      name: Named in errors.
      data: The bytes of the file.
    """

    name: Path
    data: bytes


def face(jpeg: Jpeg) -> np.ndarray:
    """Decodes the 140x140 at the centre of a photograph at 64x64: `[64, 64, 3]` uint8.

    The crop and the filter, Pillow's Lanczos, are those of the code of Wasserstein auto-encoders
    (Tolstikhin et al. 2018).

    Raises:
      DataError: It is damaged, no JPEG, or not of the published size.
    """
    with files.reading(jpeg.name, "JPEG", HOW_TO_GET):
        from PIL import Image

        # The header is read first, and nothing is decoded of a picture that claims to be huge.
        with Image.open(io.BytesIO(jpeg.data), formats=("JPEG",)) as image:
            if image.size != _SIZE:
                found = "x".join(map(str, image.size))
                raise DataError(f"{jpeg.name}: {found} pixels, but CelebA has 178x218")
            crop = image.convert("RGB").crop(_BOX)
            return np.asarray(crop.resize((CANVAS, CANVAS), Image.Resampling.LANCZOS))


def read_attributes(path: Path) -> np.ndarray:
    """The attributes of photographs 1 to N, `[N, 40]` uint8: 1 where the list has 1, 0 for -1.

    Raises:
      DataError: The list is missing or has another form.
    """
    with files.reading(path, "CelebA", HOW_TO_GET):
        count, headings, *rows = path.read_text("ascii").rstrip().split("\n")
        if not count.strip().isdigit() or int(count) != len(rows):
            raise DataError(f"{path}: says {count.strip()[:20]!r} images, but lists {len(rows)}")
        if tuple(headings.split()) != ATTRIBUTES:
            raise DataError(f"{path}: the headings are not the 40 attributes of CelebA")
        if not 0 < len(rows) <= sum(SPLIT_SIZES):
            raise DataError(f"{path}: {len(rows)} images, but CelebA has {sum(SPLIT_SIZES)}")
        values = _values(path, rows, len(ATTRIBUTES), ("-1", "1"))
    return np.array(values, np.uint8).reshape(len(rows), len(ATTRIBUTES))


def read_partition(path: Path, count: int) -> np.ndarray:
    """Which split photographs 1 to N belong to, `[N]` uint8 and ascending: 0, 1 or 2.

    Args:
      path: The partition list.
      count: N, which it must have.

    Raises:
      DataError: The list is missing or has another form or length.
    """
    with files.reading(path, "CelebA", HOW_TO_GET):
        rows = path.read_text("ascii").rstrip().split("\n")
        if len(rows) != count:
            raise DataError(f"{path}: lists {len(rows)} images, but {ATTRIBUTE_LIST} has {count}")
        partition = np.array(_values(path, rows, 1, ("0", "1", "2")), np.uint8).reshape(count)
    sizes = tuple(np.bincount(partition, minlength=3).tolist())
    if (np.diff(partition.astype(int)) < 0).any() or (
        count == sum(SPLIT_SIZES) and sizes != SPLIT_SIZES
    ):
        raise DataError(
            f"{path}: splits of {sizes} images, but CelebA has {SPLIT_SIZES}, one after the other"
        )
    return partition


def _values(path: Path, rows: Sequence[str], count: int, known: Sequence[str]) -> list[list[int]]:
    """The values of rows `000001.jpg value ...`, as indices in `known`."""
    index = {value: position for position, value in enumerate(known)}
    values = []
    for number, row in enumerate(rows, 1):
        name, *texts = row.split()
        if name != _name(number) or len(texts) != count or not index.keys() >= set(texts):
            raise DataError(
                f"{path}: row {number} is {row[:40]!r}, but must be '{_name(number)}' and "
                f"{count} of {', '.join(known)}"
            )
        values.append([index[text] for text in texts])
    return values


def _name(number: int) -> str:
    """File name of a photograph."""
    return f"{number:06d}.jpg"


@contextlib.contextmanager
def opened(directory: Path, count: int) -> Iterator[Callable[[int, int], list[Jpeg]]]:
    """Opens photographs 1 to N: a function that reads those at indices `start` to `stop - 1`.

    They are read from the zip, or if there is none from the directory that it unzips to. Nothing is
    ever extracted.

    Args:
      directory: Where the zip or the unzipped directory is.
      count: N; the zip must hold these and nothing else.

    Raises:
      DataError: A photograph is missing, or the zip is damaged or holds something else.
    """
    archive_path = directory / f"{IMAGES}.zip"
    if not archive_path.is_file() and (directory / IMAGES).is_dir():
        yield lambda start, stop: [
            _from_directory(directory / IMAGES / _name(index + 1)) for index in range(start, stop)
        ]
        return
    with files.reading(archive_path, "zip", HOW_TO_GET), zipfile.ZipFile(archive_path) as archive:
        _check_members(archive_path, archive, count)
        yield lambda start, stop: [
            _from_archive(archive_path, archive, f"{IMAGES}/{_name(index + 1)}")
            for index in range(start, stop)
        ]


def _check_members(path: Path, archive: zipfile.ZipFile, count: int) -> None:
    """Refuses a zip that does not hold each photograph once, and nothing else."""
    names = [info.filename for info in archive.infolist() if info.filename != f"{IMAGES}/"]
    wanted = {f"{IMAGES}/{_name(number)}" for number in range(1, count + 1)}
    strange = next((name for name in names if name not in wanted), None)
    if strange is not None:
        raise DataError(
            f"{path}: member {strange[:80]!r} is none of {IMAGES}/{_name(1)} to {_name(count)}"
        )
    if len(names) != count:
        absent = sorted(wanted - set(names)) or ["none"]
        raise DataError(f"{path}: {len(names)} members for {count} images; missing: {absent[0]}")


def _from_archive(path: Path, archive: zipfile.ZipFile, member: str) -> Jpeg:
    size = archive.getinfo(member).file_size
    with files.reading(path / member, "zip", HOW_TO_GET):
        _check_size(path / member, size)
        return Jpeg(path / member, archive.read(member))


def _from_directory(path: Path) -> Jpeg:
    with files.reading(path, "JPEG", HOW_TO_GET):
        _check_size(path, path.stat().st_size)
        return Jpeg(path, path.read_bytes())


def _check_size(path: Path, size: int) -> None:
    """Refuses a file that would be huge in memory before it is read."""
    if size > _MOST_BYTES:
        raise DataError(f"{path}: {size} bytes, but a photograph of CelebA is under {_MOST_BYTES}")
