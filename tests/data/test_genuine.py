"""The readers of the published dSprites, on tiny files written in the published formats."""

import io
import itertools
import logging
import os
import pickle
import subprocess
import sys
import zipfile

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vaejax.data import DataError, DSprites, GenuineDSprites, Renderable, source
from vaejax.data.dsprites_readers import CACHE_NAME, PUBLISHED

SIZES = (3, 2, 4, 3, 3)
N = 216


def grid():
    """Labels in the published order, and for each an image found at no other label."""
    classes = np.array(list(itertools.product(*map(range, SIZES))))
    images = (np.random.default_rng(0).random((N, 64, 64)) < 0.3).astype(np.uint8)
    colour = np.zeros((N, 1), np.int64)
    return np.concatenate([colour, classes], axis=1), images


def shuffled_grid():
    classes, images = grid()
    order = np.random.default_rng(1).permutation(N)
    return classes[order], images[order]


class Bomb:
    """Fails the test run if it is ever unpickled."""

    def __reduce__(self):
        return os._exit, (13,)


def npy_bytes(array):
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, np.asanyarray(array), allow_pickle=False)
    return buffer.getvalue()


def pickled_npy():
    buffer = io.BytesIO()
    header = {"descr": "|O", "fortran_order": False, "shape": ()}
    np.lib.format.write_array_header_1_0(buffer, header)
    return buffer.getvalue() + pickle.dumps(Bomb(), protocol=2)


def python2_npy(array):
    """The header that NumPy under Python 2 could write, with long integers."""
    shape = "(" + ", ".join(f"{size}L" for size in array.shape) + ")"
    header = f"{{'descr': '{array.dtype.str}', 'fortran_order': False, 'shape': {shape}, }}"
    header += " " * (-(len(header) + 11) % 16) + "\n"
    prefix = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little")
    return prefix + header.encode() + array.tobytes()


def write_npz(path, members, compression=zipfile.ZIP_DEFLATED):
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, data in members.items():
            archive.writestr(f"{name}.npy", data)
    return path


def members(classes=None, images=None):
    if classes is None or images is None:
        classes, images = shuffled_grid()
    return {
        "metadata": pickled_npy(),
        "imgs": npy_bytes(images),
        "latents_classes": npy_bytes(classes),
        "latents_values": npy_bytes(classes.astype(np.float64)),
    }


@pytest.fixture
def npz(tmp_path):
    return write_npz(tmp_path / f"{PUBLISHED}.npz", members())


def write_hdf5(path, classes, images, **options):
    h5py = pytest.importorskip("h5py")
    with h5py.File(path, "w") as file:
        file.create_dataset("imgs", data=images, **options)
        file.create_dataset("latents/classes", data=classes)
        file.create_dataset("latents/values", data=classes.astype(np.float64))
    return path


LABELS = ("label_shape", "label_scale", "label_orientation", "label_x_position", "label_y_position")


def prepare(root, classes, images, labels=LABELS):
    """Prepares ArrayRecord data as tensorflow-datasets does, without TensorFlow."""
    tfds = pytest.importorskip("tensorflow_datasets")
    image_module = pytest.importorskip("PIL.Image")
    pytest.importorskip("array_record")

    def png(image):
        buffer = io.BytesIO()
        image_module.fromarray(image).save(buffer, "PNG")
        return buffer.getvalue()

    with tfds.core.registered.skip_registration():

        class Dsprites(tfds.core.GeneratorBasedBuilder):
            name = "dsprites"
            VERSION = tfds.core.Version("2.0.0")

            def _info(self):
                features = {"image": tfds.features.Image(shape=(64, 64, 1))}
                features |= {label: tfds.features.ClassLabel(num_classes=40) for label in labels}
                return tfds.core.DatasetInfo(
                    builder=self, features=tfds.features.FeaturesDict(features)
                )

            def _split_generators(self, dl_manager):
                return {"train": self._generate_examples()}

            def _generate_examples(self):
                for row, (image, values) in enumerate(zip(images, classes, strict=True)):
                    record = dict(zip(labels, map(int, values[1:]), strict=True))
                    yield row, {"image": png(image), **record}

    builder = Dsprites(data_dir=os.fspath(root), file_format="array_record")
    builder.download_and_prepare()
    return root / "dsprites" / "2.0.0"


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


def assert_holds_the_grid(data):
    classes, images = grid()
    assert len(data) == N
    assert tuple(factor.size for factor in data.factors) == SIZES
    # At every index: row i of the packed bits is the image whose labels unravel from i.
    np.testing.assert_array_equal(np.unpackbits(data.bits, axis=1).reshape(N, 64, 64), images)
    unravelled = np.stack(np.unravel_index(np.arange(N), SIZES), axis=1)
    np.testing.assert_array_equal(classes[:, 1:], unravelled)
    looked_up = jax.jit(jax.vmap(data.render))(classes[:, 1:])
    np.testing.assert_array_equal(looked_up, images[..., None])


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
    with pytest.raises(DataError, match="tensorflow_datasets: no genuine dSprites found"):
        source("dsprites", genuine=True)


def test_stored_and_python2_members_are_read(tmp_path):
    classes, images = shuffled_grid()
    packed = members() | {"imgs": python2_npy(images), "latents_classes": python2_npy(classes)}
    path = write_npz(tmp_path / "any.npz", packed, zipfile.ZIP_STORED)
    assert_holds_the_grid(source("dsprites", root=path))


def test_images_are_read_in_chunks(npz, monkeypatch):
    monkeypatch.setattr("vaejax.data.dsprites_readers._CHUNK", 50)
    assert_holds_the_grid(source("dsprites", root=npz))


@pytest.mark.parametrize("options", [{}, {"compression": "gzip", "chunks": (100, 8, 8)}])
def test_hdf5_is_put_in_the_order_of_its_labels(tmp_path, options):
    path = write_hdf5(tmp_path / f"{PUBLISHED}.hdf5", *shuffled_grid(), **options)
    assert_holds_the_grid(source("dsprites", root=path))
    assert_holds_the_grid(source("dsprites", root=tmp_path))


def test_prepared_data_are_put_in_the_order_of_their_labels_and_cached(uncached, monkeypatch):
    root, cache = uncached
    for place in (root, root / "dsprites", root / "dsprites" / "2.0.0"):
        assert_holds_the_grid(source("dsprites", root=place))
        assert np.load(cache).shape == (*SIZES, 512)
    assert [path.name for path in cache.parent.glob("*vaejax*")] == [CACHE_NAME]
    # From now on the cache alone is read.
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    assert_holds_the_grid(source("dsprites", root=root))


def save_wrong_shape(cache):
    np.save(cache, np.zeros((N, 512), np.uint8))


def save_wrong_dtype(cache):
    np.save(cache, np.zeros((*SIZES, 512), np.int16))


def save_wrong_sizes(cache):
    np.save(cache, np.zeros((4, *SIZES[1:], 512), np.uint8))


def save_truncated(cache):
    np.save(cache, np.zeros((*SIZES, 512), np.uint8))
    cache.write_bytes(cache.read_bytes()[:-1])


def save_empty(cache):
    cache.write_bytes(b"")


def save_pickle(cache):
    cache.write_bytes(pickled_npy())


def save_older_than_the_data(cache):
    np.save(cache, np.zeros((*SIZES, 512), np.uint8))
    os.utime(cache, (0, 0))


@pytest.mark.parametrize(
    "spoil",
    [
        save_wrong_shape,
        save_wrong_dtype,
        save_wrong_sizes,
        save_truncated,
        save_empty,
        save_pickle,
        save_older_than_the_data,
    ],
)
def test_a_bad_cache_is_replaced(uncached, spoil):
    root, cache = uncached
    spoil(cache)
    assert_holds_the_grid(source("dsprites", root=root))
    assert np.load(cache).shape == (*SIZES, 512)


def test_an_unwritable_directory_is_read_without_a_cache(uncached, monkeypatch, caplog):
    root, cache = uncached

    def refuse(*_):
        raise PermissionError("read-only")

    monkeypatch.setattr(os, "replace", refuse)
    with caplog.at_level(logging.WARNING):
        assert_holds_the_grid(source("dsprites", root=root))
    assert "not cached" in caplog.text
    assert list(cache.parent.glob("*vaejax*")) == []


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
    for file in (prepared / "dsprites" / "2.0.0").iterdir():
        text = file.read_bytes()
        if file.name == "dataset_info.json":
            text = text.replace(b'"array_record"', b'"tfrecord"')
        (records / file.name).write_bytes(text)
    with pytest.raises(DataError, match="prepared as tfrecord, which has no random access"):
        source("dsprites", root=records)
    (records / "dataset_info.json").write_text("{")
    with pytest.raises(DataError, match="damaged or not tensorflow-datasets data"):
        source("dsprites", root=records)


def test_nothing_heavy_is_imported(prepared, npz):
    code = f"""
import sys
import vaejax.data
heavy = {{"tensorflow", "tensorflow_datasets", "h5py", "PIL"}}
assert not heavy & set(sys.modules), heavy & set(sys.modules)
vaejax.data.source("dsprites", root={str(npz)!r})
assert not heavy & set(sys.modules), heavy & set(sys.modules)
(vaejax.data.dsprites_readers.find(__import__("pathlib").Path({str(prepared)!r})) /
    {CACHE_NAME!r}).unlink(missing_ok=True)
vaejax.data.source("dsprites", root={str(prepared)!r})
assert "tensorflow_datasets" in sys.modules
assert "tensorflow" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_source_behaves_as_the_redrawn_one(npz):
    classes, images = grid()
    data = source("dsprites", root=npz)
    assert isinstance(data, GenuineDSprites)
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
    data = GenuineDSprites(jnp.zeros((1, 512), jnp.uint8), (3, 6, 40, 32, 32))
    _, genuine = data.batch(jax.random.key(3), 64)
    _, redrawn = DSprites().batch(jax.random.key(3), 64)
    assert jnp.array_equal(genuine, redrawn)


def test_half_size_is_the_mean_over_blocks(npz):
    classes, images = grid()
    data = source("dsprites", 32, root=npz)
    assert data.image_shape == (32, 32, 1)
    half = jax.jit(jax.vmap(data.render))(classes[:, 1:])
    blocks = images.reshape(N, 32, 2, 32, 2, 1).mean((2, 4))
    np.testing.assert_array_equal(half, blocks)


def test_render_takes_the_nearest_class(npz):
    data = source("dsprites", root=npz)
    nearest = data.render(jnp.array([1, 0, 3, 2, 1]))
    assert jnp.array_equal(nearest, data.render(jnp.array([1.4, -2.0, 7.0, 1.6, 0.9])))


def test_image_size_is_checked_before_anything_is_read(tmp_path):
    with pytest.raises(DataError, match="image_size is 16"):
        source("dsprites", 16, root=tmp_path / "none")


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


@pytest.mark.parametrize("compression", [zipfile.ZIP_DEFLATED, zipfile.ZIP_STORED])
def test_flipped_bytes_give_a_data_error_or_the_right_images(tmp_path, compression):
    path = write_npz(tmp_path / "flipped.npz", members(), compression)
    whole = np.frombuffer(path.read_bytes(), np.uint8)
    directory = whole.tobytes().index(b"PK\x01\x02")
    _, images = grid()
    rng = np.random.default_rng(0)
    # Half of the flips fall into the zip's directory, whose few bytes decide how all is read.
    places = [*rng.integers(0, len(whole), 100), *rng.integers(directory, len(whole), 100)]
    messages = []
    for place in places:
        flipped = whole.copy()
        flipped[place] ^= rng.integers(1, 256, dtype=np.uint8)
        path.write_bytes(flipped.tobytes())
        try:
            data = source("dsprites", root=path)
        except DataError as error:
            messages.append(str(error))
            continue
        # Bytes that are never read, such as time stamps and `metadata`, may hold anything.
        np.testing.assert_array_equal(np.unpackbits(data.bits, axis=1), images.reshape(N, -1))
    assert len(messages) > 50
    assert not any("\n" in message for message in messages)
