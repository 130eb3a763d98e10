"""The packed copy beside published data: when it is used or made anew, and what stays behind."""

import errno
import logging
import os
import shutil

import numpy as np
import pytest
from published_dsprites import (
    SIZES,
    N,
    assert_holds_the_grid,
    grid,
    members,
    pickled_npy,
    write_npz,
)

from vaejax.data import DataError
from vaejax.data.genuine import dsprites, packing

LAYOUT = {"rows": ((4, 2), np.uint8), "labels": ((4,), np.int32)}


class Fill:
    """Fills the layout and counts how often."""

    times = 0

    def __call__(self, arrays):
        self.times += 1
        arrays["rows"][...] = np.arange(8).reshape(4, 2)
        arrays["labels"][...] = [3, 1, 2, 0]


@pytest.fixture
def published(tmp_path):
    path = tmp_path / "published.bin"
    path.write_bytes(b"pixels")
    return path


@pytest.fixture
def fill():
    return Fill()


def pack(path, fill, layout=LAYOUT):
    arrays = packing.packed([path], "tiny", layout, fill)
    np.testing.assert_array_equal(arrays["rows"], np.arange(8).reshape(4, 2))
    np.testing.assert_array_equal(arrays["labels"], [3, 1, 2, 0])
    return arrays


def test_it_is_made_once_and_mapped_read_only(published, fill):
    for _ in range(2):
        arrays = pack(published, fill)
        assert fill.times == 1
        for array in arrays.values():
            assert isinstance(array, np.memmap)
            with pytest.raises(ValueError, match="read-only"):
                array[0] = 0
    assert sorted(path.name for path in published.parent.iterdir()) == [
        "published.bin",
        "vaejax_tiny_v1",
    ]


def test_it_goes_inside_a_prepared_directory_and_moves_with_it(tmp_path, fill):
    directory = tmp_path / "2.0.0"
    directory.mkdir()
    (directory / "dataset_info.json").write_text("{}")
    pack(directory, fill)
    assert (directory / "vaejax_tiny_v1").is_dir()
    shutil.move(directory, tmp_path / "elsewhere" / "2.0.0")
    pack(tmp_path / "elsewhere" / "2.0.0", fill)
    assert fill.times == 1
    (tmp_path / "elsewhere" / "2.0.0" / "dataset_info.json").write_text('{"version": "2.0.0"}')
    pack(tmp_path / "elsewhere" / "2.0.0", fill)
    assert fill.times == 2, "the data were prepared anew"


def test_another_source_is_packed_anew_even_if_it_is_older(published, fill):
    pack(published, fill)
    os.utime(published, (1, 1))
    pack(published, fill)
    assert fill.times == 2
    published.write_bytes(b"more pixels")
    os.utime(published, (1, 1))
    pack(published, fill)
    assert fill.times == 3
    pack(published.rename(published.with_name("other.bin")), fill)
    assert fill.times == 4


def test_another_layout_is_packed_anew(published, fill):
    pack(published, fill)
    pack(published, fill, LAYOUT | {"labels": ((4,), np.int64)})
    assert fill.times == 2


def test_whatever_fill_raises_leaves_nothing_behind(published):
    for error in (DataError("damaged"), OSError("unreadable"), KeyboardInterrupt()):
        times = 0

        def fail(arrays, error=error):
            nonlocal times
            times += 1
            arrays["rows"][...] = 1
            raise error

        with pytest.raises(type(error)):
            packing.packed([published], "tiny", LAYOUT, fail)
        assert times == 1, "what cannot be read is not tried again in memory"
        assert list(published.parent.iterdir()) == [published]


def refuse(*_):
    raise OSError(errno.ENOSPC, "no space left")


@pytest.mark.parametrize("call", ["mkdir", "posix_fallocate", "replace"])
def test_without_room_it_is_packed_in_memory_and_says_so(
    published, fill, call, monkeypatch, caplog
):
    if not hasattr(os, call):
        pytest.skip(f"this system has no {call}")
    monkeypatch.setattr(os, call, refuse)
    with caplog.at_level(logging.WARNING):
        for times in (1, 2):
            pack(published, fill)
            assert fill.times == times
    assert "not kept" in caplog.text
    assert "no space left" in caplog.text
    assert list(published.parent.iterdir()) == [published]


def test_a_copy_that_was_cut_off_does_not_prevent_the_next(published, fill):
    killed = published.parent / f".vaejax_tiny_v1.{os.getpid()}"
    killed.mkdir()
    (killed / "rows.npy").write_bytes(b"half")
    pack(published, fill)
    pack(published, fill)
    assert fill.times == 1
    assert not killed.exists()


SPOILT = {
    "flat": lambda: np.zeros((N, 512), np.uint8),
    "another dtype": lambda: np.zeros((*SIZES, 512), np.int16),
    "more shapes than there are": lambda: np.zeros((4, *SIZES[1:], 512), np.uint8),
    "no rows": lambda: np.zeros((0, *SIZES[1:], 512), np.uint8),
}


@pytest.fixture(scope="module")
def packed_npz(tmp_path_factory):
    path = write_npz(tmp_path_factory.mktemp("npz") / "any.npz", members())
    assert_holds_the_grid(dsprites.load(path))
    return path, path.parent / "vaejax_dsprites_v1" / "images.npy"


@pytest.mark.parametrize("case", [*SPOILT, "cut short", "empty", "pickle", "absent"])
def test_a_bad_copy_is_replaced(packed_npz, case):
    path, images = packed_npz
    whole = images.read_bytes()
    if case in SPOILT:
        np.save(images, SPOILT[case]())
    elif case == "absent":
        images.unlink()
    else:
        spoilt = {"cut short": whole[:-1], "empty": b"", "pickle": pickled_npy()}
        images.write_bytes(spoilt[case])
    np.testing.assert_array_equal(
        np.unpackbits(dsprites.load(path).images.array, axis=1), grid()[1].reshape(N, -1)
    )
    assert images.read_bytes() == whole
