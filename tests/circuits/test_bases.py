"""Features of a basis are units: what is known of units holds for them without special code."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from planted_bases import curved, feature_map, float32, linear, normal, rotation

from vaejax.circuits.bases import LinearBasis, in_basis, unit_basis
from vaejax.interventions import (
    attribute,
    edits,
    intervene,
    mediate,
    patch_units,
    path_units,
    sites,
    unit_mask,
    unit_sites,
)

CLEAN, CORRUPTED = normal(0, 6, 4), normal(1, 6, 4)
TURN = rotation(2, 4)
BASIS = LinearBasis(*float32(np.ones(4), TURN, TURN.T))
WEIGHTS = tuple(float32(*(m(s, 4, 4) for s in (3, 4))) for m in (normal, normal))
VARIABLES = (WEIGHTS[0], float32(np.eye(4), np.eye(4)))
HALF = LinearBasis(BASIS.center, BASIS.inward[:, :2], BASIS.outward[:2])
"""Two of the four directions, which leave an error."""


def test_without_an_edit_the_rest_of_the_network_gets_the_same_bits():
    rewritten = in_basis(curved, "h0")
    observe = jax.jit(intervene(rewritten, {}, record=["h0", "h0/features", "h0/error"]))
    plain = jax.jit(intervene(curved, {}, record="h0"))
    for basis in (BASIS, HALF):
        output, seen = observe((VARIABLES, basis), {}, CLEAN)
        expected, activations = plain(VARIABLES, {}, CLEAN)
        np.testing.assert_array_equal(seen["h0"], activations["h0"])
        np.testing.assert_allclose(output, expected, atol=1e-6)
        decoded = basis.decode(seen["h0/features"])
        np.testing.assert_allclose(decoded + seen["h0/error"], activations["h0"], atol=1e-6)
    assert np.abs(seen["h0/error"]).max() > 0.1


def test_features_and_error_are_the_units_in_place_of_the_sites_own():
    rewritten = in_basis(curved, "h0")
    names = unit_sites(rewritten, (VARIABLES, HALF), CLEAN)
    assert names == ["h0/features", "h0/error", "h1"]
    found = sites(rewritten, (VARIABLES, HALF), CLEAN)
    assert found["h0/features"].shape == (6, 2)
    assert found["h0/error"].shape == (6, 4)


def test_all_features_of_a_complete_basis_mediate_everything_and_a_self_patch_nothing():
    rewritten, variables = in_basis(curved, "h0"), (VARIABLES, BASIS)
    whole = mediate(rewritten, variables, CLEAN, CORRUPTED, "h0/features")
    np.testing.assert_allclose(whole.mediated_fractions, 1, atol=1e-5)
    np.testing.assert_allclose(whole.nde, 0, atol=1e-5)
    same = jax.jit(intervene(rewritten, {"h0/features": edits.swap}, record="h0/features"))
    _, features = jax.jit(intervene(rewritten, {}, record="h0/features"))(variables, {}, CLEAN)
    output, _ = same(variables, {"h0/features": (True, features["h0/features"])}, CLEAN)
    nothing, _ = same(variables, {"h0/features": (False, features["h0/features"])}, CLEAN)
    np.testing.assert_array_equal(output, nothing)


def test_features_and_error_of_an_incomplete_basis_are_a_complete_cut():
    rewritten, variables = in_basis(curved, "h0"), (VARIABLES, HALF)
    both = mediate(rewritten, variables, CLEAN, CORRUPTED, ["h0/features", "h0/error"])
    np.testing.assert_allclose(both.mediated_fractions, 1, atol=1e-5)
    features = mediate(rewritten, variables, CLEAN, CORRUPTED, "h0/features")
    assert np.abs(features.mediated_fractions - 1).min() > 0.01


def test_effects_of_features_are_in_closed_form_and_attribution_finds_them():
    rewritten, variables = in_basis(linear, "h0"), (VARIABLES, BASIS)
    first, second = VARIABLES[0]
    change = (CORRUPTED - CLEAN) @ first @ TURN.astype(np.float32)  # of features, [6, 4]
    total = (CORRUPTED - CLEAN) @ first @ second
    effects = change[:, :, None] * (TURN.T @ second)[None]  # [6, 4, outputs]
    share = (effects * total[:, None]).sum(-1) / (total**2).sum(-1)[:, None]
    found = patch_units(rewritten, variables, CLEAN, CORRUPTED, sites=["h0/features"])
    np.testing.assert_allclose(found["h0/features"].mediated_fractions, share.T, atol=1e-4)
    estimated = attribute(rewritten, variables, CLEAN, CORRUPTED, sites=["h0/features"])
    np.testing.assert_allclose(estimated["h0/features"].mediated_fractions, share.T, atol=1e-4)


def test_paths_lead_from_features_to_features():
    rewritten = in_basis(in_basis(linear, "h0"), "h1")
    second = VARIABLES[0][1]
    # Features at h1 such that each reads one feature at h0: those of the matrix between them.
    basis = LinearBasis(jnp.zeros(4), *float32(np.linalg.inv(second) @ TURN, TURN.T @ second))
    variables = (VARIABLES, BASIS), basis
    edge = ("h0/features", "h1/features")
    found = path_units(rewritten, variables, CLEAN, CORRUPTED, *edge).effect.value
    assert np.diag(found).min() > 0.1
    np.testing.assert_allclose(found - np.diag(np.diag(found)), 0, atol=1e-4)


def test_a_basis_of_channels_holds_at_every_position():
    basis = LinearBasis(*float32(np.ones(3), rotation(0, 3)[:, :2], rotation(0, 3)[:, :2].T))
    variables, x = float32(np.zeros((2, 2, 3)), normal(1, 12, 8)), normal(2, 5, 2, 2, 3)
    changed = normal(3, 5, 2, 2, 2)
    run = jax.jit(intervene(in_basis(feature_map, "map"), {"map/features": edits.replace}))
    output, _ = run((variables, basis), {"map/features": changed}, x)
    error = x - basis.decode(basis.encode(x))
    expected = (basis.decode(changed) + error).reshape(5, 12) @ variables[1]
    np.testing.assert_allclose(output.reshape(5, 8), expected, atol=1e-5)


def test_a_program_is_compiled_once_for_all_bases_of_a_shape():
    assert in_basis(linear, "h0") is in_basis(linear, "h0")
    traces = []

    def counted(variables, x):
        traces.append(1)
        return linear(variables, x)

    run = jax.jit(in_basis(counted, "h0"))
    run((VARIABLES, BASIS), CLEAN)
    before = len(traces)
    run((VARIABLES, unit_basis(jnp.zeros(4))), CLEAN)
    assert len(traces) == before


def test_units_are_a_basis():
    basis = unit_basis(jnp.array([1.0, 2.0]))
    a = normal(0, 3, 2)
    np.testing.assert_array_equal(basis.encode(a), a - basis.center)
    np.testing.assert_allclose(basis.decode(basis.encode(a)), a, atol=1e-6)


def test_masks_of_features_select_them():
    rewritten, variables = in_basis(linear, "h0"), (VARIABLES, BASIS)
    parts = [
        mediate(rewritten, variables, CLEAN, CORRUPTED, {"h0/features": unit_mask((4,), units)})
        for units in ([0, 1], [2, 3])
    ]
    np.testing.assert_allclose(sum(p.mediated_fractions for p in parts), 1, atol=1e-5)


@pytest.mark.parametrize(
    ("site", "basis", "message"),
    [
        ("h0", unit_basis(jnp.zeros(3)), r"site 'h0': expected activations \[\.\.\., 3\]"),
        ("h7", BASIS, "unknown site 'h7'"),
    ],
)
def test_a_basis_that_does_not_fit_is_an_error(site, basis, message):
    with pytest.raises(ValueError, match=message):
        in_basis(linear, site)((VARIABLES, basis), CLEAN)
