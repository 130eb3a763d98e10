"""Edits for `vaejax.intervene`, and the units of a site that they are restricted to.

Every edit is a function `(activation, value) -> activation` of one array `[B, ...]`, and `value`
an array or a tuple of them, named in the docstrings. Each array has the shape of the activation, or
that of one example (`[...]`, the same for the whole batch), or is a scalar; anything else is an
error and never broadcast. Masks are boolean. Units of a site are numbered by `unit_ids`. `replace`
and `swap` also take the outputs of modules that return several arrays, with values to match.

Edits are plain module-level functions, so that equal interventions are equal keys of a jit cache.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np

By = Literal["channel", "position", "element", "site"]
"""What counts as one unit of a site `[B, ..., C]`: see `unit_ids`."""


def replace(activation: Any, value: Any) -> Any:
    """The activation becomes `value`.

    >>> replace(jnp.zeros((2, 3)), jnp.array([1.0, 2.0, 3.0]))
    Array([[1., 2., 3.],
           [1., 2., 3.]], dtype=float32)
    """
    return _map_arrays(
        lambda a, v: jnp.broadcast_to(_fit("the value", v, a), a.shape), activation, value
    )


def add(activation: jax.Array, value: Any) -> jax.Array:
    """Steers: `activation + value`."""
    return activation + _fit("the value", value, activation)


def scale(activation: jax.Array, value: Any) -> jax.Array:
    """`activation * value`."""
    return activation * _fit("the factor", value, activation)


def clamp(activation: jax.Array, value: tuple[Any, Any]) -> jax.Array:
    """Limits the activation to between `low` and `high`; `value` is `(low, high)`.

    >>> clamp(jnp.array([[-2.0, 0.5, 2.0]]), (-1.0, 1.0))
    Array([[-1. ,  0.5,  1. ]], dtype=float32)
    """
    low, high = value
    low, high = _fit("the lower end", low, activation), _fit("the upper end", high, activation)
    return jnp.clip(activation, low, high)


def swap(activation: Any, value: tuple[Any, Any]) -> Any:
    """Takes the units in a mask from a donor; `value` is `(mask, donor)`.

    The activation of another input makes it activation patching, of another model cross-model
    patching, the mean over a dataset (`[...]`) mean ablation.

    >>> swap(jnp.zeros((1, 3)), (jnp.array([True, False, True]), jnp.array([[1.0, 2.0, 3.0]])))
    Array([[1., 0., 3.]], dtype=float32)
    """
    mask, donor = value
    return _map_arrays(
        lambda a, d: jnp.where(_fit_mask(mask, a), _fit("the donor", d, a), a), activation, donor
    )


def zero(activation: jax.Array, value: Any) -> jax.Array:
    """Zero ablation of the units in the mask `value`."""
    return jnp.where(_fit_mask(value, activation), jnp.zeros_like(activation), activation)


def mean(activation: jax.Array, value: Any) -> jax.Array:
    """Mean ablation of the units in the mask `value`, by the mean over this batch.

    For the mean over more than a batch give that to `swap`.

    >>> mean(jnp.array([[1.0, 1.0], [3.0, 3.0]]), jnp.array([True, False]))
    Array([[2., 1.],
           [2., 3.]], dtype=float32)
    """
    return jnp.where(_fit_mask(value, activation), activation.mean(0), activation)


def resample(activation: jax.Array, value: tuple[Any, Any]) -> jax.Array:
    """Resample ablation by other examples of this batch; `value` is `(mask, rows)`.

    `rows [B]` says which example each one's units are taken from, such as a permutation.

    >>> resample(jnp.array([[1.0, 1.0], [3.0, 3.0]]), (jnp.array([True, False]), jnp.array([1, 0])))
    Array([[3., 1.],
           [1., 3.]], dtype=float32)
    """
    mask, rows = value
    rows = jnp.asarray(rows)
    if rows.shape != activation.shape[:1] or not jnp.issubdtype(rows.dtype, jnp.integer):
        raise ValueError(
            f"expected rows {list(activation.shape[:1])} of integers, "
            f"got {list(rows.shape)} {rows.dtype}"
        )
    return jnp.where(_fit_mask(mask, activation), activation[rows], activation)


def unit_ids(shape: tuple[int, ...], by: By = "channel") -> np.ndarray:
    """Which unit each element of an activation belongs to.

    Args:
      shape: Shape of one example's activation, `[..., C]`.
      by: `"channel"`: a unit is one index of the last axis at all positions; for a site `[B, C]`
        that is one neuron. `"position"`: one place at all channels. `"element"`: every number by
        itself. `"site"`: all of it.

    Returns:
      Array of `shape`, int32, with the units `0 .. num_units - 1`.

    Raises:
      ValueError: `by` is none of these.

    Example:
      >>> print(unit_ids((2, 3), by="position"))
      [[0 0 0]
       [1 1 1]]
    """
    _check_by(by)
    elements = np.arange(math.prod(shape), dtype=np.int32).reshape(shape)
    if by == "element":
        return elements
    if by == "site":
        return np.zeros_like(elements)
    channels = shape[-1] if shape else 1
    return np.asarray(elements % channels if by == "channel" else elements // channels, np.int32)


def _check_by(by: By) -> None:
    if by not in get_args(By):
        raise ValueError(f"expected by to be one of {', '.join(get_args(By))}, got {by!r}")


def num_units(shape: tuple[int, ...], by: By = "channel") -> int:
    """The number of units of an activation `[...]`, see `unit_ids`."""
    return int(unit_ids(shape, by).max()) + 1


def sum_units(values: jax.Array, by: By = "channel") -> jax.Array:
    """Sums over the elements of each unit: `[B, ..., C]` to `[B, S]`, see `unit_ids`.

    >>> print(sum_units(jnp.ones((1, 2, 3)), by="position"))
    [[3. 3.]]
    """
    _check_by(by)
    rows = values.reshape(len(values), -1, values.shape[-1] if values.ndim > 1 else 1)
    over = {"channel": (1,), "position": (2,), "element": (), "site": (1, 2)}[by]
    return rows.sum(over).reshape(len(values), -1)


def unit_mask(shape: tuple[int, ...], units: Any, by: By = "channel") -> jax.Array:
    """The mask of some units of a site, for the edits that take one.

    Args:
      shape: Shape of one example's activation, `[..., C]`.
      units: Their indices: an integer, or `[n]` of them; may be traced.
      by: What a unit is, see `unit_ids`.

    Returns:
      `[..., C]` bool.

    Raises:
      ValueError: The units are no integers (such as a mask), or one is not there. The values of
        traced indices are not checked; those that are not there select nothing.

    Example:
      >>> unit_mask((4,), [0, 2])
      Array([ True, False,  True, False], dtype=bool)
    """
    traced = isinstance(units, jax.core.Tracer)
    dtype = units.dtype if traced else np.asarray(units).dtype
    if not np.issubdtype(dtype, np.integer) and np.size(units):
        raise ValueError(f"expected units to be integers, got {dtype}")
    if not traced:
        there = num_units(shape, by)
        wrong = [int(unit) for unit in np.ravel(units) if not 0 <= unit < there]
        if wrong:
            raise ValueError(f"expected units below {there} ({by}s of {list(shape)}), got {wrong}")
    ids = unit_ids(shape, by)
    if traced:
        return jnp.isin(ids, units.astype(jnp.int32))
    return jnp.asarray(np.isin(ids, units))  # without a program


def _map_arrays(fn: Callable[..., jax.Array], activation: Any, value: Any) -> Any:
    expected: Any = jax.tree.structure(activation)
    got: Any = jax.tree.structure(value)
    if expected != got:
        raise ValueError(f"expected a value of structure {expected}, got {got}")
    return jax.tree.map(fn, activation, value)


def _fit(what: str, value: Any, activation: jax.Array, dtype: Any = None) -> jax.Array:
    if not hasattr(activation, "dtype"):
        raise ValueError(f"expected a site of one array, got a {type(activation).__name__}")
    value, dtype = jnp.asarray(value), activation.dtype if dtype is None else dtype
    expected = activation.shape, activation.shape[1:], ()
    if value.shape not in expected:
        shapes = " or ".join(str(list(shape)) for shape in dict.fromkeys(expected))
        raise ValueError(f"expected {what} to be of shape {shapes}, got {list(value.shape)}")
    # Python scalars take the activation's type if it can hold them, as in other operations.
    with jax.numpy_dtype_promotion("standard"):
        holds = value.weak_type and jnp.result_type(value, dtype) == dtype
    if value.dtype != dtype and not holds:
        raise ValueError(f"expected {what} to be {dtype}, got {value.dtype}")
    return value.astype(dtype)


def _fit_mask(mask: Any, activation: jax.Array) -> jax.Array:
    return _fit("the mask", mask, activation, jnp.dtype(bool))
