"""Tiny files in the published formats of CelebA, and what they hold."""

import functools
import io
import os
import zipfile

import numpy as np
import pytest

from vaejax.data.genuine.celeba_files import ATTRIBUTE_LIST, ATTRIBUTES, IMAGES, PARTITION_LIST

Image = pytest.importorskip("PIL.Image")

PARTITION = (0, 0, 0, 0, 0, 1, 1, 1, 2, 2)
N = len(PARTITION)
SPLITS = ("train", "validation", "test")
ROWS = {"all": range(N), "train": range(5), "validation": range(5, 8), "test": range(8, 10)}


def jpeg(image, **options):
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", **options)
    return buffer.getvalue()


@functools.cache
def photographs():
    """The files, of smooth random pictures with 178x218 pixels."""
    coarse = np.random.default_rng(0).integers(0, 256, (N, 6, 5, 3), np.uint8)
    smooth = [Image.fromarray(each).resize((178, 218), Image.BICUBIC) for each in coarse]
    return [jpeg(np.asarray(each), quality=40) for each in smooth]


@functools.cache
def labels():
    """`[N, 40]` of 0 and 1, where no two rows are the same."""
    return np.random.default_rng(1).integers(0, 2, (N, 40))


def decoded(data):
    """What Pillow makes of a file: its central 140x140 at 64x64."""
    pixels = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))[39:179, 19:159]
    return np.asarray(Image.fromarray(pixels).resize((64, 64), Image.LANCZOS))


@functools.cache
def expected():
    return np.stack([decoded(data) for data in photographs()])


def attribute_list(values=None, count=N, headings=ATTRIBUTES):
    """The text, with two spaces before a 1 and two after the name, as published."""
    values = labels() if values is None else values
    rows = [
        f"{number:06d}.jpg " + " ".join(f"{2 * value - 1:2d}" for value in row)
        for number, row in enumerate(values, 1)
    ]
    return "\n".join([str(count), " ".join(headings) + " ", *rows]) + "\n"


def partition_list(partition=PARTITION):
    rows = [f"{number:06d}.jpg {split}\n" for number, split in enumerate(partition, 1)]
    return "".join(rows)


def members():
    names = [f"{IMAGES}/{number:06d}.jpg" for number in range(1, N + 1)]
    return [(f"{IMAGES}/", b""), *zip(names, photographs(), strict=True)]


def write_zip(path, members, compression=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, data in members:
            archive.writestr(name, data)


def write(directory, *, zipped=True, **changed):
    """Writes the published files; `attributes`, `partition`, `members` may be others, or None."""
    given = {"attributes": attribute_list(), "partition": partition_list(), "members": members()}
    given |= changed
    directory.mkdir(exist_ok=True)
    for key, name in (("attributes", ATTRIBUTE_LIST), ("partition", PARTITION_LIST)):
        if given[key] is not None:
            (directory / name).write_text(given[key])
    if given["members"] is None:
        return directory
    if zipped:
        write_zip(directory / f"{IMAGES}.zip", given["members"])
    else:
        (directory / IMAGES).mkdir()
        for name, data in given["members"]:
            if not name.endswith("/"):
                (directory / name).write_bytes(data)
    return directory


def prepare(root, splits=SPLITS, attributes=ATTRIBUTES, photographs=photographs):
    """Prepares ArrayRecord data as tensorflow-datasets does, without TensorFlow."""
    tfds = pytest.importorskip("tensorflow_datasets")
    pytest.importorskip("array_record")

    with tfds.core.registered.skip_registration():

        class CelebA(tfds.core.GeneratorBasedBuilder):
            name = "celeb_a"
            VERSION = tfds.core.Version("2.1.0")

            def _info(self):
                features = {
                    "image": tfds.features.Image(shape=(218, 178, 3), encoding_format="jpeg"),
                    "landmarks": {"nose_x": np.int64},
                    "attributes": dict.fromkeys(attributes, np.bool_),
                }
                return tfds.core.DatasetInfo(
                    builder=self, features=tfds.features.FeaturesDict(features)
                )

            def _split_generators(self, dl_manager):
                return {split: self._generate_examples(split) for split in splits}

            def _generate_examples(self, split):
                for row in ROWS[split]:
                    values = map(bool, labels()[row])
                    yield (
                        row,
                        {
                            "image": photographs()[row],
                            "landmarks": {"nose_x": row},
                            "attributes": dict(zip(attributes, values, strict=True)),
                        },
                    )

    CelebA(data_dir=os.fspath(root), file_format="array_record").download_and_prepare()
    return root / "celeb_a" / "2.1.0"


def assert_holds(data, split, *, ordered=True):
    """At every index: image and labels are those of one photograph of the split."""
    rows = np.array(ROWS[split])
    images, values = np.asarray(data.images.array), np.asarray(data.labels)
    assert (len(data), images.dtype, values.dtype) == (len(rows), np.uint8, np.int32)
    if not ordered:
        distances = np.abs(values[:, None] - labels()[rows]).sum(2)
        rows = rows[distances.argmin(1)]
        assert sorted(rows) == list(ROWS[split])
    np.testing.assert_array_equal(values, labels()[rows])
    np.testing.assert_array_equal(images, expected()[rows])
