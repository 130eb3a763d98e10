"""A source made of arrays."""

import jax
import numpy as np
import pytest

from vaejax.data import ArraySource, DataError, DataSource, Renderable

IMAGES = np.linspace(0, 1, 6 * 2 * 3, dtype=np.float32).reshape(6, 2, 3, 1)
LABELS = np.array([[0, 1], [1, 0], [0, 4], [1, 1], [0, 2], [0, 0]])


def test_batches_are_examples_with_their_labels():
    source = ArraySource.of(IMAGES, LABELS, name="six")
    assert isinstance(source, DataSource)
    assert not isinstance(source, Renderable)
    assert (len(source), source.image_shape, source.name) == (6, (2, 3, 1), "six")
    assert [(f.name, f.size) for f in source.factors] == [("factor_0", 2), ("factor_1", 5)]
    draw = jax.jit(lambda source, key: source.batch(key, 3000))
    images, factors = draw(source, jax.random.key(0))
    index = np.abs(np.asarray(images)[:, None] - IMAGES).sum((2, 3, 4)).argmin(1)
    np.testing.assert_array_equal(images, IMAGES[index])
    np.testing.assert_array_equal(factors, LABELS[index])
    counts = np.bincount(index, minlength=6)
    assert np.abs(counts - 500).max() < 5 * np.sqrt(500)


@pytest.mark.parametrize(
    ("images", "labels", "said"),
    [
        (IMAGES[..., 0], LABELS, r"images \[N, H, W, C\].*\(6, 2, 3\)"),
        (IMAGES[:0], LABELS[:0], "not empty"),
        (IMAGES, LABELS[:5], r"labels \[N, K\], N = 6, got int64 \(5, 2\)"),
        (IMAGES, LABELS * 1.0, "integer labels"),
        (IMAGES, LABELS - 1, "labels from 0, got -1"),
    ],
)
def test_wrong_arrays_get_one_line(images, labels, said):
    with pytest.raises(DataError, match=said):
        ArraySource.of(images, labels)


def test_bytes_are_images_of_255_levels():
    levels = np.arange(36, dtype=np.uint8).reshape(6, 2, 3, 1) * 7
    source = ArraySource.of(levels, LABELS)
    assert source.images.dtype == np.uint8
    decoded = np.stack([source.decode(image) for image in source.images.array])
    np.testing.assert_allclose(decoded, levels / 255, atol=1e-7)


@pytest.mark.parametrize(
    ("images", "said"),
    [
        (IMAGES * 255, r"images in \[0, 1\], or uint8, got float32 from 0.0 to 255.0"),
        (IMAGES - 0.5, "from -0.5 to 0.5"),
        (np.where(IMAGES > 0.5, np.nan, IMAGES), "from nan to nan"),
        (np.full(IMAGES.shape, "a"), "got <U1"),
    ],
)
def test_images_of_another_range_get_one_line(images, said):
    with pytest.raises(DataError, match=said):
        ArraySource.of(images, LABELS)


def test_labels_without_factors_get_one_line():
    with pytest.raises(DataError, match=r"labels \[N, K\], N = 6, got int64 \(6, 0\)"):
        ArraySource.of(IMAGES, LABELS[:, :0])
