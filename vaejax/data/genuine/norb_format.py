"""The binary matrix files of NORB (Huang and LeCun 2005), gzipped as published or not.

Everything is little-endian: int32 magic number, which says the dtype; int32 number of dimensions;
at least three int32 dimensions, of which those that an array lacks are padding and not looked at;
then the elements in C order.
"""

from __future__ import annotations

import contextlib
import gzip
import math
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import IO, NamedTuple, cast

import numpy as np

from vaejax.data.errors import DataError
from vaejax.data.genuine import files

_DTYPES: dict[int, np.dtype] = {0x1E3D4C55: np.dtype("u1"), 0x1E3D4C54: np.dtype("<i4")}
_MOST_DIMENSIONS = 4  # of any file of SmallNORB


class Matrix(NamedTuple):
    """A matrix file that is open at its first row.

    Attributes:
      path: Named in errors.
      stream: Where the next row is read.
      shape: `(rows, *row)`.
      dtype: Of the elements.
      end: Where in the stream the last row ends, in bytes.
    """

    path: Path
    stream: IO[bytes]
    shape: tuple[int, ...]
    dtype: np.dtype
    end: int

    def read(self, count: int) -> np.ndarray:
        """The next rows, `[count, *row]`.

        The last rows are only given if the file ends with them and, being gzipped, has the
        checksum that it says. Nothing checks the elements of a file that is not gzipped.

        Raises:
          DataError: The file ends before, or goes on after the last row.
        """
        row = self.shape[1:]
        size = count * math.prod(row) * self.dtype.itemsize
        data = files.exactly(self.path, self.stream, size)
        if self.stream.tell() == self.end and self.stream.read(1):
            raise DataError(
                f"{self.path}: longer than the {list(self.shape)} elements that it says it has"
            )
        return np.frombuffer(data, self.dtype).reshape(count, *row)


@contextlib.contextmanager
def opened(
    path: Path, kind: type[np.generic], row: tuple[int, ...], most: int, how_to_get: str
) -> Iterator[Matrix]:
    """Opens a matrix.

    Args:
      path: A file that ends in `.gz` if it is gzipped.
      kind: The dtype that it must have.
      row: The shape that its rows must have.
      most: How many rows it may have.
      how_to_get: What the error says if there is no such file.

    Raises:
      DataError: The file is missing, damaged or of another kind, here or while it is read.
    """
    with files.reading(path, "NORB", how_to_get), _bytes(path) as stream:
        magic, dimensions = struct.unpack("<2i", files.exactly(path, stream, 8))
        if magic not in _DTYPES or not 1 <= dimensions <= _MOST_DIMENSIONS:
            raise DataError(
                f"{path}: not a NORB matrix, for it starts with {magic % 2**32:#010x} and "
                f"{dimensions} dimensions"
            )
        padded = max(3, dimensions)
        shape = struct.unpack(f"<{padded}i", files.exactly(path, stream, 4 * padded))[:dimensions]
        dtype = _DTYPES[magic]
        files.check_array(path, "the matrix", shape, dtype, kind, ("N", *row), most)
        end = stream.tell() + math.prod(shape) * dtype.itemsize
        yield Matrix(path, stream, shape, dtype, end)


def _bytes(path: Path) -> IO[bytes]:
    """The file's bytes, unpacked."""
    return cast(IO[bytes], gzip.open(path)) if path.suffix == ".gz" else path.open("rb")
