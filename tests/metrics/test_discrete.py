"""Effects of codes: planted decoders with a closed form, naive loops, and a real VQ-VAE."""

import functools
import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from vaejax.metrics.code_swap import (
    active_positions,
    ces_code_swap,
    code_entropies,
    matched_positions,
)
from vaejax.metrics.discrete import ces_code_ablate, discrete_ces
from vaejax.metrics.effect_strength import CALIBRATED_QUANTILES, ces_calibrated
from vaejax.models import VQVAE, nearest

# Neither N nor N P is a multiple of the chunks below. Position 2 has one code, entry 4 is not used.
N, P, K, DIM, SIZE = 13, 4, 6, 3, 10
CONSTANT, UNUSED = 2, 4


STATIC = ("decode_quantized", "quantize", "positions", "draws", "continuous_examples", "chunk")
swap_ces = jax.jit(ces_code_swap, static_argnames=STATIC[:1] + STATIC[2:4] + STATIC[5:])
ablate_ces = jax.jit(ces_code_ablate, static_argnames=STATIC[:2] + STATIC[5:])
all_ces = jax.jit(discrete_ces, static_argnames=STATIC)


def normal(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def planted(num_examples=N):
    """A codebook `[K, d]` and encoder outputs `[N, P, d]` near its entries."""
    rng = np.random.default_rng(0)
    embedding = 2 * normal(1, K, DIM)
    codes = rng.choice([0, 0, 0, 1, 2, 3, 5], size=(num_examples, P))
    codes[:, CONSTANT] = 3
    encoded = embedding[codes] + 0.2 * normal(2, num_examples, P, DIM)
    codes = np.asarray(nearest(embedding, encoded))
    assert len(np.unique(codes[:, CONSTANT])) == 1
    assert set(np.unique(codes)) == set(range(K)) - {UNUSED}
    return jnp.asarray(embedding), jnp.asarray(encoded), codes


WEIGHT = normal(3, P, DIM, SIZE)
HIDDEN, LAST, GAIN = normal(4, P * DIM, 32), normal(5, 32, SIZE), normal(6, SIZE)


def decode_linear(quantized):
    return jnp.einsum("bpd,pdo->bo", quantized, WEIGHT)


def decode_mlp(quantized, gain=GAIN):
    hidden = jax.nn.relu(quantized.reshape(len(quantized), -1) @ HIDDEN)
    # Ends in a multiplication, which XLA likes to fuse with a following subtraction.
    return (jnp.tanh(0.1 * hidden @ LAST) * gain).reshape(-1, 5, 2)


def norms(change):
    return np.linalg.norm(np.asarray(change, np.float64).reshape(len(change), -1), axis=1)


def naive_swap(effect, codes):
    """The definition; `effect(s, k)` are those of writing code k at position s, `[N]`."""
    result = np.zeros(codes.shape)
    for s in range(codes.shape[1]):
        share = np.bincount(codes[:, s], minlength=K) / len(codes)
        for k in range(K):
            other = (codes[:, s] != k) & (share[codes[:, s]] < 1)
            weight = share[k] / np.where(other, 1 - share[codes[:, s]], 1) * other
            result[:, s] += weight * effect(s, k)
    return result.mean(axis=0)


def test_swaps_of_a_linear_decoder_have_a_closed_form():
    embedding, _, codes = planted()
    result = swap_ces(decode_linear, embedding, codes, draws=K)

    def effect(s, k):
        return norms((embedding[k] - embedding[codes[:, s]]) @ WEIGHT[s])

    expected = naive_swap(effect, codes)
    np.testing.assert_allclose(result.l2.each, expected, rtol=1e-5)
    np.testing.assert_allclose(result.l2.all, expected.mean(), rtol=1e-5)
    np.testing.assert_allclose(result.l2.active, expected.sum() / 3, rtol=1e-5)
    np.testing.assert_allclose(result.l2.max, expected.max(), rtol=1e-5)
    np.testing.assert_allclose(result.rms.each, expected / math.sqrt(SIZE), rtol=1e-5)
    np.testing.assert_array_equal(result.active, np.arange(P) != CONSTANT)
    assert result.l2.each[CONSTANT] == 0 < result.l2.each[0]


def test_ablations_of_a_linear_decoder_have_a_closed_form():
    embedding, encoded, codes = planted()
    result = ablate_ces(decode_linear, nearest, embedding, encoded)
    distance = ((encoded[..., None, :] - embedding) ** 2).sum(-1)
    second = np.argsort(distance, axis=-1)[..., 1]
    step = np.einsum("npd,pdo->npo", embedding[second] - embedding[codes], WEIGHT)
    expected, frequency = np.full(K, np.nan), np.zeros(K)
    for k in range(K):
        users = (codes == k).any(axis=1)
        frequency[k] = users.mean()
        if users.any():
            change = np.where((codes == k)[..., None], step, 0).sum(axis=1)[users]
            expected[k] = norms(change).mean()
    np.testing.assert_allclose(result.l2.each, expected, rtol=1e-5)
    np.testing.assert_allclose(result.frequency, frequency, rtol=1e-6)
    np.testing.assert_array_equal(result.active, np.arange(K) != UNUSED)
    np.testing.assert_allclose(result.l2.all, np.nansum(expected) / K, rtol=1e-5)
    np.testing.assert_allclose(result.l2.active, np.nanmean(expected), rtol=1e-5)
    np.testing.assert_allclose(result.l2.max, np.nanmax(expected), rtol=1e-5)
    np.testing.assert_allclose(result.rms.each, expected / math.sqrt(SIZE), rtol=1e-5)


def test_all_four_are_found_by_naive_loops():
    embedding, encoded, codes = planted()
    expected = {"prequant": np.zeros((P, DIM)), "postquant": np.zeros((P, DIM))}
    quantized = np.asarray(embedding)[codes]
    clean = decode_mlp(quantized)
    for name, vectors in (("prequant", np.asarray(encoded)), ("postquant", quantized)):
        for s, c in np.ndindex(P, DIM):
            for value in np.quantile(vectors[:, s, c], CALIBRATED_QUANTILES):
                moved = vectors.copy()
                moved[:, s, c] = value
                if name == "prequant":
                    moved = embedding[nearest(embedding, moved)]
                expected[name][s, c] += norms(decode_mlp(moved) - clean).mean() / 7

    def swap_effect(s, k):
        swapped = codes.copy()
        swapped[:, s] = k
        return norms(decode_mlp(embedding[swapped]) - clean)

    expected["code_swap"] = naive_swap(swap_effect, codes)
    expected["code_ablate"] = np.full(K, np.nan)
    for k in range(K):
        rest = np.delete(np.arange(K), k)
        other = rest[np.asarray(nearest(embedding[rest], encoded))]
        users = (codes == k).any(axis=1)
        change = decode_mlp(embedding[np.where(codes == k, other, codes)]) - clean
        if users.any():
            expected["code_ablate"][k] = norms(change[users]).mean()

    result = all_ces(decode_mlp, nearest, embedding, encoded, chunk=5)
    for name in ("prequant", "postquant"):
        per_latent = getattr(result, name).per_latent
        np.testing.assert_allclose(per_latent, expected[name].ravel(), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(result.code_swap.l2.each, expected["code_swap"], rtol=1e-5)
    np.testing.assert_allclose(result.code_ablate.l2.each, expected["code_ablate"], rtol=1e-5)
    assert result.prequant.num_active == result.postquant.num_active == 3 * DIM
    # Coordinates of the constant position are constant after rounding.
    np.testing.assert_array_equal(result.postquant.per_latent.reshape(P, DIM)[CONSTANT], 0)
    assert result.code_swap.l2.each[CONSTANT] == 0


def test_a_swap_for_the_same_code_does_nothing_to_the_last_bit():
    embedding, _, codes = planted()
    result = swap_ces(decode_mlp, embedding, codes, draws=2, chunk=5)
    assert result.l2.each[CONSTANT] == 0 < result.l2.each[0]
    constant = swap_ces(decode_mlp, embedding, np.tile(codes[:1], (N, 1)), draws=2, chunk=5)
    np.testing.assert_array_equal(constant.l2.each, 0)
    assert constant.l2.all == constant.l2.max == constant.total_information == 0
    assert jnp.isnan(constant.l2.active)


def test_random_swaps_are_drawn_from_the_other_codes_as_often_as_they_occur():
    # Codes 0 .. 3 in proportion 1 : 2 : 3 : 4; each pair of codes has an effect of its own.
    codes = jnp.repeat(jnp.arange(4), jnp.array([1, 2, 3, 4]) * 100)[:, None]
    embedding = jnp.array([[0.0], [1.0], [10.0], [100.0]])
    of = functools.partial(swap_ces, lambda q: q.sum(1), embedding, codes, chunk=512)
    exact, drawn = of(draws=4), of(draws=3)
    np.testing.assert_allclose(drawn.l2.each, exact.l2.each, rtol=0.05)
    assert drawn.l2.each != exact.l2.each
    other_key = of(draws=3, key=jax.random.key(1))
    assert other_key.l2.each != drawn.l2.each


def test_with_two_codes_a_random_swap_is_the_only_one_there_is():
    codes = np.random.default_rng(7).integers(0, 2, (9, 5))
    embedding = jnp.asarray(normal(8, 2, 3))
    weight = normal(9, 5, 3, 4)

    def decode(quantized):
        return jnp.einsum("bpd,pdo->bo", quantized, weight)

    exact = swap_ces(decode, embedding, codes, draws=2)
    drawn = swap_ces(decode, embedding, codes, draws=1)
    chex.assert_trees_all_close(drawn.l2.each, exact.l2.each, rtol=1e-6)
    expected = norms(np.einsum("d,pdo->po", embedding[1] - embedding[0], weight))
    np.testing.assert_allclose(exact.l2.each, expected, rtol=1e-5)
    # So the effect is the same for every example, and there is nothing to be uncertain about.
    np.testing.assert_allclose(exact.l2.low.each, expected, rtol=1e-5)
    np.testing.assert_allclose(exact.l2.high.each, expected, rtol=1e-5)


def test_swaps_of_several_positions_change_that_many():
    # Two codes and an output for each position: an effect is the root of how many have changed.
    codes = np.random.default_rng(7).integers(0, 2, (8, 6))
    embedding = jnp.array([[0.0], [1.0]])

    def decode(quantized):
        return quantized[..., 0]

    for m in (3, 6):
        result = swap_ces(decode, embedding, codes, positions=m)
        np.testing.assert_allclose(result.l2.each, math.sqrt(m), rtol=1e-6)
        assert result.positions == m
        expected = m / 6 * result.total_information
        np.testing.assert_allclose(result.information, expected, rtol=1e-6)
    codes[:, 1] = 0  # and a dead one stays as it is
    result = swap_ces(decode, embedding, codes, positions=6)
    np.testing.assert_allclose(result.l2.each, math.sqrt(5), rtol=1e-6)


def test_the_positions_that_a_swap_takes_along_are_any_others():
    codes = np.random.default_rng(7).integers(0, 2, (50, 5))
    embedding = jnp.array([[0.0], [1.0]])
    of = functools.partial(swap_ces, embedding=embedding, codes=codes, positions=3, draws=40)
    for seen in (0, 3):
        result = of(lambda q, seen=seen: q[:, seen])
        # It is always in the swaps at itself, and in (m - 1) / (P - 1) of those at others.
        expected = np.where(np.arange(5) == seen, 1, 2 / 4)
        np.testing.assert_allclose(result.l2.each, expected, atol=0.03)


def test_intervals_are_those_of_other_examples():
    # Codes 0 and 1 are 1 apart, and output 1 of it is seen where the other position has code 1.
    codes = np.random.default_rng(7).integers(0, 2, (400, 2))
    embedding = jnp.array([[0.0], [1.0]])
    result = swap_ces(lambda q: q[:, 0] * q[:, 1], embedding, codes, draws=2)
    effects = codes[:, ::-1].astype(float)
    mean, spread = effects.mean(axis=0), 1.96 * effects.std(axis=0) / math.sqrt(400)
    np.testing.assert_allclose(result.l2.each, mean, rtol=1e-5)
    np.testing.assert_allclose(result.l2.low.each, mean - spread, atol=0.01)
    np.testing.assert_allclose(result.l2.high.each, mean + spread, atol=0.01)
    assert result.l2.low.all < result.l2.all < result.l2.high.all
    assert result.rms.low.max < result.rms.max < result.rms.high.max


def test_vmap_over_decoders_is_a_loop():
    embedding, _, codes = planted()

    @jax.jit
    def run(gain):
        decode = functools.partial(decode_mlp, gain=gain)
        return ces_code_swap(decode, embedding, codes, positions=2, draws=3)

    gains = jnp.asarray(normal(11, 2, SIZE))
    mapped = jax.jit(jax.vmap(run))(gains)
    for i, gain in enumerate(gains):
        one = jax.tree.map(lambda leaf, i=i: leaf[i], mapped)
        chex.assert_trees_all_close(one, run(gain), rtol=1e-5)


def test_quantiles_are_those_of_all_examples_and_effects_those_of_the_first():
    embedding, encoded, codes = planted()
    result = all_ces(decode_linear, nearest, embedding, encoded, continuous_examples=4)
    quantized = np.asarray(embedding)[codes]
    values = np.quantile(quantized, CALIBRATED_QUANTILES, axis=0)
    step = np.abs(values[:, None] - quantized[:4]).mean(axis=(0, 1))
    expected = step * np.linalg.norm(WEIGHT, axis=-1)
    np.testing.assert_allclose(result.postquant.per_latent, expected.ravel(), rtol=1e-5)


def test_memory_does_not_grow_with_the_number_of_swaps():
    def temporaries(draws):
        run = functools.partial(ces_code_swap, decode_linear, positions=2, draws=draws)
        shapes = jax.ShapeDtypeStruct((K, DIM), "float32"), jax.ShapeDtypeStruct((N, P), "int32")
        return jax.jit(run).lower(*shapes).compile().memory_analysis().temp_size_in_bytes

    # The 4 bytes for each step are the loop's own indices.
    assert temporaries(2000) - temporaries(20) <= 4 * P * 1980


def test_a_real_model_goes_through_its_own_quantisation():
    encoder = nn.Sequential([nn.Dense(4 * 3), lambda h: h.reshape(-1, 4, 3)])
    decoder = nn.Sequential([lambda q: q.reshape(-1, 4 * 3), nn.Dense(5)])
    model = VQVAE(encoder, decoder, codebook_size=7, code_dim=3)
    x = jax.random.normal(jax.random.key(1), (6, 5))
    variables = jax.jit(model.init)(jax.random.key(0), x)
    codebook = variables["codebook"]["codes"]

    @jax.jit
    def run(x):
        def apply(method):
            return functools.partial(model.apply, variables, method=method)

        # Untrained, the encoder's outputs are much shorter than the codes.
        encoded, latents = (20 * apply(name)(x) for name in ("encode", "latents"))
        result = all_ces(apply("decode_quantized"), nearest, codebook.embedding, encoded, draws=2)
        return result, ces_calibrated(apply("decode"), latents, latents)

    result, expected = run(x)
    np.testing.assert_allclose(
        result.prequant.per_latent, expected.per_latent, rtol=1e-5, atol=1e-7
    )
    for effect in (result.prequant, result.postquant, result.code_swap.l2, result.code_ablate.l2):
        assert effect.max > 0


def test_information_and_matched_positions_by_hand():
    # 16 positions: 8 of two codes, equally often, 4 of four, and 4 of one.
    row = np.arange(8)[:, None]
    codes = np.concatenate([np.tile(row % 2, 8), np.tile(row % 4, 4), np.full((8, 4), 5)], axis=1)
    entropies = np.repeat([math.log(2), math.log(4), 0], [8, 4, 4])
    np.testing.assert_allclose(code_entropies(codes, 6), entropies, rtol=1e-6)
    np.testing.assert_array_equal(active_positions(codes), entropies > 0)
    share = functools.partial(matched_positions, codes, 6)
    # 16 / D positions: 16, 1.6, 1.45, 1.0, 0.16.
    assert [share(latents=d) for d in (1, 10, 11, 16, 100)] == [16, 2, 1, 1, 1]
    # 16 ln 2 in all, ln 2 = 0.693 for each position on average.
    assert [share(nats=x) for x in (0.1, 1.0, 1.1, 2.1, 100.0)] == [1, 1, 2, 3, 16]
    assert matched_positions(codes[:, 12:], 6, nats=1.0) == 1  # no position says anything


EMBEDDING, ENCODED = np.zeros((3, 2), np.float32), np.zeros((5, 4, 2), np.float32)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: discrete_ces(decode_linear, nearest, EMBEDDING, ENCODED[0]),
            r"expected floating-point encoded \[N, P, d\]",
        ),
        (
            lambda: discrete_ces(decode_linear, nearest, EMBEDDING, ENCODED.astype(int)),
            r"expected floating-point encoded \[N, P, d\]",
        ),
        (
            lambda: ces_code_ablate(decode_linear, nearest, EMBEDDING[:, :1], ENCODED),
            r"expected embedding \[K, d\] with d = 2, got shape \(3, 1\)",
        ),
        (
            lambda: discrete_ces(decode_linear, nearest, EMBEDDING, ENCODED, continuous_examples=6),
            "expected continuous_examples from 1 to 5, got 6",
        ),
        (
            lambda: ces_code_swap(decode_linear, EMBEDDING, ENCODED),
            r"expected integer codes \[N, P\], got float32",
        ),
        (
            lambda: ces_code_swap(decode_linear, EMBEDDING, np.full((5, 4), 3)),
            "expected codes at least 0 and below 3",
        ),
        (
            lambda: ces_code_swap(decode_linear, EMBEDDING, np.zeros((5, 4), int), positions=5),
            "expected positions from 1 to 4, got 5",
        ),
        (
            lambda: ces_code_swap(decode_linear, EMBEDDING, np.zeros((5, 4), int), draws=0),
            "expected draws >= 1, got 0",
        ),
        (
            lambda: ces_code_swap(lambda q: q.sum(), EMBEDDING, np.zeros((5, 4), int)),
            r"expected .*\[5, ...\].*, got .*\(\)",
        ),
        (
            lambda: ces_code_ablate(decode_linear, nearest, EMBEDDING[:1], ENCODED),
            "at least 2 entries",
        ),
        (lambda: matched_positions(np.zeros((5, 4), int), 2), "either latents or nats"),
        (
            lambda: matched_positions(np.zeros((5, 4), int), 2, latents=2, nats=1.0),
            "either latents or nats",
        ),
        (lambda: matched_positions(np.zeros((5, 4), int), 2, latents=0), "latents >= 1"),
        (lambda: matched_positions(np.zeros((5, 4), int), 2, nats=-1.0), "nats above 0"),
    ],
)
def test_wrong_input_gets_one_line(call, message):
    with pytest.raises(ValueError, match=message) as error:
        call()
    assert "\n" not in str(error.value)
