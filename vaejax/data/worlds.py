"""Worlds: causal models that ship with the sources, from independent factors to a gate.

In units of ranges (a variable's class over its highest), with u uniform on [0, 1] for each variable
anew, and roots uniform over their classes:

| world         | equations                                                  | harder by           |
|---------------|------------------------------------------------------------|---------------------|
| `independent` | all factors are roots                                      |                     |
| `chain`       | A root, B = 0.7 A + 0.3 u, C = 0.7 B + 0.3 u               | an indirect effect  |
| `fork`        | Z root, X = 0.6 Z + 0.4 u, Y = 0.3 + 0.5 Z - 0.3 X + 0.2 u | a misleading slope  |
| `collider`    | X and Z roots, Y = 0.7 X 1[Z is its last class] + 0.3 u    | an effect of a gate |
| `attributes`  | P(attribute) = sigmoid(bias + weights . parents)           | many, noisy edges   |

All other factors are roots. In classes, a weight is the one above times the range of the child over
that of the parent. The shares of all terms sum to 1, so variables stay within their classes
whatever is set.

`chain`: A's total effect on C is 0.49, its direct effect 0.

`fork`: Z confounds X and Y, so observing and intervening disagree. By do(X), Y falls by 0.3 per X.
By regression it rises: `-0.3 + 0.3 v / (0.36 v + 0.16 / 12)`, where `v = (S + 1) / (12 (S - 1))` is
the variance of a Z with S classes: 0.43 for S = 2, 0.38 for 3, 0.33 for 6, 0.28 in the limit. Given
Z, the slope is -0.3 again.

`collider`: X and Z are independent, but not given Y. A mean over Z hides that the slope of Y on X
is 0.7 in one class of Z and 0 in the others: the direct effect of X is 0.7 / S.

`attributes`: for sources with names of CelebA's attributes. Biases and weights (logits) are chosen
to be plausible; they are not fitted to CelebA. `ATTRIBUTES` lists them. Other factors, such as
pose, are roots.

Which factors play these parts:

| dataset   | A or Z        | B or X          | C or Y        | gate Z       |
|-----------|---------------|-----------------|---------------|--------------|
| dsprites  | scale         | x               | y             | shape        |
| shapes3d  | scale         | orientation     | wall_hue      | shape        |
| mpi3d     | camera_height | horizontal_axis | vertical_axis | object_shape |
| smallnorb | lighting      | elevation       | azimuth       | category     |
| celeba    | Smiling       | yaw             | light         | Wearing_Hat  |

In any other dataset they are the ordered factors with most classes (at least three), as many as the
world needs, and the first categorical factor.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from vaejax.data.errors import DataError
from vaejax.data.mechanisms import Bernoulli, Gated, Linear, Mechanism
from vaejax.data.protocols import Factor
from vaejax.data.scm import SCM
from vaejax.errors import unknown_name

ATTRIBUTES: Mapping[str, tuple[float, Mapping[str, float]]] = {
    "Male": (-0.3, {}),
    "Young": (1.0, {}),
    "Smiling": (0.0, {}),
    "Pale_Skin": (-2.0, {}),
    "Bald": (-3.5, {"Male": 2.5, "Young": -1.5}),
    "Gray_Hair": (0.0, {"Young": -3.5}),
    "Black_Hair": (-0.5, {"Gray_Hair": -3.0}),
    "Blond_Hair": (0.0, {"Male": -1.5, "Gray_Hair": -3.0, "Black_Hair": -3.0}),
    "Brown_Hair": (0.5, {"Gray_Hair": -3.0, "Black_Hair": -3.0}),
    "Bangs": (-0.5, {"Male": -1.0, "Bald": -3.0}),
    "Receding_Hairline": (-1.5, {"Young": -1.5}),
    "Eyeglasses": (-0.5, {"Young": -1.5}),
    "Wearing_Hat": (-2.5, {"Male": 1.0}),
    "Bushy_Eyebrows": (-2.0, {"Male": 1.5}),
    "Arched_Eyebrows": (-0.5, {"Male": -1.5}),
    "No_Beard": (4.0, {"Male": -4.0}),
    "Mustache": (-2.0, {"Male": 2.0, "No_Beard": -3.0}),
    "Goatee": (-2.0, {"Male": 1.5, "No_Beard": -3.0}),
    "Sideburns": (-2.5, {"Male": 2.0, "No_Beard": -2.0}),
    "5_o_Clock_Shadow": (-3.0, {"Male": 2.5}),
    "Wearing_Lipstick": (1.0, {"Male": -4.0, "Young": 0.5}),
    "Heavy_Makeup": (0.5, {"Male": -4.0, "Young": 0.5}),
    "Wearing_Earrings": (-0.5, {"Male": -2.5}),
    "Wearing_Necktie": (-3.5, {"Male": 2.5}),
    "Mouth_Slightly_Open": (-1.0, {"Smiling": 2.0}),
    "High_Cheekbones": (-1.0, {"Smiling": 2.0}),
    "Rosy_Cheeks": (-2.5, {"Smiling": 1.5}),
    **dict.fromkeys(
        (
            *("Attractive", "Bags_Under_Eyes", "Big_Lips", "Big_Nose", "Blurry", "Chubby"),
            *("Double_Chin", "Narrow_Eyes", "Oval_Face", "Pointy_Nose", "Straight_Hair"),
            *("Wavy_Hair", "Wearing_Necklace"),
        ),
        (-1.4, {}),
    ),
}
"""CelebA's 40 attributes: the bias, and the weight of each parent, in the world `attributes`."""


class Roles(NamedTuple):
    """Names of the factors that play a part in a world; the table at the top."""

    first: str
    second: str
    third: str
    gate: str


ROLES: Mapping[str, Roles] = {
    "dsprites": Roles("scale", "x", "y", "shape"),
    "shapes3d": Roles("scale", "orientation", "wall_hue", "shape"),
    "mpi3d": Roles("camera_height", "horizontal_axis", "vertical_axis", "object_shape"),
    "smallnorb": Roles("lighting", "elevation", "azimuth", "category"),
    "celeba": Roles("Smiling", "yaw", "light", "Wearing_Hat"),
}

_Factors = Mapping[str, Factor]
_Equations = Mapping[str, Mechanism]


def names() -> tuple[str, ...]:
    """The names that `world` knows, from the easiest to the hardest.

    >>> names()
    ('independent', 'chain', 'fork', 'collider', 'attributes')
    """
    return tuple(_WORLDS)


def world(name: str, dataset: str, factors: Sequence[Factor]) -> SCM:
    """The causal model of a world over the factors of a dataset.

    Args:
      name: One of `names()`.
      dataset: Its name, which says what part each factor plays.
      factors: Its factors.

    Returns:
      The model, one variable per factor.

    Raises:
      DataError: The world is unknown, or the dataset lacks factors that it needs.

    Example:
      >>> from vaejax.data.redrawn.dsprites import FACTORS
      >>> fork = world("fork", "dsprites", FACTORS)
      >>> fork.names
      ('shape', 'scale', 'orientation', 'x', 'y')
      >>> fork.graph[:, 3:].T.astype(int)  # the parents of x and y
      array([[0, 1, 0, 0, 0],
             [0, 1, 0, 1, 0]])
      >>> print(f"{fork.direct_effects().value[3, 4]:.2f}")
      -0.30
    """
    if name not in _WORLDS:
        raise DataError(unknown_name("world", name, names()))
    return SCM.of(factors, _WORLDS[name](dataset, {factor.name: factor for factor in factors}))


def _independent(dataset: str, factors: _Factors) -> _Equations:
    return {}


def _chain(dataset: str, factors: _Factors) -> _Equations:
    a, b, c = _three(dataset, "chain", factors)
    return {b.name: _linear(b, {a: 0.7}), c.name: _linear(c, {b: 0.7})}


def _fork(dataset: str, factors: _Factors) -> _Equations:
    z, x, y = _three(dataset, "fork", factors)
    return {x.name: _linear(x, {z: 0.6}), y.name: _linear(y, {z: 0.5, x: -0.3})}


def _collider(dataset: str, factors: _Factors) -> _Equations:
    if dataset in ROLES:
        _, *roles = ROLES[dataset]
        x, y, z = _named(dataset, "collider", factors, roles)
    else:
        gates = [factor for factor in factors.values() if factor.categorical and factor.size > 1]
        if not gates:
            raise DataError(f"{dataset}: world 'collider' needs a categorical factor, it has none")
        x, y = _ordered(dataset, "collider", factors, 2)
        z = gates[0]
    linear = _linear(y, {x: 0.7})
    gated = Gated((x.name,), linear.weights, z.name, z.size - 1, high=linear.high)
    return {y.name: gated}


def _attributes(dataset: str, factors: _Factors) -> _Equations:
    found = {name: ATTRIBUTES[name] for name in factors if name in ATTRIBUTES}
    if not found:
        raise DataError(
            f"{dataset}: world 'attributes' needs names of CelebA's attributes, such as 'Male', "
            f"but the factors are {', '.join(factors)}"
        )
    for name, (_, parents) in found.items():
        for parent in parents:
            if parent not in factors:
                raise DataError(
                    f"{dataset}: world 'attributes' needs {parent!r}, on which {name!r} depends"
                )
    return {
        name: Bernoulli(tuple(parents), tuple(parents.values()), bias)
        for name, (bias, parents) in found.items()
    }


_WORLDS: Mapping[str, Callable[[str, _Factors], _Equations]] = {
    "independent": _independent,
    "chain": _chain,
    "fork": _fork,
    "collider": _collider,
    "attributes": _attributes,
}


def _linear(child: Factor, shares: Mapping[Factor, float]) -> Linear:
    """The share of each parent, and of noise what is left, in units of ranges."""
    top = child.size - 1
    weights = [share * top / (parent.size - 1) for parent, share in shares.items()]
    intercept = -top * sum(min(share, 0.0) for share in shares.values())
    noise = top * (1 - sum(map(abs, shares.values())))
    parents = tuple(parent.name for parent in shares)
    return Linear(parents, tuple(weights), intercept, high=noise)


def _three(dataset: str, world: str, factors: _Factors) -> Sequence[Factor]:
    if dataset in ROLES:
        *roles, _ = ROLES[dataset]
        return _named(dataset, world, factors, roles)
    return _ordered(dataset, world, factors, 3)


def _named(dataset: str, world: str, factors: _Factors, roles: Sequence[str]) -> Sequence[Factor]:
    missing = [name for name in roles if name not in factors]
    if missing:
        raise DataError(
            f"{dataset}: world {world!r} needs {', '.join(missing)}, "
            f"but the factors are {', '.join(factors)}"
        )
    return [factors[name] for name in roles]


def _ordered(dataset: str, world: str, factors: _Factors, count: int) -> Sequence[Factor]:
    ordered = [factor for factor in factors.values() if not factor.categorical and factor.size > 2]
    if len(ordered) < count:
        raise DataError(
            f"{dataset}: world {world!r} needs {count} ordered factors of 3 classes or more, "
            f"it has {len(ordered)}"
        )
    return sorted(ordered, key=lambda factor: -factor.size)[:count]
