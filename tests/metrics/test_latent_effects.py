"""All metrics in one pass are the metrics one by one."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from planted import normal

from vaejax.metrics import (
    ces,
    circuit_modularity,
    latent_effects,
    specificity_factor,
    specificity_pixel,
)

LATENTS, VALUES = normal(0, 9, 4), np.array([-1.0, 0.5, 2.0], np.float32)
FIRST, LAST, READ = normal(1, 4, 6), normal(2, 6, 10), normal(3, 10, 3)
FIRST[3] = 0  # a dead latent


def decode(z):
    hidden = jnp.tanh(z @ FIRST)
    return hidden @ LAST, {"hidden": hidden, "image": (hidden @ LAST).reshape(-1, 5, 2)}


def read(image):
    return jnp.sin(image @ READ)


def test_one_pass_is_five():
    active, key = jnp.array([True, True, False, True]), jax.random.key(1)
    options = {"active": active, "key": key, "chunk": 4}
    found = latent_effects(decode, read, LATENTS, VALUES, **options)
    alone = {
        "ces": ces(lambda z: decode(z)[0], LATENTS, VALUES, **options),
        "ces_factor": ces(lambda z: read(decode(z)[0]), LATENTS, VALUES, **options),
        "specificity_pixel": specificity_pixel(lambda z: decode(z)[0], LATENTS, VALUES, **options),
        "specificity_factor": specificity_factor(
            lambda z: read(decode(z)[0]), LATENTS, VALUES, **options
        ),
        "circuit_modularity": circuit_modularity(
            lambda z: decode(z)[1], LATENTS, VALUES, **options
        ),
    }
    for name, expected in alone.items():
        chex.assert_trees_all_close(getattr(found, name), expected, rtol=1e-4, atol=1e-5)
    assert found.ces.num_dead == found.specificity_factor.num_dead == 1
    assert found.ces.per_latent[3] == 0


def test_wrong_outputs_are_named():
    with pytest.raises(ValueError, match="at least 2 factors, got 1"):
        latent_effects(decode, lambda image: image[:, :1], LATENTS, VALUES)
    with pytest.raises(ValueError, match="expected activations"):
        latent_effects(lambda z: (decode(z)[0], {}), read, LATENTS, VALUES)
