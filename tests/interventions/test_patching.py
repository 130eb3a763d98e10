"""Patching of all units: closed forms, a naive loop over `intervene`, and what is skipped."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from planted_networks import MAP_WEIGHT, WEIGHT, Image, Units, normal, random_variables

from vaejax import zoo
from vaejax.data import source
from vaejax.interventions import (
    ablate_units,
    attribute,
    edits,
    intervene,
    num_units,
    patch_units,
    rank_agreement,
    sites,
    unit_mask,
    unit_sites,
    unit_sweep,
)
from vaejax.interventions.passes import record, take
from vaejax.interventions.patching import insert_units


def reconstruction(output):
    return output.reconstruction


@pytest.fixture(scope="module")
def network():
    """A random VAE away from its initial zeros: `apply_fn`, `variables`, clean, corrupted."""
    model = zoo.recipe("vae", zoo.Network((32, 32, 1), latent_dim=3, width=0.125)).model
    images, _ = source("dsprites", 32).batch(jax.random.key(1), 8)
    return model.apply, random_variables(model, images), images[:4], images[4:]


def test_effects_of_units_in_closed_form():
    base, donor = normal(0, 6, 3), normal(1, 6, 3)
    result = patch_units(Units().apply, {}, base, donor)["h"]
    change = np.pad(np.asarray(donor - base), ((0, 0), (0, 1))).T  # the last unit never changes
    effects = np.abs(change) * np.linalg.norm(WEIGHT, axis=1)[:, None]
    np.testing.assert_allclose(result.effects, effects, rtol=1e-5, atol=1e-6)
    total = change.T @ WEIGHT
    share = (change[:, :, None] * WEIGHT[:, None] * total).sum(-1) / (total**2).sum(-1)
    np.testing.assert_allclose(result.mediated_fractions, share, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(result.effect.value, effects.mean(1), rtol=1e-5)
    np.testing.assert_allclose(result.mediated_fraction.value, share.mean(1), rtol=1e-4)
    assert result.effect.value[3] == result.effect.high[3] == 0
    assert jnp.all(result.effect.low[:3] < result.effect.value[:3])
    assert jnp.all(result.effect.value[:3] < result.effect.high[:3])


def test_the_program_of_a_site_serves_any_number_of_pairs():
    apply_fn, pairs = Units().apply, (normal(0, 7, 3), normal(1, 7, 3))
    whole = patch_units(apply_fn, {}, *pairs)["h"]
    compiled = unit_sweep._patch._cache_size()
    some = patch_units(apply_fn, {}, *(half[2:5] for half in pairs))["h"]
    assert unit_sweep._patch._cache_size() == compiled
    np.testing.assert_array_equal(some.effects, whole.effects[:, 2:5])


@pytest.mark.parametrize(
    ("by", "expected"),
    [
        ("channel", MAP_WEIGHT.sum((0, 1))),
        ("position", MAP_WEIGHT.sum(2).ravel()),
        ("element", MAP_WEIGHT.ravel()),
        ("site", [MAP_WEIGHT.sum()]),
    ],
)
def test_kinds_of_units(by, expected):
    base, donor = jnp.zeros((2, 2, 2, 3)), jnp.ones((2, 2, 2, 3))
    result = patch_units(Image().apply, {}, base, donor, by=by)["map"]
    np.testing.assert_allclose(result.effects, np.stack([expected] * 2, 1), rtol=1e-6)


def test_equals_a_loop_over_intervene(network):
    apply_fn, variables, base, donor = network
    names = ("encoder/conv_2", "z", "decoder/up_1")
    found = patch_units(*network, sites=names, readout=reconstruction, chunk=3)
    clean = apply_fn(variables, base).reconstruction
    total = (apply_fn(variables, donor).reconstruction - clean).reshape(4, -1)
    for site in names:
        patched = jax.jit(intervene(apply_fn, {site: edits.swap}))
        _, donors = jax.jit(intervene(apply_fn, {}, record=[site]))(variables, {}, donor)
        shape = donors[site].shape[1:]
        assert found[site].effects.shape == (num_units(shape), 4)
        for unit in range(num_units(shape)):
            values = {site: (unit_mask(shape, unit), donors[site])}
            effect = patched(variables, values, base)[0].reconstruction - clean
            effect = np.asarray(effect).reshape(4, -1)
            np.testing.assert_allclose(
                found[site].effects[unit], np.linalg.norm(effect, axis=1), rtol=1e-3, atol=1e-5
            )
            share = (effect * total).sum(1) / (total**2).sum(1)
            np.testing.assert_allclose(
                found[site].mediated_fractions[unit], share, rtol=1e-3, atol=1e-4
            )


def test_a_self_patch_changes_nothing_even_when_it_is_run(network, monkeypatch):
    apply_fn, variables, base, _ = network
    everywhere = patch_units(apply_fn, variables, base, base, readout=reconstruction)
    assert all(not np.any(result.effects) for result in everywhere.values())
    assert all(result.skipped == 4 for result in everywhere.values())
    # Now with a pass for each unit, where otherwise none is needed.
    monkeypatch.setattr(
        "vaejax.interventions.unit_sweep.changed_units",
        lambda base, donor, ids, num: np.ones((num, len(base)), bool),
    )
    run = patch_units(
        apply_fn, variables, base, base, readout=reconstruction, sites=["z", "decoder/up_1"]
    )
    assert all(not np.any(result.effects) for result in run.values())


def test_a_unit_that_the_readout_ignores_has_no_effect_at_all(network):
    found = patch_units(*network, readout=reconstruction, sites=["encoder/logvar"], chunk=3)
    np.testing.assert_array_equal(found["encoder/logvar"].effects, 0)


def test_a_whole_layer_mediates_everything(network):
    found = patch_units(
        *network, by="site", readout=reconstruction, sites=["encoder/conv_1", "z", "decoder/up_2"]
    )
    for result in found.values():
        np.testing.assert_allclose(result.mediated_fractions, 1, rtol=1e-4)


def test_exchanged_inputs_denoise():
    """Of y = 3 a + b, a's clean value in the corrupted run restores 3/4 of the change."""

    class Sum(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.Dense(1, use_bias=False)(PassThrough(name="h")(x))

    class PassThrough(nn.Module):
        @nn.compact
        def __call__(self, x):
            return x

    variables = {"params": {"Dense_0": {"kernel": jnp.array([[3.0], [1.0]])}}}
    clean, corrupted = jnp.zeros((1, 2)), jnp.ones((1, 2))
    result = patch_units(Sum().apply, variables, corrupted, clean, sites=["h"])["h"]
    np.testing.assert_allclose(result.mediated_fractions, [[0.75], [0.25]])


def test_donors_from_another_model():
    """The donor's activation is its own: 5 times the input instead of twice."""
    model = nn.Sequential([nn.Dense(1, use_bias=False), nn.Dense(1, use_bias=False)])

    def variables(first, second):
        kernels = jnp.array([[first]]), jnp.array([[second]])
        return {"params": {f"layers_{i}": {"kernel": k} for i, k in enumerate(kernels)}}

    x = jnp.ones((1, 1))
    result = patch_units(
        model.apply, variables(2.0, 10.0), x, x, donor_variables=variables(5.0, 7.0)
    )
    np.testing.assert_allclose(result["layers_0"].effects, [[30.0]])  # 10 (5 - 2)
    np.testing.assert_allclose(result["layers_0"].mediated_fractions, [[30 / 15]])  # of 35 - 20


@pytest.mark.parametrize("donor", ["zero", "mean", "resample"])
def test_ablations_by_hand(donor):
    x = jnp.array([[1.0, 0.0, 2.0], [3.0, 0.0, 2.0]])
    result = ablate_units(Units().apply, {}, x, donor)["h"]
    # Two inputs: the mean lies between them, the resampled one is the other.
    change = {"zero": [[1, 3], [0, 0], [2, 2]], "mean": [[1, 1], [0, 0], [0, 0]]}
    change["resample"] = [[2, 2], [0, 0], [0, 0]]
    norms = np.linalg.norm(WEIGHT, axis=1)[:3, None]
    np.testing.assert_allclose(result.effects[:3], change[donor] * norms, rtol=1e-6)
    assert jnp.all(jnp.isnan(result.mediated_fractions))


def test_insertions_by_hand():
    x = normal(0, 5, 3)
    result = insert_units(Units().apply, {}, x, 0.75)["h"]
    high = np.sort(x, axis=0)[3]  # the quantile 3/4 of five values is the fourth
    change = np.abs(high - x).T * np.linalg.norm(WEIGHT, axis=1)[:3, None]
    np.testing.assert_allclose(result.effects[:3], change, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(result.effects[3], 0)
    assert jnp.all(jnp.isnan(result.mediated_fractions))


def test_a_channel_is_inserted_at_all_its_places_and_an_element_at_its_own():
    x = normal(0, 6, 2, 2, 3)
    by_channel = insert_units(Image().apply, {}, x, 1.0)["map"]
    change = ((x.max((0, 1, 2)) - x) * MAP_WEIGHT).sum((1, 2)).T
    np.testing.assert_allclose(by_channel.effects, np.abs(change), rtol=1e-5, atol=1e-5)
    by_element = insert_units(Image().apply, {}, x, 1.0, by="element")["map"]
    change = ((x.max(0) - x) * MAP_WEIGHT).reshape(6, -1).T
    np.testing.assert_allclose(by_element.effects, np.abs(change), rtol=1e-5, atol=1e-5)


def test_resampling_gives_every_input_another():
    x = jnp.arange(10.0)[:, None] * jnp.ones((1, 3))
    apply_fn = Units().apply
    for seed in range(5):
        result = ablate_units(apply_fn, {}, x, "resample", key=jax.random.key(seed))["h"]
        assert jnp.all(result.effects[0] > 0)


def test_only_what_changes_is_run(monkeypatch):
    run = []
    patch = unit_sweep._patch

    def watching(network, site, base, donor, total, units, chunks, tau, **options):
        for donated, of_example, count in zip(donor, units, chunks, strict=True):
            run.extend((unit, donated.tolist()) for unit in of_example[:count].ravel())
        return patch(network, site, base, donor, total, units, chunks, tau, **options)

    monkeypatch.setattr(unit_sweep, "_patch", watching)
    x = jnp.ones((4, 3))
    patch_units(Units().apply, {}, x, x.at[0, 1].set(2.0), chunk=1)
    assert run == [(1, [1.0, 2.0, 1.0, 0.0])]


def test_a_call_copies_few_examples_also_where_units_are_few(monkeypatch):
    copied = []
    patch = unit_sweep._patch

    def watching(network, site, base, *arguments, **options):
        copied.append(len(base))
        return patch(network, site, base, *arguments, **options)

    monkeypatch.setattr(unit_sweep, "_patch", watching)
    found = patch_units(
        Image().apply, {}, normal(0, 300, 2, 2, 3), normal(1, 300, 2, 2, 3), by="site"
    )
    assert len(copied) == 3
    assert max(copied) <= 128
    np.testing.assert_allclose(found["map"].mediated_fractions, 1, rtol=1e-4)  # the whole of it


def test_one_program_for_each_site_whatever_the_values():
    traces = []

    def apply_fn(variables, x):
        traces.append(x.shape)
        return Units().apply(variables, x)

    patch_units(apply_fn, {}, normal(0, 6, 3), normal(1, 6, 3))
    before = len(traces)
    patch_units(apply_fn, {}, normal(2, 6, 3), normal(3, 6, 3))
    assert before
    assert len(traces) == before


def test_memory_does_not_grow_with_the_number_of_patches(network):
    apply_fn, variables, base, _ = network
    output, activations = record(apply_fn, variables, base, ("decoder/up_1",), reconstruction, 4)
    site = activations["decoder/up_1"]
    whole = unit_sweep.Network(apply_fn, variables, base, reconstruction, 4)

    def temporary(examples):
        inputs, base, total = take((whole.inputs, site, output), jnp.zeros(examples, int))
        units = jnp.zeros((examples, 2, 4), int)
        chunks = jnp.zeros(examples, int)
        program = unit_sweep._patch.lower(
            dataclasses.replace(whole, inputs=inputs), "decoder/up_1", base, base, total,
            units, chunks, 1e-6, by="channel", block=8, at_once=1,
        ).compile()  # fmt: skip
        return program.memory_analysis().temp_size_in_bytes

    one, hundred = temporary(1), temporary(100)
    # What comes out of the loop, two numbers a patch; no activations of 800 patches.
    assert hundred - one < 3 * 800 * 2 * 4
    assert one > 4 * site[0].nbytes


def test_progress_reaches_the_end(monkeypatch):
    monkeypatch.setattr(unit_sweep, "_CALL_PATCHES", 16)
    calls = []
    patch_units(
        Units().apply,
        {},
        normal(0, 50, 3),
        normal(1, 50, 3),
        chunk=1,
        progress=lambda *call: calls.append(call),
    )
    assert calls[-1] == ("h", 150, 150)
    assert [done for _, done, _ in calls] == sorted(done for _, done, _ in calls)
    assert len(calls) > 1


def test_units_of_a_network_are_its_innermost_modules(network):
    apply_fn, variables, base, _ = network
    names = unit_sites(apply_fn, variables, base)
    inner = set(sites(apply_fn, variables, base)) - {"encoder", "decoder"}
    assert names == [name for name in sites(apply_fn, variables, base) if name in names]
    assert set(names) == {name for name in inner if not name.endswith("/pre")}


def test_units_of_a_module_called_twice_and_of_integers():
    class Block(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.Dense(3, name="dense")(x)

    class Codes(nn.Module):
        @nn.compact
        def __call__(self, x):
            return x.argmax(-1)

    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            block = Block(name="block")
            x = block(block(x))
            return x, Codes(name="codes")(x)

    x = jnp.ones((2, 3))
    variables = Net().init(jax.random.key(0), x)
    assert unit_sites(Net().apply, variables, x) == ["block/dense", "block/dense#2"]


def test_attribution_equals_patching_where_the_rest_is_linear():
    base, donor = normal(0, 6, 3), normal(1, 6, 3)
    exact = patch_units(Units().apply, {}, base, donor)
    estimated = attribute(Units().apply, {}, base, donor, chunk=4)
    np.testing.assert_allclose(
        estimated["h"].mediated_fractions, exact["h"].mediated_fractions, rtol=1e-4, atol=1e-5
    )
    assert rank_agreement(estimated, exact) == {"h": pytest.approx(1.0)}


def test_attribution_leaves_out_pairs_without_a_total_effect():
    base, donor = normal(0, 6, 3), normal(1, 6, 3).at[:2].set(normal(0, 6, 3)[:2])
    estimated = attribute(Units().apply, {}, base, donor)["h"]
    others = attribute(Units().apply, {}, base[2:], donor[2:])["h"]
    assert (estimated.skipped, others.skipped) == (2, 0)
    assert jnp.isnan(estimated.mediated_fractions[:, :2]).all()
    for of_all, of_others in [
        (estimated.mediated_fractions[:, 2:], others.mediated_fractions),
        (estimated.mediated_fraction.value, others.mediated_fraction.value),
    ]:
        np.testing.assert_allclose(of_all, of_others, rtol=1e-6)


def test_attribution_is_the_limit_of_small_changes(network):
    apply_fn, variables, base, donor = network
    donor = base + 1e-2 * (donor - base)
    names = ["z", "decoder/dense_2"]
    exact = patch_units(apply_fn, variables, base, donor, sites=names, readout=reconstruction)
    close = attribute(apply_fn, variables, base, donor, sites=names, readout=reconstruction)
    for site in names:
        np.testing.assert_allclose(
            close[site].mediated_fractions, exact[site].mediated_fractions, atol=0.02
        )
    assert exact["z"].mediated_fractions.max() > 0.3


def test_rank_agreement_is_signed_and_undefined_without_variation():
    base, donor = normal(0, 6, 3), normal(1, 6, 3)
    exact = patch_units(Units().apply, {}, base, donor)
    estimated = attribute(Units().apply, {}, base, donor)["h"]
    values = estimated.mediated_fraction
    opposite = estimated.replace(mediated_fraction=values.replace(value=-values.value))
    assert rank_agreement({"h": opposite}, exact)["h"] == pytest.approx(-1.0)
    constant = estimated.replace(mediated_fraction=values.replace(value=jnp.zeros(4)))
    assert np.isnan(rank_agreement({"h": constant}, exact)["h"])
    assert rank_agreement({"other": estimated}, exact) == {}


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: patch_units(Units().apply, {}, x, x, sites=["g"]), "unknown site 'g'.*of h"),
        (lambda x: patch_units(Units().apply, {}, x, x[:1]), r"one N.*\[2, 3\], \[1, 3\]"),
        (lambda x: patch_units(Units().apply, {}, x, x, by="row"), "by to be one of.*'row'"),
        (lambda x: attribute(Units().apply, {}, x, x, by="row"), "by to be one of.*'row'"),
        (lambda x: patch_units(Units().apply, {}, x, x, chunk=0), "chunk >= 1, got 0"),
        (lambda x: ablate_units(Units().apply, {}, x, "noise"), "one of zero, mean.*'noise'"),
        (lambda x: attribute(Units().apply, {}, x, x, sites=["g"]), "unknown site 'g'"),
        (lambda x: insert_units(Units().apply, {}, x, 99), r"quantile in \[0, 1\], got 99"),
    ],
)
def test_wrong_arguments_are_named(call, message):
    with pytest.raises(ValueError, match=message) as error:
        call(jnp.ones((2, 3)))
    assert "\n" not in str(error.value)


def test_a_site_of_several_arrays_has_no_units(network):
    with pytest.raises(ValueError, match="site 'encoder': its output is not one array"):
        patch_units(*network, sites=["encoder"], readout=reconstruction)


def test_some_units_of_a_site_have_the_effects_that_they_have_among_all():
    model, (clean, corrupted) = Units(), (normal(1, 6, 3), normal(2, 6, 3))
    everything = patch_units(model.apply, {}, clean, corrupted, sites=["h"])["h"]
    some = patch_units(model.apply, {}, clean, corrupted, sites={"h": [0, 2]})["h"]
    np.testing.assert_array_equal(some.effects[::2], everything.effects[:3:2])
    np.testing.assert_array_equal(some.mediated_fractions[::2], everything.mediated_fractions[:3:2])
    assert np.isnan(some.effects[1::2]).all()
    assert np.isnan(some.effect.value[1::2]).all()
    np.testing.assert_allclose(
        some.total,
        np.linalg.norm(model.apply({}, corrupted) - model.apply({}, clean), axis=1),
        rtol=1e-5,
    )
