"""What latents do, through which units, and what they stand for."""

from vaejax.metrics.circuits import (
    CircuitModularity,
    circuit_modularity,
    encoder_modularity,
)
from vaejax.metrics.code_swap import CodeSwap, ces_code_swap, matched_positions
from vaejax.metrics.discrete import CodeAblate, DiscreteCES, ces_code_ablate, discrete_ces
from vaejax.metrics.disentanglement import MIG, mig
from vaejax.metrics.effect_scores import CES, EffectScores
from vaejax.metrics.effect_strength import (
    CALIBRATED_QUANTILES,
    FIXED_VALUES,
    active_latents,
    ces,
    ces_calibrated,
    ces_fixed,
    ces_infinitesimal,
)
from vaejax.metrics.latent_effects import LatentEffects, latent_effects
from vaejax.metrics.readout import FactorReadout, train_readout
from vaejax.metrics.specificity import Specificity, specificity_factor, specificity_pixel

__all__ = [
    "CALIBRATED_QUANTILES",
    "CES",
    "FIXED_VALUES",
    "MIG",
    "CircuitModularity",
    "CodeAblate",
    "CodeSwap",
    "DiscreteCES",
    "EffectScores",
    "FactorReadout",
    "LatentEffects",
    "Specificity",
    "active_latents",
    "ces",
    "ces_calibrated",
    "ces_code_ablate",
    "ces_code_swap",
    "ces_fixed",
    "ces_infinitesimal",
    "circuit_modularity",
    "discrete_ces",
    "encoder_modularity",
    "latent_effects",
    "matched_positions",
    "mig",
    "specificity_factor",
    "specificity_pixel",
    "train_readout",
]
