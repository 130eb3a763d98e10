"""Tiny files in the published formats of dSprites, and what they hold."""

import io
import itertools
import os
import pickle
import zipfile

import numpy as np
import pytest
from published_grids import RENDER, prepare_records

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
    return prepare_records(root, "dsprites", classes[:, 1:], images[..., None], labels)


def assert_holds_the_grid(data):
    classes, images = grid()
    assert len(data) == N
    assert tuple(factor.size for factor in data.factors) == SIZES
    # At every index: row i of the packed bits is the image whose labels unravel from i.
    np.testing.assert_array_equal(
        np.unpackbits(data.images.array, axis=1).reshape(N, 64, 64), images
    )
    unravelled = np.stack(np.unravel_index(np.arange(N), SIZES), axis=1)
    np.testing.assert_array_equal(classes[:, 1:], unravelled)
    np.testing.assert_array_equal(RENDER(data, classes[:, 1:]), images[..., None])
