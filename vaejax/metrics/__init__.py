"""What a model's latents do (`causal`) and what they stand for (`disentanglement`)."""

from vaejax.metrics.causal import (
    CALIBRATED_QUANTILES,
    CES,
    FIXED_VALUES,
    EffectScores,
    active_latents,
    ces,
    ces_calibrated,
    ces_fixed,
)
from vaejax.metrics.disentanglement import MIG, mig

__all__ = [
    "CALIBRATED_QUANTILES",
    "CES",
    "FIXED_VALUES",
    "MIG",
    "EffectScores",
    "active_latents",
    "ces",
    "ces_calibrated",
    "ces_fixed",
    "mig",
]
