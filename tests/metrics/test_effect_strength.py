"""Causal effect strength against planted decoders whose effects have a closed form."""

import functools
import itertools
import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from planted import changes, mlp, mlp_params, normal

from vaejax.estimates import RESAMPLES
from vaejax.metrics import (
    CALIBRATED_QUANTILES,
    FIXED_VALUES,
    active_latents,
    ces,
    ces_calibrated,
    ces_fixed,
    ces_infinitesimal,
)

# 37 * 5 * 3 interventions: no multiple of any chunk below but 1 and 5.

NUM_EXAMPLES, NUM_LATENTS, DEAD = 37, 5, 2
OUTPUT_SHAPE = (6, 7, 3)
VALUES = np.array([-2.0, 0.5, 1.0], np.float32)


@pytest.fixture
def latents():
    return jnp.asarray(normal(0, NUM_EXAMPLES, NUM_LATENTS))


@pytest.fixture
def params():
    return mlp_params(NUM_LATENTS, OUTPUT_SHAPE, DEAD)


def decode_mlp(params, z):
    return mlp(params, z, OUTPUT_SHAPE)


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
    naive = changes(decode, latents[:4], values).reshape(4, NUM_LATENTS, 3, -1)
    expected = np.linalg.norm(naive, axis=3).mean(axis=(0, 2))
    np.testing.assert_allclose(ces(decode, latents[:4], values).per_latent, expected, rtol=1e-5)


@pytest.mark.parametrize("chunk", [1, 16, 10_000])
def test_chunk_does_not_matter(params, latents, chunk):
    decode = functools.partial(decode_mlp, params)
    reference = ces(decode, latents, VALUES, chunk=5)
    result = ces(decode, latents, VALUES, chunk=chunk)
    chex.assert_trees_all_close(result.l2, reference.l2, rtol=1e-5)
    slopes = ces_infinitesimal(decode, latents, jnp.ones(NUM_LATENTS), chunk=chunk)
    reference = ces_infinitesimal(decode, latents, jnp.ones(NUM_LATENTS), chunk=5)
    chex.assert_trees_all_close(slopes.l2, reference.l2, rtol=1e-5)


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
    # Once for the shape of its output and once for good: clean and intervened latents alike.
    assert decodes == [(8, NUM_LATENTS)] * 2


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


def test_memory_is_one_chunk(params, latents):
    chunk = 16
    values = jnp.linspace(-3.0, 3.0, 50)
    jaxpr = jax.make_jaxpr(
        lambda p, z, v: ces(lambda x: decode_mlp(p, x), z, v, chunk=chunk).per_latent
    )(params, latents, values)
    output_size = math.prod(OUTPUT_SHAPE)
    sizes = list(jaxpr_sizes(jaxpr.jaxpr))
    assert 13 * output_size in sizes  # 37 in three chunks; the inner jaxprs were seen
    # The larger of the outputs of a chunk and the effects of every example in every resample.
    resamples = RESAMPLES * NUM_EXAMPLES * NUM_LATENTS
    assert max(sizes) <= max(chunk * output_size, resamples)
    assert max(sizes) < NUM_EXAMPLES * NUM_LATENTS * len(values) * output_size / 5


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
        ces(decode, latents, np.linspace(-3.0, 3.0, 7), active=active, chunk=8),
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


def test_infinitesimal_of_a_linear_decoder(latents):
    weight, scale = normal(10, NUM_LATENTS, 24), np.arange(5, dtype=np.float32)
    result = ces_infinitesimal(lambda z: (z @ weight).reshape(-1, 4, 6), latents, scale)
    expected = np.linalg.norm(weight, axis=1) * scale
    np.testing.assert_allclose(result.per_latent, expected, rtol=1e-5)
    np.testing.assert_allclose(result.rms.per_latent, expected / np.sqrt(24), rtol=1e-5)
    assert result.num_dead == 1  # the latent of scale 0


def test_infinitesimal_is_the_limit_of_small_steps():
    first, last = normal(11, 3, 8), normal(12, 8, 4)
    first[1] = 0.0
    latents, scale = normal(13, 4, 3), np.array([0.5, 2.0, 3.0], np.float32)
    result = ces_infinitesimal(lambda z: jnp.tanh(z @ first) @ last, latents, scale)

    step = 1e-6  # in float64
    z = latents.astype(np.float64)
    quotients = [
        (np.tanh((z + step * e) @ first) @ last - np.tanh((z - step * e) @ first) @ last)
        / (2 * step)
        for e in np.eye(3)
    ]
    expected = np.linalg.norm(quotients, axis=2).mean(axis=1) * scale
    np.testing.assert_allclose(result.per_latent, expected, rtol=1e-5)
    assert result.per_latent[1] == 0.0
    assert result.num_dead == 1


def test_gate_has_an_effect_where_it_is_open():
    """Of z1 * z2 each latent's effect is in proportion to the other."""
    latents = np.array([[2.0, 0.0], [-1.0, 3.0]], np.float32)

    def gate(z):
        return z[:, :1] * z[:, 1:]

    result = ces(gate, latents, np.array([[1.0], [0.0]]))
    # do(z1 = 1): 0 and |1 + 1| * 3; do(z2 = 0): 0 and |-1| * 3.
    np.testing.assert_allclose(result.per_latent, [3.0, 1.5])
    slopes = ces_infinitesimal(gate, latents, np.ones(2, np.float32))
    np.testing.assert_allclose(slopes.per_latent, [1.5, 1.5])
    # At z2 = 0 the first latent's slope is 0 and that of z2 is not: neither is dead.
    assert result.num_dead == slopes.num_dead == 0


def test_dead_latents_are_counted(params, latents):
    decode = functools.partial(decode_mlp, params)
    assert ces_fixed(decode, latents).num_dead == 1
    assert ces_infinitesimal(decode, latents, jnp.ones(NUM_LATENTS)).num_dead == 1
    assert ces_fixed(lambda z: jnp.ones((len(z), 3)), latents).num_dead == NUM_LATENTS


def test_outputs_may_be_a_pytree(params, latents):
    def decode(z):
        image = decode_mlp(params, z)
        return {"left": image[..., :3, :], "right": (image[..., 3:, :],)}

    whole = ces(functools.partial(decode_mlp, params), latents, VALUES)
    chex.assert_trees_all_close(ces(decode, latents, VALUES), whole, rtol=1e-5)


def test_permuted_latents(params, latents):
    order = np.array([3, 0, 4, 1, 2])
    plain = ces_fixed(functools.partial(decode_mlp, params), latents).l2
    permuted = ces_fixed(
        lambda z: decode_mlp(params, z[:, np.argsort(order)]), latents[:, order]
    ).l2
    np.testing.assert_allclose(permuted.per_latent, plain.per_latent[order], rtol=1e-5)
    np.testing.assert_allclose(permuted.low.per_latent, plain.low.per_latent[order], rtol=1e-5)
    np.testing.assert_allclose(permuted.low.all, plain.low.all, rtol=1e-5)


def test_intervals_are_of_examples(latents):
    """The effect |v - z| * 2 of a linear decoder: an interval of a mean of known numbers."""
    active = jnp.arange(NUM_LATENTS) < 2
    result = ces(lambda z: 2.0 * z, latents, jnp.array([5.0]), active=active)
    effects = 2 * np.abs(5 - np.asarray(latents))
    error = 1.96 * effects.std(axis=0) / np.sqrt(NUM_EXAMPLES)
    np.testing.assert_allclose(result.low.per_latent, effects.mean(0) - error, atol=0.15)
    np.testing.assert_allclose(result.high.per_latent, effects.mean(0) + error, atol=0.15)
    error = 1.96 * effects[:, :2].mean(axis=1).std() / np.sqrt(NUM_EXAMPLES)
    np.testing.assert_allclose(result.high.active - result.active, error, rtol=0.2)
    np.testing.assert_allclose(result.high.all - result.low.all > 0, True)
    np.testing.assert_allclose(
        result.rms.high.max, result.high.max / np.sqrt(NUM_LATENTS), rtol=1e-6
    )
    assert result.low.low is None
    assert result.high.high is None

    other = ces(lambda z: 2.0 * z, latents, jnp.array([5.0]), key=jax.random.key(1))
    np.testing.assert_array_equal(other.per_latent, result.per_latent)
    assert np.all(other.low.per_latent != result.low.per_latent)
    # Examples that are all alike leave nothing to be uncertain of.
    alike = ces(lambda z: 2.0 * z, jnp.ones((9, 2)), jnp.array([5.0]))
    np.testing.assert_allclose(alike.low.per_latent, alike.high.per_latent, rtol=1e-6)


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
            r"outputs \[2, \.\.\.\].*\(3,\)",
        ),
        (
            lambda: ces_calibrated(identity, jnp.zeros((2, 3)), jnp.zeros((0, 3))),
            r"posterior_samples .*\(0, 3\)",
        ),
        (
            lambda: ces_calibrated(identity, jnp.zeros((2, 3)), jnp.zeros((9, 4))),
            r"posterior_samples .*\(2, 3\).*\(9, 4\)",
        ),
        (
            lambda: ces_infinitesimal(identity, jnp.zeros((2, 3)), jnp.ones(2)),
            r"scale .*\(3,\).*\(2,\) and float32",
        ),
        (
            lambda: ces_infinitesimal(identity, jnp.zeros((2, 3)), jnp.arange(3)),
            "floating point, got .*int32",
        ),
        (lambda: active_latents(jnp.zeros((2, 3, 4))), r"kl .*\(2, 3, 4\)"),
    ],
)
def test_wrong_arguments_are_named(call, message):
    with pytest.raises(ValueError, match=message) as error:
        call()
    assert "\n" not in str(error.value)
