"""Work in chunks gives what work at once does."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vaejax.chunking import even_chunk, map_chunks, map_items, resolve_chunk


@pytest.mark.parametrize(("total", "chunk"), [(1, 1), (1, 4), (7, 3), (8, 4), (9, 4), (5, 1)])
def test_results_are_stacked_in_order(total, chunk):
    sizes = []

    def fn(index):
        sizes.append(index.shape)
        return {"square": index**2, "row": jnp.stack([index, -index], axis=1)}

    result = map_chunks(fn, total, chunk)
    index = np.arange(total)
    np.testing.assert_array_equal(result["square"], index**2)
    np.testing.assert_array_equal(result["row"], np.stack([index, -index], axis=1))
    assert sizes == [(chunk,)]  # traced once, for whole chunks only


def test_under_jit_and_vmap():
    table = jnp.arange(10.0).reshape(2, 5)
    result = jax.jit(jax.vmap(lambda row: map_chunks(lambda i: row[i], 5, 2)))(table)
    np.testing.assert_array_equal(result, table)


def test_resolve_chunk(monkeypatch):
    assert resolve_chunk(3) == 3
    monkeypatch.setattr(jax, "default_backend", lambda: "cpu")
    assert resolve_chunk(None) == 16
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert resolve_chunk(None) == 512
    with pytest.raises(ValueError, match="chunk >= 1, got 0"):
        resolve_chunk(0)


@pytest.mark.parametrize(
    ("chunk", "total", "devices", "expected"),
    [(16, 100, 1, 15), (16, 10, 1, 10), (16, 100, 8, 13), (4, 100, 8, 4), (16, 3, 8, 1)],
)
def test_chunks_are_even_on_each_device(chunk, total, devices, expected):
    assert even_chunk(chunk, total, devices=devices) == expected


def test_chunks_are_for_one_device_without_a_mesh():
    assert even_chunk(16, 100) == 15


def test_items_may_be_any_arrays_and_keys():
    keys = jax.random.split(jax.random.key(0), 3)
    found = map_items(
        lambda item: item["x"] + jax.random.normal(item["key"]), {"x": jnp.arange(3.0), "key": keys}
    )
    np.testing.assert_allclose(
        found, [i + jax.random.normal(key) for i, key in enumerate(keys)], rtol=1e-6
    )
