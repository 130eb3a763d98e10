"""What the sweep measures, on a model and images whose every figure is known beforehand."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import struct

from experiments.measure import measure
from experiments.presets import PRESETS
from vaejax.models import VAE, MLPDecoder, MLPEncoder

SHAPE = (4, 4, 1)
MEAN, LOGVAR = np.array([0.5, 0.0], np.float32), np.array([-1.0, 0.0], np.float32)


@struct.dataclass
class Halves:
    """Images that are black or white all over; the only factor says which."""

    def batch(self, key, n):
        white = jax.random.bernoulli(key, 0.5, (n, 1)).astype(jnp.int32)
        return jnp.broadcast_to(white[:, :, None, None] * 1.0, (n, *SHAPE)), white


@pytest.mark.usefixtures("quick_compilation")
def test_every_figure_of_a_model_that_ignores_its_input():
    model = VAE(MLPEncoder(2, ()), MLPDecoder(SHAPE, ()))
    key = jax.random.key(0)
    variables = jax.tree.map(jnp.zeros_like, model.init(key, jnp.zeros((1, *SHAPE))))
    params = variables["params"]
    params["encoder"]["mean"]["bias"] = jnp.asarray(MEAN)
    params["encoder"]["logvar"]["bias"] = jnp.asarray(LOGVAR)
    # Logits are 0 and stay 0 whatever the latents: every pixel is decoded as 1/2.
    preset = dataclasses.replace(PRESETS["smoke"], examples=1000, ces_examples=4)
    row, arrays = measure(model, variables, Halves(), preset)

    kl = 0.5 * (MEAN**2 + np.exp(LOGVAR) - 1 - LOGVAR)
    np.testing.assert_allclose(arrays["kl"], kl, atol=1e-6)
    assert row["kl"] == pytest.approx(kl.sum(), rel=1e-5)
    assert (row["latents"], row["active_latents"]) == (2, 1)
    assert row["reconstruction"] == pytest.approx(math.prod(SHAPE) * math.log(2), rel=1e-5)
    assert row["mse"] == pytest.approx(0.25)
    # p (1 - p) for the share p of white images, which is within 5 standard errors of 1/2.
    assert 0.25 - (5 * 0.5 / math.sqrt(1000)) ** 2 <= row["mse_mean_image"] <= 0.25
    np.testing.assert_allclose(arrays["latent_std"], np.exp(LOGVAR / 2), rtol=0.15)
    assert row["mig"] == row["ces_fixed"] == row["ces_calibrated_max"] == 0
    assert row["perplexity"] is row["dead_codes"] is None


@pytest.mark.usefixtures("quick_compilation")
def test_effects_of_a_linear_decoder():
    """Posterior means are 0; pixels are `1/2 + slope z_0 / 4`, to first order in the slope."""
    model = VAE(MLPEncoder(2, ()), MLPDecoder(SHAPE, ()))
    variables = jax.tree.map(jnp.zeros_like, model.init(jax.random.key(0), jnp.zeros((1, *SHAPE))))
    slope = 1e-3
    kernel = variables["params"]["decoder"]["logits"]["kernel"]
    variables["params"]["decoder"]["logits"]["kernel"] = kernel.at[0].set(slope)
    preset = dataclasses.replace(PRESETS["smoke"], ces_examples=4)
    row, arrays = measure(model, variables, Halves(), preset)
    # sigmoid'(0) = 1/4, sixteen pixels, mean |v| over -3 .. 3 is 12/7.
    expected = slope / 4 * math.sqrt(16) * 12 / 7
    np.testing.assert_allclose(arrays["ces_fixed"], [expected, 0], rtol=1e-3)
    assert row["ces_fixed"] == pytest.approx(expected / 2, rel=1e-3)
    assert row["ces_fixed_max"] == pytest.approx(expected, rel=1e-3)
    assert row["ces_fixed_rms_max"] == pytest.approx(expected / 4, rel=1e-3)
