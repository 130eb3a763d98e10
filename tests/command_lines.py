"""What tests of command lines and processes share: running one here, reading what it left."""

import contextlib
import csv
import importlib
import io
import socket
from pathlib import Path
from typing import NamedTuple

import jax
import pytest

ROOT = Path(__file__).parents[1]


class Done(NamedTuple):
    """How a command ended."""

    returncode: int
    stdout: str
    stderr: str


def run(module, *arguments):
    """Runs a command in this process, which has its programs in memory."""
    stdout, stderr = io.StringIO(), io.StringIO()
    with (
        contextlib.redirect_stdout(stdout),
        contextlib.redirect_stderr(stderr),
        pytest.raises(SystemExit) as stop,
    ):
        importlib.import_module(f"experiments.{module}").main(list(map(str, arguments)))
    return Done(stop.value.code, stdout.getvalue(), stderr.getvalue())


@contextlib.contextmanager
def compiling_as(environment):
    """This process compiles as commands do in an environment, and shares their programs."""
    config = jax.config
    before = {
        "jax_compilation_cache_dir": config.jax_compilation_cache_dir,
        "jax_disable_most_optimizations": config.read("jax_disable_most_optimizations"),
        "jax_default_matmul_precision": config.jax_default_matmul_precision,
        "jax_persistent_cache_min_compile_time_secs": (
            config.jax_persistent_cache_min_compile_time_secs
        ),
    }
    jax.config.update("jax_compilation_cache_dir", environment["JAX_COMPILATION_CACHE_DIR"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAX_COMPILATION_CACHE_DIR", environment["JAX_COMPILATION_CACHE_DIR"])
        yield
    for name, value in before.items():
        jax.config.update(name, value)


def free_port():
    """A port of this machine that nothing listens on."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


def rows_of(path):
    with path.open() as file:
        return list(csv.DictReader(file))


def table(out):
    """The rows of `results.csv` without the timing column, byte for byte."""
    lines = (out / "results.csv").read_text().splitlines()
    assert lines[0].endswith(",train_seconds")
    return [line.rpartition(",")[0] for line in lines]
