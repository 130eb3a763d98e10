"""What all tests share, doctests included."""

import contextlib
import gc
import os

# XLA compiles small programs in half the time without them, and most tests compile and run once.
# Read when JAX first looks for devices; commands that tests start inherit it.
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_cpu_use_fusion_emitters=false"

import jax
import pytest


@pytest.fixture
def quick_compilation():
    """XLA at its lowest level of optimisation, where nothing depends on how programs are fused.

    The programs of these tests run once, for less time than it takes to compile them.
    """
    with _quick_compilation():
        yield


@pytest.fixture(scope="module")
def quickly():
    """The same as a context manager, for fixtures of a whole module."""
    return _quick_compilation


@pytest.fixture(autouse=True)
def _doctests_compile_quickly(request):
    with (
        _quick_compilation()
        if isinstance(request.node, pytest.DoctestItem)
        else contextlib.nullcontext()
    ):
        yield


@contextlib.contextmanager
def _quick_compilation():
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


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
def _looked_through_once():
    """What modules leave in JAX's caches is not looked through at each collection of garbage."""
    yield
    gc.freeze()
