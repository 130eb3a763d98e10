"""What the tests of all packages share."""

import jax
import pytest


@pytest.fixture
def quick_compilation():
    """XLA at its lowest level of optimisation, where nothing depends on how programs are fused.

    The programs of these tests run once, for less time than it takes to compile them.
    """
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", before)
