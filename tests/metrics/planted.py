"""Numbers and decoders that the tests of the causal metrics are planted with."""

import math

import jax
import jax.numpy as jnp
import numpy as np


def normal(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def changes(decode, latents, values):
    """The definition, one intervention at a time: `[N, D, V, ...]` for `values` `[D, V]`."""
    latents = np.asarray(latents)
    rows = []
    for n, i, v in np.ndindex(*latents.shape, values.shape[1]):
        intervened = latents[n].copy()
        intervened[i] = values[i, v]
        before, after = (np.asarray(decode(z[None])[0]) for z in (latents[n], intervened))
        rows.append(after.astype(np.float64) - before.astype(np.float64))
    return np.stack(rows).reshape(*latents.shape, values.shape[1], *rows[0].shape)


def mlp_params(num_latents, output_shape, dead):
    """Of a decoder with one hidden layer that ignores the latent `dead`."""
    size = math.prod(output_shape)
    first = normal(1, num_latents, 64)
    first[dead] = 0.0
    return {
        "first": jnp.asarray(first),
        "last": jnp.asarray(0.2 * normal(2, 64, size)),
        "bias": jnp.asarray(normal(3, size)),
        "gain": jnp.asarray(normal(4, size)),
    }


def mlp(params, z, output_shape):
    return mlp_activations(params, z)["output"].reshape(-1, *output_shape)


def mlp_activations(params, z):
    hidden = jax.nn.relu(z @ params["first"])
    logits = hidden @ params["last"] + params["bias"]
    # Ends in a multiplication, which XLA likes to fuse with a following subtraction.
    return {"hidden": hidden, "logits": logits, "output": jnp.tanh(logits) * params["gain"]}
