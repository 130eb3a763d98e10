"""Interventions on any Linen module: at its inputs, latents, activations and codes.

`intervene` is the one mechanism for everything inside a network; `edits` are what it does there.
The other functions are analyses: mediation, patching of all units, attribution, paths.
"""

from vaejax.interventions import edits
from vaejax.interventions.attribution import Attribution, attribute, rank_agreement
from vaejax.interventions.edits import num_units, unit_ids, unit_mask
from vaejax.interventions.intercept import intervene, sites
from vaejax.interventions.mediation import Mediation, mediate
from vaejax.interventions.passes import unit_sites
from vaejax.interventions.patching import UnitEffects, ablate_units, patch_units
from vaejax.interventions.paths import PathEffects, path_effect, path_units

__all__ = [
    "Attribution",
    "Mediation",
    "PathEffects",
    "UnitEffects",
    "ablate_units",
    "attribute",
    "edits",
    "intervene",
    "mediate",
    "num_units",
    "patch_units",
    "path_effect",
    "path_units",
    "rank_agreement",
    "sites",
    "unit_ids",
    "unit_mask",
    "unit_sites",
]
