"""What latents do, through which units, and what they stand for."""

from vaejax.metrics.circuits import (
    CircuitModularity,
    circuit_modularity,
    encoder_modularity,
)
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
from vaejax.metrics.specificity import Specificity, specificity_factor, specificity_pixel

__all__ = [
    "CALIBRATED_QUANTILES",
    "CES",
    "FIXED_VALUES",
    "MIG",
    "CircuitModularity",
    "EffectScores",
    "Specificity",
    "active_latents",
    "ces",
    "ces_calibrated",
    "ces_fixed",
    "ces_infinitesimal",
    "circuit_modularity",
    "encoder_modularity",
    "mig",
    "specificity_factor",
    "specificity_pixel",
]
