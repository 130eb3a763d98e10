"""Causal effect strength against planted decoders whose effects have a closed form."""

import functools
import itertools
import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vaejax.metrics import (
    CALIBRATED_QUANTILES,
    FIXED_VALUES,
    active_latents,
    ces,
    ces_calibrated,
    ces_fixed,
)

# 37 * 5 * 3 interventions: no multiple of any chunk below but 1 and 5.
NUM_EXAMPLES, NUM_LATENTS, DEAD = 37, 5, 2
OUTPUT_SHAPE = (6, 7, 3)
VALUES = np.array([-2.0, 0.5, 1.0], np.float32)


def normal(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


@pytest.fixture
def latents():
    return jnp.asarray(normal(0, NUM_EXAMPLES, NUM_LATENTS))


@pytest.fixture
def params():
    """A decoder with one hidden layer that ignores latent `DEAD`."""
    size = math.prod(OUTPUT_SHAPE)
    first = normal(1, NUM_LATENTS, 64)
    first[DEAD] = 0.0
    return {
        "first": jnp.asarray(first),
        "last": jnp.asarray(0.2 * normal(2, 64, size)),
        "bias": jnp.asarray(normal(3, size)),
        "gain": jnp.asarray(normal(4, size)),
    }


def decode_mlp(params, z):
    hidden = jax.nn.relu(z @ params["first"])
    logits = hidden @ params["last"] + params["bias"]
    # Ends in a multiplication, which XLA likes to fuse with a following subtraction.
    return (jnp.tanh(logits) * params["gain"]).reshape(-1, *OUTPUT_SHAPE)


def naive_ces(decode, latents, values):
    """The definition, one intervention at a time. `values` is `[D, V]`."""
    latents = np.asarray(latents)
    effects = np.zeros((*latents.shape, values.shape[1]))
    for n, i, v in np.ndindex(*effects.shape):
        intervened = latents[n].copy()
        intervened[i] = values[i, v]
        change = decode(latents[n][None]) - decode(intervened[None])
        effects[n, i, v] = np.linalg.norm(np.asarray(change, np.float64))
    return effects.mean(axis=(0, 2))


def test_linear_decoder_has_closed_form(latents):
    weight = normal(5, NUM_LATENTS, 24)
    result = ces(lambda z: (z @ weight).reshape(-1, 2, 3, 4), latents, VALUES)
    step = np.abs(VALUES[:, None, None] - np.asarray(latents)).mean(axis=(0, 1))
    expected = step * np.linalg.norm(weight, axis=1)
    np.testing.assert_allclose(result.per_latent, expected, rtol=1e-5)
    np.testing.assert_allclose(result.all, expected.mean(), rtol=1e-5)
    np.testing.assert_allclose(result.max, expected.max(), rtol=1e-5)
    np.testing.assert_allclose(result.rms.per_latent, expected / np.sqrt(24), rtol=1e-5)


def test_equals_naive_loop(params, latents):
    decode = functools.partial(decode_mlp, params)
    values = normal(6, NUM_LATENTS, 3)
    expected = naive_ces(decode, latents[:4], values)
    np.testing.assert_allclose(ces(decode, latents[:4], values).per_latent, expected, rtol=1e-5)


@pytest.mark.parametrize(
    ("chunk", "jit"), [(1, True), (2, True), (5, True), (16, True), (16, False), (128, True)]
)
def test_dead_latent_has_no_effect_at_all(params, latents, chunk, jit):
    def score(params, latents):
        return ces_fixed(lambda z: decode_mlp(params, z), latents, chunk=chunk).per_latent

    per_latent = (jax.jit(score) if jit else score)(params, latents)
    assert per_latent[DEAD] == 0.0
    assert jnp.all(jnp.delete(per_latent, DEAD) > 0.1)


@pytest.mark.parametrize("chunk", [1, 16, 554, 10_000])
def test_chunk_does_not_matter(params, latents, chunk):
    decode = functools.partial(decode_mlp, params)
    reference = ces(decode, latents, VALUES, chunk=5)
    chex.assert_trees_all_close(
        ces(decode, latents, VALUES, chunk=chunk).l2, reference.l2, rtol=1e-5
    )


def test_values_shared_or_per_latent(params, latents):
    decode = functools.partial(decode_mlp, params)
    shared = ces(decode, latents, VALUES)
    repeated = ces(decode, latents, np.tile(VALUES, (NUM_LATENTS, 1)))
    chex.assert_trees_all_equal(shared.l2, repeated.l2)

    # Each latent uses its own row: set where it already is, only that latent has no effect.
    rows = np.tile(VALUES, (NUM_LATENTS, 1))
    rows[3] = 0.25
    result = ces(decode, latents.at[:, 3].set(0.25), rows)
    np.testing.assert_array_equal(result.per_latent == 0.0, np.isin(np.arange(5), [DEAD, 3]))


def test_jit_and_vmap_over_models(params, latents):
    def score(params, latents):
        return ces(lambda z: decode_mlp(params, z), latents, VALUES, chunk=8).l2

    models = [params, jax.tree.map(lambda x: -0.5 * x, params), jax.tree.map(jnp.sin, params)]
    codes = jnp.stack([latents, latents + 1.0, latents * 2.0])
    looped = [jax.jit(score)(p, z) for p, z in zip(models, codes, strict=True)]
    stacked = jax.tree.map(lambda *xs: jnp.stack(xs), *models)
    with jax.checking_leaks():
        batched = jax.jit(jax.vmap(score))(stacked, codes)
    chex.assert_trees_all_close(
        batched, jax.tree.map(lambda *xs: jnp.stack(xs), *looped), rtol=1e-5
    )
    np.testing.assert_array_equal(batched.per_latent[:, DEAD], 0.0)


def test_strict_promotion(params, latents):
    with jax.numpy_dtype_promotion("strict"):
        decode = functools.partial(decode_mlp, params)
        ces(decode, latents, jnp.array([0, 1]), active=jnp.ones(NUM_LATENTS, bool))
        ces_calibrated(decode, latents, latents.astype(jnp.bfloat16))
        half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), params)
        ces_fixed(functools.partial(decode_mlp, half), latents.astype(jnp.bfloat16))


def test_one_trace_for_many_values(params, latents):
    decodes = []

    @jax.jit
    @chex.assert_max_traces(n=1)
    def score(params, latents, values):
        def decode(z):
            decodes.append(z.shape)
            return decode_mlp(params, z)

        return ces(decode, latents, values, chunk=8).all

    scores = [score(params, latents + k, VALUES * (k + 1)) for k in range(4)]
    assert len({float(s) for s in scores}) == 4
    assert decodes == [(8, NUM_LATENTS)] * 2  # the clean and the intervened latents


def jaxpr_sizes(jaxpr):
    """The number of elements of every array that a jaxpr computes, those of inner ones too."""
    for eqn in jaxpr.eqns:
        yield from (math.prod(var.aval.shape) for var in eqn.outvars)
        for param in itertools.chain.from_iterable(
            p if isinstance(p, (tuple, list)) else (p,) for p in eqn.params.values()
        ):
            inner = getattr(param, "jaxpr", param)
            if hasattr(inner, "eqns"):
                yield from jaxpr_sizes(inner)


def test_memory_is_clean_outputs_and_one_chunk(params, latents):
    chunk = 16
    values = jnp.linspace(-3.0, 3.0, 50)
    jaxpr = jax.make_jaxpr(
        lambda p, z, v: ces(lambda x: decode_mlp(p, x), z, v, chunk=chunk).per_latent
    )(params, latents, values)
    output_size = math.prod(OUTPUT_SHAPE)
    sizes = list(jaxpr_sizes(jaxpr.jaxpr))
    assert chunk * output_size in sizes  # the inner jaxprs were seen
    # The larger of the clean outputs (N rounded up to whole chunks) and one float a triple.
    triples = NUM_EXAMPLES * NUM_LATENTS * len(values) + chunk
    assert max(sizes) <= max((NUM_EXAMPLES + chunk) * output_size, triples)
    assert max(sizes) < triples * output_size / 50


@pytest.mark.parametrize("shape", [(), (1,), (9,), (3, 3), (2, 2, 2, 2)])
def test_rms_is_l2_per_output_element(latents, shape):
    size = math.prod(shape)
    weight = normal(7, NUM_LATENTS, size)
    active = jnp.arange(NUM_LATENTS) < 2
    result = ces(lambda z: jnp.sin(z @ weight).reshape(-1, *shape), latents, VALUES, active=active)
    expected = jax.tree.map(lambda score: score / np.sqrt(size), result.l2)
    chex.assert_trees_all_close(result.rms, expected, rtol=1e-6)
    assert result.per_latent.shape == (NUM_LATENTS,)


def test_active_mask(params, latents):
    decode = functools.partial(decode_mlp, params)
    mask = jnp.arange(NUM_LATENTS) != DEAD
    result = ces(decode, latents, VALUES, active=mask)
    live = np.delete(np.asarray(result.per_latent), DEAD)
    np.testing.assert_allclose(result.active, live.mean(), rtol=1e-6)
    np.testing.assert_allclose(result.all, live.sum() / NUM_LATENTS, rtol=1e-6)
    assert result.max == live.max()
    assert result.num_active == NUM_LATENTS - 1
    assert result.per_latent is result.l2.per_latent
    assert result.active is result.l2.active

    none_active = ces(decode, latents, VALUES, active=jnp.zeros(NUM_LATENTS, bool))
    assert jnp.isnan(none_active.active)
    assert jnp.isnan(none_active.rms.active)
    assert none_active.num_active == 0
    assert none_active.all == result.all

    no_mask = ces(decode, latents, VALUES)
    assert jnp.isnan(no_mask.active)
    assert no_mask.num_active is None


def test_low_precision_decoder_is_accumulated_in_float32(params, latents):
    def decode(z):
        return decode_mlp(params, z).astype(jnp.bfloat16)

    result = ces(decode, latents, VALUES)
    assert result.per_latent.dtype == jnp.float32
    full = ces(functools.partial(decode_mlp, params), latents, VALUES)
    np.testing.assert_allclose(result.per_latent, full.per_latent, rtol=0.02)
    assert result.per_latent[DEAD] == 0.0


def test_fixed_values(params, latents):
    np.testing.assert_array_equal(FIXED_VALUES, np.linspace(-3, 3, 7))
    decode = functools.partial(decode_mlp, params)
    active = jnp.arange(NUM_LATENTS) < 2
    chex.assert_trees_all_equal(
        ces_fixed(decode, latents, active=active, chunk=8),
        ces(decode, latents, jnp.linspace(-3.0, 3.0, 7), active=active, chunk=8),
    )


def test_calibrated_values_are_quantiles(params, latents):
    decode = functools.partial(decode_mlp, params)
    samples = normal(8, 101, NUM_LATENTS) * np.arange(1, 6, dtype=np.float32)
    expected = ces(decode, latents, np.quantile(samples, CALIBRATED_QUANTILES, axis=0).T)
    chex.assert_trees_all_close(
        ces_calibrated(decode, latents, samples).l2.per_latent, expected.per_latent, rtol=1e-5
    )


def test_calibrated_ignores_the_scale_of_latents(params, latents):
    scale, shift = jnp.array([0.1, 10.0, 1.0, 3.0, -2.0]), jnp.arange(5.0)
    samples = jnp.asarray(normal(9, 200, NUM_LATENTS))
    plain = ces_calibrated(lambda z: decode_mlp(params, z), latents, samples)
    rescaled = ces_calibrated(
        lambda z: decode_mlp(params, (z - shift) / scale),
        latents * scale + shift,
        samples * scale + shift,
    )
    np.testing.assert_allclose(rescaled.per_latent, plain.per_latent, rtol=1e-4, atol=1e-5)


def test_active_latents():
    kl = jnp.array([[0.0, 0.03, 0.005], [0.0, 0.0, 0.005]])
    np.testing.assert_array_equal(active_latents(kl), [False, True, False])
    np.testing.assert_array_equal(active_latents(kl.mean(axis=0)), [False, True, False])
    np.testing.assert_array_equal(active_latents(kl, threshold=0.001), [False, True, True])
    np.testing.assert_array_equal(active_latents(jnp.array([0.01])), [False])  # strictly more


def identity(z):
    return z


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ces(identity, jnp.zeros(3), jnp.zeros(2)), r"latents \[N, D\].*\(3,\)"),
        (lambda: ces(identity, jnp.zeros((0, 3)), jnp.zeros(2)), r"latents .*\(0, 3\)"),
        (lambda: ces(identity, jnp.zeros((2, 3), int), jnp.zeros(2)), "floating.*int32"),
        (lambda: ces(identity, jnp.zeros((2, 3)), jnp.array(1.0)), r"values .*D = 3.*\(\)"),
        (lambda: ces(identity, jnp.zeros((2, 3)), jnp.zeros((2, 4))), r"values .*\(2, 4\)"),
        (lambda: ces(identity, jnp.zeros((2, 3)), jnp.zeros((1, 3, 4))), r"values .*\(1, 3, 4\)"),
        (lambda: ces(identity, jnp.zeros((2, 3)), jnp.zeros(0)), r"values .*\(0,\)"),
        (lambda: ces(identity, jnp.zeros((2, 3)), jnp.zeros(2), chunk=0), "chunk >= 1, got 0"),
        (
            lambda: ces(identity, jnp.zeros((2, 3)), jnp.zeros(2), active=jnp.ones(2, bool)),
            r"active .*\(3,\).*\(2,\)",
        ),
        (
            lambda: ces(identity, jnp.zeros((2, 3)), jnp.zeros(2), active=jnp.arange(3)),
            "bool.*int32",
        ),
        (
            lambda: ces(lambda z: z.sum(axis=0), jnp.zeros((2, 3)), jnp.zeros(2)),
            r"decode .*\[12, \.\.\.\].*\(3,\)",
        ),
        (
            lambda: ces_calibrated(identity, jnp.zeros((2, 3)), jnp.zeros((0, 3))),
            r"posterior_samples .*\(0, 3\)",
        ),
        (
            lambda: ces_calibrated(identity, jnp.zeros((2, 3)), jnp.zeros((9, 4))),
            r"posterior_samples .*\(2, 3\).*\(9, 4\)",
        ),
        (lambda: active_latents(jnp.zeros((2, 3, 4))), r"kl .*\(2, 3, 4\)"),
    ],
)
def test_wrong_arguments_are_named(call, message):
    with pytest.raises(ValueError, match=message) as error:
        call()
    assert "\n" not in str(error.value)
