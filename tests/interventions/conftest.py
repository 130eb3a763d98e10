"""A network for the tests of the transform."""

import jax
import pytest
from linen_modules import Chain, X


@pytest.fixture(scope="session")
def chain():
    return Chain()


@pytest.fixture(scope="session")
def x():
    return X


@pytest.fixture(scope="session")
def variables(chain, x):
    return jax.jit(chain.init)(jax.random.key(0), x)
