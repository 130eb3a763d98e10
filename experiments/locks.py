"""Locks, for processes that share an output directory.

They are the kernel's (`flock`), which lets go of them however a process ends. Buckets have none,
nor do some network filesystems: there everything is free, and `--shard` keeps processes apart.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

from etils import epath

from experiments import files


@contextlib.contextmanager
def hold(
    directory: epath.Path, name: str, *, shared: bool = False, wait: bool = False
) -> Iterator[bool]:
    """Holds a lock of a directory for as long as the context lasts.

    A second `hold` of the same name is another holder, in the same process too.

    Args:
      directory: The output directory.
      name: Names the lock. Its file stays, as deleting it would part those who have it open from
        those who come later.
      shared: Whether others may hold it at the same time, if they share it as well.
      wait: Whether to wait for it.

    Yields:
      Whether it is held: False if it is somebody else's, which it cannot be after waiting.

    Example:
      >>> import tempfile
      >>> with tempfile.TemporaryDirectory() as path:
      ...     directory = epath.Path(path)
      ...     with hold(directory, "a") as first, hold(directory, "a") as second:
      ...         print(first, second)
      True False
    """
    handle = _open(directory, name)
    if handle is None:
        yield True
        return
    try:
        yield _lock(handle, shared, wait)
    finally:
        os.close(handle)


def _open(directory: epath.Path, name: str) -> int | None:
    """The file of a lock, None where there are no locks."""
    if files.in_bucket(directory):
        return None
    path = directory / ".locks" / name
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return os.open(path, os.O_CREAT | os.O_RDWR, 0o666)
    except OSError:
        return None


def _lock(handle: int, shared: bool, wait: bool) -> bool:
    try:
        import fcntl
    except ImportError:
        return True
    try:
        how = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
        fcntl.flock(handle, how if wait else how | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a filesystem without locks
        return True
    return True
