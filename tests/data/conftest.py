"""Tiny genuine datasets."""

import pytest
from published_dsprites import grid, members, prepare, write_npz

from vaejax.data.genuine.dsprites import CACHE_NAME, PUBLISHED


@pytest.fixture
def npz(tmp_path):
    return write_npz(tmp_path / f"{PUBLISHED}.npz", members())


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    root = tmp_path_factory.mktemp("tfds")
    prepare(root, *grid())
    return root


@pytest.fixture
def uncached(prepared):
    """The prepared data's root and version directory, without a cache before and after."""
    cache = prepared / "dsprites" / "2.0.0" / CACHE_NAME
    cache.unlink(missing_ok=True)
    yield prepared, cache
    cache.unlink(missing_ok=True)
