"""The reader of the published SmallNORB, on tiny files written in the published formats."""

import gzip
import pickle
import sys

import numpy as np
import pytest
from published_dsprites import Bomb
from published_norb import (
    JOINED,
    LABELS,
    MAGIC,
    SIZES,
    assert_holds,
    expected,
    matrices,
    matrix,
    prepare,
    render,
    split_of,
    write,
)

from vaejax.data import DataError, GridSource, Renderable
from vaejax.data.genuine import smallnorb
from vaejax.data.genuine.smallnorb import FACTORS, INSTANCES, PUBLISHED, load, read_records

SPLITS = ("train", "test", "all")


@pytest.fixture
def directory(tmp_path):
    return write(write(tmp_path, "train"), "test")


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    root = tmp_path_factory.mktemp("tfds")
    prepare(root)
    return root


@pytest.fixture
def chunked(monkeypatch):
    """Several chunks, the last of which is not full."""
    monkeypatch.setattr(smallnorb, "_CHUNK", 25)


def refused(call, *said):
    """Calls what must fail with one line that says all of this."""
    with pytest.raises(DataError) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message
    for text in said:
        assert text in message
    return message


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("suffix", [".mat.gz", ".mat"])
def test_published_files_are_put_in_the_order_of_their_labels(tmp_path, suffix, split, chunked):
    for written in ("train", "test"):
        write(tmp_path / "smallnorb", written, suffix)
    assert_holds(load(tmp_path, split=split), split)


def test_any_of_the_files_stands_for_their_directory(directory):
    info = directory / f"{PUBLISHED['test']}-info.mat.gz"
    assert_holds(load(info, split="train"), "train")


def test_one_split_alone_is_read(tmp_path):
    write(tmp_path, "test")
    assert_holds(load(tmp_path, split="test"), "test")
    refused(lambda: load(tmp_path), PUBLISHED["train"], "no such file")


@pytest.mark.parametrize("split", SPLITS)
def test_prepared_data_are_put_in_the_order_of_their_labels(prepared, split, chunked):
    assert_holds(load(prepared, split=split), split)


def test_prepared_data_without_the_right_image_will_do(tmp_path):
    prepare(tmp_path, ("test",), second=False)
    assert_holds(load(tmp_path, split="test"), "test")
    refused(lambda: load(tmp_path, split="train"), "train")


def test_instances_of_the_joined_splits_have_their_published_numbers(directory):
    joined = load(directory).images.array.reshape(*JOINED, 64, 64)
    for split, numbers in INSTANCES.items():
        alone = load(directory, split=split).images.array.reshape(*SIZES, 64, 64)
        for position, number in enumerate(numbers):
            np.testing.assert_array_equal(joined[:, number], alone[:, position])


def test_what_was_packed_is_read_again_without_the_files(directory):
    calls = []
    load(directory, progress=lambda *done: calls.append(done))
    assert calls == [(60, 60), (60, 60)]
    calls.clear()
    for split in SPLITS:
        assert_holds(load(directory, split=split, progress=lambda *done: calls.append(done)), split)
    assert calls == []
    kept = sorted(path.name for path in directory.iterdir() if "vaejax" in path.name)
    assert kept == ["vaejax_smallnorb_test_v1", "vaejax_smallnorb_train_v1"]


def test_the_source_is_a_grid_of_one_grey_channel(directory):
    data = load(directory)
    assert isinstance(data, GridSource)
    assert isinstance(data, Renderable)
    assert (data.name, data.origin, data.image_shape) == ("smallnorb", "genuine", (64, 64, 1))
    names = [factor.name for factor in data.factors]
    assert names == [factor.name for factor in FACTORS]


def test_half_size_is_the_mean_over_blocks(directory):
    data = load(directory, 32, split="train")
    assert data.image_shape == (32, 32, 1)
    classes = np.array(np.unravel_index(np.arange(60), SIZES)).T
    blocks = expected("train").reshape(60, 32, 2, 32, 2, 1).mean((2, 4)) / 255
    np.testing.assert_allclose(render(data, classes), blocks, atol=1e-6)


class Records(list):
    """What a data source of tensorflow-datasets offers."""

    def __getitems__(self, keys):
        return [self[key] for key in keys]


def test_mocked_records_are_read_at_every_index(chunked, tmp_path):
    tfds = pytest.importorskip("tensorflow_datasets")
    with tfds.testing.mock_data(num_examples=30):
        mocked = tfds.data_source("smallnorb", split="train")
        records = Records(mocked[row] for row in range(30))  # a mock has no __getitems__
    rows = read_records(tmp_path, records)
    np.testing.assert_array_equal(rows.classes, [[each[n] for n in LABELS] for each in records])
    left = np.stack([record["image"][..., 0] for record in records])
    np.testing.assert_array_equal(rows.read(0, 30), smallnorb.resized(left))
    np.testing.assert_array_equal(rows.read(7, 9), smallnorb.resized(left)[7:9])
    assert "tensorflow" not in sys.modules


def test_records_with_other_images_are_refused(tmp_path):
    record = dict.fromkeys(LABELS, 0) | {"image": np.zeros((32, 32, 1), np.uint8)}
    refused(lambda: read_records(tmp_path, Records([record])), "uint8 [32, 32, 1]", "[96, 96, 1]")


def test_prepared_data_are_read_without_tensorflow(prepared):
    load(prepared, split="test")
    assert "tensorflow_datasets" in sys.modules
    assert "tensorflow" not in sys.modules


def test_missing_data_say_how_to_get_them(tmp_path):
    for root in (tmp_path, tmp_path / "none"):
        refused(
            lambda root=root: load(root),
            str(root),
            f"{PUBLISHED['train']}-dat.mat.gz",
            "tfds build smallnorb",
            "source('smallnorb')",
        )


def test_other_arguments_are_refused(tmp_path):
    refused(lambda: load(tmp_path / "none", 16), "image_size is 16")
    refused(lambda: load(tmp_path / "none", split="training"), "unknown split", "'train'")
    other = tmp_path / "norb.txt"
    other.write_text("no images")
    refused(lambda: load(other), "not a file of SmallNORB")


def labels_with(column, old, new):
    """The file that holds a column of the labels (1 is the instance), with one value replaced."""
    labels, _ = split_of("train")
    table = labels.astype("<i4")
    table[:, 3] *= 2
    row = np.flatnonzero(table[:, column] == old)[0]
    table[row, column] = new
    if column == 0:
        return {"cat": matrix(np.ascontiguousarray(table[:, 0]))}
    return {"info": matrix(np.ascontiguousarray(table[:, 1:]))}


_LABELS, _IMAGES = split_of("train")
_CATEGORIES = _LABELS[:, 0].astype("<i4")
_PARTS = matrices("train")
BROKEN = {
    "category repeated": (labels_with(0, 0, 1), "not every combination once"),
    "category too high": (labels_with(0, 1, 5), "category classes are 0 to 5, but SmallNORB has"),
    "category negative": (labels_with(0, 0, -1), "category classes are -1 to 1"),
    "toy of the other split": (labels_with(1, 4, 3), "instance 3, but the toys of split 'train'"),
    "another toy": (labels_with(1, 4, 6), "not every combination once"),
    "elevation too high": (labels_with(2, 1, 9), "elevation classes are 0 to 9"),
    "odd azimuth": (labels_with(3, 4, 3), "an azimuth is odd"),
    "azimuth too high": (labels_with(3, 4, 36), "azimuth classes are 0 to 18"),
    "lighting unused": (labels_with(4, 0, 1), "not every combination once"),
    "no rows": (
        {"cat": matrix(_CATEGORIES[:0]), "info": matrix(np.zeros((0, 4), "<i4"))},
        "int32 [0], but must be int32 [N]",
    ),
    "a category fewer": ({"cat": matrix(_CATEGORIES[:-1])}, "60 rows, but", "has 59"),
    "an image fewer": ({"dat": matrix(_IMAGES[:-1])}, "59 images, but", "has 60 rows"),
    "single images": ({"dat": matrix(_IMAGES[:, 0])}, "uint8 [60, 96, 96], but must be uint8 [N, "),
    "small images": ({"dat": matrix(_IMAGES[..., :64])}, "[60, 2, 96, 64], but must be uint8"),
    "labels in bytes": ({"cat": matrix(_CATEGORIES.astype("u1"))}, "uint8 [60], but must be int32"),
    "images of integers": ({"dat": _PARTS["cat"]}, "int32 [60], but must be uint8"),
    "wrong magic": ({"cat": b"\x54\x4c\x3d\x1f" + _PARTS["cat"][4:]}, "starts with 0x1f3d4c54"),
    "big-endian": ({"cat": _PARTS["cat"][3::-1] + _PARTS["cat"][4:]}, "not a NORB matrix"),
    "no dimensions": ({"cat": _PARTS["cat"][:4] + bytes(4)}, "0 dimensions"),
    "many dimensions": ({"cat": _PARTS["cat"][:4] + b"\xff\xff\xff\x7f"}, "2147483647 dimensions"),
    "negative size": ({"cat": matrix(_CATEGORIES, (-60,))}, "int32 [-60], but must be"),
    "more promised": ({"cat": matrix(_CATEGORIES, (24_300,))}, "truncated, 96960 bytes are"),
    "too much promised": ({"cat": matrix(_CATEGORIES, (24_301,))}, "N at most 24300"),
    "less promised": ({"cat": matrix(_CATEGORIES, (59,))}, "longer than the [59]"),
    "images longer": ({"dat": _PARTS["dat"] + b"\0"}, "longer than the [60, 2, 96, 96]"),
    "cut header": ({"info": _PARTS["info"][:11]}, "truncated, 9 bytes are missing"),
    "a pickle": ({"info": pickle.dumps(Bomb())}, "not a NORB matrix"),
    "empty": ({"info": b""}, "truncated"),
    "a file missing": ({"info": None}, "-info.mat", "no such file; get the six files"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_wrong_contents_are_named_and_nothing_is_left_behind(tmp_path, case):
    change, *said = BROKEN[case]
    write(tmp_path, "train", ".mat", **change)
    refused(lambda: load(tmp_path, split="train"), f"{tmp_path}", *said)
    assert not list(tmp_path.glob("*vaejax*"))


def test_splits_of_different_sizes_are_not_joined(tmp_path):
    labels, images = split_of("train")
    kept = labels[:, 2] == 0
    info = labels[kept, 1:].astype("<i4") * [1, 1, 2, 1]
    parts = (images[kept], labels[kept, 0].astype("<i4"), info.astype("<i4"))
    write(tmp_path, "train", **dict(zip(("dat", "cat", "info"), map(matrix, parts), strict=True)))
    write(tmp_path, "test")
    assert len(load(tmp_path, split="train")) == 30
    refused(lambda: load(tmp_path), "cannot join a grid of 2 x 5 x 1 x 3 x 1 and one of 2 x 5 x 2")


def test_incomplete_prepared_data_are_refused(tmp_path):
    incomplete = prepare(tmp_path, ("test",), drop=1)
    refused(lambda: load(tmp_path, split="test"), "1 missing and 0 repeated")
    assert not list(incomplete.glob("*vaejax*"))


@pytest.mark.parametrize("kind", ["dat", "cat", "info"])
def test_gzip_that_is_cut_or_flipped_gives_a_data_error_or_the_right_images(
    tmp_path, kind, monkeypatch
):
    # Images of 2 x 2 pixels keep the files small enough to be hit where it matters.
    monkeypatch.setattr(smallnorb, "_SIDE", 2)
    monkeypatch.setattr(
        smallnorb, "resized", lambda images: np.tile(images, (1, 32, 32))[..., None]
    )
    images = split_of("train")[1][..., :2, :2].copy()
    write(tmp_path, "train", dat=matrix(images))
    right = np.asarray(load(tmp_path, split="train").images.array)
    path = tmp_path / f"{PUBLISHED['train']}-{kind}.mat.gz"
    whole = path.read_bytes()
    rng = np.random.default_rng(0)
    cuts = [whole[:length] for length in rng.integers(0, len(whole), 20)]
    flips = []
    for place in [*range(20), *rng.integers(0, len(whole), 60), *range(-8, 0)]:
        data = bytearray(whole)
        data[place] ^= rng.integers(1, 256)
        flips.append(bytes(data))
    messages = []
    for data in [*cuts, *flips]:
        path.write_bytes(data)
        for packed in tmp_path.glob("vaejax*/*"):
            packed.unlink()
        # What is packed from a file that fails its checksum must not be used the second time.
        for _ in range(2):
            try:
                found = load(tmp_path, split="train")
            except DataError as error:
                messages.append(str(error))
                assert not list(tmp_path.glob("vaejax*/*.npy"))
            else:
                np.testing.assert_array_equal(np.asarray(found.images.array), right)
    assert len(messages) > 2 * 70
    assert not any("\n" in message for message in messages)


def test_the_checksum_is_compared_before_anything_is_kept(directory):
    path = directory / f"{PUBLISHED['train']}-dat.mat.gz"
    data = bytearray(path.read_bytes())
    data[-8] ^= 1
    path.write_bytes(bytes(data))
    for _ in range(2):
        refused(lambda: load(directory, split="train"), "damaged or not NORB data", "CRC")
    assert not list(directory.glob("*vaejax*"))


def test_the_formats_magic_numbers_are_those_published():
    assert (MAGIC[np.dtype("u1")], MAGIC[np.dtype("<i4")]) == (507333717, 507333716)
    head = gzip.decompress(gzip.compress(matrices("train")["cat"]))[:20]
    assert head == bytes.fromhex("544c3d1e 01000000 3c000000 01000000 01000000")
