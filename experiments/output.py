"""The output directory: of one configuration, shared by any number of processes."""

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

from experiments import files, locks
from experiments.cli import UsageError
from experiments.presets import PAPER, Preset
from vaejax import devices

_OURS = ("config.json", "results.csv", "summary.csv", "readouts", "runs")


def console(*, quiet: bool = False) -> Console:
    """Where progress and tables go; wide where nobody's terminal sets the width."""
    return Console(width=None if sys.stdout.isatty() else 100, highlight=False, quiet=quiet)


def set_up_compiler(preset: Preset = PAPER) -> None:
    """Keeps compiled programs on disk, so that a sweep that goes on need not compile again.

    Args:
      preset: Says how much XLA optimises, and the precision of matrix products.
    """
    jax.config.update("jax_disable_most_optimizations", not preset.optimize)
    # JAX's own default is the quickest, which is not float32 on TPUs and newer GPUs.
    jax.config.update("jax_default_matmul_precision", preset.precision)
    # By default only what takes a second to compile is kept, and there are hundreds that take less.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        cache = epath.Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser()
        jax.config.update("jax_compilation_cache_dir", str(cache / "vaejax" / "xla"))


def on_all_devices() -> contextlib.AbstractContextManager[None]:
    """Within it, analyses are divided over all devices of this process."""
    return devices.use(devices.mesh(jax.local_device_count(), 1, jax.local_devices()))


@contextlib.contextmanager
def claim(directory: epath.Path, config: dict[str, Any], *, fresh: bool) -> Iterator[None]:
    """Holds the directory for one configuration, with any other process that has the same.

    Args:
      directory: The output directory; created if it does not exist.
      config: What its results depend on, as JSON can hold it.
      fresh: Delete earlier results first.

    Raises:
      UsageError: If it cannot be made, if it holds the results of another configuration, or if they
        are to be deleted while another process works on them.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _unusable(directory, error.strerror or str(error)) from error
    except (ImportError, NotImplementedError, ValueError) as error:  # a bucket without its reader
        raise _unusable(directory, str(error)) from error
    if fresh:
        with locks.hold(directory, "directory") as alone:
            if not alone:
                raise UsageError(
                    f"another process is working in {directory}: --fresh would delete its results"
                )
            _empty(directory)
    with locks.hold(directory, "directory", shared=True, wait=True):
        # One at a time, or each of two that start together would find its own configuration.
        with locks.hold(directory, "configuration", wait=True):
            path = directory / "config.json"
            config = json.loads(json.dumps(config))  # tuples become lists, as in the file
            if not path.exists():
                files.write_json(path, config)
            _check_same(directory, json.loads(path.read_text()), config)
        yield


def _unusable(directory: epath.Path, why: str) -> UsageError:
    line = " ".join(why.split())
    return UsageError(f"cannot use {directory} as output directory: {line}")


def _empty(directory: epath.Path) -> None:
    for path in directory.iterdir():
        if path.name not in _OURS and not path.name.endswith(files.PARTIAL):
            continue
        if path.is_dir():
            path.rmtree()
        else:
            path.unlink(missing_ok=True)


def _check_same(directory: epath.Path, there: dict[str, Any], now: dict[str, Any]) -> None:
    changed = [name for name in {**there, **now} if there.get(name) != now.get(name)]
    if changed:
        what = "; ".join(f"{name} was {there.get(name)}, is {now.get(name)}" for name in changed)
        raise UsageError(
            f"{directory} holds another configuration ({what}): "
            "take another --out, or --fresh to delete its results"
        )
