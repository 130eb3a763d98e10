"""Interventions on any Linen module: at its inputs, latents, activations and codes.

`intervene` is the one mechanism for everything inside a network, `edits` are what it does there.
Mediation, patching, attribution and paths are analyses made of it. `inputs`, `latents` and `codes`
hold what is done before a network, between its halves, and to a codebook.
"""

from vaejax.interventions import codes, edits, inputs, latents
from vaejax.interventions.attribution import Attribution, attribute, rank_agreement
from vaejax.interventions.edits import num_units, unit_ids, unit_mask
from vaejax.interventions.input_effects import FactorEffects, factor_changes, factor_effects
from vaejax.interventions.inputs import Pairs, do_factor, factor_pairs, lookup, set_factor
from vaejax.interventions.intercept import intervene, sites
from vaejax.interventions.latents import Interactions, interactions, quantile_grid
from vaejax.interventions.mediation import Mediation, mediate
from vaejax.interventions.passes import unit_sites
from vaejax.interventions.patching import UnitEffects, ablate_units, insert_units, patch_units
from vaejax.interventions.paths import PathEffects, path_effect, path_units

__all__ = [
    "Attribution",
    "FactorEffects",
    "Interactions",
    "Mediation",
    "Pairs",
    "PathEffects",
    "UnitEffects",
    "ablate_units",
    "attribute",
    "codes",
    "do_factor",
    "edits",
    "factor_changes",
    "factor_effects",
    "factor_pairs",
    "inputs",
    "insert_units",
    "interactions",
    "intervene",
    "latents",
    "lookup",
    "mediate",
    "num_units",
    "patch_units",
    "path_effect",
    "path_units",
    "quantile_grid",
    "rank_agreement",
    "set_factor",
    "sites",
    "unit_ids",
    "unit_mask",
    "unit_sites",
]
