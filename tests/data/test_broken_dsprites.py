"""Missing and broken files of dSprites: one clear line each, whatever is wrong with them."""

import io
import zipfile

import numpy as np
import pytest
from published_dsprites import (
    N,
    grid,
    members,
    pickled_npy,
    shuffled_grid,
    write_hdf5,
    write_npz,
)

from vaejax.data import DataError, source
from vaejax.data.genuine.dsprites import PUBLISHED


def test_missing_data_say_how_to_get_them(tmp_path):
    for root in (tmp_path, tmp_path / "none", tmp_path / "none.npz"):
        with pytest.raises(DataError) as caught:
            source("dsprites", root=root)
        message = str(caught.value)
        assert str(root) in message
        assert "\n" not in message
        for way in (PUBLISHED, "google-deepmind/dsprites-dataset", "tfds build", "source('dspri"):
            assert way in message


def broken(change):
    classes, images = shuffled_grid()
    return members(*change(classes.copy(), images.copy()))


def shift(classes, column, by):
    classes[:, column] += by
    return classes


BROKEN = {
    "an image is missing": (lambda c, i: (c, i[1:]), r"imgs is uint8 \[215, 64, 64\], but must"),
    "wide images": (lambda c, i: (c, np.repeat(i, 2, 2)), r"\[216, 64, 128\], but must be uint8"),
    "float images": (lambda c, i: (c, i.astype(np.float32)), "imgs is float32"),
    "signed images": (lambda c, i: (c, i.astype(np.int8)), "imgs is int8"),
    "pixels of 255": (lambda c, i: (c, i * 255), "a pixel is 255, but dSprites has only 0 and 1"),
    "float labels": (lambda c, i: (c.astype(float), i), "latents_classes is float64"),
    "five labels": (lambda c, i: (c[:, 1:], i), r"\[216, 5\], but must be integer \[N, 6\]"),
    "no rows": (lambda c, i: (c[:0], i[:0]), r"\[0, 6\], but must be"),
    "row missing": (lambda c, i: (c[1:], i[1:]), "1 missing and 0 repeated"),
    "row repeated": (lambda c, i: (np.r_[c, c[:1]], np.r_[i, i[:1]]), "0 missing and 1 repeated"),
    "class too high": (lambda c, i: (shift(c, 1, 1), i), "shape classes are 1 to 3"),
    "class negative": (lambda c, i: (shift(c, 5, -1), i), "y classes are -1 to 1"),
    "a second colour": (lambda c, i: (shift(c, 0, 1), i), "colour classes are 1 to 1"),
    "class 0 unused": (lambda c, i: (shift(c, 2, 1), i), "missing and 0 repeated"),
    "Fortran order": (lambda c, i: (c, np.asfortranarray(i)), "C-order bytes"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_wrong_contents_are_named(tmp_path, case):
    change, message = BROKEN[case]
    path = write_npz(tmp_path / "broken.npz", broken(change))
    with pytest.raises(DataError, match=message) as caught:
        source("dsprites", root=path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "case", ["an image is missing", "float images", "pixels of 255", "five labels", "row missing"]
)
def test_wrong_contents_of_hdf5_are_named(tmp_path, case):
    change, message = BROKEN[case]
    path = write_hdf5(tmp_path / "broken.hdf5", *change(*shuffled_grid()))
    with pytest.raises(DataError, match=message):
        source("dsprites", root=path)


def test_hdf5_without_its_datasets_or_cut_short_is_refused(tmp_path):
    h5py = pytest.importorskip("h5py")
    path = tmp_path / "empty.hdf5"
    with h5py.File(path, "w") as file:
        file.create_group("imgs")
    with pytest.raises(DataError, match="no dataset '/imgs'"):
        source("dsprites", root=path)
    whole = write_hdf5(tmp_path / "whole.hdf5", *shuffled_grid(), compression="gzip").read_bytes()
    for length in (0, 7, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(DataError, match="damaged or not hdf5 data"):
            source("dsprites", root=path)


@pytest.mark.parametrize("name", ["imgs", "latents_classes"])
def test_a_missing_member_is_named(tmp_path, name):
    rest = {key: data for key, data in members().items() if key != name}
    path = write_npz(tmp_path / "part.npz", rest)
    with pytest.raises(DataError, match=f"no member '{name}.npy'; the file holds 'metadata.npy'"):
        source("dsprites", root=path)


@pytest.mark.parametrize("name", ["imgs", "latents_classes"])
def test_pickled_members_are_refused(tmp_path, name):
    path = write_npz(tmp_path / "pickled.npz", members() | {name: pickled_npy()})
    with pytest.raises(DataError, match=f"{name} holds pickled Python objects"):
        source("dsprites", root=path)


def test_a_header_that_promises_more_than_the_file_holds_is_refused(tmp_path):
    buffer = io.BytesIO()
    header = {"descr": "<i8", "fortran_order": False, "shape": (737_280, 6)}
    np.lib.format.write_array_header_1_0(buffer, header)
    path = write_npz(tmp_path / "short.npz", members() | {"latents_classes": buffer.getvalue()})
    with pytest.raises(DataError, match="does not have the C-order bytes"):
        source("dsprites", root=path)


def test_other_files_are_refused(tmp_path):
    text = tmp_path / "dsprites.txt"
    text.write_text("no images")
    with pytest.raises(DataError, match=r"ends in \.npz or \.hdf5"):
        source("dsprites", root=text)
    named = tmp_path / "dsprites.npz"
    named.write_text("no images")
    with pytest.raises(DataError, match="damaged or not npz data"):
        source("dsprites", root=named)


def test_any_truncation_gives_a_data_error(npz):
    whole = npz.read_bytes()
    rng = np.random.default_rng(0)
    lengths = [0, 1, 4, 30, len(whole) - 22, len(whole) - 1, *rng.integers(0, len(whole), 30)]
    for length in lengths:
        npz.write_bytes(whole[:length])
        with pytest.raises(DataError):
            source("dsprites", root=npz)
    assert list(npz.parent.iterdir()) == [npz], "nothing is left behind"


@pytest.mark.parametrize("compression", [zipfile.ZIP_DEFLATED, zipfile.ZIP_STORED])
def test_flipped_bytes_give_a_data_error_or_the_right_images(tmp_path, compression):
    path = write_npz(tmp_path / "whole.npz", members(), compression)
    whole = np.frombuffer(path.read_bytes(), np.uint8)
    directory = whole.tobytes().index(b"PK\x01\x02")
    _, images = grid()
    rng = np.random.default_rng(0)
    # Half of the flips fall into the zip's directory, whose few bytes decide how all is read.
    places = [*rng.integers(0, len(whole), 100), *rng.integers(directory, len(whole), 100)]
    messages = []
    for flip, place in enumerate(places):
        flipped = whole.copy()
        flipped[place] ^= rng.integers(1, 256, dtype=np.uint8)
        path = tmp_path / f"{flip}.npz"  # another name, so that no copy is of it
        path.write_bytes(flipped.tobytes())
        try:
            data = source("dsprites", root=path)
        except DataError as error:
            messages.append(str(error))
            continue
        # Bytes that are never read, such as time stamps and `metadata`, may hold anything.
        np.testing.assert_array_equal(
            np.unpackbits(data.images.array, axis=1), images.reshape(N, -1)
        )
    assert len(messages) > 50
    assert not any("\n" in message for message in messages)
