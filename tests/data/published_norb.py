"""Tiny files in the published formats of SmallNORB, and what they hold."""

import functools
import gzip
import io
import itertools
import os
import struct

import jax
import numpy as np
import pytest

from vaejax.data.genuine.smallnorb import INSTANCES, PUBLISHED

Image = pytest.importorskip("PIL.Image")

SIZES = (2, 5, 2, 3, 1)  # of one split
JOINED = (2, 10, 2, 3, 1)
MAGIC = {np.dtype("u1"): 0x1E3D4C55, np.dtype("<i4"): 0x1E3D4C54}


@functools.cache
def split_of(split):
    """The rows of a split in no order: published labels `[N, 5]`, image pairs `[N, 2, 96, 96]`."""
    rng = np.random.default_rng(sorted(INSTANCES).index(split))
    labels = np.array(list(itertools.product(*map(range, SIZES))))
    rng.shuffle(labels)
    labels[:, 1] = np.array(INSTANCES[split])[labels[:, 1]]
    return labels, rng.integers(0, 256, (len(labels), 2, 96, 96), np.uint8)


@functools.cache
def expected(split):
    """The images `[N, 64, 64, 1]` in the order of the factors, from Pillow itself."""
    parts = [split_of(part) for part in (("train", "test") if split == "all" else (split,))]
    order = np.lexsort(np.concatenate([labels for labels, _ in parts]).T[::-1])
    left = np.concatenate([images for _, images in parts])[order, 0]
    small = [np.asarray(Image.fromarray(image).resize((64, 64), Image.LANCZOS)) for image in left]
    return np.stack(small)[..., None]


def matrix(array, dimensions=None):
    """The bytes of a matrix file, with padding as published."""
    shape = array.shape if dimensions is None else dimensions
    padded = [*shape, *[1] * (3 - len(shape))]
    head = struct.pack(f"<2i{len(padded)}i", MAGIC[array.dtype], len(shape), *padded)
    return head + array.tobytes()


def matrices(split):
    """The three files of a split, un-gzipped."""
    labels, images = split_of(split)
    info = labels[:, 1:].astype("<i4")
    info[:, 2] *= 2
    category = labels[:, 0].astype("<i4")
    return {"dat": matrix(images), "cat": matrix(category), "info": matrix(info)}


def write(directory, split, suffix=".mat.gz", **changed):
    """Writes the files of a split; `None` leaves one out."""
    directory.mkdir(exist_ok=True)
    for kind, data in (matrices(split) | changed).items():
        if data is not None:
            packed = gzip.compress(data, 1) if suffix.endswith(".gz") else data
            (directory / f"{PUBLISHED[split]}-{kind}{suffix}").write_bytes(packed)
    return directory


LABELS = ("label_category", "instance", "label_elevation", "label_azimuth", "label_lighting")


def prepare(root, splits=("train", "test"), drop=0, second=True):
    """Prepares ArrayRecord data as tensorflow-datasets does, without TensorFlow."""
    tfds = pytest.importorskip("tensorflow_datasets")
    pytest.importorskip("array_record")

    def png(image):
        buffer = io.BytesIO()
        Image.fromarray(image).save(buffer, "PNG")
        return buffer.getvalue()

    with tfds.core.registered.skip_registration():

        class Smallnorb(tfds.core.GeneratorBasedBuilder):
            name = "smallnorb"
            VERSION = tfds.core.Version("2.0.0")

            def _info(self):
                pictures = ("image", "image2") if second else ("image",)
                features = {name: tfds.features.Image(shape=(96, 96, 1)) for name in pictures}
                features |= {name: tfds.features.ClassLabel(num_classes=18) for name in LABELS}
                return tfds.core.DatasetInfo(
                    builder=self, features=tfds.features.FeaturesDict(features)
                )

            def _split_generators(self, dl_manager):
                return {split: self._generate_examples(split) for split in splits}

            def _generate_examples(self, split):
                labels, images = split_of(split)
                for row, pair in enumerate(images[drop:], drop):
                    record = dict(zip(LABELS, map(int, labels[row]), strict=True))
                    pair = {"image": png(pair[0])} | ({"image2": png(pair[1])} if second else {})
                    yield row, pair | record

    Smallnorb(data_dir=os.fspath(root), file_format="array_record").download_and_prepare()
    return root / "smallnorb" / "2.0.0"


render = jax.jit(lambda data, rows: jax.vmap(data.render)(rows))


def assert_holds(data, split):
    """At every index: image and labels are those of the file, in the order of the factors."""
    sizes = JOINED if split == "all" else SIZES
    assert tuple(factor.size for factor in data.factors) == sizes
    assert len(data) == np.prod(sizes)
    np.testing.assert_array_equal(np.asarray(data.images.array), expected(split))
    classes = np.array(list(itertools.product(*map(range, sizes))))
    looked_up = np.asarray(render(data, classes)) * 255
    np.testing.assert_allclose(looked_up, expected(split), atol=1e-4)
