"""Latent perturbation and interactions against closed forms and plain loops."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vaejax.interventions.latents import do, interactions, quantile_grid, shift

N, D = 7, 4
VALUES = np.array([[-1.0, 2.0], [0.5, 1.0], [3.0, -2.0], [1.5, 0.0]], np.float32)


def normal(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


@pytest.fixture
def latents():
    return normal(0, N, D)


@pytest.mark.parametrize("value", [2.5, np.arange(N, dtype=np.float32)])
@pytest.mark.parametrize("i", [0, 3, np.int64(2), np.arange(N) % D])
def test_do_and_shift_change_one_latent(latents, i, value):
    expected_do, expected_shift = latents.copy(), latents.copy()
    expected_do[np.arange(N), i] = value
    expected_shift[np.arange(N), i] += value
    np.testing.assert_array_equal(do(latents, i, value), expected_do)
    np.testing.assert_array_equal(shift(latents, i, value), expected_shift)
    np.testing.assert_array_equal(jax.jit(do)(latents, i, value), expected_do)
    np.testing.assert_array_equal(jax.jit(shift)(latents, i, value), expected_shift)


def test_vmap_over_latents_equals_loop(latents):
    mapped = jax.vmap(do, (None, 0, 0))(latents, jnp.arange(D), VALUES[:, 0])
    for i in range(D):
        np.testing.assert_array_equal(mapped[i], do(latents, i, VALUES[i, 0]))


def test_dtype_stays_and_own_value_is_a_no_op(latents):
    z = jnp.asarray(latents, jnp.bfloat16)
    assert do(z, 1, 2.5).dtype == shift(z, 1, np.float32(0.3)).dtype == jnp.bfloat16
    np.testing.assert_array_equal(do(latents, 1, latents[:, 1]), latents)
    np.testing.assert_array_equal(shift(latents, 1, 0.0), latents)
    np.testing.assert_array_equal(jax.jit(do)(latents, D, 9.0), latents)  # traced, out of range


def test_quantile_grid_is_per_latent():
    samples, quantiles = normal(1, 101, D) * np.arange(1, D + 1), (0.05, 0.5, 0.8)
    expected = np.quantile(samples, quantiles, axis=0).T
    np.testing.assert_allclose(quantile_grid(samples, quantiles), expected, rtol=1e-5)
    assert quantile_grid(jnp.asarray(samples, jnp.bfloat16), quantiles).dtype == jnp.float32


def naive_interactions(decode, latents, values):
    effect, joint = np.full((2, D, D), np.nan)
    for i, j in itertools.permutations(range(D), 2):
        effects, joints = [], []
        for z, v in itertools.product(latents, range(values.shape[1])):
            z_i, z_j, z_ij = z.copy(), z.copy(), z.copy()
            z_i[i] = z_ij[i] = values[i, v]
            z_j[j] = z_ij[j] = values[j, v]
            clean, at_i, at_j, at_ij = (
                np.float64(decode(one[None])) for one in (z, z_i, z_j, z_ij)
            )
            effects.append(np.linalg.norm(at_ij - at_i - at_j + clean))
            joints.append(np.linalg.norm(at_ij - clean))
        effect[i, j], joint[i, j] = np.mean(effects), np.mean(joints)
    return effect, joint


@pytest.mark.parametrize("chunk", [None, 3])
def test_interactions_equal_a_plain_loop(latents, chunk):
    first, last = normal(2, D, 16), normal(3, 16, 6)

    def decode(z):
        return (jnp.tanh(z @ first) @ last).reshape(-1, 2, 3)

    result = jax.jit(lambda z: interactions(decode, z, VALUES, chunk=chunk))(latents)
    effect, joint = naive_interactions(decode, latents, VALUES)
    np.testing.assert_allclose(result.effect.value, effect, rtol=1e-4)
    np.testing.assert_allclose(result.joint.value, joint, rtol=1e-4)
    np.testing.assert_allclose(result.share.value, effect / joint, rtol=1e-4)
    off = ~np.eye(D, dtype=bool)
    for matrix in (result.effect, result.joint, result.share):
        assert (np.asarray(matrix.low < matrix.value) & (matrix.value < matrix.high))[off].all()


def test_product_gate_has_a_closed_form(latents):
    weight = np.array([3.0, 4.0], np.float32)
    result = interactions(lambda z: (z[:, :1] * z[:, 1:2]) * weight, latents, VALUES)
    step = VALUES.T[:, None] - latents
    expected = 5 * np.abs(step[..., 0] * step[..., 1]).mean()
    np.testing.assert_allclose(result.effect.value[0, 1], expected, rtol=1e-5)
    np.testing.assert_array_equal(result.effect.value, result.effect.value.T)
    assert result.effect.value[2, 3] == 0  # both dead
    assert np.isnan(result.share.value[2, 3])
    assert np.isnan(np.diag(result.effect.value)).all()


def test_additive_decoder_has_no_interactions(latents):
    first, last = normal(4, D, 32), normal(5, D, 32)
    last[2] = 0  # dead

    def decode(z):
        return (jnp.tanh(z[:, :, None] * first) * last).sum(axis=1)

    result = interactions(decode, latents, VALUES)
    off = ~np.eye(D, dtype=bool)
    assert (result.effect.value[off] < 1e-6 * np.linalg.norm(decode(latents), axis=1).max()).all()
    assert (np.delete(result.effect.value[2], 2) == 0).all()
    assert (np.delete(result.joint.value[2], 2) > 0.1).all()


def test_models_can_be_mapped_over(latents):
    gains = jnp.array([1.0, 2.0])

    def effect(gain):
        return interactions(lambda z: gain * z[:, :1] * z[:, 1:], latents, VALUES).effect.value

    one, two = jax.vmap(effect)(gains)
    assert (one[0, 1:] > 0).all()
    np.testing.assert_allclose(two, 2 * one, rtol=1e-6)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: do(jnp.zeros(3), 0, 1.0), r"z \[B, D\].*\(3,\)"),
        (lambda: do(jnp.zeros((2, 3)), 3, 1.0), "i .*below 3, got 3"),
        (lambda: do(jnp.zeros((2, 3)), -1, 1.0), "i .*got -1"),
        (lambda: shift(jnp.zeros((2, 3)), [0, 5], 1.0), r"i .*got \[0, 5\]"),
        (lambda: do(jnp.zeros((2, 3)), [0, 1, 2], 1.0), r"i .*B = 2.*\(3,\)"),
        (lambda: do(jnp.zeros((2, 3)), 0, jnp.zeros(3)), r"value .*B = 2.*\(3,\)"),
        (lambda: shift(jnp.zeros((2, 3)), 0, jnp.zeros((2, 1))), r"delta .*\(2, 1\)"),
        (lambda: quantile_grid(jnp.zeros((0, 3)), (0.5,)), r"samples .*\(0, 3\)"),
        (lambda: quantile_grid(jnp.zeros((2, 3)), 0.5), r"quantiles .*\(\)"),
        (lambda: interactions(jnp.sin, jnp.zeros(3), jnp.zeros(1)), r"latents .*\(3,\)"),
        (lambda: interactions(jnp.sin, jnp.zeros((2, 3), int), jnp.zeros(1)), "int32"),
        (lambda: interactions(jnp.sin, jnp.zeros((2, 3)), jnp.zeros((2, 1))), r"D = 3.*\(2, 1\)"),
        (lambda: interactions(jnp.sin, jnp.zeros((2, 1)), jnp.zeros(1)), "2 latents .*got 1"),
        (lambda: interactions(jnp.sum, jnp.zeros((2, 3)), jnp.zeros(1)), r"outputs .*\[2, .*\(\)"),
    ],
)
def test_wrong_arguments_are_named(call, message):
    with pytest.raises(ValueError, match=message) as error:
        call()
    assert "\n" not in str(error.value)
