"""The transform behind every intervention inside a network.

A *site* is the output of a module's `__call__`, named by the module's path: `encoder/conv_1`. When
a module is called a second time, that call is a site of its own, `encoder/conv_1#2`; a call of
`super().__call__` is part of the call around it. The outermost module is no site, its output is
what the function returns.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.core import tracers

from vaejax.errors import unknown_name

Edit = Callable[[Any, Any], Any]
"""`edit(activation, value) -> activation`, of the same structure, shapes and dtypes."""


class Intervened(Protocol):
    """What `intervene` returns."""

    def __call__(
        self, variables: Any, values: Mapping[str, Any], *args: Any, **kwargs: Any
    ) -> tuple[Any, dict[str, Any]]:
        """The output under the edits, and the recorded activations."""
        ...


class _Visit(Protocol):
    def __call__(self, site: str, activation: Any, nested: bool) -> Any:
        """What the rest of the network shall see instead of `activation`.

        `nested` says that the call is inside a transformation of its own (`nn.scan`, `nn.remat`,
        `jit`), whose tracers must not be taken outside.
        """
        ...


def intervene(
    apply_fn: Callable[..., Any], edits: Mapping[str, Edit], *, record: Iterable[str] | str = ()
) -> Intervened:
    """Makes a function of a network into one that edits and records activations on the way.

        f(variables, *args) -> output
        g(variables, values, *args) -> (output, activations)

    `g` is a pure function. `jit` it once and call it with many `values`; `vmap` it over values (a
    batch of interventions, which share the work before the edited site) or over variables (seeds);
    differentiate it with respect to values (attribution). Within, `f` may use `nn.scan`,
    `nn.remat` and `jit`; then `g` itself has to run under `jit`, and there calls are counted anew
    and a site stands for those of every iteration. Such a site can be edited but not recorded.
    Rules of `jax.custom_vjp` that apply modules run later and do not see the edits.

    Args:
      apply_fn: `f`, usually `model.apply` or `functools.partial(model.apply, method="decode")`, of
        any Linen module; or any function that applies some. If it is jitted, what was jitted is
        taken.
      edits: What to do at which site: functions `edit(activation, value) -> activation`, see
        `vaejax.interventions.edits`. A site whose output is a tuple or record is given as such.
      record: Sites (or one) whose activations to return, as they are after an edit.

    Returns:
      `g`. Its `values` is a mapping with one entry for each edited site, arrays or pytrees of them;
      its `activations` one with an entry for each recorded site.

    Raises:
      ValueError: When `g` is called (under `jit`: traced) and a site is not there, values and edits
        are not for the same sites, an edit returns another structure, shape or dtype than it was
        given, or a site cannot be recorded.

    Example:
      >>> model = nn.Sequential([nn.Dense(3), nn.Dense(2)])
      >>> x = jnp.ones((1, 4))
      >>> variables = model.init(jax.random.key(0), x)
      >>> g = jax.jit(intervene(model.apply, {"layers_0": jnp.multiply}, record=["layers_1"]))
      >>> output, activations = g(variables, {"layers_0": jnp.zeros((1, 3))}, x)
      >>> print(output, activations["layers_1"])
      [[0. 0.]] [[0. 0.]]
    """
    edits = dict(edits)
    record = (record,) if isinstance(record, str) else tuple(record)

    def intervened(
        variables: Any, values: Mapping[str, Any], *args: Any, **kwargs: Any
    ) -> tuple[Any, dict[str, Any]]:
        if values.keys() != edits.keys():
            raise ValueError(
                f"expected values for the edited sites ({', '.join(edits) or 'none'}), "
                f"got them for {', '.join(values) or 'none'}"
            )
        seen: list[str] = []
        activations = {}
        staged = _is_staged()

        def visit(site: str, activation: Any, nested: bool) -> Any:
            seen.append(site)
            if site not in edits and site not in record:
                return activation
            if nested and not staged:
                raise _nested(site, "call the intervened function under jax.jit")
            if site in edits:
                activation = _edited(site, edits[site], activation, values[site])
            if site in record:
                if nested:
                    raise _nested(site, "there it can be edited but not recorded")
                activations[site] = activation
            return activation

        output = _run(visit, apply_fn, variables, *args, **kwargs)
        for site in (*edits, *record):
            if site not in seen:
                # A jitted function that was traced before hides its sites, unless traced anew.
                nothing = jax.tree.structure((None, ()))
                known = _sites(lambda _: apply_fn(variables, *args, **kwargs), nothing, (), ())
                if site in known:
                    raise _nested(site, "call the intervened function under jax.jit")
                raise ValueError(unknown_name("site", site, known))
        return output, {site: activations[site] for site in record}

    return intervened


def sites(
    apply_fn: Callable[..., Any], variables: Any, *args: Any, **kwargs: Any
) -> dict[str, Any]:
    """The sites of a network and the shapes of their activations, in the order of their outputs.

    Nothing is computed.

    Args:
      apply_fn: As for `intervene`.
      variables: Its first argument.
      *args: Its other arguments, arrays and pytrees of them.
      **kwargs: Its keyword arguments, anything.

    Returns:
      For each site a `jax.ShapeDtypeStruct`, or a pytree of them. Sites within `nn.scan` or
      `nn.vmap` have the shape of one iteration.

    Example:
      >>> model = nn.Sequential([nn.Dense(3), nn.Dense(2)])
      >>> x = jnp.ones((1, 4))
      >>> variables = model.init(jax.random.key(0), x)
      >>> for site, activation in sites(model.apply, variables, x).items():
      ...     print(site, activation.shape)
      layers_0 (1, 3)
      layers_1 (1, 2)
    """
    shapes = jax.tree.map(_shape, (variables, args))
    leaves, structure = jax.tree.flatten(shapes)
    try:
        return dict(_known_sites(apply_fn, structure, tuple(leaves), tuple(kwargs.items())))
    except TypeError:  # what cannot be hashed is not kept
        return _sites(apply_fn, structure, tuple(leaves), tuple(kwargs.items()))


def _sites(
    apply_fn: Callable[..., Any], structure: Any, leaves: tuple[Any, ...], kwargs: tuple[Any, ...]
) -> dict[str, Any]:
    found = {}

    def visit(site: str, activation: Any, nested: bool) -> Any:
        del nested
        # Shapes and not tracers, which must not leave the function that is traced.
        found[site] = jax.tree.map(_shape, activation)
        return activation

    def run(variables: Any, args: tuple[Any, ...]) -> None:
        _run(visit, apply_fn, variables, *args, **dict(kwargs))

    jax.eval_shape(run, *jax.tree.unflatten(structure, leaves))
    return found


_known_sites = functools.lru_cache(maxsize=64)(_sites)  # tracing takes a tenth of a second


def _run(visit: _Visit, apply_fn: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Calls a function, with `visit` at every site."""
    while isinstance(apply_fn, jax.stages.Wrapped):
        apply_fn = getattr(apply_fn, "__wrapped__")  # noqa: B009, the protocol does not declare it
    here = tracers.current_trace()
    running: list[tuple[str, ...]] = []
    # One count for each trace: `nn.scan` traces its body twice, for a first call both times.
    counts: list[tuple[Any, Counter[str]]] = []

    def interceptor(
        next_fun: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        context: nn.module.InterceptorContext,
    ) -> Any:
        module = context.module
        is_call = context.method_name == "__call__" and module.scope is not None
        if not is_call or not module.path or module.path in running:
            return next_fun(*args, **kwargs)
        running.append(module.path)
        try:
            activation = next_fun(*args, **kwargs)
        finally:
            running.pop()
        trace = tracers.current_trace()
        count = next((count for known, count in counts if known == trace), None)
        if count is None:
            count = Counter[str]()
            counts.append((trace, count))
        path = "/".join(module.path)
        count[path] += 1
        site = path if count[path] == 1 else f"{path}#{count[path]}"
        return visit(site, activation, trace != here)

    # The interceptor is read when a function is traced, hence opened in here, anew for each trace.
    with nn.intercept_methods(interceptor), _own_cache():
        return apply_fn(*args, **kwargs)


def _edited(site: str, edit: Edit, activation: Any, value: Any) -> Any:
    try:
        edited = edit(activation, value)
    except ValueError as error:
        raise ValueError(f"site {site!r}: {error}") from error
    expected, got = (jax.tree.map(_shape, tree) for tree in (activation, edited))
    if expected != got:
        raise ValueError(
            f"site {site!r}: expected the edit to return {_describe(expected)}, "
            f"got {_describe(got)}"
        )
    return edited


def _nested(site: str, remedy: str) -> ValueError:
    return ValueError(f"site {site!r} is inside nn.scan, nn.remat, jit or the like: {remedy}")


def _shape(leaf: Any) -> Any:
    try:
        return jax.ShapeDtypeStruct(jnp.shape(leaf), jnp.result_type(leaf))
    except TypeError:  # no array
        return type(leaf)


def _describe(shapes: Any) -> str:
    def describe(leaf: Any) -> str:
        return leaf.__name__ if isinstance(leaf, type) else f"{list(leaf.shape)} {leaf.dtype}"

    return str(jax.tree.map(describe, shapes))


def _is_staged() -> bool:
    """Whether operations are being recorded into a program, as under `jit`, not executed."""
    return isinstance(jax.lax.full((), 0.0), jax.core.Tracer)


# A jitted function that is called on the way would be traced with the edits in it, and found like
# that in its cache by the next clean call; or it was traced before, and the interceptor would not
# see it. So what is jitted within one trace is cached for that trace alone. Operations that are
# executed at once are left alone: compiling each anew would take seconds.
_context: Any = jax.make_user_context() if hasattr(jax, "make_user_context") else None
_tokens = itertools.count()


def _own_cache() -> contextlib.AbstractContextManager[None]:
    if not _is_staged():
        return contextlib.nullcontext()
    if _context is not None:
        return _context(next(_tokens))
    from jax.experimental.xla_metadata import set_xla_metadata  # before JAX 0.8

    return set_xla_metadata(vaejax=str(next(_tokens)))
