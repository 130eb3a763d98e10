"""The interaction basis finds what varies and what is read, however it is stored."""

import jax.numpy as jnp
import numpy as np
import pytest
from planted_bases import curved, feature_map, float32, independent, linear, normal, rotation

from vaejax.circuits.bases import in_basis
from vaejax.circuits.interaction_basis import interaction_basis
from vaejax.interventions import mediate, unit_mask

STATES = independent(64, 6)
VARYING = np.diag([1.0, 2, 3, 4, 0, 0])
READING = np.diag([0.0, 0, 5, 2, 1, 3])


def planted(turn):
    """At `h0` the coordinates 0 to 3 vary and 2 to 5 are read."""
    return float32(VARYING, READING), float32(turn, np.eye(6))


def sum_of(output):
    return output.sum(-1, keepdims=True)


@pytest.fixture(scope="module")
def found():
    return interaction_basis(linear, planted(rotation(0, 6)), STATES, "h0")


def test_ranks_count_what_varies_what_is_read_and_what_does_both(found):
    assert (found.rank, found.variance_rank, found.gradient_rank) == (2, 4, 4)


def test_eigenvalues_are_the_variances_of_the_output_that_directions_make(found):
    np.testing.assert_allclose(found.eigenvalues.value, [225, 64, 0, 0], atol=1e-3)
    np.testing.assert_allclose(found.eigenvalues.value.sum(), found.output_variance, rtol=1e-5)
    np.testing.assert_allclose(found.effective.value, (225 + 64) ** 2 / (225**2 + 64**2), rtol=1e-4)


def test_the_basis_undoes_a_rotation_of_the_site(found):
    # Rows are what features write; in the planted coordinates the first two are axes 2 and 3.
    written = np.asarray(found.basis.outward) @ rotation(0, 6).T
    np.testing.assert_allclose(np.abs(written[:2]), VARYING[2:4], atol=1e-4)
    other = interaction_basis(linear, planted(rotation(1, 6)), STATES, "h0")
    np.testing.assert_allclose(other.eigenvalues.value, found.eigenvalues.value, atol=1e-3)


def test_features_have_unit_variance_and_decode_what_varies(found):
    activation = STATES @ jnp.asarray(VARYING @ rotation(0, 6), jnp.float32)
    features = found.basis.encode(activation)
    np.testing.assert_allclose(np.cov(features.T, bias=True), np.eye(4), atol=1e-4)
    np.testing.assert_allclose(found.basis.decode(features), activation, atol=1e-5)


def test_the_features_that_count_mediate_everything(found):
    variables = planted(rotation(0, 6)), found.basis
    components = {"h0/features": unit_mask((4,), np.arange(found.rank))}
    result = mediate(in_basis(linear, "h0"), variables, STATES[:8], STATES[20:28], components)
    np.testing.assert_allclose(result.mediated_fractions[result.skipped :], 1, atol=1e-4)


def test_eigenvalues_add_up_to_the_variance_of_the_output_of_any_linear_network():
    variables = float32(normal(0, 5, 5), normal(1, 5, 5)), float32(rotation(0, 5), rotation(1, 5))
    x = 3 + normal(2, 40, 5) @ normal(3, 5, 5)  # correlated, and not centred
    found = interaction_basis(linear, variables, x, "h0", chunk=16)
    expected = np.var(np.asarray(x @ variables[0][0] @ variables[0][1]), axis=0).sum()
    np.testing.assert_allclose(found.eigenvalues.value.sum(), expected, rtol=1e-4)
    np.testing.assert_allclose(found.output_variance, expected, rtol=1e-4)


def test_random_signs_do_for_many_outputs():
    variables = planted(rotation(0, 6))
    found = interaction_basis(linear, variables, STATES, "h0", probes=4)
    assert (found.rank, found.variance_rank, found.gradient_rank) == (2, 4, 4)
    np.testing.assert_allclose(found.eigenvalues.value[:2], [225, 64], rtol=0.1)


def test_a_readout_leaves_out_what_it_does_not_read():
    found = interaction_basis(linear, planted(rotation(0, 6)), STATES, "h0", readout=sum_of)
    assert (found.rank, found.variance_rank, found.gradient_rank) == (1, 4, 1)
    np.testing.assert_allclose(found.effective.value, 1, rtol=1e-5)


def test_nothing_that_is_read_is_no_direction():
    variables = (float32(VARYING, np.zeros((6, 6))), float32(np.eye(6), np.eye(6)))
    found = interaction_basis(linear, variables, STATES, "h0")
    assert (found.rank, found.variance_rank, found.gradient_rank) == (0, 4, 0)
    assert found.effective.value == found.effective.low == found.effective.high == 0


def test_channels_of_feature_maps():
    # Positions are independent and alike, but for what never varies.
    x = independent(4096, 12).reshape(-1, 2, 2, 3)
    offset, matrix = 10 * normal(0, 2, 2, 3), normal(1, 12, 8)
    matrix = matrix.reshape(2, 2, 3, 8).at[:, :, 0].set(0).reshape(12, 8)
    found = interaction_basis(feature_map, (offset, matrix), x, "map", chunk=1024)
    assert (found.rank, found.variance_rank, found.gradient_rank) == (2, 3, 2)
    moments = np.einsum("pco,pdo->cd", *[np.asarray(matrix).reshape(4, 3, 8)] * 2)
    np.testing.assert_allclose(
        found.eigenvalues.value, np.linalg.eigvalsh(moments)[::-1], rtol=1e-4, atol=1e-3
    )
    np.testing.assert_allclose(found.eigenvalues.value.sum(), found.output_variance, rtol=1e-4)


def test_intervals_cover_what_other_data_give():
    variables = float32(normal(0, 4, 4), normal(1, 4, 4)), float32(rotation(0, 4), rotation(1, 4))
    found, large = (
        interaction_basis(curved, variables, normal(seed, n, 4), "h0", chunk=256)
        for seed, n in ((2, 256), (3, 4096))
    )
    for few, many in ((found.eigenvalues, large.eigenvalues), (found.effective, large.effective)):
        assert np.all(few.low < few.value)
        assert np.all(few.value < few.high)
        assert np.mean((few.low < many.value) & (many.value < few.high)) > 0.7


def test_a_site_that_never_varies_is_an_error():
    with pytest.raises(ValueError, match="site 'h0': expected activations that vary"):
        interaction_basis(linear, planted(np.eye(6)), STATES[:1].repeat(4, 0), "h0")
    with pytest.raises(ValueError, match="expected probes >= 1, got 0"):
        interaction_basis(linear, planted(np.eye(6)), STATES, "h0", probes=0)
