"""Tiny genuine datasets."""

import shutil

import pytest
from published_dsprites import grid, members, prepare, write_npz

from vaejax.data.genuine.dsprites import PUBLISHED


@pytest.fixture
def npz(tmp_path):
    return write_npz(tmp_path / f"{PUBLISHED}.npz", members())


@pytest.fixture(scope="session")
def prepared(tmp_path_factory):
    root = tmp_path_factory.mktemp("tfds")
    prepare(root, *grid())
    return root


@pytest.fixture
def unpacked(prepared):
    """The prepared data's root and where their packed copy goes, absent before and after."""
    copy = prepared / "dsprites" / "2.0.0" / "vaejax_dsprites_v1"
    shutil.rmtree(copy, ignore_errors=True)
    yield prepared, copy
    shutil.rmtree(copy, ignore_errors=True)
