"""VQ-VAE: quantisation, its gradient, and the moving averages that learn the codebook."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vaejax import Normal
from vaejax.models import (
    VQVAE,
    Codebook,
    GridDecoder,
    GridEncoder,
    nearest,
    perplexity,
    update_codebook,
)

# Images of 8x12 and a grid of 4x6 codes.
ENCODER, DECODER = GridEncoder(3, (4,), (2,)), GridDecoder((8, 12, 1), (), 5)
MODEL = VQVAE(ENCODER, DECODER, codebook_size=7, code_dim=3)
X = jax.random.uniform(jax.random.key(1), (2, 8, 12, 1))

init = jax.jit(MODEL.init)
apply = jax.jit(MODEL.apply, static_argnames="method")
create = jax.jit(Codebook.create, static_argnums=(1, 2))
update = jax.jit(update_codebook)


@pytest.fixture
def variables():
    return init(jax.random.key(0), X)


def codebook_of(embedding):
    embedding = jnp.asarray(embedding, jnp.float32)
    return Codebook(embedding, jnp.ones(len(embedding)), embedding)


def test_nearest_is_found_by_brute_force():
    rng = np.random.default_rng(0)
    embedding, vectors = rng.normal(size=(17, 5)), rng.normal(size=(4, 50, 5))
    expected = ((vectors[:, :, None] - embedding) ** 2).sum(-1).argmin(-1)
    codes = nearest(jnp.asarray(embedding, jnp.float32), jnp.asarray(vectors, jnp.float32))
    assert codes.dtype == jnp.int32
    np.testing.assert_array_equal(codes, expected)
    assert len(np.unique(expected)) > 10


def test_the_quantized_vectors_are_the_codes_bit_for_bit(variables):
    encoded = 1e3 * jax.random.normal(jax.random.key(2), (2, 24, 3))
    codes, quantized = apply(variables, encoded, method="quantize")
    embedding = np.asarray(variables["codebook"]["codes"].embedding)
    np.testing.assert_array_equal(quantized, embedding[np.asarray(codes)])


def test_the_gradient_goes_straight_through_and_not_into_the_codebook(variables):
    encoded, weight = jax.random.normal(jax.random.key(2), (2, 2, 24, 3))

    def readout(encoded, codebook):
        changed = {**variables, "codebook": codebook}
        return jnp.vdot(weight, MODEL.apply(changed, encoded, method="quantize")[1])

    gradients = jax.jit(jax.grad(readout, argnums=(0, 1)))(encoded, variables["codebook"])
    np.testing.assert_array_equal(gradients[0], weight)


def test_the_methods_are_the_parts_of_a_call(variables):
    out = apply(variables, X)
    assert out.encoded.shape == out.quantized.shape == (2, 24, 3)
    assert out.codes.shape == (2, 24)
    latents = apply(variables, X, method="latents")
    assert latents.shape == (2, 72)

    def method(name, argument):
        return apply(variables, argument, method=name)

    np.testing.assert_array_equal(method("encode", X), out.encoded)
    np.testing.assert_array_equal(method("logits", latents), out.logits)
    np.testing.assert_array_equal(method("decode", latents), out.reconstruction)
    np.testing.assert_array_equal(method("decode_quantized", out.quantized), out.reconstruction)
    # Quantising twice changes nothing, so the codes' own vectors decode alike.
    np.testing.assert_array_equal(
        method("decode", out.quantized.reshape(2, -1)), out.reconstruction
    )
    np.testing.assert_array_equal(apply(variables, X, jax.random.key(9)).codes, out.codes)


def test_the_reconstruction_is_the_mean_of_the_likelihood(variables):
    out = jax.jit(VQVAE(ENCODER, DECODER, 7, 3, Normal()).apply)(variables, X)
    np.testing.assert_array_equal(out.reconstruction, out.logits)
    expected = 1 / (1 + np.exp(-np.asarray(out.logits)))
    np.testing.assert_allclose(apply(variables, X).reconstruction, expected, rtol=1e-5)


@pytest.mark.parametrize(("row", "column"), [(0, 0), (0, 5), (2, 1), (3, 5)])
def test_positions_run_row_by_row(variables, row, column):
    position = 6 * row + column
    encoded = apply(variables, X, method="encode")
    # A 2x2 convolution of stride 2: each position sees its own 2x2 block.
    changed = X.at[:, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2].add(5.0)
    moved = (apply(variables, changed, method="encode") != encoded).any((0, 2))
    np.testing.assert_array_equal(moved, np.arange(24) == position)

    # A 4x4 transposed convolution of stride 2: each position reaches one pixel further.
    vectors = jax.random.normal(jax.random.key(3), (1, 24, 3))
    image = apply(variables, vectors, method="decode_quantized")
    other = apply(variables, vectors.at[:, position].add(5.0), method="decode_quantized")
    pixels = np.zeros((8, 12), bool)
    pixels[max(2 * row - 1, 0) : 2 * row + 3, max(2 * column - 1, 0) : 2 * column + 3] = True
    np.testing.assert_array_equal((image != other)[0, ..., 0], pixels)


def test_one_step_of_the_moving_averages_by_hand():
    codebook = Codebook(
        embedding=jnp.array([[1.0, 0.0], [0.0, 2.0], [5.0, 5.0]]),
        counts=jnp.array([2.0, 4.0, 1.0]),
        sums=jnp.array([[2.0, 0.0], [0.0, 8.0], [5.0, 5.0]]),
    )
    vectors = jnp.array([[1.0, 1.0], [3.0, 1.0], [0.0, 4.0]])
    codes = jnp.array([0, 0, 1])
    new = update_codebook(codebook, vectors, codes, jax.random.key(0), decay=0.75)
    # counts: 0.75 (2, 4, 1) + 0.25 (2, 1, 0); sums: 0.75 old + 0.25 ((4, 2), (0, 4), (0, 0)).
    np.testing.assert_allclose(new.counts, [2.0, 3.25, 0.75], rtol=1e-6)
    np.testing.assert_allclose(new.sums, [[2.5, 0.5], [0.0, 7.0], [3.75, 3.75]], rtol=1e-6)
    expected = [[1.25, 0.25], [0.0, 7 / 3.25], [5.0, 5.0]]
    np.testing.assert_allclose(new.embedding, expected, rtol=1e-6)


def test_a_code_that_is_not_used_restarts_at_a_vector_of_the_batch():
    codebook = codebook_of([[0.0], [100.0]])
    vectors = jnp.array([[0.0], [1.0], [2.0], [3.0]])
    steps = 0
    while codebook.embedding[1, 0] == pytest.approx(100.0, rel=1e-3):
        assert steps < 400
        codebook = update(codebook, vectors, jnp.zeros(4, int), jax.random.key(steps))
        steps += 1
    # 0.99^298 = 0.0500 and 0.99^299 = 0.0495.
    assert steps == 299
    assert codebook.embedding[1] in np.asarray(vectors)
    assert codebook.counts[1] == 1.0
    # The code in use stayed at its mean, up to what is left of its old count: 4 - 3 * 0.99^299.
    left = 0.99**299
    assert codebook.embedding[0, 0] == pytest.approx(6 * (1 - left) / (4 - 3 * left), rel=1e-3)


def test_restarts_differ_between_codes():
    codebook = create(jax.random.key(0), 50, 2)
    vectors = jax.random.normal(jax.random.key(1), (40, 2)) + 100
    codes = nearest(codebook.embedding, vectors)
    new = update(codebook, vectors, codes, jax.random.key(2))
    # Of 50 draws from 40 vectors about 29 are different.
    assert len(np.unique(new.embedding, axis=0)) > 20


def test_the_first_step_moves_every_code_onto_the_batch():
    codebook = create(jax.random.key(0), 20, 2)
    assert abs(float(codebook.embedding.std()) - 1) < 0.4
    # Far from every code, and within 1 of (100, 100).
    vectors = jax.random.uniform(jax.random.key(1), (64, 2), minval=99.0, maxval=101.0)
    new = update(codebook, vectors, nearest(codebook.embedding, vectors), jax.random.key(2))
    assert (abs(new.embedding - 100) <= 1).all()


def test_the_codes_converge_to_the_means_of_planted_clusters():
    centres, std, n = jnp.array([[0.0, 0.0], [6.0, 0.0], [0.0, 6.0], [6.0, 6.0]]), 0.5, 64

    def step(codebook, key):
        vector_key, restart_key = jax.random.split(key)
        vectors = centres + std * jax.random.normal(vector_key, (n, 4, 2))
        vectors = vectors.reshape(-1, 2)
        codes = nearest(codebook.embedding, vectors)
        return update_codebook(codebook, vectors, codes, restart_key), codes[:4]

    start = codebook_of(centres + 1.5)
    end, codes = jax.lax.scan(step, start, jax.random.split(jax.random.key(0), 1500))
    np.testing.assert_array_equal(codes[-1], np.arange(4))
    # A moving average over 1 / (1 - decay) steps has the variance of 199 of them.
    standard_error = std / np.sqrt(n * 199)
    np.testing.assert_allclose(end.embedding, centres, atol=4 * standard_error)
    np.testing.assert_allclose(end.counts, n, rtol=1e-3)


@pytest.mark.parametrize(
    ("codes", "expected"),
    [([3, 3, 3], 1.0), ([0, 1, 2, 3, 4], 5.0), ([[0, 0], [1, 4]], 2**1.5)],
)
def test_perplexity_counts_the_codes_in_use(codes, expected):
    assert perplexity(jnp.array(codes), size=5) == pytest.approx(expected, rel=1e-6)


def test_reconstruction_errors_reach_the_encoder(variables):
    def total(params):
        return MODEL.apply({**variables, "params": params}, X).logits.sum()

    grads = jax.jit(jax.grad(total))(variables["params"])
    assert all(jnp.abs(grad).max() > 0 for grad in jax.tree.leaves(grads["encoder"]))
