"""Which units carry which factor, how they are wired, and whether that is true."""

from vaejax.circuits.agreement import Matching, Overlap, match_units, overlap, pair_units
from vaejax.circuits.bases import Basis, LinearBasis, in_basis, unit_basis
from vaejax.circuits.dictionaries import SparseDictionary, train_dictionary
from vaejax.circuits.dictionary_control import Control, control
from vaejax.circuits.dictionary_labels import Interpretability, interpretability
from vaejax.circuits.dictionary_scores import Approximation, approximation
from vaejax.circuits.discovery import THRESHOLD, Circuit, find_circuit, find_circuits
from vaejax.circuits.dissection import MaskMatches, match_masks
from vaejax.circuits.export import to_dot, to_graphml, write_dot, write_graphml
from vaejax.circuits.factor_graph import FactorGraph, GraphScore, factor_graph, score_graph
from vaejax.circuits.feature_interactions import (
    NetworkModularity,
    feature_interactions,
    network_modularity,
)
from vaejax.circuits.gates import UnitInteractions, unit_interactions
from vaejax.circuits.graphs import latent_factor_graph, unit_graph
from vaejax.circuits.interaction_basis import InteractionBasis, interaction_basis
from vaejax.circuits.linear_readout import LinearReadout, fit_readout
from vaejax.circuits.motifs import MOTIFS, Motif, count_motifs
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
    "MOTIFS",
    "POLYSEMANTIC",
    "THRESHOLD",
    "Approximation",
    "Basis",
    "Circuit",
    "Control",
    "FactorGraph",
    "FactorUnits",
    "GraphScore",
    "InteractionBasis",
    "Interpretability",
    "LinearBasis",
    "LinearReadout",
    "MaskMatches",
    "Matching",
    "Motif",
    "NetworkModularity",
    "Overlap",
    "PartChanges",
    "PartEffects",
    "SelectivityMaps",
    "SparseDictionary",
    "UnitInteractions",
    "approximation",
    "control",
    "count_motifs",
    "factor_graph",
    "factor_units",
    "feature_interactions",
    "find_circuit",
    "find_circuits",
    "fit_readout",
    "in_basis",
    "interaction_basis",
    "interpretability",
    "label_units",
    "latent_factor_graph",
    "match_masks",
    "match_units",
    "network_modularity",
    "overlap",
    "pair_units",
    "part_effects",
    "score_graph",
    "selectivity_maps",
    "to_dot",
    "to_graphml",
    "train_dictionary",
    "unit_basis",
    "unit_graph",
    "unit_interactions",
    "write_dot",
    "write_graphml",
]
