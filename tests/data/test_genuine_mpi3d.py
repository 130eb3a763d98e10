"""The readers of the published MPI3D, on tiny files written in the published formats."""

import json
import math
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from published_dsprites import npy_bytes, pickled_npy, write_npz
from published_grids import MPI3D, assert_holds, flips, grid

from vaejax.data import DataError
from vaejax.data.genuine import mpi3d
from vaejax.data.storage import OnHost

N = math.prod(MPI3D)
STORED, DEFLATED = zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
    monkeypatch.setattr(mpi3d, "GRIDS", (*mpi3d.GRIDS, MPI3D))


@pytest.fixture(scope="module")
def images():
    return grid(MPI3D)[1]


def write(path, images, compression=STORED):
    path.parent.mkdir(parents=True, exist_ok=True)
    return write_npz(path, {"images": npy_bytes(images)}, compression)


def test_how_many_rows_say_how_many_classes():
    published = mpi3d.GRIDS[:-1]
    assert [math.prod(sizes) for sizes in published] == [1_036_800, 460_800]
    assert published[0] == tuple(factor.size for factor in mpi3d.FACTORS)
    assert published[1] == (4, 4, *published[0][2:])


def test_fewer_rows_have_the_same_factors_with_fewer_classes(tmp_path, images, monkeypatch):
    monkeypatch.setattr(mpi3d, "GRIDS", (MPI3D, (1, 2, *MPI3D[2:])))
    data = mpi3d.load(write(tmp_path / "mpi3d_toy.npz", images[: N // 2]))
    assert [factor.size for factor in data.factors] == [1, 2, *MPI3D[2:]]
    for factor, published in zip(data.factors, mpi3d.FACTORS, strict=True):
        assert (factor.name, factor.categorical) == (published.name, published.categorical)
    np.testing.assert_array_equal(data.images.array, images[: N // 2])


@pytest.mark.parametrize("compression", [STORED, DEFLATED])
@pytest.mark.parametrize("place", ["mpi3d_real.npz", "mpi3d/mpi3d_real.npz"])
def test_npz_is_in_the_order_of_the_factors(tmp_path, images, compression, place):
    path = write(tmp_path / place, images, compression)
    real = mpi3d.load(tmp_path, variant="real")
    assert real.name == "mpi3d_real"  # what is kept of one variant must not serve another
    assert_holds(real, MPI3D)
    assert_holds(mpi3d.load(path), MPI3D)
    with pytest.raises(DataError, match="no genuine mpi3d found"):
        mpi3d.load(tmp_path, variant="toy")


def test_np_savez_is_read(tmp_path, images):
    np.savez(tmp_path / "mpi3d_toy.npz", images=images)
    assert_holds(mpi3d.load(tmp_path), MPI3D)
    np.savez_compressed(tmp_path / "mpi3d_toy.npz", images=images)
    assert_holds(mpi3d.load(tmp_path), MPI3D)


def test_uncompressed_images_are_mapped_where_they_lie(tmp_path, images, monkeypatch):
    monkeypatch.setattr("vaejax.data.storage._CPU_LIMIT", 0)
    path = write(tmp_path / "mpi3d_toy.npz", images)
    data = mpi3d.load(tmp_path)
    assert isinstance(data.images, OnHost)
    assert Path(data.images.array.filename) == path
    assert_holds(data, MPI3D)
    kept = sum(file.stat().st_size for file in tmp_path.rglob("vaejax*/*"))
    assert kept < 1000, "of the images nothing is copied"


@pytest.mark.parametrize("compression", [STORED, DEFLATED])
def test_it_is_read_in_chunks_and_only_once(tmp_path, images, compression, monkeypatch):
    monkeypatch.setattr(mpi3d, "_CHUNK", 100)
    path = write(tmp_path / "mpi3d_toy.npz", images, compression)
    told = []
    for _ in range(2):
        assert_holds(mpi3d.load(path, progress=lambda *rows: told.append(rows)), MPI3D)
        assert told == [(100, N), (N, N)]


def test_half_size_is_the_mean_over_blocks(tmp_path, images):
    path = write(tmp_path / "mpi3d_toy.npz", images)
    data = mpi3d.load(path, 32)
    assert data.image_shape == (32, 32, 3)
    # Images are uniform in blocks of 8, hence so are means over blocks of 2.
    classes = grid(MPI3D)[0][17]
    np.testing.assert_allclose(data.render(classes), images[17, ::2, ::2] / 255, atol=1e-7)


BROKEN = {
    "other length": (lambda i: i[1:], "holds 191 images, but MPI3D has 1,036,800 or 460,800 or"),
    "no images": (lambda i: i[:0], r"\[0, 64, 64, 3\], but must be uint8 \[N, 64, 64, 3\]"),
    "grey": (lambda i: i[..., 0], r"\[192, 64, 64\], but must be"),
    "wide": (lambda i: i.repeat(2, 2), r"\[192, 64, 128, 3\], but must be"),
    "float": (lambda i: i.astype(np.float32), "images is float32"),
    "Fortran order": (np.asfortranarray, "C-order bytes"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_wrong_contents_are_named(tmp_path, images, case):
    change, message = BROKEN[case]
    path = write(tmp_path / "mpi3d_toy.npz", change(images), DEFLATED)
    with pytest.raises(DataError, match=message) as caught:
        mpi3d.load(tmp_path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == [path]


def test_other_files_are_refused(tmp_path, images):
    path = write_npz(tmp_path / "a.npz", {"images": pickled_npy()})
    with pytest.raises(DataError, match="images holds pickled Python objects"):
        mpi3d.load(path)
    path = write_npz(tmp_path / "b.npz", {"imgs": npy_bytes(images)})
    with pytest.raises(DataError, match=r"no member 'images.npy'; the file holds 'imgs.npy'"):
        mpi3d.load(path)
    path = tmp_path / "c.npz"
    path.write_bytes(npy_bytes(images))
    with pytest.raises(DataError, match="damaged or not npz data"):
        mpi3d.load(path)


def test_wrong_arguments_are_named_before_anything_is_read(tmp_path):
    with pytest.raises(DataError, match="image_size is 48"):
        mpi3d.load(tmp_path, 48)
    with pytest.raises(DataError, match="variant is 'fake', but must be one of toy, realistic, re"):
        mpi3d.load(tmp_path, variant="fake")
    with pytest.raises(DataError, match=r"mpi3d_toy\.npz.*rr-learning/disentanglement_dataset"):
        mpi3d.load(tmp_path)


@pytest.mark.parametrize("compression", [STORED, DEFLATED])
def test_damaged_files_give_a_data_error_or_the_right_images(tmp_path, images, compression):
    path = write(tmp_path / "whole.npz", images, compression)
    whole = path.read_bytes()
    header = whole.index(b"\x93NUMPY") + 128 if compression == STORED else 60
    damaged = [
        *flips(whole, 30),
        *flips(whole, 40, start=whole.index(b"PK\x01\x02")),
        *(flip[:header] + whole[header:] for flip in flips(whole[:header], 40)),
        *(whole[:length] for length in np.linspace(0, len(whole) - 1, 12, dtype=int)),
    ]
    messages = []
    for case, data in enumerate(damaged):
        file = tmp_path / str(case) / "damaged.npz"
        file.parent.mkdir()
        file.write_bytes(data)
        try:
            read, _ = mpi3d._read_npz(file, lambda *_: None)
        except DataError as error:
            messages.append(str(error))
        else:
            # Bytes that are never read, such as time stamps, may hold anything.
            np.testing.assert_array_equal(read, images)
            continue
        assert list(file.parent.iterdir()) == [file], "nothing is left behind"
    assert len(messages) > 60
    assert not any("\n" in message for message in messages)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory, images):
    """Data prepared by our builder."""
    pytest.importorskip("array_record")
    mpi3d_builder = pytest.importorskip("vaejax.data.genuine.mpi3d_builder")
    root = tmp_path_factory.mktemp("tfds")
    npz = write(root / "from" / "mpi3d_real.npz", images)
    before = set(sys.modules)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mpi3d, "GRIDS", (MPI3D,))
        assert mpi3d_builder.prepare(npz, root) == root / "mpi3d" / "real" / "1.0.0"
    assert "tensorflow" not in set(sys.modules) - before
    return root


def test_what_the_builder_prepares_is_read_back(prepared):
    for place in (".", "mpi3d", "mpi3d/real", "mpi3d/real/1.0.0"):
        assert_holds(mpi3d.load(prepared / place, variant="real"), MPI3D)
    with pytest.raises(DataError, match="the variant is 'real', not 'toy'"):
        mpi3d.load(prepared / "mpi3d" / "real")
    info = json.loads((prepared / "mpi3d" / "real" / "1.0.0" / "dataset_info.json").read_text())
    assert (info["fileFormat"], info["splits"][0]["shardLengths"]) == ("array_record", [str(N)])


def test_the_builder_refuses_other_files(tmp_path, images):
    mpi3d_builder = pytest.importorskip("vaejax.data.genuine.mpi3d_builder")
    with pytest.raises(DataError, match=r"published names, mpi3d_toy\.npz"):
        mpi3d_builder.prepare(tmp_path / "images.npz", tmp_path)
    path = write(tmp_path / "mpi3d_toy.npz", images[1:])
    with pytest.raises(DataError, match="holds 191 images"):
        mpi3d_builder.prepare(path, tmp_path)
    assert list(tmp_path.iterdir()) == [path]


def test_the_builder_leaves_nothing_of_a_damaged_file(tmp_path, images):
    mpi3d_builder = pytest.importorskip("vaejax.data.genuine.mpi3d_builder")
    path = write(tmp_path / "mpi3d_toy.npz", images)
    damaged = bytearray(path.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    path.write_bytes(damaged)
    with pytest.raises(DataError, match="Bad CRC-32"):
        mpi3d_builder.prepare(path, tmp_path)
    assert not list(tmp_path.rglob("*1.0.0*"))
