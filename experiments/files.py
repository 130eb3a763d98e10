"""Files that are either whole or not there."""

from __future__ import annotations

import csv
import io
import json
import os
import uuid
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath

PARTIAL = ".partial"
"""How the names of files end that are being written, or that an interruption has left so."""


def in_bucket(path: epath.Path) -> bool:
    """Whether a path is that of an object in a bucket, and not of a file.

    Example:
      >>> in_bucket(epath.Path("s3://bucket/out")), in_bucket(epath.Path("/out"))
      (True, False)
    """
    return "://" in os.fspath(path)


def absolute(path: epath.Path) -> epath.Path:
    """The path from wherever it is looked at; one in a bucket is that already.

    Example:
      >>> absolute(epath.Path("s3://bucket/out"))
      PosixGPath('s3://bucket/out')
    """
    # epath's own takes s3://bucket for a directory of that name, under the current one.
    return path if in_bucket(path) else path.absolute()


def write_bytes(path: epath.Path, content: bytes) -> None:
    """Writes a file such that an interruption leaves the old one.

    Several processes, of any host, may write the same file, which is the last one's then.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    if in_bucket(path):
        path.write_bytes(content)  # an object is there when all of it is
        return
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex}{PARTIAL}")
    try:
        partial.write_bytes(content)
        partial.replace(path)
    except OSError:
        partial.unlink(missing_ok=True)
        raise


def write_json(path: epath.Path, value: Any) -> None:
    """Writes a value as indented JSON."""
    write_bytes(path, (json.dumps(value, indent=2) + "\n").encode())


def write_csv(path: epath.Path, columns: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> None:
    """Writes a table; None becomes an empty field, floats keep every digit."""
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_bytes(path, text.getvalue().encode())


def read_csv(path: epath.Path) -> list[dict[str, str]]:
    """The rows of a table, all fields as text; none if there is no such file."""
    if not path.exists():
        return []
    return list(csv.DictReader(io.StringIO(path.read_text(), newline="")))


def write_npz(path: epath.Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Writes named arrays."""
    content = io.BytesIO()
    np.savez_compressed(content, **arrays)  # type: ignore[arg-type]
    write_bytes(path, content.getvalue())
