"""Path-specific effects of networks whose paths can be counted."""

import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from planted_networks import WEIGHT, Diamond, Gate, Units, normal

from vaejax.interventions import path_effect, path_units, unit_mask
from vaejax.models.layers import Site


@pytest.mark.parametrize(
    ("receiver", "frozen", "share"),
    [
        ("v", (), 11 / 18),
        ("v", ("m",), 5 / 18),  # the direct edge alone
        ("m", (), 6 / 18),
        ("w", (), 7 / 18),
        ("w", ("m", "v"), 7 / 18),
        (("v", "w"), (), 1.0),
    ],
)
def test_paths_of_a_diamond(receiver, frozen, share):
    clean, corrupted = normal(0, 5, 2), normal(1, 5, 2)
    result = path_effect(Diamond().apply, {}, clean, corrupted, "u", receiver, frozen=frozen)
    np.testing.assert_allclose(result.mediated_fractions, share, rtol=1e-5)
    effect = 18 * share * np.linalg.norm(corrupted - clean, axis=1)
    np.testing.assert_allclose(result.effects, effect, rtol=1e-5)
    np.testing.assert_allclose(result.mediated_fraction.value, share, rtol=1e-5)


def test_what_does_not_reach_the_receiver_has_no_effect_at_all():
    clean, corrupted = normal(0, 5, 2), normal(1, 5, 2)
    result = path_effect(Diamond().apply, {}, clean, corrupted, "w", "v")
    np.testing.assert_array_equal(result.effects, 0)
    result = path_effect(Diamond().apply, {}, clean, corrupted, {"u": False}, "v")
    np.testing.assert_array_equal(result.effects, 0)


def test_everything_but_the_sender_stays_clean():
    """y = u v: by way of u alone the effect is (u~ - u) v, with the clean v."""
    clean, corrupted = jnp.array([[2.0, 3.0]]), jnp.array([[5.0, 11.0]])
    result = path_effect(Gate().apply, {}, clean, corrupted, "u", "u")
    np.testing.assert_allclose(result.effects, [9.0])


class Stacked(Units):
    """Sites `g = 2 x [B, 3]` and then `h` and `y` of `Units` of it."""

    @nn.compact
    def __call__(self, x):
        return super().__call__(Site(name="g")(2 * x))


def test_every_edge_of_two_layers():
    clean, corrupted = normal(0, 6, 3), normal(1, 6, 3)
    calls = []
    result = path_units(
        Stacked().apply, {}, clean, corrupted, "g", "h", progress=lambda *call: calls.append(call)
    )
    change = 2 * np.asarray(corrupted - clean)
    expected = np.zeros((3, 4, 6))
    for unit in range(3):  # unit i of g feeds unit i of h alone; h's last unit never fires
        expected[unit, unit] = np.abs(change[:, unit]) * np.linalg.norm(WEIGHT[unit])
    np.testing.assert_allclose(result.effects, expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(result.effect.value, expected.mean(-1), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(result.mediated_fractions.sum((0, 1)), 1, rtol=1e-4)
    assert calls == [(1, 3), (2, 3), (3, 3)]
    one = path_effect(
        Stacked().apply, {}, clean, corrupted, {"g": unit_mask((3,), 1)}, {"h": unit_mask((4,), 1)}
    )
    np.testing.assert_allclose(one.effects, result.effects[1, 1], rtol=1e-5)
    np.testing.assert_allclose(
        one.mediated_fraction.value, result.mediated_fraction.value[1, 1], rtol=1e-4
    )


def test_pairs_without_effect_are_skipped_and_counted():
    clean = jnp.zeros((3, 3))
    corrupted = clean.at[1].set(1.0)
    result = path_units(Stacked().apply, {}, clean, corrupted, "g", "h")
    assert result.skipped == 2
    assert jnp.isnan(result.mediated_fractions[:, :, 0]).all()
    assert path_effect(Stacked().apply, {}, clean, corrupted, "g", "h").skipped == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("x", "v"), "unknown site 'x'.*one of u, m, v, w"),
        (("u", "x"), "unknown site 'x'.*one of u, m, v, w"),
    ],
)
def test_unknown_sites_are_named(arguments, message):
    x = jnp.ones((2, 1))
    for function in (path_effect, path_units):
        with pytest.raises(ValueError, match=message):
            function(Diamond().apply, {}, x, x, *arguments)


def test_some_units_have_the_effects_that_they_have_among_all():
    clean, corrupted = normal(0, 6, 3), normal(1, 6, 3)
    everything = path_units(Stacked().apply, {}, clean, corrupted, "g", "h")
    calls = []
    some = path_units(
        Stacked().apply, {}, clean, corrupted, {"g": [2, 0]}, {"h": np.array([3, 0, 2])},
        progress=lambda *call: calls.append(call),
    )  # fmt: skip
    edges = np.ix_([2, 0], [3, 0, 2])
    np.testing.assert_array_equal(some.effects, np.asarray(everything.effects)[edges])
    np.testing.assert_array_equal(
        some.mediated_fractions, np.asarray(everything.mediated_fractions)[edges]
    )
    np.testing.assert_array_equal(some.effect.value, np.asarray(everything.effect.value)[edges])
    assert calls == [(1, 2), (2, 2)]


@pytest.mark.parametrize(
    ("sender", "message"),
    [
        ({"g": [0, 3]}, r"expected units below 3 .*got \[3\]"),
        ({"g": [1, 1]}, r"site 'g': expected different units \[S\], got \[1, 1\]"),
        ({"g": []}, r"site 'g': expected different units \[S\], got \[\]"),
        ({"g": [0], "h": [1]}, "expected units of one site, got g, h"),
        ({"g": [0.5]}, "expected units to be integers"),
    ],
)
def test_units_that_are_not_there_are_refused(sender, message):
    x = jnp.ones((2, 3))
    with pytest.raises(ValueError, match=message):
        path_units(Stacked().apply, {}, x, x, sender, "h")
