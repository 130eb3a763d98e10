"""What all tests share, doctests included."""

import gc
import os
import pathlib

# The programs of tests run once, for less time than it takes to compile them with optimisations.
# Read when JAX is imported and first looks for devices; commands that tests start inherit both.
os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_cpu_use_fusion_emitters=false"

import jax
import pytest


@pytest.fixture
def optimized():
    """Programs are compiled as they are outside of tests."""
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", True)


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    """Compiled programs are kept between the commands of a module, and nowhere else."""
    cache = tmp_path_factory.mktemp("cache")
    return {**os.environ, "JAX_COMPILATION_CACHE_DIR": str(cache)}


@pytest.fixture(scope="module")
def same_compiler(environment):
    """Commands that run in this process share the programs of those that have one of their own."""
    from command_lines import compiling_as

    with compiling_as(environment):
        yield


@pytest.fixture(autouse=True, scope="module")
def _left_behind():
    """What modules leave in JAX's caches is dropped in time, and not looked through until then.

    A process may have only so many pieces of memory (65,530 on Linux), of which each program takes
    dozens; one that asks for more crashes.
    """
    yield
    maps = pathlib.Path("/proc/self/maps")
    if maps.exists() and maps.read_bytes().count(b"\n") > 20_000:
        jax.clear_caches()
        gc.unfreeze()
        gc.collect()
    gc.freeze()
