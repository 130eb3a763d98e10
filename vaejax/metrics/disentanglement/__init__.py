"""Disentanglement metrics: how well single latents stand for single ground-truth factors.

On the host, in float64 NumPy, but for the images that `factor_vae_score` and `beta_vae_score` draw:
the metrics run once per model, and their reference implementations are NumPy too. Reference
behaviour is that of disentanglement_lib (Locatello et al. 2019) unless a docstring names another.
Marks: [S] standard in the cited literature, [R] our choice.
"""

from vaejax.metrics.disentanglement.codes import pooled_codes
from vaejax.metrics.disentanglement.dci import DCI, dci
from vaejax.metrics.disentanglement.infomec import InfoMEC, infomec
from vaejax.metrics.disentanglement.information import (
    MutualInformation,
    mig,
    modularity,
    mutual_information,
)
from vaejax.metrics.disentanglement.irs import irs
from vaejax.metrics.disentanglement.linear import explicitness, sap
from vaejax.metrics.disentanglement.sampled import beta_vae_score, factor_vae_score
from vaejax.metrics.disentanglement.scores import Score
from vaejax.metrics.disentanglement.udr import UDR, udr
from vaejax.metrics.disentanglement.unsupervised import UnsupervisedScores, unsupervised_scores
from vaejax.metrics.disentanglement.variables import VariableTypes, variable_types

__all__ = [
    "DCI",
    "UDR",
    "InfoMEC",
    "MutualInformation",
    "Score",
    "UnsupervisedScores",
    "VariableTypes",
    "beta_vae_score",
    "dci",
    "explicitness",
    "factor_vae_score",
    "infomec",
    "irs",
    "mig",
    "modularity",
    "mutual_information",
    "pooled_codes",
    "sap",
    "udr",
    "unsupervised_scores",
    "variable_types",
]
