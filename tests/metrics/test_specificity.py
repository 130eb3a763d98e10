"""Specificity against planted decoders with a closed form, and a naive loop."""

import functools
import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from planted import changes, mlp, mlp_params, normal

from vaejax.metrics import specificity_factor, specificity_pixel

NUM_LATENTS, DEAD, SHAPE = 4, 1, (3, 2, 2)
VALUES = normal(0, NUM_LATENTS, 3)
LATENTS = normal(1, 11, NUM_LATENTS)


@pytest.fixture
def params():
    return mlp_params(NUM_LATENTS, SHAPE, DEAD)


def entropy(p):
    return -sum(x * math.log(x) for x in np.ravel(p) if x > 0)


def test_blocks_of_pixels():
    """A latent that moves m pixels alike scores 1 / ln m, whatever the size of the move."""
    weight = np.zeros((5, 12), np.float32)
    for i, m in enumerate([2, 3, 12, 1, 0]):
        weight[i, :m] = [7.0, -0.1, 1e-3, 2.0, 0.0][i]
    values = np.array([-1.0, 4.0], np.float32)
    result = specificity_pixel(lambda z: (z @ weight).reshape(-1, 2, 6), normal(2, 6, 5), values)
    expected = [1 / math.log(2), 1 / math.log(3), 1 / math.log(12), 1e6, np.nan]
    rtol = np.array([1e-5, 1e-5, 1e-5, 0.1])  # an entropy of 0 is that to 1e-7, next to 1e-6
    np.testing.assert_array_less(np.abs(result.per_latent[:4] / np.array(expected[:4]) - 1), rtol)
    np.testing.assert_allclose(result.mean, np.mean(result.per_latent[:4]), rtol=1e-5)
    assert result.num_dead == 1
    assert jnp.isnan(result.per_latent[4])
    assert jnp.isnan(result.active)


@pytest.mark.parametrize("theta", [0.0, 0.3, math.pi / 4, 1.5])
def test_rotated_factors(theta):
    """Latents that are rotated by theta against two factors move them by |cos| and |sin|."""
    rotation = np.array(
        [[math.cos(theta), math.sin(theta)], [-math.sin(theta), math.cos(theta)]], np.float32
    )
    result = specificity_factor(lambda z: z @ rotation, normal(3, 5, 2), np.array([1.0, -2.0]))
    p = np.abs([math.cos(theta), math.sin(theta)])
    expected = 1 - entropy(p / p.sum()) / math.log(2)
    np.testing.assert_allclose(result.per_latent, [expected, expected], atol=2e-6)
    # In pixels the changes are squared.
    pixels = specificity_pixel(lambda z: z @ rotation, normal(3, 5, 2), np.array([1.0, -2.0]))
    # An entropy of 0 is that to 1e-7, next to 1e-6.
    expected = 1 / (entropy(p**2) + 1e-6)
    np.testing.assert_allclose(pixels.mean, expected, rtol=0.1 if theta == 0 else 1e-4)


def test_gate():
    """z1 * z2 in the first factor, z1 in the second: z2 is specific, z1 as open as the gate."""
    latents = np.array([[0.0, 3.0], [0.0, -1.0]], np.float32)

    def read(z):
        return jnp.stack([z[:, 0] * z[:, 1], z[:, 0]], axis=1)

    result = specificity_factor(read, latents, np.array([[1.0], [5.0]], np.float32))
    # do(z1 = 1) moves the factors by |z2| = 3 and 1, on average 2, and by 1. z1 = 0: z2 is dead.
    expected = 1 - entropy([2 / 3, 1 / 3]) / math.log(2)
    np.testing.assert_allclose(result.per_latent, [expected, np.nan], rtol=1e-5)
    assert result.num_dead == 1


def test_pixel_equals_naive_loop(params):
    decode = functools.partial(mlp, params, output_shape=SHAPE)
    squares = (changes(decode, LATENTS, VALUES) ** 2).mean(axis=(0, 2)).reshape(NUM_LATENTS, -1)
    expected = [1 / (entropy(s / s.sum()) + 1e-6) if s.any() else np.nan for s in squares]
    result = specificity_pixel(decode, LATENTS, VALUES)
    np.testing.assert_allclose(result.per_latent, expected, rtol=1e-5)


def test_factor_equals_naive_loop(params):
    widths = [1, 3, 2, 6]
    splits = np.cumsum(widths)[:-1]

    def read(z):
        return tuple(jnp.split(mlp(params, z, (12,)), splits, axis=1))

    moves = np.abs(changes(lambda z: mlp(params, z, (12,)), LATENTS, VALUES)).mean(axis=(0, 2))
    shares = [[part.sum() for part in np.split(move, splits)] for move in moves]
    expected = [1 - entropy(s / np.sum(s)) / math.log(4) if np.any(s) else np.nan for s in shares]
    result = specificity_factor(read, LATENTS, VALUES)
    np.testing.assert_allclose(result.per_latent, expected, rtol=1e-4)


def test_categorical_factor_counts_its_total_variation():
    """Half the class probabilities: a class that changes for certain counts 1, as a full range."""

    def read(z):
        classes = jax.nn.one_hot((z[:, 0] > 0).astype(int), 3) / 2
        return classes, z[:, :1].clip(0, 1)

    result = specificity_factor(read, np.full((4, 1), -1.0, np.float32), np.array([1.0]))
    np.testing.assert_allclose(result.per_latent, [0.0], atol=1e-6)  # 1 and 1: even


def test_active_mask():
    weight = np.eye(3, dtype=np.float32)
    weight[1] = 1.0
    weight[2] = 0.0
    latents, values = normal(4, 4, 3), np.array([2.0])

    def score(active):
        return specificity_factor(lambda z: z @ weight, latents, values, active=active).active

    np.testing.assert_allclose(score(jnp.array([True, True, True])), 0.5, atol=1e-6)
    np.testing.assert_allclose(score(jnp.array([False, True, True])), 0.0, atol=1e-6)
    assert jnp.isnan(score(jnp.array([False, False, True])))  # the only active one is dead


@pytest.mark.parametrize("specificity", [specificity_pixel, specificity_factor])
def test_jit_vmap_and_chunks(params, specificity):
    def score(params, latents, chunk):
        return specificity(lambda z: mlp(params, z, (12,)), latents, VALUES, chunk=chunk)

    def of_models(chunk):
        def one(params, latents):
            return score(params, latents, chunk)

        return jax.jit(jax.vmap(one))

    models = [params, jax.tree.map(jnp.sin, params)]
    codes = [LATENTS, 2 * LATENTS]
    alone = jax.jit(lambda params, latents: score(params, latents, None))
    looped = jax.tree.map(
        lambda *leaves: jnp.stack(leaves),
        *(alone(p, z) for p, z in zip(models, codes, strict=True)),
    )
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *models)
    with jax.checking_leaks():
        batched = of_models(3)(stacked, jnp.stack(codes))
    chex.assert_trees_all_close(batched, looped, rtol=1e-4)
    chex.assert_trees_all_close(of_models(1)(stacked, jnp.stack(codes)), batched, rtol=1e-4)


def test_permuted_latents(params):
    order = np.array([2, 0, 3, 1])
    plain = specificity_pixel(lambda z: mlp(params, z, SHAPE), LATENTS, VALUES)
    permuted = specificity_pixel(
        lambda z: mlp(params, z[:, np.argsort(order)], SHAPE), LATENTS[:, order], VALUES[order]
    )
    np.testing.assert_allclose(permuted.per_latent, plain.per_latent[order], rtol=1e-5)
    np.testing.assert_allclose(permuted.high.mean, plain.high.mean, rtol=1e-5)


def test_intervals_are_of_examples():
    """Examples move factor 1 or 2: the share of each is a proportion, with the interval of one."""
    which = (np.random.default_rng(5).random(200) < 0.2).astype(np.float32)
    latents = np.stack([np.zeros(200, np.float32), which], axis=1)

    def read(z):
        return jnp.stack([z[:, 0] * z[:, 1], z[:, 0] * (1 - z[:, 1])], axis=1)

    result = specificity_factor(read, latents, np.array([[1.0], [0.0]], np.float32))
    share = which.mean()
    error = 1.96 * math.sqrt(share * (1 - share) / 200)
    ends = [1 - entropy([q, 1 - q]) / math.log(2) for q in (share + error, share, share - error)]
    actual = [result.low.per_latent[0], result.per_latent[0], result.high.per_latent[0]]
    np.testing.assert_allclose(actual, ends, atol=0.03)
    assert ends[2] - ends[0] > 0.1
    assert result.low.low is None
    assert result.low.num_dead is None


def identity(z):
    return z


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda z, v: specificity_factor(lambda z: z[:, :1], z, v), "at least 2 factors, got 1"),
        (lambda z, v: specificity_factor(lambda z: (z,), z, v), "at least 2 factors, got 1"),
        (lambda z, v: specificity_factor(lambda z: z[:, 0], z, v), r"\[B, K\], got shape \(4,\)"),
        (
            lambda z, v: specificity_factor(lambda z: (z, z[:, 0]), z, v),
            r"arrays \[B, w\], got \(4,\)",
        ),
        (lambda z, v: specificity_pixel(lambda z: z[0], z, v), r"outputs \[4, \.\.\.\].*\(3,\)"),
        (lambda z, v: specificity_pixel(identity, z[0], v), r"latents \[N, D\].*\(3,\)"),
        (lambda z, v: specificity_pixel(identity, z, v[:0]), r"values .*\(0,\)"),
        (
            lambda z, v: specificity_factor(identity, z, v, active=jnp.ones(2, bool)),
            r"active .*\(3,\).*\(2,\)",
        ),
        (lambda z, v: specificity_factor(identity, z, v, chunk=0), "chunk >= 1, got 0"),
    ],
)
def test_wrong_arguments_are_named(call, message):
    with pytest.raises(ValueError, match=message) as error:
        call(jnp.zeros((4, 3)), jnp.ones(2))
    assert "\n" not in str(error.value)
