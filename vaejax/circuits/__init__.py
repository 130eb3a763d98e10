"""Which units carry which factor, how they are wired, and whether that is true."""

from vaejax.circuits.agreement import Matching, Overlap, match_units, overlap
from vaejax.circuits.discovery import THRESHOLD, Circuit, find_circuit, find_circuits
from vaejax.circuits.dissection import MaskMatches, match_masks
from vaejax.circuits.part_effects import PartChanges, PartEffects, part_effects
from vaejax.circuits.selectivity import SelectivityMaps, selectivity_maps
from vaejax.circuits.units import (
    INACTIVE,
    MONOSEMANTIC,
    POLYSEMANTIC,
    FactorUnits,
    factor_units,
    label_units,
)

__all__ = [
    "INACTIVE",
    "MONOSEMANTIC",
    "POLYSEMANTIC",
    "THRESHOLD",
    "Circuit",
    "FactorUnits",
    "MaskMatches",
    "Matching",
    "Overlap",
    "PartChanges",
    "PartEffects",
    "SelectivityMaps",
    "factor_units",
    "find_circuit",
    "find_circuits",
    "label_units",
    "match_masks",
    "match_units",
    "overlap",
    "part_effects",
    "selectivity_maps",
]
