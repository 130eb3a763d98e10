"""Tiny files in the published formats of 3DShapes and MPI3D, and data prepared as those are."""

import io
import itertools
import math
import os

import jax
import numpy as np
import pytest

SHAPES3D = (2, 3, 2, 2, 2, 3)
MPI3D = (2, 2, 2, 2, 2, 2, 3)

RENDER = jax.jit(lambda data, classes: jax.vmap(data.render)(classes))


def grid(sizes):
    """Classes in the published order, and for each an image found at no other classes."""
    classes = np.array(list(itertools.product(*map(range, sizes))))
    blocks = np.random.default_rng(0).integers(0, 256, (len(classes), 8, 8, 3), np.uint8)
    return classes, blocks.repeat(8, axis=1).repeat(8, axis=2)


def shuffled(classes, images):
    order = np.random.default_rng(1).permutation(len(classes))
    return classes[order], images[order]


def assert_holds(data, sizes):
    """At every index: row i is the image whose classes unravel from i."""
    classes, images = grid(sizes)
    assert len(data) == math.prod(sizes)
    assert tuple(factor.size for factor in data.factors) == sizes
    np.testing.assert_array_equal(data.images.array, images)
    unravelled = np.stack(np.unravel_index(np.arange(len(data)), sizes), axis=1)
    np.testing.assert_array_equal(classes, unravelled)
    # A compiled division by 255 may be off by one unit in the last place.
    np.testing.assert_allclose(RENDER(data, classes), images / 255, rtol=0, atol=1e-7)


def write_h5(path, values, images, **options):
    h5py = pytest.importorskip("h5py")
    with h5py.File(path, "w") as file:
        file.create_dataset("images", data=images, **options)
        file.create_dataset("labels", data=values)
    return path


def flips(whole, count, seed=0, start=0):
    """The bytes with one of them changed, at `count` places from `start`."""
    rng = np.random.default_rng(seed)
    for place in rng.integers(start, len(whole), count):
        flipped = bytearray(whole)
        flipped[place] ^= int(rng.integers(1, 256))
        yield bytes(flipped)


def png(image):
    image_module = pytest.importorskip("PIL.Image")
    buffer = io.BytesIO()
    image_module.fromarray(image.squeeze()).save(buffer, "PNG")
    return buffer.getvalue()


def prepare_records(root, dataset, classes, images, labels):
    """Prepares ArrayRecord data as tensorflow-datasets does, without TensorFlow."""
    tfds = pytest.importorskip("tensorflow_datasets")
    pytest.importorskip("array_record")

    with tfds.core.registered.skip_registration():

        class Builder(tfds.core.GeneratorBasedBuilder):
            name = dataset
            VERSION = tfds.core.Version("2.0.0")

            def _info(self):
                features = {"image": tfds.features.Image(shape=images.shape[1:])}
                features |= {label: tfds.features.ClassLabel(num_classes=40) for label in labels}
                return tfds.core.DatasetInfo(
                    builder=self, features=tfds.features.FeaturesDict(features)
                )

            def _split_generators(self, dl_manager):
                return {"train": self._generate_examples()}

            def _generate_examples(self):
                for row, (image, values) in enumerate(zip(images, classes, strict=True)):
                    record = dict(zip(labels, map(int, values), strict=True))
                    yield row, {"image": png(image), **record}

    builder = Builder(data_dir=os.fspath(root), file_format="array_record")
    builder.download_and_prepare()
    return root / dataset / "2.0.0"
