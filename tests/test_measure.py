"""What the sweep measures, on models and images whose every figure is known beforehand."""

import dataclasses
import io
import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath
from flax import struct
from rich.console import Console

from experiments import effects, presets, readouts, report, scores
from experiments.measure import MissingError, measure
from experiments.presets import PRESETS
from vaejax import data, interventions
from vaejax.data import Factor
from vaejax.metrics import train_readout
from vaejax.models import VAE, Discriminator, FactorVAE, MLPDecoder, MLPEncoder

SHAPE = (4, 4, 1)
PIXELS = math.prod(SHAPE)
MEAN, LOGVAR = np.array([0.5, 0.0], np.float32), np.array([-1.0, 0.0], np.float32)
PRESET = dataclasses.replace(PRESETS["smoke"], examples=1000, scored_examples=300, ces_examples=4)


@struct.dataclass
class Halves:
    """Images that are black or white all over, as the first factor says; the second is unseen."""

    name = "halves"
    origin = "redrawn"
    image_shape = SHAPE
    factors = (Factor("white", 2), Factor("unseen", 2))

    def __len__(self):
        return 4

    def render(self, factors):
        return jnp.broadcast_to(factors[0] * 1.0, SHAPE)

    def batch(self, key, n):
        factors = jax.random.bernoulli(key, 0.5, (n, 2)).astype(jnp.int32)
        return jax.vmap(self.render)(factors), factors


@pytest.fixture(scope="module")
def readout():
    return train_readout(Halves(), jax.random.key(0), steps=2, batch_size=8)


@pytest.mark.parametrize("content", [b"", b"hello", b"PK\x03\x04 cut short"])
def test_a_damaged_read_out_is_trained_anew(tmp_path, content):
    path = epath.Path(tmp_path) / "readouts" / "halves.npz"
    path.parent.mkdir()
    path.write_bytes(content)
    preset = dataclasses.replace(PRESET, readout_steps=2)
    console = Console(file=io.StringIO(), width=1000)
    trained = readouts.get(Halves(), preset, epath.Path(tmp_path), console)
    assert "halves.npz cannot be read, training anew" in console.file.getvalue()
    console = Console(file=io.StringIO())
    chex.assert_trees_all_equal(
        readouts.get(Halves(), preset, epath.Path(tmp_path), console), trained
    )
    assert not console.file.getvalue()  # found, not trained


def planted(**parameters):
    """A VAE of two latents without hidden layers, all parameters 0 but those given."""
    model = VAE(MLPEncoder(2, ()), MLPDecoder(SHAPE, ()))
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, *SHAPE)))
    variables = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
    for name, value in parameters.items():
        *path, last = name.split("__")
        module = variables["params"]
        for part in path:
            module = module[part]
        module[last] = jnp.broadcast_to(value, module[last].shape)
    return model, variables


def test_every_figure_of_a_model_that_ignores_its_input(readout):
    # Logits are 0 and stay 0 whatever the latents: every pixel is decoded as 1/2.
    model, variables = planted(encoder__mean__bias=MEAN, encoder__logvar__bias=LOGVAR)
    row, latents, *_ = measure(model, variables, Halves(), PRESET, readout)
    kl = 0.5 * (MEAN**2 + np.exp(LOGVAR) - 1 - LOGVAR)
    np.testing.assert_allclose(latents["kl"], kl, atol=1e-6)
    assert row["kl"] == pytest.approx(kl.sum(), rel=1e-5)
    assert (row["latents"], row["active_latents"], row["dead_latents"]) == (2, 1, 2)
    assert row["reconstruction"] == pytest.approx(PIXELS * math.log(2), rel=1e-5)
    assert row["mse"] == pytest.approx(0.25)
    # p (1 - p) for the share p of white images, which is within 5 standard errors of 1/2.
    assert 0.25 - (5 * 0.5 / math.sqrt(1000)) ** 2 <= row["mse_mean_image"] <= 0.25
    np.testing.assert_allclose(latents["latent_std"], np.exp(LOGVAR / 2), rtol=0.15)
    assert row["mig"] == row["ces_fixed"] == row["ces_calibrated_max"] == 0
    assert row["ces_infinitesimal"] == row["ces_factor"] == row["ces_fixed_high"] == 0
    for undefined in (
        *("perplexity", "dead_codes", "specificity_pixel", "specificity_factor_active"),
        *("circuit_modularity", "encoder_modularity", "mediated_fraction_max"),
    ):
        assert row[undefined] is None
    assert (row["pairs"], row["pairs_skipped"]) == (8, 8)


def test_effects_of_a_linear_decoder(readout):
    """Posterior means are 0; pixels are `1/2 + slope z_0 / 4`, to first order in the slope."""
    slope = 1e-3
    model, variables = planted(decoder__logits__kernel=np.array([[slope], [0.0]]))
    row, latents, *_ = measure(model, variables, Halves(), PRESET, readout)
    # sigmoid'(0) = 1/4, sixteen pixels, mean |v| over -3 .. 3 is 12/7.
    step = slope / 4 * math.sqrt(PIXELS)
    np.testing.assert_allclose(latents["ces_fixed"], [step * 12 / 7, 0], rtol=1e-3)
    assert row["ces_fixed"] == pytest.approx(step * 6 / 7, rel=1e-3)
    assert row["ces_fixed_max"] == pytest.approx(step * 12 / 7, rel=1e-3)
    assert row["ces_fixed_rms_max"] == pytest.approx(step * 12 / 7 / 4, rel=1e-3)
    std = latents["latent_std"][0]
    np.testing.assert_allclose(latents["ces_infinitesimal"], [step * std, 0], rtol=1e-3)
    # All pixels move alike: entropy ln 16.
    assert row["specificity_pixel"] == pytest.approx(1 / math.log(PIXELS), rel=1e-3)
    assert row["dead_latents"] == 1
    assert row["latent_interaction"] is None  # neither latent is active


def test_a_latent_that_carries_the_factor_mediates_its_effect(readout):
    """`z_0` is the mean pixel, `z_1` is not used."""
    model, variables = planted(
        encoder__mean__kernel=np.array([1 / PIXELS, 0.0]),
        encoder__logvar__bias=np.array([-4.0, 0.0]),
        decoder__logits__kernel=np.array([[2.0], [0.0]]),
    )
    row, latents, units, _, graphs = measure(model, variables, Halves(), PRESET, readout)
    np.testing.assert_allclose(latents["factor_latents"], [[1, 0], [0, 0]], atol=1e-6)
    np.testing.assert_allclose(units["factor_encoder/mean"], [[1, 0], [0, 0]], atol=1e-6)
    np.testing.assert_allclose(latents["mediated_fraction"][0], [1, 0], atol=1e-5)
    assert np.isnan(latents["mediated_fraction"][1]).all()  # nothing to mediate
    assert row["mediated_fraction_max"] == pytest.approx(1, abs=1e-5)
    assert row["mediated_fraction_sum_high"] == pytest.approx(1, abs=1e-5)
    assert (row["pairs"], row["pairs_skipped"]) == (8, 4)
    # Of the two latents one carries one factor, and is its circuit.
    np.testing.assert_allclose(units["effect_z"], [[1, 0], [np.nan, np.nan]], atol=1e-5)
    np.testing.assert_array_equal(units["circuit_z"], [[True, False], [False, False]])
    assert units["circuit_faithfulness_z"][0] == pytest.approx(1, abs=1e-5)
    assert row["circuit_faithfulness"] == pytest.approx(1, abs=1e-5)
    assert row["circuit_size"] == pytest.approx(1 / 2)
    assert set(graphs["latent_factors"]) == {"white", "unseen", "z:0", "z:1"}
    # Sixteen equal units share the effect; to first order, which the sigmoid bends.
    shares = units["attribution_decoder/logits"][0]
    assert shares.shape == (PIXELS,)
    np.testing.assert_allclose(shares, shares[0], rtol=1e-4)
    assert shares.sum() == pytest.approx(1, abs=0.3)


def test_every_column_is_in_the_table_and_intervals_hold_their_value(readout):
    model, variables = planted(
        encoder__mean__kernel=np.linspace(-1, 1, 32).reshape(PIXELS, 2),
        decoder__logits__kernel=np.linspace(-1, 2, 32).reshape(2, PIXELS),
    )
    row, *_ = measure(model, variables, Halves(), PRESET, readout)
    assert set(row) <= set(report.COLUMNS)
    with_interval = [name for name in report.WITH_INTERVAL if row.get(name) is not None]
    assert len(with_interval) > 30
    for name in with_interval:
        slack = 1e-5 * abs(row[name])
        assert row[f"{name}_low"] - slack <= row[name] <= row[f"{name}_high"] + slack, name


def test_only_what_is_asked_for_is_scored():
    """`z_0` is the mean pixel with little noise, `z_1` is passive: its posterior is the prior."""
    model, variables = planted(
        encoder__mean__kernel=np.array([1 / PIXELS, 0.0]),
        encoder__logvar__bias=np.array([-6.0, 0.0]),
    )
    arguments = model, variables, Halves(), PRESET, None
    names = ("mig", "dci", "beta_vae_score")
    found = measure(*arguments, names=names)
    assert found.row["representation"] == "means"
    assert (found.row["mixed_latents"], found.row["passive_latents"]) == (0, 1)
    # A latent without noise that is one factor, a dead latent, and a factor that none is.
    np.testing.assert_allclose(found.latents["mig_per_factor"], [1, 0], atol=0.01)
    assert found.scores["mig"]["dead_latents"] == 1
    assert found.scores["mig"]["reason"] == "dead latents: [1]"
    assert found.row["dci_informativeness"] == pytest.approx(0.75, abs=0.1)
    assert found.row["beta_vae_score"] > 0.9
    assert not {"sap", "irs", "ces_fixed", "pairs"} & set(found.row)

    sampled = measure(*arguments, names=("mig",), representation="samples")
    assert sampled.row["representation"] == "samples"
    assert sampled.scores["mig"]["dead_latents"] == 0
    np.testing.assert_allclose(sampled.latents["mig_per_factor"], [1, 0], atol=0.05)
    without = measure(*arguments, names=("mig",), representation="samples", without_passive=True)
    assert without.scores["mig"]["passive_latents_left_out"] == 1
    assert np.isnan(without.latents["mig_matrix"][1]).all()
    with pytest.raises(MissingError, match="this model has means and samples, and no codes"):
        measure(*arguments, names=(), representation="codes")


def test_every_name_is_scored_and_has_its_columns(readout):
    assert set(scores._METRICS) == set(presets.DISENTANGLEMENT)
    model, variables = planted(encoder__mean__kernel=np.linspace(-1, 1, 32).reshape(PIXELS, 2))
    found = measure(model, variables, Halves(), PRESET, readout, names=presets.DISENTANGLEMENT)
    start, end = report.METRICS.index("dci_disentanglement"), report.METRICS.index("infoe")
    assert set(found.scores) == set(report.METRICS[start : end + 1])
    assert {name for name in found.scores if found.row[name] is None} == set()


def test_the_discriminator_is_left_out(readout):
    model, variables = planted(encoder__mean__bias=MEAN)
    expected = measure(model, variables, Halves(), PRESET, readout).row
    factor = FactorVAE(model.encoder, model.decoder, model.likelihood, Discriminator((3,)))
    params = {**variables["params"], "discriminator": {"unused": jnp.zeros(1)}}
    assert measure(factor, {"params": params}, Halves(), PRESET, readout).row == expected


def test_in_a_world_what_depends_on_a_factor_follows_it():
    base, world = data.source("dsprites", 32), data.source("dsprites@chain", 32)
    _, factors = base.batch(jax.random.key(0), 6)  # chain: scale -> x -> y
    (clean, held), (same, followed) = (effects.factor_pairs(s, factors) for s in (base, world))
    np.testing.assert_array_equal(clean, same)
    held, followed, clean = (x.reshape(5, 6, -1) for x in (held, followed, clean))
    moved = np.abs(held - followed).max(axis=-1) > 0
    assert not moved[[0, 2, 4]].any()  # shape, orientation and y have no effects
    assert moved[[1, 3]].all()
    # Not only is it another image: it is that of the values that the model gives.
    scale = factors[:, 1] + jax.random.randint(
        jax.random.split(jax.random.key(0), 5)[1], (6,), 1, 6
    )
    values = world.set_factor(factors, 1, scale % 6)
    np.testing.assert_array_equal(jax.vmap(base.render)(values).reshape(6, -1), followed[1])


def test_without_a_world_correlated_factors_are_held():
    faces = data.source("celeba", 32)
    assert faces.correlated
    assert effects._set_factor(faces) is interventions.set_factor
