"""What is measured of a trained model. The same images and keys for every run of a dataset."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import lax

from experiments import effects
from experiments.presets import Preset
from vaejax import metrics
from vaejax.data import DataSource, Renderable
from vaejax.models import VAE, FactorVAE, perplexity, reparameterize
from vaejax.objectives import kl_divergence
from vaejax.types import Variables, VQOutput

_BATCH = 50  # examples encoded at once
_KEY = 20_250_503  # seed of the images that are measured on; no run trains with it


class Measurement(NamedTuple):
    """What `measure` found.

    Attributes:
      row: Columns of `results.csv`; None where a quantity is not defined for the model.
      latents: Arrays over latents, saved as `latents.npz`.
      units: Arrays over the units of each site, saved as `units.npz`.
    """

    row: dict[str, Any]
    latents: dict[str, np.ndarray]
    units: dict[str, np.ndarray]


class _Encoded(NamedTuple):
    """The measured images as the model sees them: N examples, D latents, K factors."""

    latents: jax.Array  # [N, D], posterior means
    samples: jax.Array  # [N, D], one draw from each posterior
    factors: jax.Array  # [N, K]
    kl: jax.Array  # [N, D], NaN where there is no posterior
    codes: jax.Array  # [N, P], of width 0 where there are none
    reconstruction: jax.Array  # [N], nats
    squared_error: jax.Array  # [N], mean over pixels


def measure(
    model: nn.Module,
    variables: Variables,
    source: DataSource,
    preset: Preset,
    readout: metrics.FactorReadout,
) -> Measurement:
    """Measures one model on images of its dataset.

    Reconstructions are decoded from posterior means. The latents of a VQ-VAE are the coordinates
    of its encoder's output before quantisation: it has no posterior, hence no KL and no active
    latents, and interventions on its latents are quantised before they are decoded.

    Args:
      model: The model.
      variables: Its variables.
      source: Its dataset. Factors are intervened on if it can draw any combination of them.
      preset: How many images.
      readout: The dataset's, which states effects in units of factors.
    """
    if isinstance(model, FactorVAE):
        # Its discriminator is for training; without it, it shares the programs of the other VAEs.
        model = VAE(model.encoder, model.decoder, model.likelihood)
        params = {k: v for k, v in variables["params"].items() if k != "discriminator"}
        variables = {**variables, "params": params}
    encoded, (mean, mean_square) = _encode(model, variables, source, n=preset.examples)
    has_posterior = encoded.codes.size == 0
    kl = encoded.kl.mean(0)
    active = metrics.active_latents(kl) if has_posterior else None
    gap = metrics.mig(np.asarray(encoded.latents), np.asarray(encoded.factors))
    few = encoded.latents[: preset.ces_examples], encoded.factors[: preset.ces_examples]

    row: dict[str, Any] = {
        "reconstruction": float(encoded.reconstruction.mean()),
        "mse": float(encoded.squared_error.mean()),
        "mse_mean_image": float((mean_square - mean**2).mean()),
        "latents": encoded.latents.shape[1],
        "kl": float(kl.sum()) if has_posterior else None,
        "active_latents": int(active.sum()) if active is not None else None,
        **_code_usage(model, encoded.codes),
        "mig": gap.score,
        "readout_accuracy": float(readout.accuracy.mean()),
        "readout_error": float(readout.error.mean()),
    }
    latents: dict[str, Any] = {
        "kl": kl,
        "mutual_information": gap.mutual_information,
        "readout_accuracy": readout.accuracy,
        "readout_error": readout.error,
    }
    units: dict[str, Any] = {}
    parts = [effects.latent_effects(model, variables, few[0], encoded.samples, active, readout)]
    if not has_posterior:
        images, _ = source.batch(jax.random.key(_KEY), preset.ces_examples)
        parts.append(effects.code_effects(model, variables, images, preset.latent_dim))
    if isinstance(source, Renderable):
        for part in (effects.factor_effects, effects.mediation):
            columns, of_latents, of_units = part(model, variables, source, few[1])
            parts.append((columns, of_latents))
            units |= of_units
    for columns, arrays in parts:
        row |= columns
        latents |= arrays
    return Measurement(row, _to_numpy(latents), _to_numpy(units))


def _to_numpy(arrays: dict[str, Any]) -> dict[str, np.ndarray]:
    return {name: np.asarray(array) for name, array in arrays.items()}


def _code_usage(model: nn.Module, codes: jax.Array) -> dict[str, Any]:
    if codes.size == 0:
        return {"perplexity": None, "dead_codes": None}
    size = model.codebook_size
    used = int(jnp.sum(jnp.bincount(codes.reshape(-1), length=size) > 0))
    return {"perplexity": float(perplexity(codes, size)), "dead_codes": size - used}


@functools.partial(jax.jit, static_argnames=("model", "n"))
def _encode(
    model: nn.Module, variables: Variables, source: DataSource, *, n: int
) -> tuple[_Encoded, jax.Array]:
    """At least n examples, and the mean and mean square of their images, `[2, H, W, C]`."""

    def encode_batch(key: jax.Array) -> tuple[_Encoded, jax.Array]:
        data_key, sample_key = jax.random.split(key)
        images, factors = source.batch(data_key, _BATCH)
        out: Any = model.apply(variables, images)
        if isinstance(out, VQOutput):
            latents = out.encoded.reshape(_BATCH, -1)
            samples, kl, codes = latents, jnp.full_like(latents, jnp.nan), out.codes
        else:
            latents, samples = out.posterior.mean, reparameterize(sample_key, out.posterior)
            kl, codes = kl_divergence(out.posterior), jnp.zeros((_BATCH, 0), jnp.int32)
        encoded = _Encoded(
            latents,
            samples,
            factors,
            kl,
            codes,
            model.likelihood.negative_log_likelihood(images, out.logits),
            jnp.square(images - out.reconstruction).mean((1, 2, 3)),
        )
        return encoded, jnp.stack([images.mean(0), jnp.square(images).mean(0)])

    batches = -(-n // _BATCH)
    keys = jax.random.split(jax.random.key(_KEY), batches)
    encoded, moments = lax.map(encode_batch, keys)
    flat = jax.tree.map(lambda leaf: leaf.reshape(batches * _BATCH, *leaf.shape[2:]), encoded)
    return flat, moments.mean(0)
