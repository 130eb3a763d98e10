"""Which units carry which factor, how they are wired, and whether that is true."""

from vaejax.circuits.agreement import Matching, Overlap, match_units, overlap
from vaejax.circuits.discovery import Circuit, find_circuit
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
    "Circuit",
    "FactorUnits",
    "Matching",
    "Overlap",
    "factor_units",
    "find_circuit",
    "label_units",
    "match_units",
    "overlap",
]
