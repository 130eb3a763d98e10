"""The output directory: one configuration, one process at a time."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Iterator
from typing import Any

import jax
from etils import epath
from rich.console import Console

from experiments import files
from experiments.cli import UsageError

_OURS = ("config.json", "results.csv", "summary.csv", "readouts", "runs")


def console() -> Console:
    """Where progress and tables go; wide where nobody's terminal sets the width."""
    return Console(width=None if sys.stdout.isatty() else 100, highlight=False)


def set_up_compiler(*, optimize: bool = True) -> None:
    """Keeps compiled programs on disk, so that a sweep that goes on need not compile again.

    Args:
      optimize: Whether XLA optimises what it compiles.
    """
    jax.config.update("jax_disable_most_optimizations", not optimize)
    # By default only what takes a second to compile is kept, and there are hundreds that take less.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        cache = epath.Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser()
        jax.config.update("jax_compilation_cache_dir", str(cache / "vaejax" / "xla"))


@contextlib.contextmanager
def claim(directory: epath.Path, config: dict[str, Any], *, fresh: bool) -> Iterator[None]:
    """Holds the directory for one configuration.

    Args:
      directory: The output directory; created if it does not exist.
      config: What its results depend on, as JSON can hold it.
      fresh: Delete earlier results first.

    Raises:
      UsageError: If it cannot be made, if another process uses it, or if it holds the results of
        another configuration.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"cannot use {directory} as output directory: {error.strerror}") from error
    with _lock(directory):
        if fresh:
            for name in _OURS:
                path = directory / name
                if path.is_dir():
                    path.rmtree()
                else:
                    path.unlink(missing_ok=True)
        path = directory / "config.json"
        config = json.loads(json.dumps(config))  # tuples become lists, as in the file
        if not path.exists():
            files.write_json(path, config)
        _check_same(directory, json.loads(path.read_text()), config)
        yield


@contextlib.contextmanager
def _lock(directory: epath.Path) -> Iterator[None]:
    # The kernel lets go of the lock however the process ends. Only local POSIX directories have it.
    try:
        import fcntl

        handle = os.open(directory / ".lock", os.O_CREAT | os.O_RDWR)
    except (ImportError, OSError):
        yield
        return
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UsageError(f"another process is working in {directory}") from None
        yield
    finally:
        os.close(handle)


def _check_same(directory: epath.Path, there: dict[str, Any], now: dict[str, Any]) -> None:
    changed = [name for name in {**there, **now} if there.get(name) != now.get(name)]
    if changed:
        what = "; ".join(f"{name} was {there.get(name)}, is {now.get(name)}" for name in changed)
        raise UsageError(
            f"{directory} holds another configuration ({what}): "
            "take another --out, or --fresh to delete its results"
        )
