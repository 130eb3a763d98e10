"""Circuit modularity against planted activations with a closed form, and a naive loop."""

import itertools
import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from planted import changes, mlp_activations, mlp_params, normal

from vaejax.estimates import bootstrap
from vaejax.metrics import circuit_modularity, encoder_modularity

NUM_LATENTS, DEAD = 4, 1
LATENTS, VALUES = normal(0, 9, NUM_LATENTS), normal(1, NUM_LATENTS, 3)
SIGNS = np.array([-1.0, 1.0], np.float32)


@pytest.fixture
def params():
    return mlp_params(NUM_LATENTS, (2, 3, 6), DEAD)


def sites(params, z):
    found = mlp_activations(params, z)
    return {"hidden": found["hidden"], "image": found["output"].reshape(-1, 2, 3, 6)}


def linear(weight):
    return lambda z: {"site": z @ jnp.asarray(weight, jnp.float32)}


def at_zero(weight, **kwargs):
    """The result for `z @ weight` at z = 0 and values of -1 and 1."""
    return circuit_modularity(
        linear(weight), np.zeros((6, len(weight)), np.float32), SIGNS, **kwargs
    )


def mean_sharing(rows):
    """The mean absolute correlation of the pairs of rows that vary."""
    rows = [row for row in rows if np.ptp(row) > 0]
    return np.mean([abs(np.corrcoef(a, b)[0, 1]) for a, b in itertools.combinations(rows, 2)])


def naive(activations, latents, values):
    scores, signed_scores = [], []
    for site in activations(latents[:1]):
        change = changes(lambda z, s=site: activations(z)[s], latents, values)
        space = tuple(range(3, change.ndim - 1))
        scores.append(1 - mean_sharing(np.abs(change).mean(axis=(0, 2, *space))))
        signed = np.moveaxis(change.mean(axis=space), 1, 0).reshape(latents.shape[1], -1)
        signed_scores.append(1 - mean_sharing(signed))
    return scores, signed_scores


def test_equals_naive_loop(params):
    scores, signed = naive(lambda z: sites(params, z), LATENTS, VALUES)
    result = circuit_modularity(lambda z: sites(params, z), LATENTS, VALUES)
    assert list(result.per_site) == ["hidden", "image"]
    per_site = [result.per_site["hidden"].value, result.per_site["image"].value]
    np.testing.assert_allclose(per_site, scores, atol=1e-5)
    np.testing.assert_allclose(result.score.value, np.mean(scores), atol=1e-5)
    np.testing.assert_allclose(result.signed.value, np.mean(signed), atol=1e-5)
    assert (result.num_latents, result.num_dead, result.num_sites) == (3, 1, 2)


def test_blocks_of_units():
    """Disjoint blocks of equal size correlate by -1 / (D - 1), in absolute changes only."""
    weight = np.kron(np.diag([1.0, -2.0, 0.5, 3.0]), np.ones(8))
    result = at_zero(weight)
    np.testing.assert_allclose(result.score.value, 1 - 1 / 3, atol=1e-6)
    np.testing.assert_allclose(result.signed.value, 1.0, atol=1e-6)
    # Alike in every example: there is nothing to be uncertain of.
    np.testing.assert_allclose(result.score.low, result.score.high, atol=1e-6)


@pytest.mark.parametrize("theta", [0.0, 0.3, math.pi / 4, 1.2])
def test_entangled_units(theta):
    """Two latents, rotated by theta against two units, and a third unit that neither moves."""
    c, s = math.cos(theta), math.sin(theta)
    result = at_zero([[c, s, 0.0], [-s, c, 0.0]])
    square = ((c + s) / 3) ** 2
    rho = (2 * c * s / 3 - square) / (1 / 3 - square)
    np.testing.assert_allclose(result.score.value, 1 - abs(rho), atol=1e-5)
    np.testing.assert_allclose(result.signed.value, 1.0, atol=1e-6)  # orthogonal


def test_gate():
    """Both latents of z1 * z2 act through the same units, in the same proportions."""
    weight = normal(2, 16)
    result = circuit_modularity(
        lambda z: {"gate": z[:, :1] * z[:, 1:] * weight}, normal(3, 7, 2), np.array([-1.0, 2.0])
    )
    np.testing.assert_allclose(result.score.value, 0.0, atol=1e-5)
    assert result.p_value < 0.01


def test_null_is_that_of_all_permutations():
    a, b = np.array([0.0, 1.0, 3.0, 7.0]), np.array([1.0, 0.0, 4.0, 5.0])
    result = at_zero([a, b])
    every = [1 - mean_sharing([a, np.array(p)]) for p in itertools.permutations(b)]
    observed = 1 - mean_sharing([a, b])
    np.testing.assert_allclose(result.null.value, np.mean(every), atol=0.04)
    np.testing.assert_allclose(
        [result.null.low, result.null.high], np.quantile(every, [0.025, 0.975]), atol=0.04
    )
    # Latents that share more than chance have a low score and a low p.
    expected = np.mean(np.array(every) <= observed + 1e-9)
    assert 0.04 < expected < 0.3
    np.testing.assert_allclose(result.p_value, expected, atol=0.04)


def test_null_of_many_units():
    """Unrelated units: |rho| is half-normal with variance 1 / (C - 1), twice over two sites."""
    first, second = normal(4, 6, 200), normal(5, 6, 100)
    result = circuit_modularity(
        lambda z: {"a": z @ first, "b": (z @ second)[:, None]},
        np.zeros((3, 6), np.float32),
        SIGNS,
    )
    expected = 1 - math.sqrt(2 / math.pi) * (199**-0.5 + 99**-0.5) / 2
    np.testing.assert_allclose(result.null.value, expected, atol=0.003)
    variance = sum((1 - 2 / math.pi) / c for c in (199, 99)) / 15 / 4
    width = 2 * 1.96 * math.sqrt(variance)
    np.testing.assert_allclose(result.null.high - result.null.low, width, rtol=0.15)
    assert 0.01 < result.p_value < 0.99

    shared = first + 2 * normal(6, 200)
    assert at_zero(shared).p_value == pytest.approx(1 / 1001)


def test_what_is_left_out():
    weight = normal(7, 4, 6)
    weight[3] = 0.0

    def activations(z):
        return {
            "units": z @ weight,
            "one unit": z @ weight[:, :1],
            "alike": jnp.broadcast_to(z[:, :1] / 3, (len(z), 5)),
            "two latents": (z * jnp.array([0.0, 1.0, 1.0, 0.0])) @ weight,
            "one latent": z[:, :1] * weight[0],
        }

    result = circuit_modularity(activations, normal(8, 5, 4), SIGNS)
    defined = {name for name, site in result.per_site.items() if not jnp.isnan(site.value)}
    assert defined == {"units", "two latents"}
    assert (result.num_latents, result.num_dead, result.num_sites) == (3, 1, 2)
    mean = (result.per_site["units"].value + result.per_site["two latents"].value) / 2
    np.testing.assert_allclose(result.score.value, mean, rtol=1e-6)

    nothing = circuit_modularity(
        lambda z: {"x": activations(z)["one unit"]}, normal(8, 5, 4), SIGNS
    )
    assert jnp.isnan(nothing.score.value)
    assert jnp.isnan(nothing.null.value)
    assert jnp.isnan(nothing.p_value)
    assert (nothing.num_latents, nothing.num_sites) == (0, 0)


def test_active_mask():
    weight = normal(9, 4, 12)
    active = np.array([True, False, True, True])
    masked, without = at_zero(weight, active=active), at_zero(weight[active])
    np.testing.assert_allclose(masked.score.value, without.score.value, atol=1e-6)
    np.testing.assert_allclose(masked.signed.value, without.signed.value, atol=1e-6)
    np.testing.assert_allclose(masked.null.value, without.null.value, atol=0.03)
    assert masked.num_latents == 3
    assert jnp.isnan(at_zero(weight, active=np.arange(4) == 0).score.value)


def test_intervals_are_of_examples(params):
    key = jax.random.key(7)
    result = circuit_modularity(lambda z: sites(params, z), LATENTS, VALUES, key=key)
    change = changes(lambda z: sites(params, z)["hidden"], LATENTS, VALUES)

    def statistic(change):  # [N, D, V, C] without the dead latent
        profile = jnp.abs(change).mean(axis=(0, 2))
        signed = jnp.moveaxis(change, 1, 0).reshape(NUM_LATENTS - 1, -1)
        pairs = np.triu_indices(NUM_LATENTS - 1, 1)
        return [1 - jnp.abs(jnp.corrcoef(x)[pairs]).mean() for x in (profile, signed)]

    live = np.delete(change, DEAD, axis=1).astype(np.float32)
    low, high = bootstrap(statistic, live, key=jax.random.split(key)[0])
    np.testing.assert_allclose(result.per_site["hidden"].low, low[0], atol=1e-5)
    np.testing.assert_allclose(result.per_site["hidden"].high, high[0], atol=1e-5)
    only = circuit_modularity(lambda z: {"x": sites(params, z)["hidden"]}, LATENTS, VALUES, key=key)
    np.testing.assert_allclose([only.signed.low, only.signed.high], [low[1], high[1]], atol=1e-5)
    assert only.score.low < only.score.value < only.score.high


def test_encoder_analogue(params):
    """Given the changes of a decoder, it is the same."""
    change = {
        site: changes(lambda z, s=site: sites(params, z)[s], LATENTS, VALUES).astype(np.float32)
        for site in ("hidden", "image")
    }
    assert change["image"].shape == (9, NUM_LATENTS, 3, 2, 3, 6)
    chex.assert_trees_all_close(
        encoder_modularity(change),
        circuit_modularity(lambda z: sites(params, z), LATENTS, VALUES),
        atol=2e-5,
    )


def test_jit_vmap_and_chunks(params):
    def score(params, latents, chunk=None):
        return circuit_modularity(lambda z: sites(params, z), latents, VALUES, chunk=chunk)

    models = [params, jax.tree.map(jnp.sin, params)]
    codes = [LATENTS, 2 * LATENTS]
    alone = jax.jit(score)
    looped = jax.tree.map(
        lambda *leaves: jnp.stack(leaves),
        *(alone(p, z) for p, z in zip(models, codes, strict=True)),
    )
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *models)
    with jax.checking_leaks():
        batched = jax.jit(jax.vmap(lambda p, z: score(p, z, chunk=2)))(stacked, jnp.stack(codes))
    chex.assert_trees_all_close(batched, looped, atol=2e-5)


def test_permuted_latents(params):
    order = np.array([2, 0, 3, 1])
    plain = circuit_modularity(lambda z: sites(params, z), LATENTS, VALUES)
    permuted = circuit_modularity(
        lambda z: sites(params, z[:, np.argsort(order)]), LATENTS[:, order], VALUES[order]
    )
    for name in ("score", "signed", "per_site"):
        chex.assert_trees_all_close(getattr(permuted, name), getattr(plain, name), atol=1e-5)
    np.testing.assert_allclose(permuted.null.value, plain.null.value, atol=0.02)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda z, v: circuit_modularity(lambda z: z, z, v), "{site: array}, got .*Tracer"),
        (lambda z, v: circuit_modularity(lambda z: {}, z, v), "{site: array}, got dict"),
        (
            lambda z, v: circuit_modularity(lambda z: {"x": z[:, 0]}, z, v),
            r"\[B, \.\.\., C\] of x, got \(4,\)",
        ),
        (lambda z, v: circuit_modularity(lambda z: {"x": z[0]}, z, v), r"\[4, \.\.\.\].*\(3,\)"),
        (lambda z, v: circuit_modularity(linear(np.eye(3)), z[0], v), r"latents .*\(3,\)"),
        (lambda z, v: circuit_modularity(linear(np.eye(3)), z, v[:0]), r"values .*\(0,\)"),
        (
            lambda z, v: circuit_modularity(linear(np.eye(3)), z, v, active=jnp.ones(2, bool)),
            r"active .*\(3,\).*\(2,\)",
        ),
        (lambda z, v: encoder_modularity({}), "at least one site"),
        (lambda z, v: encoder_modularity({"x": z}), r"\[N, K, V, \.\.\., C\].*\(4, 3\) at x"),
        (
            lambda z, v: encoder_modularity(
                {"x": jnp.ones((2, 3, 4, 5)), "y": jnp.ones((2, 3, 5, 5))}
            ),
            r"same N, K, V .*\(2, 3, 5, 5\) at y",
        ),
    ],
)
def test_wrong_arguments_are_named(call, message):
    with pytest.raises(ValueError, match=message) as error:
        call(jnp.zeros((4, 3)), jnp.ones(2))
    assert "\n" not in str(error.value)
