"""The causal metrics of one trained model, as columns of the table and as arrays."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from vaejax import interventions, metrics
from vaejax.data import DataSource, Renderable, SCMSource
from vaejax.estimates import Estimate, estimate, estimate_mean, estimate_means
from vaejax.metrics import CALIBRATED_QUANTILES, CES, CircuitModularity, FactorReadout, Specificity
from vaejax.models import VAE, FactorVAE, nearest
from vaejax.types import Variables

Columns = dict[str, float | None]
Arrays = dict[str, jax.Array]

_VALUES = 3  # values that a factor is set to
_FEWEST = 8  # examples intervened on, however many latents there are
_CHECKED = 4  # one in so many pairs is patched exactly, to check attribution against


def latent_effects(
    model: nn.Module,
    variables: Variables,
    latents: jax.Array,
    samples: jax.Array,
    active: jax.Array | None,
    readout: FactorReadout,
) -> tuple[Columns, Arrays]:
    """What happens when a latent is set to a value: strength, specificity, circuit modularity.

    Args:
      model: The model.
      variables: Its variables.
      latents: `[N, D]`, intervened on. A model of more than ten latents gets fewer examples.
      samples: `[M, D]`, the aggregate posterior that values are quantiles of.
      active: `[D]` bool, or None.
      readout: States effects in units of factors.
    """
    n, d = latents.shape
    latents = latents[: min(n, max(_FEWEST, 10 * n // d))]
    found = jax.device_get(_latent_effects(model, variables, latents, samples, active, readout))
    columns: Columns = {}
    arrays: Arrays = {"latent_std": samples.std(0)}
    for name in ("ces_fixed", "ces_calibrated", "ces_infinitesimal", "ces_factor"):
        columns |= _strength_columns(name, found[name])
        arrays |= _with_ends(name, found[name].l2, "per_latent")
    for name in ("specificity_pixel", "specificity_factor"):
        columns |= _specificity_columns(name, found[name])
        arrays |= _with_ends(name, found[name], "per_latent")
    columns["dead_latents"] = int(found["ces_calibrated"].num_dead)
    columns |= _modularity_columns("circuit_modularity", found["circuit_modularity"])
    interactions = found.get("interactions")
    columns["latent_interaction"] = None
    if interactions is not None:
        columns["latent_interaction"] = _number(found["interaction"])
        arrays |= _estimate_arrays("latent_interaction", interactions.share)
    return columns, arrays


@functools.partial(jax.jit, static_argnames="model")
def _latent_effects(
    model: nn.Module,
    variables: Variables,
    latents: jax.Array,
    samples: jax.Array,
    active: jax.Array | None,
    readout: FactorReadout,
) -> dict[str, Any]:
    values = interventions.quantile_grid(samples, CALIBRATED_QUANTILES)

    def decode(z: jax.Array) -> Any:
        return model.apply(variables, z, method="decode")

    def decode_and_record(z: jax.Array) -> Any:
        return recorded(variables, {}, z)

    decoder = functools.partial(model.apply, method="decode")
    names = interventions.unit_sites(decoder, variables, latents)
    names = [name for name in names if name.startswith("decoder/")]
    recorded = interventions.intervene(decoder, {}, record=names)
    calibrated = metrics.latent_effects(decode_and_record, readout, latents, values, active=active)
    found = {
        "ces_fixed": metrics.ces_fixed(decode, latents, active=active),
        "ces_calibrated": calibrated.ces,
        "ces_infinitesimal": metrics.ces_infinitesimal(
            decode, latents, samples.std(0), active=active
        ),
        "ces_factor": calibrated.ces_factor,
        "specificity_pixel": calibrated.specificity_pixel,
        "specificity_factor": calibrated.specificity_factor,
        "circuit_modularity": calibrated.circuit_modularity,
    }
    if latents.shape[1] <= 16:  # the pairs of a VQ-VAE's coordinates are too many
        few = values[:, :: len(CALIBRATED_QUANTILES) // 2]
        interactions = interventions.interactions(decode, latents, few)
        pairs = True if active is None else active[:, None] & active
        found["interactions"] = interactions
        found["interaction"] = interactions.share.value.mean(
            where=pairs & ~jnp.isnan(interactions.share.value)
        )
    return found


def code_effects(
    model: nn.Module, variables: Variables, images: jax.Array, latent_dim: int
) -> tuple[Columns, Arrays]:
    """What happens when codes are changed, by each of the four interventions on them.

    Args:
      model: A VQ-VAE.
      variables: Its variables.
      images: `[N, H, W, C]`.
      latent_dim: Number of latents of the Gaussian models it is compared with: `code_swap_matched`
        changes as large a share of the codes as one latent is of these.
    """
    encoded, codes = _codes(model, variables, images)
    size = len(variables["codebook"]["codes"].embedding)
    positions = metrics.matched_positions(codes, size, latents=latent_dim)
    found, matched = jax.device_get(_code_effects(model, variables, encoded, positions))
    scores = {
        "prequant": (found.prequant.l2, "per_latent"),
        "postquant": (found.postquant.l2, "per_latent"),
        "code_swap": (found.code_swap.l2, "each"),
        "code_swap_matched": (matched.l2, "each"),
        "code_ablate": (found.code_ablate.l2, "each"),
    }
    columns: Columns = {}
    arrays: Arrays = {}
    for name, (score, field) in scores.items():
        columns |= _columns(f"ces_{name}", score.active, score.low.active, score.high.active)
        arrays |= _with_ends(f"ces_{name}", score, field)
    columns["code_swap_positions"] = positions
    return columns, arrays


@functools.partial(jax.jit, static_argnames="model")
def _codes(model: nn.Module, variables: Variables, images: jax.Array) -> Any:
    out: Any = model.apply(variables, images)
    return out.encoded, out.codes


@functools.partial(jax.jit, static_argnames=("model", "positions"))
def _code_effects(
    model: nn.Module, variables: Variables, encoded: jax.Array, positions: int
) -> tuple[metrics.DiscreteCES, metrics.CodeSwap]:
    embedding = variables["codebook"]["codes"].embedding

    def decode(quantized: jax.Array) -> Any:
        return model.apply(variables, quantized, method="decode_quantized")

    found = metrics.discrete_ces(
        decode, nearest, embedding, encoded, continuous_examples=min(_FEWEST, len(encoded))
    )
    codes = nearest(embedding, encoded)
    return found, metrics.ces_code_swap(decode, embedding, codes, positions=positions)


def factor_effects(
    model: nn.Module, variables: Variables, source: DataSource, factors: jax.Array
) -> tuple[Columns, Arrays, Arrays]:
    """What happens when a factor of the image is changed, seen from every unit of the encoder.

    Args:
      model: The model.
      variables: Its variables.
      source: Draws the images.
      factors: `[N, K]` of the images whose factors are set to other values.

    Returns:
      Columns; the matrix factor by latent; and for each site of the encoder factor by unit.
    """
    # The middles of equal parts of each factor's range.
    parts = (np.arange(_VALUES) + 0.5) / _VALUES
    values = np.stack([np.floor(parts * factor.size) for factor in source.factors])
    effects, modularity = jax.device_get(_factor_effects(model, variables, source, factors, values))
    arrays = {
        f"factor_{name}{end}": getattr(effects.mean, field)[name]
        for name in effects.mean.value
        for end, field in (("", "value"), ("_low", "low"), ("_high", "high"))
    }
    latent = {name: arrays.pop(name) for name in list(arrays) if name.startswith("factor_latents")}
    return _modularity_columns("encoder_modularity", modularity), latent, arrays


@functools.partial(jax.jit, static_argnames="model")
def _factor_effects(
    model: nn.Module,
    variables: Variables,
    source: Renderable,
    factors: jax.Array,
    values: jax.Array,
) -> tuple[interventions.FactorEffects, CircuitModularity]:
    encoder = functools.partial(model.apply, method="latents")
    image = jax.vmap(source.render)(factors[:1])
    names = interventions.unit_sites(encoder, variables, image)
    names = [name for name in names if name.startswith("encoder/")]
    recorded = interventions.intervene(encoder, {}, record=names)

    def activations(images: jax.Array) -> Any:
        return recorded(variables, {}, images)[1]

    def encode(images: jax.Array) -> Any:
        latents, sites = recorded(variables, {}, images)
        return {"latents": latents, **sites}

    set_factor = _set_factor(source)
    changes = interventions.factor_changes(
        activations, source.render, factors, values, set_factor=set_factor
    )
    effects = interventions.factor_effects(
        encode, source.render, factors, list(values), set_factor=set_factor
    )
    return effects, metrics.encoder_modularity(changes)


def _set_factor(source: Renderable) -> interventions.inputs.SetFactor:
    """The source's own way to set a factor, if it is a world in which others depend on it."""
    if isinstance(source, SCMSource) and source.world:
        return source.set_factor
    return interventions.set_factor


def mediation(
    model: nn.Module, variables: Variables, source: DataSource, factors: jax.Array
) -> tuple[Columns, Arrays, Arrays]:
    """How much of a factor's effect on the reconstruction goes through each latent and each unit.

    Args:
      model: The model.
      variables: Its variables.
      source: Draws the images.
      factors: `[N, K]` of the clean images; each is paired with K corrupted ones, which differ in
        one factor.

    Returns:
      Columns; the mediated fractions factor by latent (by position, of a VQ-VAE); and those of
      every unit by attribution, for each site factor by unit.
    """
    n, k = factors.shape
    clean, corrupted = factor_pairs(source, factors)
    network = reconstruct(model), variables
    site = "quantized" if "codebook" in variables else "z"
    fractions, share = _mediated(*network, clean, corrupted, site)
    fractions = fractions.reshape(-1, k, n).T  # [N, K, D]
    largest, total = _summaries(fractions)
    columns = {
        **_estimate_columns("mediated_fraction_max", largest),
        **_estimate_columns("mediated_fraction_sum", total),
        **_estimate_columns("mediation_interaction", share),
        "pairs": k * n,
        "pairs_skipped": int(jnp.isnan(fractions[..., 0]).sum()),
    }
    arrays = _estimate_arrays("mediated_fraction", estimate_mean(fractions))

    found = interventions.attribute(*network, clean, corrupted)
    by_factor = {
        f"attribution_{name}": attribution.mediated_fractions.reshape(-1, k, n).T
        for name, attribution in found.items()
    }
    units: Arrays = {}
    for name, means in estimate_means(by_factor).items():
        units |= _estimate_arrays(name, means)
    # Attribution is checked on the decoder's first layer, in one of four pairs.
    first = next(name for name in found if name.startswith("decoder/"))
    pairs = clean[::_CHECKED], corrupted[::_CHECKED]
    exact = interventions.patch_units(*network, *pairs, sites=[first])
    checked = estimate_mean(found[first].mediated_fractions[:, ::_CHECKED].T)
    checked = {first: dataclasses.replace(found[first], mediated_fraction=checked)}
    agreement = interventions.rank_agreement(checked, exact)[first]
    columns["attribution_agreement"] = _number(agreement)
    return columns, arrays, units


def without_discriminator(model: nn.Module, variables: Variables) -> tuple[nn.Module, Variables]:
    """A FactorVAE as the VAE that it is after training, which shares the programs of others."""
    if not isinstance(model, FactorVAE):
        return model, variables
    params = {name: of for name, of in variables["params"].items() if name != "discriminator"}
    return VAE(model.encoder, model.decoder, model.likelihood), {**variables, "params": params}


@functools.lru_cache  # one function for each model, so that its programs are found again
def reconstruct(model: nn.Module) -> Callable[[Variables, jax.Array], jax.Array]:
    """The model as a network from images to reconstructions."""

    def network(variables: Variables, images: jax.Array) -> jax.Array:
        out: Any = model.apply(variables, images)
        return out.reconstruction

    return network


@functools.partial(jax.jit, static_argnames="n")
def draw(source: DataSource, key: jax.Array, n: int) -> tuple[jax.Array, jax.Array]:
    """`n` images with their factors, by one program: to draw takes a hundred small operations."""
    return source.batch(key, n)


@jax.jit
def changed_factors(source: Renderable, factors: jax.Array) -> jax.Array:
    """Factors `[N, K]` with the first changed, then with the next: `[K N, K]`."""
    sizes = [factor.size for factor in source.factors]
    keys = jax.random.split(jax.random.key(0), len(sizes))
    set_factor = _set_factor(source)
    changed = [
        interventions.factor_pairs(
            key, lambda factors: factors, factors, sizes, k, set_factor=set_factor
        ).corrupted
        for k, key in enumerate(keys)
    ]
    return jnp.concatenate(changed)


@jax.jit
def factor_pairs(source: Renderable, factors: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Images of the factors and of the changed ones, `[K N, ...]` each."""
    changed = changed_factors(source, factors)
    # Drawn once: what draws a shape takes longer to compile than to run.
    images = jax.vmap(source.render)(jnp.concatenate([factors.astype(changed.dtype), changed]))
    n = len(factors)
    return jnp.tile(images[:n], (len(changed) // n, 1, 1, 1)), images[n:]


@functools.partial(jax.jit, static_argnames=("apply_fn", "site"))
def _mediated(
    apply_fn: Callable[..., Any],
    variables: Variables,
    clean: jax.Array,
    corrupted: jax.Array,
    site: str,
) -> tuple[jax.Array, Estimate]:
    """Mediated fractions `[D, N]` of each latent alone, and the interaction share of half of them.

    The latents of a VQ-VAE are the positions of its codes here.
    """
    shape = interventions.sites(apply_fn, variables, clean[:1])[site].shape[1:]
    by: interventions.edits.By = "position" if len(shape) > 1 else "channel"
    num = interventions.num_units(shape, by)
    every_other = np.arange(0, num, 2)
    masks = [interventions.unit_mask(shape, units, by) for units in (*range(num), every_other)]

    def of_latents(mask: jax.Array) -> tuple[jax.Array, Estimate]:
        found = interventions.mediate(apply_fn, variables, clean, corrupted, {site: mask})
        return found.mediated_fractions, found.interaction_share

    fractions, shares = jax.lax.map(of_latents, jnp.stack(masks))
    return fractions[:-1], jax.tree.map(lambda leaf: leaf[-1], shares)


@jax.jit
def _summaries(fractions: jax.Array) -> tuple[Estimate, Estimate]:
    """Of mediated fractions `[N, K, D]`, the mean over factors of the latents' largest and sum."""

    def largest(fractions: jax.Array) -> jax.Array:
        return jnp.nanmean(jnp.nanmean(fractions, axis=0).max(axis=-1))

    def total(fractions: jax.Array) -> jax.Array:
        return jnp.nanmean(jnp.nanmean(fractions, axis=0).sum(axis=-1))

    return estimate(largest, fractions), estimate(total, fractions)


def _strength_columns(name: str, effects: CES) -> Columns:
    columns: Columns = {}
    for unit, scores in (("", effects.l2), ("_rms", effects.rms)):
        for which in ("all", "active", "max"):
            suffix = "" if which == "all" else f"_{which}"
            ends = (getattr(part, which) for part in (scores, scores.low, scores.high))
            columns |= _columns(f"{name}{unit}{suffix}", *ends)
    return columns


def _specificity_columns(name: str, found: Specificity) -> Columns:
    low, high = found.low, found.high
    assert low is not None
    assert high is not None
    return {
        **_columns(name, found.mean, low.mean, high.mean),
        **_columns(f"{name}_active", found.active, low.active, high.active),
    }


def _modularity_columns(name: str, found: CircuitModularity) -> Columns:
    return {
        **_estimate_columns(name, found.score),
        **_estimate_columns(f"{name}_signed", found.signed),
        f"{name}_null": _number(found.null.value),
        f"{name}_p": _number(found.p_value),
    }


def _columns(name: str, value: Any, low: Any, high: Any) -> Columns:
    return {name: _number(value), f"{name}_low": _number(low), f"{name}_high": _number(high)}


def _estimate_columns(name: str, found: Estimate) -> Columns:
    return _columns(name, found.value, found.low, found.high)


def _estimate_arrays(name: str, found: Estimate) -> Arrays:
    return {name: found.value, f"{name}_low": found.low, f"{name}_high": found.high}


def _with_ends(name: str, scores: Any, field: str) -> Arrays:
    parts = {"": scores, "_low": scores.low, "_high": scores.high}
    return {f"{name}{end}": getattr(part, field) for end, part in parts.items()}


def _number(value: Any) -> float | None:
    """A float, None for what is not defined."""
    value = float(value)
    return None if np.isnan(value) else value
