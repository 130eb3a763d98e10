"""Many devices: the mesh that runs and interventions are divided over.

A mesh has two axes. Along `run` lie the runs of a training, which know nothing of each other; along
`data` the examples of each step's batch. Interventions use all of its devices alike. While a mesh
is in force (`use`), `vaejax.fit` and the analyses are divided over it, with the results of one
device up to rounding; a single device needs none, and its programs are those without a mesh.

    mesh = devices.mesh(runs=len(keys), batch_size=recipe.batch_size)
    with devices.use(mesh):
        states = vaejax.init(recipe, source.image_shape, keys)
        states = vaejax.fit(recipe, source, states, hyper, steps=1000)

A mesh is in force in its thread alone. Run programs on it from one thread at a time: nothing starts
those of two threads in the same order on all devices, which programs that exchange data need.

A mesh may reach over the devices of several processes that `jax.distributed.initialize` has
connected, as on a slice of a TPU pod. Each process then makes the same calls with the same
arguments in the same order, and holds the states of its own devices; `gather` brings them together.
"""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental import multihost_utils
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

AXES = ("run", "data")
"""The axes of a mesh."""

_SHARE = "vaejax_share"


def mesh(runs: int, batch_size: int, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A mesh for a number of runs, of as many devices as can be used.

    As many devices as possible lie along `run`, where nothing is exchanged: the largest divisor of
    the number of devices that divides the runs. Of the others as many as divide the batch lie along
    `data`. What is left over stays idle, so 5 runs with batches of 64 use 1 x 8 of 8 devices, and
    1 x 2 of 6.

    Args:
      runs: R, the number of runs that train together.
      batch_size: Examples per step, `Recipe.batch_size`.
      devices: By default all of `jax.devices()`. Neighbours in it share a batch.

    Returns:
      A mesh with axes `run` and `data`.

    Raises:
      ValueError: A number is below 1, or there is no device.

    Example:
      >>> dict(mesh(3, 64, jax.devices()[:1]).shape)
      {'run': 1, 'data': 1}
    """
    if runs < 1 or batch_size < 1:
        raise ValueError(f"expected runs and batch_size >= 1, got {runs} and {batch_size}")
    available = list(jax.devices() if devices is None else devices)
    if not available:
        raise ValueError("expected at least one device, got none")
    along_run = math.gcd(len(available), runs)
    along_data = math.gcd(len(available) // along_run, batch_size)
    grid = np.array(available[: along_run * along_data]).reshape(along_run, along_data)
    return Mesh(grid, AXES, axis_types=(AxisType.Auto, AxisType.Auto))


@contextlib.contextmanager
def use(mesh: Mesh) -> Iterator[None]:
    """Puts a mesh in force within a `with` block, for the calling thread; one device needs none.

    It is part of what selects a compiled program, so a function that was compiled without a mesh is
    compiled again under one. What is computed under a mesh lives on all its devices: do not mix it
    with arrays that you put on one yourself.

    Args:
      mesh: What `mesh` makes.

    Raises:
      ValueError: A mesh with other axes, or whose axes are not left to the compiler.

    Example:
      >>> with use(mesh(3, 64, jax.devices()[:1])):
      ...     print(current())
      None
    """
    if mesh.axis_names != AXES or set(mesh.axis_types) != {AxisType.Auto}:
        raise ValueError(
            f"expected a mesh with axes {AXES}, both of type Auto, as vaejax.devices.mesh makes, "
            f"got {mesh.axis_names} of types {mesh.axis_types}"
        )
    if mesh.size == 1:
        yield
        return
    # `use_mesh` was renamed after jax 0.6.
    in_force = jax.set_mesh if hasattr(jax, "set_mesh") else jax.sharding.use_mesh  # type: ignore[attr-defined]
    with in_force(mesh):
        yield


def current() -> AbstractMesh | None:
    """The mesh in force; None if there is none, and in a function that is one device's part."""
    return jax.sharding.get_abstract_mesh() if _free_axes() == set(AXES) else None


def count() -> int:
    """How many devices the mesh in force has; 1 where there is none.

    >>> count()
    1
    """
    found = current()
    return 1 if found is None else found.size


def check(runs: int, batch_size: int) -> None:
    """Checks that the mesh in force suits a training.

    Args:
      runs: How many train together.
      batch_size: Examples per step.

    Raises:
      ValueError: An axis does not divide what lies along it.
    """
    found = current()
    if found is None:
        return
    along_run, along_data = (found.shape[axis] for axis in AXES)
    if runs % along_run or batch_size % along_data:
        raise ValueError(
            f"a mesh of {along_run} x {along_data} devices does not divide {runs} runs and batches "
            f"of {batch_size}: vaejax.devices.mesh({runs}, {batch_size}) makes one that does"
        )


def divide(tree: Any, *axes: str | tuple[str, ...] | None) -> Any:
    """Inside a jitted function: has the compiler divide arrays over the mesh in force.

    Args:
      tree: A pytree of arrays; returned as it is if there is no mesh, or the function already is
        the part of one device along these axes.
      *axes: What the leading dimensions of each array are divided along, None for not at all;
        `divide(tree)` has every device hold all of it.
    """
    free = _free_axes()
    if not free or not free.issuperset(jax.tree.leaves(axes)):
        return tree
    return _constrain(tree, *axes)


def on_each(function: Callable[[Any], Any], shares: Any) -> Any:
    """A function of each device's share, at once on all devices of the mesh in force.

    Inside of the function there is no mesh in force.

    Args:
      function: Maps a pytree of arrays `[...]` to another.
      shares: The pytree with arrays `[D, ...]`, one row for each of the D devices.

    Returns:
      What the function returns, with arrays `[D, ...]` that lie as the shares do.
    """

    # Not a `shard_map`, in which arrays of the mesh that a function closes over cannot be indexed.
    # The compiler divides this as well, all but convolutions whose kernel is not the same for all.
    def of_one(share: Any) -> Any:
        return _constrain(function(_constrain(share)))

    return jax.vmap(of_one, axis_name=_SHARE, spmd_axis_name=AXES)(_constrain(shares, AXES))


def place(tree: Any, *axes: str | tuple[str, ...] | None) -> Any:
    """Outside of jitted functions: puts arrays on the devices of the mesh in force, as `divide`.

    Arrays may come from one device or from another mesh of this process. Without a mesh they stay
    where they are. Under one of several processes each of them gives whole arrays, or those that
    are on that mesh.
    """
    if current() is None:
        return tree
    if jax.process_count() == 1:
        return jax.device_put(tree, PartitionSpec(*axes))
    sharding = NamedSharding(jax.sharding.get_mesh(), PartitionSpec(*axes))

    def of_all(leaf: Any) -> jax.Array:
        if _is_key(leaf):
            data, kind = jax.random.key_data(leaf), jax.random.key_impl(leaf)
            return jax.random.wrap_key_data(of_all(data), impl=kind)
        if _is_local(leaf):
            host = np.asarray(leaf)
            return jax.make_array_from_callback(host.shape, sharding, lambda i: host[i])
        return _move(leaf, sharding)

    return jax.tree.map(of_all, tree)


def gather(tree: Any) -> Any:
    """Outside of jitted functions: arrays as NumPy's, whole, in every process that has a part.

    PRNG keys come back as keys, on the default device. Under a mesh of several processes all must
    call this.

    >>> gather({"x": jnp.arange(3)})
    {'x': array([0, 1, 2], dtype=int32)}
    """

    def whole(leaf: Any) -> Any:
        if _is_key(leaf):
            data, kind = jax.random.key_data(leaf), jax.random.key_impl(leaf)
            return jax.random.wrap_key_data(whole(data), impl=kind)
        if not _is_local(leaf) and not leaf.is_fully_replicated:
            leaf = _move(leaf, NamedSharding(leaf.sharding.mesh, PartitionSpec()))
        return np.asarray(leaf)

    return jax.tree.map(whole, tree)


def agree(decide: Callable[[], Any]) -> Any:
    """What the first of the processes that `jax.distributed` connects decides, in all of them.

    All wait until each has called this. Without other processes it is a plain call.

    Args:
      decide: Called in the first process; returns what JSON can hold.

    >>> agree(lambda: [1, 2])
    [1, 2]
    """
    if jax.process_count() == 1:
        return decide()
    said = json.dumps(decide()).encode() if jax.process_index() == 0 else b""
    length = int(multihost_utils.broadcast_one_to_all(np.int32(len(said))))
    padded = np.frombuffer(said.ljust(length), np.uint8)
    return json.loads(bytes(np.asarray(multihost_utils.broadcast_one_to_all(padded))))


def _is_key(leaf: Any) -> bool:
    return isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _is_local(leaf: Any) -> bool:
    return not isinstance(leaf, jax.Array) or leaf.is_fully_addressable


def _move(array: jax.Array, sharding: NamedSharding) -> jax.Array:
    moved: jax.Array = jax.jit(lambda x: x, out_shardings=sharding)(array)
    return moved


def _constrain(tree: Any, *axes: str | tuple[str, ...] | None) -> Any:
    found = jax.sharding.get_abstract_mesh()
    # As it was before a `shard_map` took an axis: jax 0.6 takes no other for a constraint.
    whole = AbstractMesh(found.axis_sizes, found.axis_names, axis_types=(AxisType.Auto,) * 2)
    return lax.with_sharding_constraint(tree, NamedSharding(whole, PartitionSpec(*axes)))


def _free_axes() -> set[str]:
    """The axes of the mesh in force along which this function is not yet one device's part."""
    found = jax.sharding.get_abstract_mesh()
    if found.axis_names != AXES or found.size == 1 or _is_share():
        return set()
    kinds = zip(found.axis_names, found.axis_types, strict=True)
    return {axis for axis, kind in kinds if kind == AxisType.Auto}


def _is_share() -> bool:
    """Whether this is traced inside of `on_each`."""
    try:
        lax.psum(1, _SHARE)
    except NameError:  # there is no such axis
        return False
    return True
