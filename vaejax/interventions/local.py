"""What a change of a part of one array changes further on, with only that computed anew.

A patch of one unit changes one number, or one channel, of a site. What follows is traced to a
program (a jaxpr) and gone through with two values for every array: what it is without the change,
which all changes of an example share, and a *window* of it, all that the change has reached. Linear
maps take a window to a larger one, functions of single elements keep it, and any other operation
takes its operands whole: there the window becomes the whole array, and the rest costs what it ever
did.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jax import lax
from jax.extend.core import Literal
from jax.interpreters import partial_eval

from vaejax.interventions.windows import ELEMENTWISE, Changed, Window, run, window_after

# Primitives that stand for the program in one of their parameters.
_CALLS = frozenset(
    (
        *("pjit", "jit", "closed_call", "core_call", "remat", "checkpoint"),
        *("custom_jvp_call", "custom_vjp_call", "custom_vjp_call_jaxpr"),
    )
)


@struct.dataclass
class Follower:
    """A function of one array, ready to be asked what changes of its argument change.

    A pytree: made once for an argument, used for many changes of it, also in a loop of a program.

    Attributes:
      base: The argument without a change.
      consts: What the function closes over.
      unchanged: What each of its operations gives without a change, in their order.
      jaxpr: What it does, without what its result does not depend on.
    """

    base: jax.Array
    consts: list[Any]
    unchanged: list[list[Any]]
    jaxpr: Any = struct.field(pytree_node=False)

    def change(self, window: Window) -> jax.Array:
        """`fn(changed) - fn(base)`, where `changed` is `base` but for a window.

        Zero where the window holds what `base` holds; to the last bit, unless a compiler contracts
        the sum of a product.

        Args:
          window: What replaces a part of `base`; must lie within it.

        Returns:
          Of the shape of what the function returns.
        """
        unchanged = iter(self.unchanged)

        def step(equation: Any, operands: list[Any]) -> list[Any]:
            base = next(unchanged)
            if not any(isinstance(operand, Changed) for operand in operands):
                return base
            return window_after(equation, operands, base)

        (out,) = _walk(self.jaxpr, self.consts, [Changed(self.base, window)], step)
        if not isinstance(out, Changed):
            return jnp.zeros_like(out)
        return lax.dynamic_update_slice(jnp.zeros_like(out.base), out.change(), out.window.corner)


def follow(fn: Callable[[jax.Array], jax.Array], base: jax.Array) -> Follower:
    """Computes a function of an array, and prepares for changes of that.

    Args:
      fn: From one array to one array; whatever else it uses, it closes over.
      base: Its argument, `[...]`.

    Example:
      >>> def fn(x):
      ...     return jnp.tanh(x @ jnp.ones((3, 2))) ** 2
      >>> base = jnp.array([[1.0, 2.0, -3.0]])
      >>> change = follow(fn, base).change(Window((0, 1), jnp.array([[5.0]])))
      >>> bool(jnp.allclose(change, fn(base.at[0, 1].set(5.0)) - fn(base), atol=1e-6))
      True
    """
    closed = jax.make_jaxpr(fn)(base)
    jaxpr, _ = partial_eval.dce_jaxpr(closed.jaxpr, [True], instantiate=True)
    unchanged: list[list[Any]] = []

    def step(equation: Any, operands: list[Any]) -> list[Any]:
        unchanged.append(run(equation, operands))
        return unchanged[-1]

    _walk(jaxpr, closed.consts, [base], step)
    return Follower(base, list(closed.consts), unchanged, jaxpr)


def _walk(
    jaxpr: Any,
    consts: Sequence[Any],
    args: Sequence[Any],
    step: Callable[[Any, list[Any]], list[Any]],
) -> list[Any]:
    """The outputs of a program whose operations `step` carries out, those of its calls too."""
    values: dict[Any, Any] = dict(zip(jaxpr.constvars, consts, strict=True))
    values.update(zip(jaxpr.invars, args, strict=True))

    def read(atom: Any) -> Any:
        return atom.val if isinstance(atom, Literal) else values[atom]

    for equation in jaxpr.eqns:
        operands = [read(atom) for atom in equation.invars]
        if equation.primitive.name in _CALLS:
            names = ("jaxpr", "call_jaxpr", "fun_jaxpr")
            (inner,) = (equation.params[name] for name in names if name in equation.params)
            open_jaxpr, inner_consts = getattr(inner, "jaxpr", inner), getattr(inner, "consts", ())
            results = _walk(open_jaxpr, inner_consts, operands, step)
        else:
            results = step(equation, operands)
        values.update(zip(equation.outvars, results, strict=True))
    return [read(atom) for atom in jaxpr.outvars]


def block_size(fn: Callable[[jax.Array], jax.Array], base: jax.Array) -> int:
    """How many neighbours along the last axis of its argument a function treats as one place.

    If the first thing that it does with the argument, but for operations on single elements, is to
    reshape it so that the last axis is divided, as when a dense layer becomes an image, those are
    the channels of a pixel; else all of them.

    >>> block_size(lambda x: jnp.sin(x).reshape(1, 2, 2, 3).sum((1, 2)), jnp.zeros((1, 12)))
    3
    """
    jaxpr: Any = jax.make_jaxpr(fn)(base).jaxpr
    argument, found = object(), base.shape[-1]

    def step(equation: Any, operands: list[Any]) -> list[Any]:
        nonlocal found
        unknown = [None] * len(equation.outvars)
        if not any(operand is argument for operand in operands):
            return unknown
        if equation.primitive.name in ELEMENTWISE:
            return [argument]
        if equation.primitive.name == "reshape" and found == base.shape[-1]:
            last = equation.outvars[0].aval.shape[-1]
            found = last if 1 < last < found and found % last == 0 else found
        return unknown

    _walk(jaxpr, [None] * len(jaxpr.constvars), [argument], step)
    return found
