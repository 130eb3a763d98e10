"""Why a variational autoencoder does what it does, shown by intervening on it."""

from vaejax import checkpoint, data, metrics, models, objectives, training, zoo
from vaejax.likelihoods import Bernoulli, Likelihood, Normal
from vaejax.training import Recipe, TrainState, fit, init, train
from vaejax.types import Gaussian, VAEOutput, VQOutput

__version__ = "0.1.0"

__all__ = [
    "Bernoulli",
    "Gaussian",
    "Likelihood",
    "Normal",
    "Recipe",
    "TrainState",
    "VAEOutput",
    "VQOutput",
    "checkpoint",
    "data",
    "fit",
    "init",
    "metrics",
    "models",
    "objectives",
    "train",
    "training",
    "zoo",
]
