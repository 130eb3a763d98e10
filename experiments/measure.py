"""What is measured of a trained model. The same images and keys for every run of a dataset."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Collection
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import lax

from experiments import circuit_effects, effects, scores
from experiments.presets import Preset
from vaejax import metrics
from vaejax.data import DataSource, Renderable
from vaejax.models import perplexity, reparameterize
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
      scores: How each disentanglement score came about, saved as `disentanglement.json`.
      graphs: Of networkx by name, saved as `NAME.graphml`.
    """

    row: dict[str, Any]
    latents: dict[str, Any]
    units: dict[str, Any]
    scores: dict[str, Any]
    graphs: dict[str, Any]


class _Encoded(NamedTuple):
    """The measured images as the model sees them: N examples, D latents, K factors."""

    latents: jax.Array  # [N, D], posterior means
    samples: jax.Array  # [N, D], one draw from each posterior
    factors: jax.Array  # [N, K]
    kl: jax.Array  # [N, D], NaN where there is no posterior
    logvar: jax.Array  # [N, D], likewise
    codes: jax.Array  # [N, P], of width 0 where there are none
    reconstruction: jax.Array  # [N], nats
    squared_error: jax.Array  # [N], mean over pixels


class MissingError(Exception):
    """The model does not have what is asked for; the message is one line."""


def measure(
    model: nn.Module,
    variables: Variables,
    source: DataSource,
    preset: Preset,
    readout: metrics.FactorReadout | None,
    *,
    names: Collection[str] | None = None,
    representation: str | None = None,
    without_passive: bool = False,
) -> Measurement:
    """Measures one model on images of its dataset.

    Reconstructions are decoded from posterior means. The latents of a VQ-VAE are the coordinates
    of its encoder's output before quantisation, and its disentanglement is that of its codes: it
    has no posterior, hence no KL and no active latents, and interventions on its latents are
    quantised before they are decoded.

    Args:
      model: The model.
      variables: Its variables.
      source: Its dataset. Factors are intervened on if it can draw any combination of them.
      preset: How many images.
      readout: The dataset's, which states effects in units of factors; None if no effects of
        latents are asked for.
      names: What to measure, of `presets.METRICS`; by default what the preset says. Reconstruction
        and KL are measured in any case.
      representation: What the disentanglement metrics score, of `presets.REPRESENTATIONS`; None
        for the posterior means, or the codes of a VQ-VAE.
      without_passive: Score only latents that are not passive on these images.

    Raises:
      MissingError: The model does not have this representation, or no passive latents.
    """
    names = preset.metrics if names is None else names
    model, variables = effects.without_discriminator(model, variables)
    encoded, moments = _encode(model, variables, source, n=preset.examples)
    types = None
    if encoded.codes.size == 0:
        types = metrics.variable_types(np.asarray(encoded.logvar))
    scored = _representation(model, encoded, representation)
    if without_passive:
        if types is None:
            raise MissingError("a VQ-VAE has no posterior, so none of its latents is passive")
        scored = dataclasses.replace(scored, active=~types.passive)

    def disentanglement() -> Measurement:
        columns, arrays, record = scores.disentanglement(
            scored, names=names, scored=preset.scored_examples, votes=preset.votes
        )
        return Measurement(columns, arrays, {}, record, {})

    effects_of = _effects(model, variables, source, preset, readout, encoded)
    parts = [disentanglement, *(part for name, part in effects_of.items() if name in names)]
    whole = Measurement(*_basics(model, encoded, moments, types, readout), {}, {}, {})
    for part in parts:
        for wanted, found in zip(whole, part(), strict=True):
            wanted.update(found)
    return whole._replace(latents=_to_numpy(whole.latents), units=_to_numpy(whole.units))


def _basics(
    model: nn.Module,
    encoded: _Encoded,
    moments: jax.Array,
    types: metrics.VariableTypes | None,
    readout: metrics.FactorReadout | None,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Columns and arrays that are measured in any case."""
    mean, mean_square = moments
    kl = encoded.kl.mean(0)
    row: dict[str, Any] = {
        "reconstruction": float(encoded.reconstruction.mean()),
        "mse": float(encoded.squared_error.mean()),
        "mse_mean_image": float((mean_square - mean**2).mean()),
        "latents": encoded.latents.shape[1],
        **dict.fromkeys(("kl", "active_latents", "mixed_latents", "passive_latents")),
        **_code_usage(model, encoded.codes),
    }
    if types is not None:
        row["kl"] = float(kl.sum())
        row["active_latents"] = int(metrics.active_latents(kl).sum())
        row["mixed_latents"] = int(types.mixed.sum())
        row["passive_latents"] = int(types.passive.sum())
    latents: dict[str, Any] = {"kl": kl}
    if readout is not None:
        row["readout_accuracy"] = float(readout.accuracy.mean())
        row["readout_error"] = float(readout.error.mean())
        latents["readout_accuracy"], latents["readout_error"] = readout.accuracy, readout.error
    return row, latents


def _effects(
    model: nn.Module,
    variables: Variables,
    source: DataSource,
    preset: Preset,
    readout: metrics.FactorReadout | None,
    encoded: _Encoded,
) -> dict[str, Callable[[], Measurement]]:
    """What is measured by intervening on this model, by the names that `--metrics` takes."""
    has_posterior = encoded.codes.size == 0
    latents, factors = (
        array[: preset.ces_examples] for array in (encoded.latents, encoded.factors)
    )

    def latent_effects() -> Measurement:
        assert readout is not None
        active = metrics.active_latents(encoded.kl.mean(0)) if has_posterior else None
        found = effects.latent_effects(model, variables, latents, encoded.samples, active, readout)
        return Measurement(*found, {}, {}, {})

    def code_effects() -> Measurement:
        images, _ = effects.draw(source, jax.random.key(_KEY), preset.ces_examples)
        return Measurement(
            *effects.code_effects(model, variables, images, preset.latent_dim), {}, {}, {}
        )

    def factor_effects() -> Measurement:
        return Measurement(*effects.factor_effects(model, variables, source, factors), {}, {})

    def mediation() -> Measurement:
        return Measurement(*effects.mediation(model, variables, source, factors), {}, {})

    def circuits() -> Measurement:
        assert isinstance(source, Renderable)
        values = encoded.factors[: 2 * preset.ces_examples]
        found = circuit_effects.bottleneck(model, variables, source, values)
        columns, units = circuit_effects.columns(found), circuit_effects.arrays(found)
        names = [factor.name for factor in source.factors]
        graphs = {"latent_factors": circuit_effects.latent_graph(found, names)}
        return Measurement(columns, {}, units, {}, graphs)

    there: dict[str, Callable[[], Measurement]] = {"latent_effects": latent_effects}
    if not has_posterior:
        there["code_effects"] = code_effects
    if isinstance(source, Renderable):
        there |= {"factor_effects": factor_effects, "mediation": mediation, "circuits": circuits}
    return there


def _representation(model: nn.Module, encoded: _Encoded, name: str | None) -> scores.Representation:
    """What the disentanglement metrics score."""
    has_posterior = encoded.codes.size == 0
    there = ("means", "samples") if has_posterior else ("codes", "pooled")
    name = name or there[0]
    if name not in there:
        raise MissingError(f"this model has {' and '.join(there)}, and no {name}")
    if name == "pooled":
        latents: Any = metrics.pooled_codes(np.asarray(encoded.codes), model.codebook_size)
    else:
        of_name = {"means": encoded.latents, "samples": encoded.samples, "codes": encoded.codes}
        latents = np.asarray(of_name[name])
    return scores.Representation(name, latents, np.asarray(encoded.factors))


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
            samples, kl = latents, jnp.full_like(latents, jnp.nan)
            logvar, codes = kl, out.codes.reshape(_BATCH, -1)
        else:
            latents, samples = out.posterior.mean, reparameterize(sample_key, out.posterior)
            kl, logvar = kl_divergence(out.posterior), out.posterior.logvar
            codes = jnp.zeros((_BATCH, 0), jnp.int32)
        encoded = _Encoded(
            latents,
            samples,
            factors,
            kl,
            logvar,
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
