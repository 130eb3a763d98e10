"""How one variable of a structural causal model follows from its parents and its own noise.

Variables are measured in classes: a variable of a factor with `size` classes lies between 0 and
`size - 1`. Every mechanism is a small frozen record. Its methods take the parents as a sequence of
columns, each `[...]`, in the order of its `parents`, and run under `jit` and `vmap`, except `mean`
and `likelihood`, which are for NumPy arrays.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from vaejax.data.errors import DataError
from vaejax.data.protocols import Factor

_TOLERANCE = 1e-5  # of a factor's range, for the rounding of coefficients

Columns = Sequence[Any]


@dataclasses.dataclass(frozen=True)
class Root:
    """A variable without parents: every class equally likely. Its noise is the class itself.

    Attributes:
      size: Number of classes.
    """

    size: int

    parents: ClassVar[tuple[str, ...]] = ()
    nonlinear_in: ClassVar[tuple[str, ...]] = ()
    discrete: ClassVar[bool] = True

    def noise(self, uniform: jax.Array, drawn: jax.Array) -> jax.Array:
        """The noise, given a number uniform on [0, 1) and a class drawn uniformly."""
        return drawn

    def value(self, parents: Columns, noise: jax.Array) -> jax.Array:
        """The variable."""
        return noise

    def abduct(self, value: jax.Array, parents: Columns, uniform: jax.Array) -> jax.Array:
        """The noise that an observation had."""
        return value

    def change(
        self, value: jax.Array, before: Columns, after: Columns, uniform: jax.Array
    ) -> jax.Array:
        """What an observation would have been had its parents been others."""
        return value

    def mean(self, parents: Columns) -> Any:
        """The expected value given the parents."""
        return (self.size - 1) / 2

    def likelihood(self, value: Any, parents: Columns) -> Any:
        """The probability of a class given the parents."""
        return 1 / self.size

    def check(self, name: str, factor: Factor, others: Mapping[str, Factor]) -> None:
        """Refuses a mechanism that does not fit its factor."""
        if self.size != factor.size:
            raise DataError(
                f"{name!r}: a root of {self.size} classes, but the factor has {factor.size}"
            )


class _Additive:
    """What mechanisms `f(parents) + u` share, u uniform between `low` and `high`."""

    discrete: ClassVar[bool] = False
    weights: tuple[float, ...]
    intercept: float
    low: float
    high: float

    def at(self, parents: Columns) -> Any:
        """`f(parents)`."""
        raise NotImplementedError

    def noise(self, uniform: jax.Array, drawn: jax.Array) -> jax.Array:
        return self.low + (self.high - self.low) * uniform

    def value(self, parents: Columns, noise: jax.Array) -> jax.Array:
        return self.at(parents) + noise

    def abduct(self, value: jax.Array, parents: Columns, uniform: jax.Array) -> jax.Array:
        return value - self.at(parents)

    def change(
        self, value: jax.Array, before: Columns, after: Columns, uniform: jax.Array
    ) -> jax.Array:
        return value + (self.at(after) - self.at(before))

    def mean(self, parents: Columns) -> Any:
        return self.at(parents) + (self.low + self.high) / 2

    def likelihood(self, value: Any, parents: Columns) -> Any:
        raise NotImplementedError  # has a density; only classes have a probability

    def _settle(self, inputs: Sequence[str]) -> None:
        _plain(self, inputs, self.weights, ("intercept", "low", "high"))
        if self.low > self.high:
            raise DataError(
                f"noise from {self.low:g} to {self.high:g}, but its low end must come first"
            )

    def _check_range(self, name: str, factor: Factor, inputs: Sequence[Factor]) -> None:
        if factor.categorical:
            raise DataError(
                f"{name!r} is categorical, but f(parents) + noise is a number between its classes; "
                "give it a root or, with two classes, a Bernoulli"
            )
        ends = [w * (f.size - 1) for w, f in zip(self.weights, inputs, strict=True)]
        low = self.intercept + self.low + sum(min(end, 0) for end in ends)
        high = self.intercept + self.high + sum(max(end, 0) for end in ends)
        top = factor.size - 1
        if low < -_TOLERANCE * top or high > top + _TOLERANCE * top:
            raise DataError(
                f"{name!r} would range from {low:g} to {high:g}, but its classes are 0 to {top}"
            )


@dataclasses.dataclass(frozen=True)
class Linear(_Additive):
    """`intercept + weights . parents + u`, u uniform on [low, high].

    Attributes:
      parents: Their names.
      weights: As many; classes of the variable per class of the parent.
      intercept: In classes.
      low: Lower end of the noise, in classes.
      high: Upper end of the noise.

    Raises:
      DataError: At construction, when weights and parents differ in number, or the noise's ends are
        not in order.
    """

    parents: tuple[str, ...]
    weights: tuple[float, ...]
    intercept: float = 0.0
    low: float = 0.0
    high: float = 0.0

    nonlinear_in: ClassVar[tuple[str, ...]] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "parents", tuple(self.parents))
        self._settle(self.parents)

    def at(self, parents: Columns) -> Any:
        """`intercept + weights . parents`."""
        return _affine(self.intercept, self.weights, parents)

    def change(
        self, value: jax.Array, before: Columns, after: Columns, uniform: jax.Array
    ) -> jax.Array:
        """What an observation would have been had its parents been others."""
        # Differences of parents first: the intercept and what is common to both never round.
        moved = [new - old for old, new in zip(before, after, strict=True)]
        return _affine(value, self.weights, moved)

    def check(self, name: str, factor: Factor, others: Mapping[str, Factor]) -> None:
        """Refuses a categorical variable, and one that could leave its classes."""
        self._check_range(name, factor, [others[parent] for parent in self.parents])


@dataclasses.dataclass(frozen=True)
class Gated(_Additive):
    """`intercept + 1[gate = open_at] weights . inputs + u`, u uniform on [low, high].

    Attributes:
      inputs: Names of the parents that matter while the gate is open.
      weights: As many, see `Linear`.
      gate: Name of a parent that takes classes only.
      open_at: The class of the gate that opens it.
      intercept: In classes.
      low: Lower end of the noise, in classes.
      high: Upper end of the noise.

    Raises:
      DataError: At construction, as `Linear`.
    """

    inputs: tuple[str, ...]
    weights: tuple[float, ...]
    gate: str
    open_at: int
    intercept: float = 0.0
    low: float = 0.0
    high: float = 0.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "inputs", tuple(self.inputs))
        self._settle(self.inputs)

    @property
    def parents(self) -> tuple[str, ...]:
        """The inputs, then the gate."""
        return (*self.inputs, self.gate)

    @property
    def nonlinear_in(self) -> tuple[str, ...]:
        """The gate."""
        return (self.gate,)

    def at(self, parents: Columns) -> Any:
        """`intercept`, and the weighted inputs where the gate is open."""
        *inputs, gate = parents
        is_open = abs(gate - self.open_at) < 0.5
        return self.intercept + is_open * _affine(0.0, self.weights, inputs)

    def check(self, name: str, factor: Factor, others: Mapping[str, Factor]) -> None:
        """Refuses a categorical variable, one that could leave its classes, and a shut gate."""
        self._check_range(name, factor, [others[parent] for parent in self.inputs])
        size = others[self.gate].size
        if self.open_at not in range(size):
            raise DataError(
                f"{name!r}: its gate opens at class {self.open_at!r} of {self.gate!r}, "
                f"whose classes are 0 to {size - 1}"
            )


@dataclasses.dataclass(frozen=True)
class Bernoulli:
    """`1[u < sigmoid(bias + weights . parents)]`, u uniform on [0, 1): an attribute.

    Attributes:
      parents: Their names; none for an attribute of a fixed rate.
      weights: As many; change of the logit per class of the parent.
      bias: The logit with all parents at class 0.

    Raises:
      DataError: At construction, when weights and parents differ in number.
    """

    parents: tuple[str, ...] = ()
    weights: tuple[float, ...] = ()
    bias: float = 0.0

    discrete: ClassVar[bool] = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "parents", tuple(self.parents))
        _plain(self, self.parents, self.weights, ("bias",))

    @property
    def nonlinear_in(self) -> tuple[str, ...]:
        """All parents."""
        return self.parents

    def noise(self, uniform: jax.Array, drawn: jax.Array) -> jax.Array:
        """The uniform number itself."""
        return uniform

    def value(self, parents: Columns, noise: jax.Array) -> jax.Array:
        """0 or 1."""
        return (noise < self._probability(parents)).astype(noise.dtype)

    def abduct(self, value: jax.Array, parents: Columns, uniform: jax.Array) -> jax.Array:
        """A draw from the posterior: below the probability where the variable is 1, else above."""
        p = self._probability(parents)
        return jnp.where(value > 0.5, p * uniform, p + (1 - p) * uniform)

    def change(
        self, value: jax.Array, before: Columns, after: Columns, uniform: jax.Array
    ) -> jax.Array:
        """What an observation would have been, with noise drawn from its posterior."""
        return self.value(after, self.abduct(value, before, uniform))

    def mean(self, parents: Columns) -> Any:
        """The probability of class 1."""
        return np.exp(-np.logaddexp(0, -_affine(self.bias, self.weights, parents)))

    def likelihood(self, value: Any, parents: Columns) -> Any:
        """The probability of a class given the parents."""
        p = self.mean(parents)
        return np.where(value > 0.5, p, 1 - p)

    def check(self, name: str, factor: Factor, others: Mapping[str, Factor]) -> None:
        """Refuses a factor that is not binary."""
        if factor.size != 2:
            raise DataError(f"{name!r}: a Bernoulli has 2 classes, but the factor {factor.size}")

    def _probability(self, parents: Columns) -> jax.Array:
        return jax.nn.sigmoid(_affine(jnp.float32(self.bias), self.weights, parents))


Mechanism = Root | Linear | Gated | Bernoulli


def _affine(intercept: Any, weights: Sequence[float], parents: Columns) -> Any:
    # Not a matrix product: accelerators would round its factors.
    for weight, parent in zip(weights, parents, strict=True):
        intercept = intercept + weight * parent
    return intercept


def _plain(
    record: Any, parents: Sequence[str], weights: Sequence[float], numbers: Sequence[str]
) -> None:
    """Makes the record's numbers floats, so that it is hashable whatever it was given."""
    if len(parents) != len(weights):
        raise DataError(f"{len(weights)} weights for {len(parents)} parents, but each needs one")
    if len(set(record.parents)) != len(record.parents):
        raise DataError(f"parents {', '.join(record.parents)}: each may be named once")
    object.__setattr__(record, "weights", tuple(float(weight) for weight in weights))
    for name in numbers:
        object.__setattr__(record, name, float(getattr(record, name)))
