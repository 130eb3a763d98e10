"""The readers of the published 3DShapes, on tiny files written in the published formats."""

import hashlib

import jax
import numpy as np
import pytest
from published_dsprites import pickled_npy
from published_grids import (
    SHAPES3D,
    assert_holds,
    flips,
    grid,
    prepare_records,
    shuffled,
    write_h5,
)

from vaejax.data import DataError
from vaejax.data.genuine import dsprites, files, shapes3d
from vaejax.data.storage import OnDevice, OnHost

N = 144
LABELS = [f"label_{factor.name}" for factor in shapes3d.FACTORS]
GZIP = {"compression": "gzip", "chunks": (50, 32, 32, 3)}


def values(classes):
    columns = zip(shapes3d.VALUES, classes.T, strict=True)
    return np.stack([known[column] for known, column in columns], axis=1)


def write(path, classes, images, **options):
    return write_h5(path, values(classes), images, **options)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    root = tmp_path_factory.mktemp("tfds")
    prepare_records(root, "shapes3d", *grid(SHAPES3D), LABELS)
    return root


def test_classes_are_the_places_of_published_values():
    assert [len(known) for known in shapes3d.VALUES] == [10, 10, 10, 8, 4, 15]
    assert [factor.size for factor in shapes3d.FACTORS] == [10, 10, 10, 8, 4, 15]
    assert all((np.diff(known) > 0.07).all() for known in shapes3d.VALUES)
    classes = np.random.default_rng(0).integers(0, [10, 10, 10, 8, 4, 15], (500, 6))
    for exact in (values(classes), values(classes).astype(np.float32)):
        np.testing.assert_array_equal(shapes3d._classes("any", exact), classes)


@pytest.mark.parametrize("options", [{}, GZIP])
@pytest.mark.parametrize("place", ["3dshapes.h5", "shapes3d/3dshapes.h5"])
def test_hdf5_is_put_in_the_order_of_its_labels(tmp_path, options, place):
    (tmp_path / "shapes3d").mkdir()
    path = write(tmp_path / place, *shuffled(*grid(SHAPES3D)), **options)
    assert_holds(shapes3d.load(tmp_path), SHAPES3D)
    assert_holds(shapes3d.load(path), SHAPES3D)


@pytest.mark.parametrize(
    ("options", "told"),
    [({}, [(70, N), (140, N), (N, N)]), (GZIP, [(50, N), (100, N), (N, N)])],
)
def test_no_chunk_of_the_file_is_read_twice(tmp_path, options, told, monkeypatch):
    monkeypatch.setattr(shapes3d, "_CHUNK", 70)
    path = write(tmp_path / "3dshapes.h5", *shuffled(*grid(SHAPES3D)), **options)
    seen = []
    for _ in range(2):
        assert_holds(shapes3d.load(path, progress=lambda *rows: seen.append(rows)), SHAPES3D)
        assert seen == told, "and no file twice"


def test_prepared_data_are_put_in_the_order_of_their_labels(prepared):
    for place in (".", "shapes3d", "shapes3d/2.0.0"):
        assert_holds(shapes3d.load(prepared / place), SHAPES3D)


class InBatches:
    """Mocked records, which cannot be asked for by the batch and are always decoded."""

    def __init__(self, builder):
        self.info = builder.info
        self.records = builder.as_data_source(split="train")

    def as_data_source(self, split, decoders=None):
        return self

    def __len__(self):
        return len(self.records)

    def __getitems__(self, rows):
        return [self.records[row] for row in rows]


def test_records_of_the_published_builder_are_read(tmp_path):
    tfds = pytest.importorskip("tensorflow_datasets")
    pytest.importorskip("array_record")
    with tfds.testing.mock_data(num_examples=7):
        mocked = InBatches(tfds.builder("shapes3d"))
        rows = files.records(tmp_path, mocked, shapes3d._LABELS, (64, 64, 3), chunk=3)
        assert rows.classes.shape == (7, 6)
        images = np.concatenate([rows.read(0, 3), rows.read(3, 7)])
        for row in range(7):
            record = mocked.records[row]
            np.testing.assert_array_equal(images[row], record["image"])
            assert rows.classes[row].tolist() == [record[label] for label in LABELS]


def test_images_on_the_host_and_on_the_device_are_the_same(tmp_path, monkeypatch):
    path = write(tmp_path / "3dshapes.h5", *shuffled(*grid(SHAPES3D)))
    here = shapes3d.load(path)
    monkeypatch.setattr("vaejax.data.storage._CPU_LIMIT", 0)
    monkeypatch.setattr("vaejax.data.storage._DEVICE_SHARE", 0)
    there = shapes3d.load(path)
    assert isinstance(here.images, OnDevice)
    assert isinstance(there.images, OnHost)
    assert isinstance(there.images.array.base, np.memmap)
    assert here.image_shape == there.image_shape == (64, 64, 3)

    @jax.jit
    def look_up(data, classes):
        mapped = jax.vmap(data.render)(classes)
        return mapped, data.render(classes[5]), data.batch(jax.random.key(2), 20)

    classes, _ = grid(SHAPES3D)
    jax.tree.map(np.testing.assert_array_equal, look_up(here, classes), look_up(there, classes))


def put(values, value):
    changed = values.copy()
    changed[3, 2] = value
    return changed


BROKEN = {
    "an image is missing": (lambda v, i: (v, i[1:]), r"/images is uint8 \[143, 64, 64, 3\], but"),
    "grey": (lambda v, i: (v, i[..., 0]), r"/images is uint8 \[144, 64, 64\], but must be uint8"),
    "float images": (lambda v, i: (v, i.astype(np.float32)), "/images is float32"),
    "classes": (lambda v, i: (v.astype(int), i), "/labels is int64"),
    "five labels": (lambda v, i: (v[:, 1:], i), r"\[144, 5\], but must be floating \[N, 6\]"),
    "no rows": (lambda v, i: (v[:0], i[:0]), r"/labels is float64 \[0, 6\], but must be"),
    "unknown value": (lambda v, i: (put(v, 0.05), i), "object_hue is 0.05, but 3DShapes has"),
    "not a number": (lambda v, i: (put(v, np.nan), i), "object_hue is nan, but 3DShapes has"),
    "row missing": (lambda v, i: (v[1:], i[1:]), "1 missing and 0 repeated"),
    "row repeated": (lambda v, i: (np.r_[v, v[:1]], np.r_[i, i[:1]]), "0 missing and 1 repeated"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_wrong_contents_are_named(tmp_path, case):
    change, message = BROKEN[case]
    classes, images = shuffled(*grid(SHAPES3D))
    path = write_h5(tmp_path / "broken.h5", *change(values(classes), images))
    with pytest.raises(DataError, match=message) as caught:
        shapes3d.load(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == [path]


def test_other_data_are_refused(tmp_path):
    h5py = pytest.importorskip("h5py")
    with pytest.raises(DataError, match=r"3dshapes\.h5 from .*tfds build shapes3d.*source\('sha"):
        shapes3d.load(tmp_path)
    with pytest.raises(DataError, match="image_size is 16"):
        shapes3d.load(tmp_path, 16)
    path = tmp_path / "3dshapes.h5"
    with h5py.File(path, "w") as file:
        file.create_dataset("images", data=np.zeros((2, 64, 64, 3), np.uint8))
        file.create_group("labels")
    with pytest.raises(DataError, match="no dataset '/labels', which 3DShapes has"):
        shapes3d.load(path)
    path.write_bytes(pickled_npy())
    with pytest.raises(DataError, match="damaged or not hdf5 data"):
        shapes3d.load(path)


def test_prepared_data_of_another_kind_are_refused(tmp_path):
    classes, images = (array[:4] for array in grid(SHAPES3D))
    other = prepare_records(tmp_path, "other", classes, images, [*LABELS[:5], "angle"])
    with pytest.raises(DataError, match="not 3DShapes, its records have no 'label_orientation'"):
        shapes3d.load(other)
    grey = prepare_records(tmp_path, "grey", classes[:1], images[:1, ..., :1], LABELS)
    with pytest.raises(DataError, match=r"image is uint8 \[64, 64, 1\], but must be uint8"):
        shapes3d.load(grey)
    few = prepare_records(tmp_path, "few", classes[1:], images[1:], LABELS)
    with pytest.raises(DataError, match="3 missing and 0 repeated"):
        shapes3d.load(few)
    assert not list(tmp_path.rglob("*vaejax*"))


def test_a_file_of_the_published_size_must_have_the_published_checksum(tmp_path, monkeypatch):
    path = write(tmp_path / "whole.h5", *shuffled(*grid(SHAPES3D)))
    whole = path.read_bytes()
    published = (len(whole), hashlib.sha256(whole).hexdigest())
    monkeypatch.setattr(shapes3d, "PUBLISHED_HDF5", published)
    monkeypatch.setattr(dsprites, "PUBLISHED_HDF5", published)
    assert_holds(shapes3d.load(path), SHAPES3D)
    for case, flipped in enumerate(flips(whole, 5)):
        path = tmp_path / f"{case}.h5"
        path.write_bytes(flipped)
        for load in (shapes3d.load, dsprites.load):
            with pytest.raises(DataError, match="its SHA-256 is not that of the published file"):
                load(path)


def test_no_damage_raises_anything_but_a_data_error(tmp_path):
    classes, images = shuffled(*grid(SHAPES3D))
    whole = write(tmp_path / "whole.h5", classes, images, **GZIP).read_bytes()
    cut = [whole[:length] for length in np.linspace(0, len(whole) - 1, 10, dtype=int)]
    headers = [flip + whole[8192:] for flip in flips(whole[:8192], 40)]
    path = tmp_path / "damaged.h5"
    messages = []
    for data in [*cut, *flips(whole, 40), *headers]:
        path.write_bytes(data)
        try:
            with shapes3d._opened(path) as rows:
                rows.read(0, len(rows.classes))
        except DataError as error:
            messages.append(str(error))
    assert len(messages) > 30
    assert not any("\n" in message for message in messages)


def test_damaged_records_give_a_data_error_or_the_right_images(tmp_path):
    classes, images = (array[:6] for array in grid(SHAPES3D))
    directory = prepare_records(tmp_path, "shapes3d", classes, images, LABELS)
    (records,) = directory.glob("*.array_record*")
    whole = records.read_bytes()
    head = [flip + whole[4000:] for flip in flips(whole[:4000], 20)]  # the rest is mostly padding
    messages = []
    for data in [*head, *flips(whole, 5), whole[:-1], b""]:
        records.write_bytes(data)
        try:
            with shapes3d._opened(directory) as rows:
                read = rows.read(0, len(rows.classes))
        except DataError as error:
            messages.append(str(error))
            continue
        order = np.ravel_multi_index(tuple(rows.classes.T), SHAPES3D)
        np.testing.assert_array_equal(read, grid(SHAPES3D)[1][order])
    assert len(messages) > 10
    assert not any("\n" in message for message in messages)
