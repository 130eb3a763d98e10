"""Mediation: directions and shares by hand, identities on random networks."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from planted_networks import Bypass, Gate, normal, random_variables

from vaejax import data, zoo
from vaejax.interventions import mediate, unit_mask
from vaejax.training import fit, init, unstack


def test_directions_by_hand():
    """u: 2 -> 5, v: 3 -> 11. Exchanging NDE and NIE, or x and x~, changes a figure here."""
    result = mediate(Gate().apply, {}, jnp.array([[2.0, 3.0]]), jnp.array([[5.0, 11.0]]), "u")
    assert result.te.item() == 5 * 11 - 2 * 3
    assert result.nie.item() == 5 * 3 - 2 * 3  # u alone moves
    assert result.nde.item() == 2 * 11 - 2 * 3  # everything but u moves
    assert result.tde.item() == 5 * 11 - 5 * 3
    assert result.tie.item() == 5 * 11 - 2 * 11
    assert result.interaction.item() == (5 - 2) * (11 - 3)
    assert result.mediated_fraction.value == pytest.approx(9 / 49)
    assert result.interaction_share.value == pytest.approx(24 / 49)
    assert result.skipped == 0


@pytest.mark.parametrize(("through", "around"), [(3.0, 1.0), (1.0, 4.0), (2.0, -1.0)])
def test_chain_with_a_bypass_of_known_share(through, around):
    clean, corrupted = normal(0, 20, 3), normal(1, 20, 3)
    result = mediate(Bypass(through, around).apply, {}, clean, corrupted, ["mid"])
    share = through / (through + around)
    np.testing.assert_allclose(result.mediated_fractions, share, rtol=1e-5)
    np.testing.assert_allclose(result.mediated_fraction.low, share, rtol=1e-5)
    np.testing.assert_allclose(result.nde, around * (corrupted - clean), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(result.interaction, 0, atol=1e-5)


def test_a_mask_restricts_the_component():
    clean, corrupted = jnp.zeros((1, 3)), jnp.array([[1.0, 2.0, 2.0]])
    mask = {"mid": unit_mask((3,), [0, 2])}
    result = mediate(Bypass(1.0, 0.0).apply, {}, clean, corrupted, mask)
    np.testing.assert_array_equal(result.nie, [[1, 0, 2]])
    assert result.mediated_fraction.value == pytest.approx(5 / 9)


def test_pairs_without_effect_are_skipped_and_counted():
    clean = jnp.zeros((3, 3))
    corrupted = clean.at[1].set(1.0).at[2].set(1e-3)
    run = functools.partial(mediate, Bypass().apply, {}, clean, corrupted, "mid")
    assert (run().skipped, run(tau=0.1).skipped) == (1, 2)
    np.testing.assert_array_equal(jnp.isnan(run().mediated_fractions), [True, False, False])
    assert run().mediated_fraction.value == pytest.approx(0.75)
    assert jnp.isnan(mediate(Bypass().apply, {}, clean, clean, "mid").mediated_fraction.value)


def test_interval_covers_the_mean_over_pairs():
    clean, corrupted = normal(2, 40, 2), normal(3, 40, 2)
    result = mediate(Gate().apply, {}, clean, corrupted, "u", tau=0.5)
    fractions = result.mediated_fractions[~jnp.isnan(result.mediated_fractions)]
    estimate = result.mediated_fraction
    np.testing.assert_allclose(estimate.value, fractions.mean(), rtol=1e-5)
    error = fractions.std() / np.sqrt(len(fractions))
    np.testing.assert_allclose(estimate.high - estimate.low, 2 * 1.96 * error, rtol=0.2)
    other = mediate(
        Gate().apply, {}, clean, corrupted, "u", tau=0.5, key=jax.random.key(1)
    ).mediated_fraction
    assert other.value == estimate.value
    assert other.low != estimate.low


def reconstruction(output):
    return output.reconstruction


@pytest.fixture(scope="module", params=["vae", "vq_vae", "trained vae"])
def network(request):
    """A network of the zoo, random or trained: `apply_fn`, `variables`, clean and corrupted."""
    sizes = zoo.Network((32, 32, 1), width=0.125, codebook_size=16, code_dim=4)
    recipe = zoo.recipe(request.param.removeprefix("trained "), sizes, batch_size=16)
    if not request.param.startswith("trained"):
        images = normal(99, 10, 32, 32, 1)
        variables = random_variables(recipe.model, images, scale=0.6)
    else:
        images, _ = (source := data.source("dsprites", 32)).batch(jax.random.key(1), 10)
        hyper = {"beta": jnp.ones(1), "learning_rate": jnp.full(1, 3e-3)}
        states = init(recipe, source.image_shape, jax.random.split(jax.random.key(0), 1))
        states = fit(recipe, source, states, hyper, steps=600, chunk=600)
        variables = unstack(states)[0].variables
    return recipe.model.apply, variables, images[:5], images[5:]


HALF = {"decoder/up_1": unit_mask((8, 8, 8), jnp.arange(4))}


def cut_of(network):
    return "quantized" if "codebook" in network[1] else "z"


@pytest.mark.parametrize("which", ["cut", "decoder/up_1", "encoder"])
def test_a_complete_cut_mediates_everything(network, which):
    components = [cut_of(network) if which == "cut" else which]
    result = mediate(*network, components, readout=reconstruction)
    np.testing.assert_allclose(result.mediated_fractions, 1, rtol=1e-6)
    np.testing.assert_array_equal(result.nde, 0)
    np.testing.assert_array_equal(result.interaction, 0)
    assert jnp.linalg.norm(result.te, axis=1).min() > 0.01


@pytest.mark.parametrize("masked", [False, True])
def test_the_empty_set_mediates_nothing(network, masked):
    components = {cut_of(network): False} if masked else ()
    result = mediate(*network, components, readout=reconstruction)
    np.testing.assert_array_equal(result.nie, 0)
    np.testing.assert_array_equal(result.tie, 0)
    np.testing.assert_array_equal(result.nde, result.te)
    np.testing.assert_array_equal(result.mediated_fractions, 0)


def test_equal_inputs_have_no_effect_at_all(network):
    apply_fn, variables, images, _ = network
    result = mediate(apply_fn, variables, images, images, HALF, readout=reconstruction)
    for effect in (result.te, result.nie, result.nde, result.tde, result.tie):
        np.testing.assert_array_equal(effect, 0)
    assert result.skipped == len(images)


def test_parts_add_up(network):
    result = mediate(*network, HALF, readout=reconstruction)
    np.testing.assert_allclose(result.nde + result.tie, result.te, atol=1e-6)
    np.testing.assert_allclose(result.tde + result.nie, result.te, atol=1e-6)
    assert jnp.abs(result.interaction).max() > 1e-4  # a nonlinear network


def test_vmap_over_masks_equals_loop(network):
    masks = jnp.stack([unit_mask((8, 8, 8), jnp.arange(n)) for n in (2, 5)])

    def fractions(mask):
        result = mediate(*network, {"decoder/up_1": mask}, readout=reconstruction)
        return result.mediated_fractions

    np.testing.assert_allclose(
        jax.vmap(fractions)(masks), jnp.stack([*map(fractions, masks)]), rtol=1e-4, atol=1e-6
    )


def test_under_vmap_a_mask_of_nothing_has_exactly_no_effect(network):
    # Patched worlds are batched over masks there, the others are not: two programs.
    masks = jnp.stack([unit_mask((8, 8, 8), jnp.arange(n)) for n in (0, 5)])

    def through(mask):
        return mediate(*network, {"decoder/up_1": mask}, readout=reconstruction)

    result = jax.vmap(through)(masks)
    np.testing.assert_array_equal(result.nie[0], 0)
    np.testing.assert_array_equal(result.nde[0], result.te[0])
    assert jnp.abs(result.nie[1]).max() > 1e-4


def test_chunks_and_jit_do_not_matter():
    clean, corrupted = normal(4, 7, 2), normal(5, 7, 2)
    whole = mediate(Gate().apply, {}, clean, corrupted, "v")
    parts = mediate(Gate().apply, {}, clean, corrupted, "v", chunk=3)
    jitted = jax.jit(lambda x, y: mediate(Gate().apply, {}, x, y, "v"))(clean, corrupted)
    chex.assert_trees_all_close(whole, parts, rtol=1e-6)
    chex.assert_trees_all_close(whole, jitted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((jnp.ones((2, 2)), jnp.ones((3, 2)), "u"), r"one N .*\[2, 2\], \[3, 2\]"),
        ((jnp.ones((0, 2)), jnp.ones((0, 2)), "u"), r"N above 0.*\[0, 2\]"),
        ((jnp.ones((2, 2)), jnp.ones((2, 2)), "y"), r"unknown site 'y'.*\(one of u, v\)"),
        (
            (jnp.ones((2, 2)), jnp.ones((2, 2)), {"u": jnp.ones(3, bool)}),
            r"site 'u': .*mask.*\[2, 1\] or \[1\] or \[\], got \[3\]",
        ),
    ],
)
def test_wrong_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message) as error:
        mediate(Gate().apply, {}, *arguments)
    assert "\n" not in str(error.value)


def test_an_output_that_is_no_array_needs_a_readout(network):
    with pytest.raises(ValueError, match=r"(VAE|VQ)Output; give readout="):
        mediate(*network, ())
