"""The readers of the published dSprites, on tiny files written in the published formats."""

import subprocess
import sys
import zipfile

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from published_dsprites import (
    SIZES,
    N,
    assert_holds_the_grid,
    grid,
    members,
    prepare,
    python2_npy,
    shuffled_grid,
    write_hdf5,
    write_npz,
)
from published_grids import RENDER

from vaejax.data import DataError, GridSource, Renderable, source
from vaejax.data.genuine.dsprites import PUBLISHED, load
from vaejax.data.redrawn.dsprites import FACTORS
from vaejax.data.storage import OnDevice


def test_npz_is_put_in_the_order_of_its_labels(npz):
    assert_holds_the_grid(source("dsprites", root=npz))


@pytest.mark.parametrize("place", ["", "dsprites"])
def test_a_directory_is_searched(tmp_path, place):
    (tmp_path / place).mkdir(exist_ok=True)
    write_npz(tmp_path / place / f"{PUBLISHED}.npz", members())
    assert_holds_the_grid(source("dsprites", root=tmp_path))
    assert_holds_the_grid(source("dsprites", root=str(tmp_path)))


def test_default_root_is_that_of_tensorflow_datasets(npz, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(npz.parent))
    assert_holds_the_grid(source("dsprites", genuine=True))
    monkeypatch.delenv("TFDS_DATA_DIR")
    monkeypatch.setenv("HOME", str(npz.parent))
    with pytest.raises(DataError, match="tensorflow_datasets: no genuine dsprites found"):
        source("dsprites", genuine=True)


def test_stored_and_python2_members_are_read(tmp_path):
    classes, images = shuffled_grid()
    packed = members() | {"imgs": python2_npy(images), "latents_classes": python2_npy(classes)}
    path = write_npz(tmp_path / "any.npz", packed, zipfile.ZIP_STORED)
    assert_holds_the_grid(source("dsprites", root=path))


def test_images_are_read_in_chunks(npz, monkeypatch):
    monkeypatch.setattr("vaejax.data.genuine.dsprites._CHUNK", 50)
    assert_holds_the_grid(source("dsprites", root=npz))


@pytest.mark.parametrize("options", [{}, {"compression": "gzip", "chunks": (100, 8, 8)}])
def test_hdf5_is_put_in_the_order_of_its_labels(tmp_path, options):
    path = write_hdf5(tmp_path / f"{PUBLISHED}.hdf5", *shuffled_grid(), **options)
    assert_holds_the_grid(source("dsprites", root=path))
    assert_holds_the_grid(source("dsprites", root=tmp_path))


def test_prepared_data_are_put_in_the_order_of_their_labels_and_packed(unpacked, monkeypatch):
    root, copy = unpacked
    for place in (root, root / "dsprites", root / "dsprites" / "2.0.0"):
        assert_holds_the_grid(source("dsprites", root=place))
        assert np.load(copy / "images.npy").shape == (*SIZES, 512)
    assert [path.name for path in copy.parent.glob("*vaejax*")] == [copy.name]
    # From now on the copy alone is read.
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    assert_holds_the_grid(source("dsprites", root=root))


def test_progress_is_told_after_each_chunk(npz, monkeypatch):
    monkeypatch.setattr("vaejax.data.genuine.dsprites._CHUNK", 100)
    told = []
    load(npz, progress=lambda *rows: told.append(rows))
    assert told == [(100, N), (200, N), (N, N)]
    load(npz, progress=lambda *rows: told.append(rows))
    assert len(told) == 3, "what is packed is not read again"


def test_prepared_data_of_another_kind_are_refused(tmp_path, prepared):
    other = prepare(tmp_path / "other", *grid(), labels=("a", "b", "c", "d", "e"))
    with pytest.raises(DataError, match="no 'label_orientation'"):
        source("dsprites", root=other)
    classes, images = grid()
    partial = prepare(tmp_path / "partial", classes[:-1], images[:-1])
    with pytest.raises(DataError, match="1 missing and 0 repeated"):
        source("dsprites", root=partial)
    records = tmp_path / "records"
    records.mkdir()
    for file in (prepared / "dsprites" / "2.0.0").glob("*.*"):
        text = file.read_bytes()
        if file.name == "dataset_info.json":
            text = text.replace(b'"array_record"', b'"tfrecord"')
        (records / file.name).write_bytes(text)
    with pytest.raises(DataError, match="prepared as tfrecord, which has no random access"):
        source("dsprites", root=records)
    (records / "dataset_info.json").write_text("{")
    with pytest.raises(DataError, match="damaged or not tensorflow-datasets data"):
        source("dsprites", root=records)


def test_nothing_heavy_is_imported(unpacked, npz):
    code = f"""
import sys
import vaejax.data
from vaejax.data.genuine import celeba, dsprites, mpi3d, shapes3d, smallnorb
heavy = {{"tensorflow", "tensorflow_datasets", "h5py", "PIL"}}
assert not heavy & set(sys.modules), heavy & set(sys.modules)
vaejax.data.source("dsprites", root={str(npz)!r})
assert not heavy & set(sys.modules), heavy & set(sys.modules)
vaejax.data.source("dsprites", root={str(unpacked[0])!r})
assert "tensorflow_datasets" in sys.modules
assert "tensorflow" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_source_behaves_as_the_redrawn_one(npz):
    classes, images = grid()
    data = source("dsprites", root=npz)
    assert isinstance(data, GridSource)
    assert isinstance(data, Renderable)
    assert (data.name, data.origin, data.image_shape) == ("dsprites", "genuine", (64, 64, 1))
    draw = jax.jit(lambda data, key: data.batch(key, 500))
    batch, factors = draw(data, jax.random.key(0))
    assert batch.dtype == jnp.float32
    assert factors.dtype == jnp.int32
    index = np.ravel_multi_index(np.asarray(factors).T, SIZES)
    np.testing.assert_array_equal(batch, images[index][..., None])
    np.testing.assert_array_equal(factors, classes[index, 1:])
    for column, size in zip(factors.T, SIZES, strict=True):
        assert set(np.asarray(column)) == set(range(size))
    again, _ = draw(data, jax.random.key(0))
    other, _ = draw(data, jax.random.key(1))
    assert jnp.array_equal(batch, again)
    assert not jnp.array_equal(batch, other)


def test_images_are_an_argument_of_the_compiled_function(npz):
    data = source("dsprites", root=npz)
    assert [leaf.shape for leaf in jax.tree.leaves(data)] == [(N, 512)]
    lowered = jax.jit(lambda data, key: data.batch(key, 4)).lower(data, jax.random.key(0))
    assert f"tensor<{N}x512xui8>" in lowered.as_text().split("@main")[1].split("{")[0]


def test_one_key_draws_the_same_factors_from_both_sources():
    data = GridSource(OnDevice(jnp.zeros((1, 512), jnp.uint8)), "dsprites", FACTORS)
    drawn = jax.jit(lambda data: data.batch(jax.random.key(3), 64)[1])
    assert jnp.array_equal(drawn(data), drawn(source("dsprites")))


def test_half_size_is_the_mean_over_blocks(npz):
    classes, images = grid()
    data = source("dsprites", 32, root=npz)
    assert data.image_shape == (32, 32, 1)
    half = jax.jit(jax.vmap(data.render))(classes[:, 1:])
    blocks = images.reshape(N, 32, 2, 32, 2, 1).mean((2, 4))
    np.testing.assert_array_equal(half, blocks)


def test_render_takes_the_nearest_class(npz):
    data = source("dsprites", root=npz)
    classes = jnp.array([[1, 0, 3, 2, 1], [1.4, -2.0, 7.0, 1.6, 0.9]])
    nearest, between = RENDER(data, classes)
    assert jnp.array_equal(nearest, between)


def test_image_size_is_checked_before_anything_is_read(tmp_path):
    with pytest.raises(DataError, match="image_size is 16"):
        source("dsprites", 16, root=tmp_path / "none")
