"""Structural causal models over the factors of a source: a known graph, and what follows from it.

One variable per factor, in units of its classes, each with a mechanism (`vaejax.data.mechanisms`)
from its parents and noise of its own. Everything runs under `jit` and `vmap`, in float32.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vaejax.data.errors import DataError
from vaejax.data.mechanisms import Bernoulli, Gated, Linear, Mechanism, Root
from vaejax.data.protocols import Factor
from vaejax.data.scm_effects import Effects, exact_effects, simulated_effects
from vaejax.data.sizes import sample_factors
from vaejax.errors import unknown_name

__all__ = ["SCM", "Bernoulli", "Do", "Effects", "Gated", "Linear", "Mechanism", "Root"]

Do = Mapping[str, Any]
"""Names of variables, each with what to set it to: a number, or one for each example, `[n]`."""

# Not a small number: `fold_in(key, 1)` is a key that splitting makes too, and `sample_factors`
# splits its key.
_UNIFORM = 0x5C3D


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class SCM:
    """A structural causal model: frozen, hashable, static under `jit`.

    Noise and values are `[n, K]` float32, in the order of `factors`. Values of additive mechanisms
    are numbers between classes.

    Attributes:
      factors: The K variables.
      mechanisms: As many, in the same order; see `of` for a mapping by name.

    Raises:
      DataError: At construction, when a parent is unknown, the graph has a cycle, or a mechanism
        does not fit its factor: whatever its parents are set to, a variable must stay within its
        classes, so that nothing is ever clipped.

    Example:
      >>> factors = (Factor("cause", 5), Factor("effect", 9))
      >>> scm = SCM.of(factors, {"effect": Linear(("cause",), (1.5,), low=0, high=2)})
      >>> values = scm.solve(jnp.array([[2.0, 0.5], [4.0, 2.0]]))
      >>> values
      Array([[2. , 3.5],
             [4. , 8. ]], dtype=float32)
      >>> scm.counterfactual(values, {"cause": 0})
      Array([[0. , 0.5],
             [0. , 2. ]], dtype=float32)
      >>> scm.total_effects().value
      Array([[1.  , 0.75],
             [0.  , 1.  ]], dtype=float32)
    """

    factors: tuple[Factor, ...]
    mechanisms: tuple[Mechanism, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "factors", tuple(self.factors))
        object.__setattr__(self, "mechanisms", tuple(self.mechanisms))
        if len(self.factors) != len(self.mechanisms):
            raise DataError(
                f"{len(self.mechanisms)} mechanisms for {len(self.factors)} factors, "
                "but each needs one"
            )
        by_name = {factor.name: factor for factor in self.factors}
        for factor, mechanism in zip(self.factors, self.mechanisms, strict=True):
            for parent in mechanism.parents:
                self.index(parent)
            mechanism.check(factor.name, factor, by_name)
            if isinstance(mechanism, Gated):
                gate = self.mechanisms[self.index(mechanism.gate)]
                if not gate.discrete:
                    raise DataError(
                        f"{factor.name!r}: its gate {mechanism.gate!r} is a number between "
                        "classes, but must be a root or a Bernoulli"
                    )
        if len(self.order) < len(self.factors):
            left = [f.name for k, f in enumerate(self.factors) if k not in self.order]
            raise DataError(f"a cycle among {', '.join(left)}, but causes must come before effects")

    @classmethod
    def of(cls, factors: Sequence[Factor], mechanisms: Mapping[str, Mechanism]) -> SCM:
        """A model from mechanisms by name; factors without one are roots."""
        names = [factor.name for factor in factors]
        for name in mechanisms:
            if name not in names:
                raise DataError(unknown_name("variable", name, names))
        given = (mechanisms.get(factor.name, Root(factor.size)) for factor in factors)
        return cls(tuple(factors), tuple(given))

    @property
    def names(self) -> tuple[str, ...]:
        """Of the variables."""
        return tuple(factor.name for factor in self.factors)

    def index(self, name: str) -> int:
        """Which variable has this name, or a `DataError`."""
        if name not in self.names:
            raise DataError(unknown_name("variable", name, self.names))
        return self.names.index(name)

    @functools.cached_property
    def parents(self) -> tuple[tuple[int, ...], ...]:
        """Of each variable, in the order of its mechanism."""
        return tuple(tuple(self.index(name) for name in m.parents) for m in self.mechanisms)

    @functools.cached_property
    def order(self) -> tuple[int, ...]:
        """The variables, causes before effects."""
        order: list[int] = []
        for _ in self.factors:
            for k, parents in enumerate(self.parents):
                if k not in order and all(parent in order for parent in parents):
                    order.append(k)
        return tuple(order)

    @property
    def graph(self) -> np.ndarray:
        """`[K, K]` bool: row i, column j says whether i is a parent of j."""
        graph = np.zeros((len(self.factors),) * 2, bool)
        for j, parents in enumerate(self.parents):
            graph[list(parents), j] = True
        return graph

    def sample_noise(self, key: jax.Array, n: int) -> jax.Array:
        """Draws the noise of `n` examples.

        The classes of roots are those that `sample_factors` draws for the key, hence those that a
        source draws where all variables are roots.

        Args:
          key: PRNG key.
          n: Number of examples, static under jit.

        Returns:
          `[n, K]`: classes for roots, what is added for additive noise, and what is compared to the
          probability for a Bernoulli.
        """
        drawn = sample_factors(key, n, [factor.size for factor in self.factors])
        drawn = drawn.astype(jnp.float32)
        uniform = jax.random.uniform(jax.random.fold_in(key, _UNIFORM), drawn.shape)
        columns = [m.noise(uniform[:, k], drawn[:, k]) for k, m in enumerate(self.mechanisms)]
        return jnp.stack(columns, axis=-1)

    def solve(self, noise: jax.Array, do: Do | None = None) -> jax.Array:
        """The values that follow from noise, with some variables set.

        Args:
          noise: `[n, K]`.
          do: What to set, and to what.

        Returns:
          `[n, K]`.

        Raises:
          DataError: A name is unknown, or a value (if not traced) is outside its classes, between
            those of a categorical factor, or of another shape.
        """
        noise = self._check(noise, "noise")
        return self._solve(noise, *self._fixed(do or {}, noise))

    def solve_with(self, noise: jax.Array, k: jax.Array | int, value: Any) -> jax.Array:
        """`solve` with one variable set, by its index, which may be traced; see `set_factor`."""
        noise = self._check(noise, "noise")
        return self._solve(noise, *self._fixed_index(k, value, noise))

    def respond(self, noise: jax.Array, values: jax.Array) -> jax.Array:
        """What each variable would be if its parents, and no other, had the values: `[n, K]`."""
        noise, values = self._check(noise, "noise"), self._check(values, "values")
        columns = [
            mechanism.value([values[..., i] for i in parents], noise[..., k])
            for k, (mechanism, parents) in enumerate(
                zip(self.mechanisms, self.parents, strict=True)
            )
        ]
        return jnp.stack(columns, axis=-1)

    def abduct(self, key: jax.Array, values: jax.Array) -> jax.Array:
        """The noise that examples had, given their values.

        It is determined by the values, except for a Bernoulli, where it is drawn from its
        posterior. Solving it gives the values again: roots and Bernoullis exactly, numbers between
        classes up to rounding.

        Args:
          key: PRNG key, of the draws for Bernoullis.
          values: `[n, K]`.

        Returns:
          `[n, K]`, as `sample_noise`. What the model cannot have made, such as values that were
          rounded to classes, has noise outside of its support.
        """
        values = self._check(values, "values")
        uniform = jax.random.uniform(key, values.shape)
        columns = [
            mechanism.abduct(values[..., k], [values[..., i] for i in parents], uniform[..., k])
            for k, (mechanism, parents) in enumerate(
                zip(self.mechanisms, self.parents, strict=True)
            )
        ]
        return jnp.stack(columns, axis=-1)

    def counterfactual(
        self, values: jax.Array, do: Do, *, propagate: bool = True, key: jax.Array | None = None
    ) -> jax.Array:
        """What examples would have been with some variables set: the noise that they had.

        A variable changes only if one of its parents does; every other is left as it is, bit for
        bit. Additive descendants move by `f(parents after) - f(parents before)`.

        Args:
          values: `[n, K]`.
          do: What to set, and to what.
          propagate: Whether descendants follow, or are held with all the others.
          key: Draws the noise of Bernoullis, see `abduct`; `jax.random.key(0)` by default, so that
            equal values have equal counterfactuals. Chunks of one dataset should have a key each.

        Returns:
          `[n, K]`.

        Raises:
          DataError: As `solve`.
        """
        values = self._check(values, "values")
        return self._change(values, *self._fixed(do, values), propagate, key)

    def set_factor(
        self,
        values: jax.Array,
        k: jax.Array | int,
        value: Any,
        *,
        propagate: bool = True,
        key: jax.Array | None = None,
    ) -> jax.Array:
        """`counterfactual` with one variable set by its index, for loops over variables.

        Args:
          values: `[n, K]`.
          k: Which variable: a number, traced or not, or one for each example, `[n]`. A traced one
            out of range changes nothing.
          value: A number, or one for each example, `[n]`; not checked.
          propagate: Whether descendants follow.
          key: As in `counterfactual`.

        Returns:
          `[n, K]`.

        Raises:
          DataError: `k` is not traced and out of range, or a shape is not as above.
        """
        values = self._check(values, "values")
        return self._change(values, *self._fixed_index(k, value, values), propagate, key)

    def direct_effects(self, key: jax.Array | None = None, n: int = 2**16) -> Effects:
        """How far each variable moves when another goes from its lowest to its highest class.

        All other variables are held at what they are, and the mean is over what they are. Zero
        without an edge, and on the diagonal. Not for use inside `jit`.

        Args:
          key: Of the simulation, if it takes one; `jax.random.key(0)` by default.
          n: Its examples.

        Returns:
          In units of ranges, exact if `exact_effects` finds them: always for linear models, and for
          all of `worlds`.
        """
        return self._effects(True, key, n)

    def total_effects(self, key: jax.Array | None = None, n: int = 2**16) -> Effects:
        """As `direct_effects`, but all other variables follow; 1 on the diagonal."""
        return self._effects(False, key, n)

    def _effects(self, direct: bool, key: jax.Array | None, n: int) -> Effects:
        exact = exact_effects(self, direct)
        if exact is not None:
            return exact
        return simulated_effects(self, direct, jax.random.key(0) if key is None else key, n)

    def _solve(self, noise: jax.Array, fixed: Any, to: Sequence[Any]) -> jax.Array:
        new: dict[int, jax.Array] = {}
        for k in self.order:
            value = self.mechanisms[k].value([new[i] for i in self.parents[k]], noise[..., k])
            new[k] = jnp.where(fixed[..., k], to[k], value)
        return jnp.stack([new[k] for k in range(len(new))], axis=-1)

    def _change(
        self,
        values: jax.Array,
        fixed: Any,
        to: Sequence[Any],
        propagate: bool,
        key: jax.Array | None,
    ) -> jax.Array:
        if propagate and any(isinstance(m, Bernoulli) for m in self.mechanisms):
            uniform = jax.random.uniform(jax.random.key(0) if key is None else key, values.shape)
        else:
            uniform = jnp.zeros_like(values)
        old = [values[..., k] for k in range(len(self.factors))]
        new: dict[int, jax.Array] = {}
        for k in self.order:
            value = old[k]
            if propagate and self.parents[k]:
                before = [old[i] for i in self.parents[k]]
                after = [new[i] for i in self.parents[k]]
                moved = self.mechanisms[k].change(value, before, after, uniform[..., k])
                # Not left to arithmetic, which a compiler may round differently for equal sums.
                unequal = [a != b for a, b in zip(after, before, strict=True)]
                value = jnp.where(functools.reduce(jnp.logical_or, unequal), moved, value)
            new[k] = jnp.where(fixed[..., k], to[k], value)
        return jnp.stack([new[k] for k in range(len(new))], axis=-1)

    def _check(self, array: Any, what: str) -> jax.Array:
        array = jnp.asarray(array, jnp.float32)
        if array.ndim < 1 or array.shape[-1] != len(self.factors):
            raise DataError(
                f"expected {what} [n, K] with K = {len(self.factors)}, got shape {array.shape}"
            )
        return array

    def _fixed(self, do: Do, like: jax.Array) -> tuple[np.ndarray, list[Any]]:
        """Which variables are set, `[K]`, and each variable's column of what it is set to."""
        fixed = np.zeros(len(self.factors), bool)
        to: list[Any] = [0.0] * len(self.factors)
        for name, value in do.items():
            k = self.index(name)
            if not isinstance(value, jax.core.Tracer):
                self._check_value(self.factors[k], np.asarray(value))
            fixed[k], to[k] = True, _column(name, value, like)
        return fixed, to

    def _fixed_index(
        self, k: jax.Array | int, value: Any, like: jax.Array
    ) -> tuple[jax.Array, list[Any]]:
        num = len(self.factors)
        if isinstance(k, int | np.integer) and not 0 <= k < num:
            raise DataError(f"expected k from 0 to {num - 1}, got {k}")
        fixed = jnp.arange(num) == jnp.asarray(k)[..., None]
        return fixed, [_column(f"factor {k}", value, like)] * num

    @staticmethod
    def _check_value(factor: Factor, value: np.ndarray) -> None:
        top = factor.size - 1
        outside = value[~((value >= 0) & (value <= top))]
        between = value[value != np.round(value)]
        if outside.size:
            raise DataError(f"{factor.name!r} set to {outside[0]}, but its classes are 0 to {top}")
        if factor.categorical and between.size:
            raise DataError(f"{factor.name!r} set to {between[0]}, but it takes integers only")


def _column(name: str, value: Any, like: jax.Array) -> jax.Array:
    value = jnp.asarray(value, jnp.float32)
    if value.shape not in ((), like.shape[:-1]):
        raise DataError(
            f"{name!r} set to values of shape {value.shape}, "
            f"but must be set to one number or one for each example, {like.shape[:-1]}"
        )
    return value
