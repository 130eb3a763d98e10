"""The reader of the published CelebA, on tiny files written in the published formats."""

import io
import pickle
import sys
import zipfile

import jax
import numpy as np
import pytest
from published_celeba import (
    PARTITION,
    SPLITS,
    Image,
    N,
    assert_holds,
    attribute_list,
    decoded,
    expected,
    jpeg,
    labels,
    members,
    partition_list,
    photographs,
    prepare,
    write,
    write_zip,
)
from published_dsprites import Bomb

from vaejax.data import ArraySource, DataError, DataSource, Renderable
from vaejax.data.genuine import celeba, celeba_files
from vaejax.data.genuine.celeba import load, read_records
from vaejax.data.genuine.celeba_files import ATTRIBUTE_LIST, ATTRIBUTES, IMAGES, PARTITION_LIST
from vaejax.data.redrawn.celeba import FACTORS as REDRAWN
from vaejax.data.storage import OnHost


@pytest.fixture
def directory(tmp_path):
    return write(tmp_path)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    root = tmp_path_factory.mktemp("tfds")
    prepare(root)
    return root


@pytest.fixture
def chunked(monkeypatch):
    """Several chunks, across the splits, the last of which is not full."""
    monkeypatch.setattr(celeba, "_CHUNK", 4)


def refused(call, *said):
    """Calls what must fail with one line that says all of this."""
    with pytest.raises(DataError) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message
    for text in said:
        assert text in message
    return message


@pytest.mark.parametrize("zipped", [True, False])
def test_published_files_are_read_at_every_index(tmp_path, zipped, chunked):
    write(tmp_path / "celeba", zipped=zipped)
    for split in ("all", *SPLITS):
        assert_holds(load(tmp_path, split=split), split)


def test_prepared_data_are_read_at_every_index(prepared, chunked):
    for split in ("all", *SPLITS):
        assert_holds(load(prepared, split=split), split, ordered=False)
    joined = [np.asarray(load(prepared, split=split).labels) for split in SPLITS]
    np.testing.assert_array_equal(load(prepared).labels, np.concatenate(joined))
    assert "tensorflow" not in sys.modules


def test_compressed_members_and_other_line_ends_are_read(tmp_path):
    write(
        tmp_path,
        attributes=attribute_list().replace("\n", "\r\n"),
        partition=partition_list().rstrip(),
        members=None,
    )
    write_zip(tmp_path / f"{IMAGES}.zip", members()[:0:-1], zipfile.ZIP_DEFLATED)
    assert_holds(load(tmp_path), "all")


def test_any_of_the_files_stands_for_their_directory(directory):
    for name in (ATTRIBUTE_LIST, PARTITION_LIST, f"{IMAGES}.zip"):
        assert_holds(load(directory / name, split="test"), "test")


def test_what_was_packed_is_read_again_until_the_files_change(directory):
    calls = []

    def progress(*done):
        calls.append(done)

    load(directory, split="test", progress=progress)
    assert calls == [(N, N)]
    for split in ("all", *SPLITS):
        assert_holds(load(directory, split=split, progress=progress), split)
    assert calls == [(N, N)]
    assert [path.name for path in directory.glob("*vaejax*")] == ["vaejax_celeba_v1"]
    (directory / ATTRIBUTE_LIST).write_text(attribute_list(1 - labels()) + "\n")
    np.testing.assert_array_equal(load(directory).labels, 1 - labels())


def test_the_source_has_attributes_for_factors_and_renders_nothing(directory):
    data = load(directory)
    assert isinstance(data, ArraySource)
    assert isinstance(data, DataSource)
    assert not isinstance(data, Renderable)
    assert data.correlated
    assert (data.name, data.origin, data.image_shape) == ("celeba", "genuine", (64, 64, 3))
    assert tuple(factor.name for factor in data.factors) == ATTRIBUTES
    assert {(factor.size, factor.categorical) for factor in data.factors} == {(2, True)}


_draw = jax.jit(lambda data, key: data.batch(key, 16))


@pytest.mark.parametrize("size", [64, 32])
def test_batches_are_photographs_with_their_attributes(directory, size):
    data = load(directory, size)
    assert data.image_shape == (size, size, 3)
    images, factors = _draw(data, jax.random.key(0))
    rows = np.abs(np.asarray(factors)[:, None] - labels()).sum(2).argmin(1)
    np.testing.assert_array_equal(factors, labels()[rows])
    side = 64 // size
    means = expected()[rows].reshape(16, size, side, size, side, 3).mean((2, 4)) / 255
    np.testing.assert_allclose(images, means, atol=1e-6)
    assert len(set(rows)) > 5


def test_images_too_large_for_the_device_stay_in_their_file(directory, monkeypatch):
    monkeypatch.setattr("vaejax.data.storage._CPU_LIMIT", 1000)
    data = load(directory, split="validation")
    assert isinstance(data.images, OnHost)
    assert isinstance(data.images.array, np.memmap)
    np.testing.assert_array_equal(data.images.array, expected()[5:8])


def test_redrawn_faces_use_the_published_names_in_their_order():
    shared = [factor.name for factor in REDRAWN if factor.name in ATTRIBUTES]
    assert shared == sorted(shared, key=ATTRIBUTES.index)
    assert len(shared) == 16


class Records(list):
    """What a data source of tensorflow-datasets offers."""

    def __getitems__(self, keys):
        return [self[key] for key in keys]


def test_mocked_records_are_read_whole(tmp_path, chunked):
    tfds = pytest.importorskip("tensorflow_datasets")
    splits = []
    with tfds.testing.mock_data(num_examples=5):
        for split in SPLITS:
            mocked = tfds.data_source("celeb_a", split=split)
            # A mock decodes images and has no __getitems__; what is read has them encoded.
            records = [mocked[row] for row in range(5)]
            splits.append(Records({**each, "image": jpeg(each["image"])} for each in records))
    arrays = {
        "images": np.empty((15, 64, 64, 3), np.uint8),
        "labels": np.empty((15, 40), np.uint8),
        "partition": np.empty(15, np.uint8),
    }
    calls = []
    read_records(tmp_path, splits, arrays, lambda *done: calls.append(done))
    every = [record for records in splits for record in records]
    attributes = [[each["attributes"][name] for name in ATTRIBUTES] for each in every]
    np.testing.assert_array_equal(arrays["labels"], attributes)
    np.testing.assert_array_equal(arrays["images"], [decoded(each["image"]) for each in every])
    np.testing.assert_array_equal(arrays["partition"], np.repeat([0, 1, 2], 5))
    assert calls == [(4, 15), (8, 15), (12, 15), (15, 15)]
    assert "tensorflow" not in sys.modules


def test_missing_data_say_how_to_get_them(tmp_path):
    for root in (tmp_path, tmp_path / "none"):
        refused(
            lambda root=root: load(root),
            str(root),
            f"{IMAGES}.zip",
            "tfds build celeb_a",
            "source('celeba')",
        )


def test_other_arguments_are_refused(tmp_path):
    refused(lambda: load(tmp_path / "none", 128), "image_size is 128")
    refused(lambda: load(tmp_path / "none", split="valid"), "unknown split", "'validation'")
    other = tmp_path / "faces.txt"
    other.write_text("no images")
    refused(lambda: load(other), "not a file of CelebA")


def changed_member(number, data=None, name=None):
    """The members of the zip, one of them with other data or another name."""
    every = members()
    old_name, old_data = every[number]
    every[number] = (name or old_name, old_data if data is None else data)
    return {"members": every}


def picture(image, **options):
    buffer = io.BytesIO()
    image.save(buffer, **options)
    return buffer.getvalue()


def claiming(width, height):
    """A photograph whose header claims another size."""
    data = bytearray(photographs()[0])
    frame = data.index(b"\xff\xc0")
    data[frame + 5 : frame + 9] = height.to_bytes(2, "big") + width.to_bytes(2, "big")
    return bytes(data)


def row_changed(text, row, old, new):
    rows = text.split("\n")
    assert old in rows[row]
    rows[row] = rows[row].replace(old, new, 1)
    return "\n".join(rows)


_TEXT = attribute_list()
_ODD = f"{IMAGES}/000003.jpg"
LISTS = {
    "another count": (attribute_list(count=N + 1), "says '11' images, but lists 10"),
    "no count": (attribute_list(count="many"), "says 'many' images"),
    "a row fewer": (_TEXT.rsplit("\n", 2)[0], "says '10' images, but lists 9"),
    "no rows": (attribute_list([], 0), "0 images, but CelebA has 202599"),
    "a heading fewer": (attribute_list(headings=ATTRIBUTES[1:]), "headings are not the 40"),
    "headings swapped": (attribute_list(headings=ATTRIBUTES[::-1]), "headings are not the 40"),
    "a value of 0": (row_changed(_TEXT, 4, "-1", " 0"), "row 3 is '000003.jpg", "40 of -1, 1"),
    "a value of 2": (row_changed(_TEXT, 4, " 1", " 2"), "row 3 is '000003.jpg"),
    "a value fewer": (row_changed(_TEXT, 4, "-1", ""), "row 3 is"),
    "a value of 1.0": (row_changed(_TEXT, 4, " 1", "1.0"), "row 3 is"),
    "a name twice": (row_changed(_TEXT, 4, "03", "02"), "must be '000003.jpg'"),
    "a path": (row_changed(_TEXT, 4, "000003", "../../etc/x"), "must be '000003.jpg'"),
    "a png": (row_changed(_TEXT, 4, "jpg", "png"), "must be '000003.jpg'"),
    "a blank row": (row_changed(_TEXT, 4, "000003.jpg", "\n000003.jpg"), "lists 11"),
    "letters of elsewhere": (_TEXT.replace("Bald", "Bäld"), "damaged or not CelebA data"),
    "empty": ("", "damaged or not CelebA data"),
    "missing": (None, "no such file; get img_align_celeba.zip"),
}
PARTITIONS = {
    "fewer photographs": (partition_list(PARTITION[:-1]), "lists 9 images, but", "has 10"),
    "more photographs": (partition_list((*PARTITION, 2)), "lists 11 images"),
    "other numbers": (partition_list().replace("04.jpg", "14.jpg"), "must be '000004.jpg' and 1"),
    "a fourth split": (partition_list((*PARTITION[:-1], 3)), "'000010.jpg 3', but must be"),
    "splits mixed": (partition_list(PARTITION[::-1]), "splits of (5, 3, 2) images", "one after"),
    "no values": (partition_list().replace(" 1", ""), "row 6 is '000006.jpg'"),
    "missing": (None, "no such file"),
}
ZIPS = {
    "a member missing": ({"members": members()[:-1]}, "missing: img_align_celeba/000010.jpg"),
    "one too many": (
        {"members": [*members(), (f"{IMAGES}/000011.jpg", b"")]},
        "'img_align_celeba/000011.jpg' is none of img_align_celeba/000001.jpg to",
    ),
    "a way out": (changed_member(3, name="../000003.jpg"), "'../000003.jpg' is none of"),
    "a way out and back": (
        changed_member(3, name=f"{IMAGES}/../{_ODD}"),
        "'img_align_celeba/../img_align_celeba/000003.jpg' is none of",
    ),
    "an absolute path": (changed_member(3, name=f"/{_ODD}"), f"'/{_ODD}' is none of"),
    "another place": (changed_member(3, name="faces/000003.jpg"), "is none of"),
    "no photograph": (changed_member(3, b"no photograph"), _ODD, "damaged or not JPEG data"),
    "an empty one": (changed_member(3, b""), _ODD, "damaged or not JPEG data"),
    "a pickle": (changed_member(3, pickle.dumps(Bomb())), _ODD, "damaged or not JPEG data"),
    "a png": (
        changed_member(3, picture(Image.new("RGB", (178, 218)), format="PNG")),
        "damaged or not JPEG data",
    ),
    "half a photograph": (changed_member(3, photographs()[2][:1000]), _ODD, "truncated"),
    "a turned one": (
        changed_member(3, picture(Image.new("RGB", (218, 178)), format="JPEG")),
        "218x178 pixels, but CelebA has 178x218",
    ),
    "a large claim": (changed_member(3, claiming(9000, 9000)), "9000x9000 pixels, but"),
    "the largest claim": (changed_member(3, claiming(65000, 65000)), "DecompressionBombError"),
    "a large file": (
        changed_member(3, photographs()[2] + bytes(1 << 20)),
        "bytes, but a photograph of CelebA is under 1048576",
    ),
    "no zip": ({"members": None}, "img_align_celeba.zip: no such file"),
}
BROKEN = {
    **{
        f"attributes: {case}": ({"attributes": text}, *said)
        for case, (text, *said) in LISTS.items()
    },
    **{f"partition: {case}": ({"partition": t}, *said) for case, (t, *said) in PARTITIONS.items()},
    **{f"zip: {case}": wrong for case, wrong in ZIPS.items()},
}


@pytest.mark.parametrize("case", BROKEN)
def test_wrong_contents_are_named_and_nothing_is_left_behind(tmp_path, case):
    change, *said = BROKEN[case]
    write(tmp_path, **change)
    refused(lambda: load(tmp_path), f"{tmp_path}", *said)
    assert not list(tmp_path.glob("*vaejax*"))


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_member_that_is_there_twice_is_refused(tmp_path):
    every = members()
    write(tmp_path, members=[*every, every[3]])
    refused(lambda: load(tmp_path), "11 members for 10 images")


def test_a_photograph_missing_from_the_unzipped_directory_is_named(tmp_path):
    write(tmp_path, zipped=False, members=members()[:-1])
    refused(lambda: load(tmp_path), f"{IMAGES}/000010.jpg: no such file")
    (tmp_path / IMAGES / "000010.jpg").write_bytes(bytes(2 << 20))
    refused(lambda: load(tmp_path), f"{IMAGES}/000010.jpg: 2097152 bytes")


def test_the_complete_set_must_have_splits_of_the_published_sizes(directory, monkeypatch):
    assert (sum(celeba_files.SPLIT_SIZES), sum(PARTITION)) == (202_599, 7)
    monkeypatch.setattr(celeba_files, "SPLIT_SIZES", (5, 3, 2))
    assert_holds(load(directory), "all")
    (directory / PARTITION_LIST).write_text(partition_list((*[0] * 6, 1, 1, 2, 2)))
    refused(lambda: load(directory), "(6, 2, 2) images, but CelebA has (5, 3, 2)")


def test_a_split_without_photographs_is_refused(tmp_path):
    write(tmp_path, partition=partition_list([0] * N))
    assert len(load(tmp_path, split="train")) == N
    refused(lambda: load(tmp_path, split="test"), "no images in split 'test'")


def test_prepared_data_of_another_kind_are_refused(tmp_path):
    other = prepare(tmp_path / "a", attributes=(*ATTRIBUTES[:-1], "Old"))
    refused(lambda: load(other), "not the 40 attributes of CelebA, compare 'Old'")
    partial = prepare(tmp_path / "b", ("train",))
    refused(lambda: load(partial), "validation")
    turned = [picture(Image.new("RGB", (218, 178)), format="JPEG")] * N
    wrong = prepare(tmp_path / "c", photographs=lambda: turned)
    refused(lambda: load(wrong), "218x178 pixels, but CelebA has 178x218")
    assert not list(tmp_path.rglob("*vaejax*"))


def damaged(whole, seed, cuts=10, flips=40, places=()):
    """Copies that are cut short, or have one byte changed."""
    rng = np.random.default_rng(seed)
    for length in rng.integers(0, len(whole), cuts):
        yield whole[:length]
    for place in [*places, *rng.integers(0, len(whole), flips)]:
        data = bytearray(whole)
        data[place] ^= rng.integers(1, 256)
        yield bytes(data)


def loaded_or_refused(directory):
    """The source, or None after an error of one line that leaves nothing behind."""
    for kept in directory.glob("vaejax*/*"):
        kept.unlink()
    found = message = None
    try:
        found = load(directory)
    except DataError as error:
        message = str(error)
    if found is None:
        assert "\n" not in message
        assert not list(directory.glob("vaejax*/*.npy"))
    return found


def test_a_damaged_zip_gives_a_data_error_or_the_right_photographs(directory):
    path = directory / f"{IMAGES}.zip"
    whole = path.read_bytes()
    # Half of the flips fall into the zip's directory, whose few bytes decide how all is read.
    start = whole.index(b"PK\x01\x02")
    places = np.random.default_rng(1).integers(start, len(whole), 50)
    refusals = 0
    for data in damaged(whole, 0, places=places):
        path.write_bytes(data)
        found = loaded_or_refused(directory)
        if found is None:
            refusals += 1
        else:
            assert_holds(found, "all")
    assert refusals > 50


@pytest.mark.parametrize("name", [ATTRIBUTE_LIST, PARTITION_LIST])
def test_a_damaged_list_gives_a_data_error_or_at_most_one_value_wrong(directory, name):
    # No checksum protects a list: "-1" may become " 1", and the last of a split the first of the
    # next. What its form says is checked.
    path = directory / name
    whole = path.read_bytes()
    refusals = wrong = 0
    for data in damaged(whole, 2, places=range(30)):
        path.write_bytes(data)
        found = loaded_or_refused(directory)
        if found is None:
            refusals += 1
            continue
        np.testing.assert_array_equal(np.asarray(found.images.array), expected())
        differences = (np.asarray(found.labels) != labels()).sum()
        assert differences <= 1
        wrong += differences
    assert refusals > 60
    assert wrong < 5
