"""How far a change reaches: for each kind of operation, the window of its result.

A rule is given operands of which some are `Changed`, and the result without the change. It returns
the `Changed` result, or None where it cannot keep to a window; then the operation is carried out
whole.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from vaejax import convolution


class Index(NamedTuple):
    """An index `block + offset`, in two parts because only one of them differs between changes.

    Under `vmap` over offsets, what follows from the block is the same for all changes, so that a
    slice by it stays a slice: one gather for every change would take longer than the rest.

    Attributes:
      block: A multiple of `size`.
      offset: Below `size`.
      size: Elements of a block, static.
    """

    block: jax.Array
    offset: jax.Array
    size: int


Start = jax.Array | int | Index


class Window(NamedTuple):
    """A part of an array of any rank.

    Attributes:
      start: Its first index along every axis; numbers may be traced.
      values: What it holds.
    """

    start: tuple[Start, ...]
    values: jax.Array

    @property
    def corner(self) -> tuple[jax.Array | int, ...]:
        """The start as plain indices."""
        return tuple(s.block + s.offset if isinstance(s, Index) else s for s in self.start)


class Changed(NamedTuple):
    """An array that depends on what was changed.

    Attributes:
      base: What it is without the change.
      window: All that the change has reached, as it is with the change.
    """

    base: jax.Array
    window: Window

    def whole(self) -> Changed:
        """The same, its window grown to the whole array."""
        if self.window.values.shape == self.base.shape:
            return self
        values = lax.dynamic_update_slice(self.base, self.window.values, self.window.corner)
        return Changed(self.base, Window((0,) * self.base.ndim, values))

    def change(self) -> jax.Array:
        """What the change adds within the window."""
        return self.window.values - cut(self.base, self.window.start, self.window.values.shape)


Rule = Callable[[Any, list[Any], jax.Array], Changed | None]


def cut(array: jax.Array, start: Sequence[Start], shape: Sequence[int]) -> jax.Array:
    """The part of an array that starts there."""
    if tuple(shape) == jnp.shape(array):
        return array
    corner = Window(tuple(start), array).corner
    return lax.dynamic_slice(array, corner, shape)


def run(equation: Any, operands: Sequence[Any]) -> list[Any]:
    """Carries out an operation of a jaxpr, other than a call, on plain operands."""
    out = equation.primitive.bind(*operands, **equation.params)
    return list(out) if equation.primitive.multiple_results else [out]


def window_after(equation: Any, operands: list[Any], base: list[Any]) -> list[Any]:
    """What an operation makes of operands of which some have changed.

    Args:
      equation: The operation, of a jaxpr.
      operands: Arrays, scalars, and `Changed` ones.
      base: Its results without the change.

    Returns:
      Its results, `Changed`.
    """
    rule = _RULES.get(equation.primitive.name)
    found = rule(equation, operands, base[0]) if rule is not None else None
    if found is not None:
        return [found]
    grown = [op.whole().window.values if isinstance(op, Changed) else op for op in operands]
    results = run(equation, grown)
    return [
        Changed(before, Window((0,) * after.ndim, after))
        for before, after in zip(base, results, strict=True)
    ]


def _elementwise(equation: Any, operands: list[Any], base: jax.Array) -> Changed | None:
    changed = [operand for operand in operands if isinstance(operand, Changed)]
    start, shape = changed[0].window.start, changed[0].window.values.shape
    for operand in changed:
        alike = _same(operand.window.start, start) and operand.window.values.shape == shape
        if not alike or operand.base.shape != base.shape:
            return None

    def part(operand: Any) -> Any:
        if isinstance(operand, Changed):
            return operand.window.values
        # An operand may be of size 1 along an axis, or a scalar.
        sizes = jnp.shape(operand)
        spread = [size != 1 for size in sizes]
        starts = [begin if s else 0 for begin, s in zip(start, spread, strict=False)]
        return cut(operand, starts, [n if s else 1 for n, s in zip(shape, spread, strict=False)])

    (values,) = run(equation, [part(operand) for operand in operands])
    if equation.primitive.name not in _EXACT:
        # Compiled for another shape, it may round otherwise: what is the same before stays so.
        same = [op.window.values == cut(op.base, start, shape) for op in changed]
        values = jnp.where(functools.reduce(jnp.logical_and, same), cut(base, start, shape), values)
    return Changed(base, Window(start, values))


def _same(one: tuple[Start, ...], other: tuple[Start, ...]) -> bool:
    return all(
        a is b or (isinstance(a, int) and isinstance(b, int) and a == b)
        for a, b in zip(one, other, strict=True)
    )


def _reshape(equation: Any, operands: list[Any], base: jax.Array) -> Changed | None:
    changed = operands[0]
    if len(operands) > 1 or equation.params["dimensions"] is not None:
        return None
    before, window = changed.base.shape, changed.window
    start: list[Start] = []
    shape: list[int] = []
    for inner, outer in _groups(before, base.shape):
        sizes = [window.values.shape[axis] for axis in inner]
        full = [before[axis] for axis in inner]
        lengths = [base.shape[axis] for axis in outer]
        if sizes == full:
            start += [0] * len(outer)
            shape += lengths
        elif len(inner) == len(outer) == 1:
            start.append(window.start[inner[0]])
            shape.append(sizes[0])
        elif math.prod(sizes) == 1:
            starts = [window.start[axis] for axis in inner]
            start += _unravelled(starts, full, lengths)
            shape += [1] * len(outer)
        else:
            return None
    return Changed(base, Window(tuple(start), window.values.reshape(shape)))


def _groups(before: tuple[int, ...], after: tuple[int, ...]) -> list[tuple[list[int], list[int]]]:
    """The axes of two shapes in groups of equal numbers of elements, as small as can be."""
    groups: list[tuple[list[int], list[int]]] = []
    i = j = 0
    while i < len(before) or j < len(after):
        inner, outer = [], []
        if i < len(before):
            inner.append(i)
            i += 1
        if j < len(after):
            outer.append(j)
            j += 1
        while (few := _product(before, inner)) != (many := _product(after, outer)):
            if few < many:
                inner.append(i)
                i += 1
            else:
                outer.append(j)
                j += 1
        groups.append((inner, outer))
    return groups


def _product(shape: tuple[int, ...], axes: list[int]) -> int:
    return math.prod(shape[axis] for axis in axes)


def _unravelled(starts: Sequence[Start], sizes: Sequence[int], lengths: Sequence[int]) -> list[Any]:
    """The indices of one element in a shape `lengths`, from those in a shape `sizes`."""
    if len(starts) == 1 and isinstance(starts[0], Index):
        block, offset, size = starts[0]
        for split in range(len(lengths) + 1):
            if math.prod(lengths[split:]) == size:
                of_block = unravel(block // size, lengths[:split])
                return of_block + unravel(offset, lengths[split:])
    flat: Any = 0
    for start, size in zip(Window(tuple(starts), jnp.zeros(())).corner, sizes, strict=True):
        flat = flat * size + start
    return unravel(flat, lengths)


def unravel(index: Any, lengths: Sequence[int]) -> list[Any]:
    """The indices of an element along axes of these lengths, from its number."""
    found: list[Any] = []
    for length in reversed(lengths):
        found.insert(0, index % length)
        index = index // length
    return found


def _broadcast(equation: Any, operands: list[Any], base: jax.Array) -> Changed | None:
    changed, axes = operands[0], equation.params["broadcast_dimensions"]
    start: list[Start] = [0] * base.ndim
    shape = list(base.shape)
    for axis, target in enumerate(axes):
        if changed.base.shape[axis] == base.shape[target]:
            start[target] = changed.window.start[axis]
            shape[target] = changed.window.values.shape[axis]
    values = lax.broadcast_in_dim(changed.window.values, shape, axes)
    return Changed(base, Window(tuple(start), values))


def _squeeze(equation: Any, operands: list[Any], base: jax.Array) -> Changed | None:
    window, dropped = operands[0].window, equation.params["dimensions"]
    start = tuple(s for axis, s in enumerate(window.start) if axis not in dropped)
    return Changed(base, Window(start, lax.squeeze(window.values, dropped)))


def _transpose(equation: Any, operands: list[Any], base: jax.Array) -> Changed | None:
    window, order = operands[0].window, equation.params["permutation"]
    start = tuple(window.start[axis] for axis in order)
    return Changed(base, Window(start, lax.transpose(window.values, order)))


def _dot(equation: Any, operands: list[Any], base: jax.Array) -> Changed | None:
    """`[..., C] @ [C, F]`, the first of them changed."""
    left, right = operands
    ((contracted, with_), (batch, _)) = equation.params["dimension_numbers"]
    if isinstance(right, Changed) or right.ndim != 2 or batch:
        return None
    last = left.base.ndim - 1
    if tuple(contracted) != (last,) or tuple(with_) != (0,):
        return None
    *start, first = left.window.start
    rows = cut(right, (first, 0), (left.window.values.shape[-1], right.shape[1]))
    (change,) = run(equation, [left.change(), rows])
    return _added(base, change, (*start, 0))


def _added(base: jax.Array, change: jax.Array, start: tuple[Start, ...]) -> Changed:
    """A change that lies within an array, added to it."""
    return Changed(base, Window(start, cut(base, start, change.shape) + change))


def _strided(equation: Any, operands: list[Any], base: jax.Array) -> Changed | None:
    """Our own convolution; with another kernel for every channel it is quick all the same."""
    x, kernel = operands
    if isinstance(kernel, Changed):
        return None
    m = equation.params["m"]
    space = [(2, m - 1, 1, 1)] * 2
    kernel = _cut_channels(kernel, 2, x.window.start[3], x.window.values.shape[3])
    if x.window.values.shape[1:3] == x.base.shape[1:3]:
        (change,) = run(equation, [x.change(), kernel])
        return _added(base, change, (x.window.start[0], 0, 0, 0))
    return _convolved(x, kernel, base, space, ("NHWC", "HWIO", "NHWC"), {})


def _strided_adjoint(equation: Any, operands: list[Any], base: jax.Array) -> Changed | None:
    y, kernel = operands
    if isinstance(kernel, Changed):
        return None
    m = equation.params["m"]
    kernel = _cut_channels(kernel, 3, y.window.start[3], y.window.values.shape[3])
    change = convolution.spread(y.change(), kernel, m=m)
    batch, row, column, _ = y.window.corner
    start = (batch, 2 * row - (m - 1), 2 * column - (m - 1), 0)
    return _placed(base, change, start, (0, m - 1, m - 1, 0))


def _convolution(equation: Any, operands: list[Any], base: jax.Array) -> Changed | None:
    """XLA's convolution, the image changed; not both strided and dilated."""
    x, kernel = operands
    params = equation.params
    numbers = params["dimension_numbers"]
    if (
        isinstance(kernel, Changed)
        or params["feature_group_count"] * params["batch_group_count"] > 1
    ):
        return None
    if any(
        stride > 1 and dilation > 1
        for stride, dilation in zip(params["window_strides"], params["lhs_dilation"], strict=True)
    ):
        return None
    channel = numbers.lhs_spec[1]
    kernel = _cut_channels(
        kernel, numbers.rhs_spec[1], x.window.start[channel], x.window.values.shape[channel]
    )
    space = list(
        zip(
            params["window_strides"],
            (low for low, _ in params["padding"]),
            params["lhs_dilation"],
            params["rhs_dilation"],
            strict=True,
        )
    )
    options = {name: params[name] for name in ("precision", "preferred_element_type")}
    return _convolved(x, kernel, base, space, numbers, options)


def _cut_channels(kernel: jax.Array, axis: int, start: Start, size: int) -> jax.Array:
    starts: list[Start] = [0] * kernel.ndim
    shape = list(kernel.shape)
    starts[axis], shape[axis] = start, size
    return cut(kernel, starts, shape)


def _convolved(
    x: Changed,
    kernel: jax.Array,
    base: jax.Array,
    space: Sequence[tuple[int, int, int, int]],
    numbers: Any,
    options: dict[str, Any],
) -> Changed:
    """A convolution of a window; `space` has stride, padding and both dilations of every axis."""
    numbers = lax.conv_dimension_numbers(x.base.shape, kernel.shape, numbers)
    change, corner = x.change(), x.window.corner
    start: list[Any] = [0] * base.ndim
    overhang = [0] * base.ndim
    start[numbers.out_spec[0]] = corner[numbers.lhs_spec[0]]
    pads = []
    for i, (stride, low, dilation, spread) in enumerate(space, 2):
        axis, out_axis = numbers.lhs_spec[i], numbers.out_spec[i]
        size, inputs, outputs = change.shape[axis], x.base.shape[axis], base.shape[out_axis]
        reach = spread * (kernel.shape[numbers.rhs_spec[i]] - 1)
        if size == inputs:
            length, first_read = outputs, low
        elif stride == 1:
            length, first_read = dilation * (size - 1) + 1 + reach, reach
            start[out_axis] = dilation * corner[axis] + low - reach
            last = dilation * (inputs - size) + low - reach
            overhang[out_axis] = max(0, reach - low, last + length - outputs)
        else:
            # Outputs are aligned to the stride and windows are not: they are put into a larger one.
            length, first_read = (size - 1 + reach) // stride + 1, reach - stride + 1
            start[out_axis] = first = -((reach - low - corner[axis]) // stride)
            gap = corner[axis] - (first * stride - low) - first_read
            room = list(change.shape)
            size = room[axis] = size + stride - 1
            zeros = jnp.zeros(room, change.dtype)
            change = lax.dynamic_update_slice_in_dim(zeros, change, gap, axis)
            last = -((reach - low - (inputs - size + stride - 1)) // stride)
            overhang[out_axis] = max(0, (reach - low) // stride, last + length - outputs)
        read = (length - 1) * stride + reach + 1
        pads.append((first_read, read - first_read - (dilation * (size - 1) + 1)))
    strides, _, dilations, spreads = zip(*space, strict=True)
    change = lax.conv_general_dilated(
        change,
        kernel,
        strides,
        pads,
        lhs_dilation=dilations,
        rhs_dilation=spreads,
        dimension_numbers=numbers,
        **options,
    )
    return _placed(base, change, start, overhang)


def _placed(
    base: jax.Array, change: jax.Array, start: Sequence[Any], overhang: Sequence[int]
) -> Changed:
    """A change that may reach over the ends of an array by up to `overhang`, added to it."""
    inside: list[Any] = list(start)
    for axis, over in enumerate(overhang):
        if over:
            size = min(change.shape[axis], base.shape[axis])
            inside[axis] = jnp.clip(start[axis], 0, base.shape[axis] - size)
            pads = [(0, 0)] * change.ndim
            pads[axis] = (over, over)
            first = over + inside[axis] - start[axis]
            change = lax.dynamic_slice_in_dim(jnp.pad(change, pads), first, size, axis)
    return _added(base, change, tuple(inside))


ELEMENTWISE = frozenset(
    (
        *("abs", "acos", "acosh", "add", "add_any", "and", "asin", "asinh", "atan", "atan2"),
        *("atanh", "cbrt", "ceil", "clamp", "convert_element_type", "copy", "cos", "cosh"),
        *("digamma", "div", "eq", "erf", "erf_inv", "erfc", "exp", "exp2", "expm1", "floor"),
        *("ge", "gt", "integer_pow", "is_finite", "le", "lgamma", "log", "log1p", "logistic"),
        *("lt", "max", "min", "mul", "ne", "neg", "nextafter", "not", "or", "pow", "rem"),
        *("round", "rsqrt", "select_n", "sign", "sin", "sinh", "sqrt", "square", "sub", "tan"),
        *("tanh", "xor"),
    )
)
"""Operations on single elements of operands of one shape, or on scalars."""

_EXACT = frozenset(
    (
        *("abs", "add", "add_any", "and", "ceil", "clamp", "convert_element_type", "copy", "eq"),
        *("floor", "ge", "gt", "is_finite", "le", "lt", "max", "min", "ne", "neg", "not", "or"),
        *("round", "select_n", "sign", "sub", "xor"),
    )
)
"""Those of them that round in one way only."""

_RULES: dict[str, Rule] = {
    **dict.fromkeys(ELEMENTWISE, _elementwise),
    "broadcast_in_dim": _broadcast,
    "conv_general_dilated": _convolution,
    "dot_general": _dot,
    "reshape": _reshape,
    "squeeze": _squeeze,
    "stride_2_conv": _strided,
    "stride_2_conv_adjoint": _strided_adjoint,
    "transpose": _transpose,
}
