"""Why a variational autoencoder does what it does, shown by intervening on it."""

from vaejax import (
    checkpoint,
    data,
    devices,
    interventions,
    metrics,
    models,
    objectives,
    training,
    zoo,
)
from vaejax.estimates import Estimate
from vaejax.interventions import intervene, mediate, sites
from vaejax.likelihoods import Bernoulli, Likelihood, Normal
from vaejax.training import Recipe, TrainState, fit, init, train
from vaejax.types import Gaussian, VAEOutput, VQOutput

__version__ = "0.1.0"

__all__ = [
    "Bernoulli",
    "Estimate",
    "Gaussian",
    "Likelihood",
    "Normal",
    "Recipe",
    "TrainState",
    "VAEOutput",
    "VQOutput",
    "checkpoint",
    "data",
    "devices",
    "fit",
    "init",
    "intervene",
    "interventions",
    "mediate",
    "metrics",
    "models",
    "objectives",
    "sites",
    "train",
    "training",
    "zoo",
]
