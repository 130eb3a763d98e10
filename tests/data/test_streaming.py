"""Images on the host: the same numbers as on the device, fed ahead in windows of bounded size."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vaejax import Recipe, fit, init, objectives
from vaejax.data import ArraySource, Factor, GridSource, streaming
from vaejax.data.storage import OnDevice, OnHost, store
from vaejax.models import VAE, MLPDecoder, MLPEncoder

IMAGES = np.random.default_rng(0).integers(0, 256, (12, 64, 64, 1), np.uint8)
FACTORS = (Factor("a", 3), Factor("b", 4))
LABELS = np.stack(np.unravel_index(np.arange(12), (3, 4)), axis=1)
RECIPE = Recipe(VAE(MLPEncoder(2, ()), MLPDecoder((64, 64, 1), ())), objectives.beta_vae, 4)
HYPER = {"beta": jnp.ones(2), "learning_rate": jnp.full(2, 1e-3)}


def grid(images):
    return GridSource(images, "tiny", FACTORS)


def listed(images):
    return ArraySource(images, jnp.asarray(LABELS, jnp.int32), FACTORS)


@pytest.mark.parametrize("make", [grid, listed])
def test_batches_are_the_same_from_either_place(make):
    draw = jax.jit(lambda source, key: source.batch(key, 50))
    here, there = make(OnDevice(jnp.asarray(IMAGES))), make(OnHost(IMAGES))
    assert here.image_shape == there.image_shape == (64, 64, 1)
    jax.tree.map(
        np.testing.assert_array_equal, draw(here, jax.random.key(3)), draw(there, jax.random.key(3))
    )


def test_images_on_the_host_can_be_looked_up_in_a_mapped_loop():
    render = jax.jit(lambda source, g: jax.lax.map(jax.vmap(source.render), g))
    factors = jnp.asarray(LABELS.reshape(4, 3, 2))
    images = render(grid(OnHost(IMAGES)), factors)
    np.testing.assert_allclose(images.reshape(12, 64, 64, 1), IMAGES / 255, atol=1e-7)


def test_training_from_the_host_is_the_same(monkeypatch):
    # Two steps of a window: 2 runs x 4 images x 4 KiB each.
    monkeypatch.setattr(streaming, "WINDOW_BYTES", 2 * 2 * 4 * 4096)
    keys = jax.random.split(jax.random.key(0), 2)
    ends, histories = [], []
    for storage in (OnDevice(jnp.asarray(IMAGES)), OnHost(IMAGES)):
        seen = []
        ends.append(
            fit(
                RECIPE,
                grid(storage),
                init(RECIPE, (64, 64, 1), keys),
                HYPER,
                start=0,
                steps=8,
                chunk=5,
                on_chunk=lambda done, _, history, seen=seen: seen.append((done, history)),
            )
        )
        histories.append(seen)
    assert [done for done, _ in histories[1]] == [5, 8]
    # The images are, to the last bit; these are two programs, which may round as they like.
    close = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-7)
    jax.tree.map(close, *histories)
    jax.tree.map(close, *(end.variables for end in ends))


def test_windows_are_even_small_enough_and_end_with_the_chunks(monkeypatch):
    monkeypatch.setattr(streaming, "WINDOW_BYTES", 3 * 4 * 4096 + 100)  # room for three steps
    keys = jax.random.split(jax.random.key(0), 1)
    source = grid(OnHost(IMAGES))
    found = list(streaming.windows(source, keys, 4, start=2, steps=12, chunk=5))
    spans = [(window.first, window.stop) for window in found]
    assert spans == [(2, 5), (5, 7), (7, 10), (10, 12)]
    for window in found:
        assert window.stored.shape == (1, window.stop - window.first, 4, 64, 64, 1)
        key = streaming.step_keys(keys[0], window.first)[0]
        images, _ = source.batch(key, 4)
        np.testing.assert_array_equal(jax.vmap(source.decode)(window.stored[0, 0]), images)


def test_a_window_has_a_step_however_large_it_is(monkeypatch):
    monkeypatch.setattr(streaming, "WINDOW_BYTES", 1)
    keys = jax.random.split(jax.random.key(0), 1)
    found = streaming.windows(grid(OnHost(IMAGES)), keys, 4, start=0, steps=2, chunk=2)
    assert [(window.first, window.stop) for window in found] == [(0, 1), (1, 2)]


def test_what_fails_on_the_host_is_raised_by_the_training():
    class Broken(np.ndarray):
        def __getitem__(self, rows):
            raise OSError("the disk is gone")

    source = grid(OnHost(IMAGES.view(Broken)))
    keys = jax.random.split(jax.random.key(0), 2)
    with pytest.raises(OSError, match="the disk is gone"):
        fit(RECIPE, source, init(RECIPE, (64, 64, 1), keys), HYPER, steps=2)


def test_small_images_go_to_the_device_and_large_ones_stay(monkeypatch):
    assert isinstance(store(IMAGES), OnDevice)
    monkeypatch.setattr("vaejax.data.storage._CPU_LIMIT", IMAGES.nbytes - 1)
    kept = store(IMAGES)
    assert isinstance(kept, OnHost)
    assert kept.array is IMAGES
