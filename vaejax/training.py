"""Training: many runs of one recipe in one compiled program.

A *run* is one training with its own key and hyperparameters. Every array of a `TrainState` and of
`hyper` has a leading axis of R runs; the program maps over runs, scans over steps, and draws its
batches on the device. The key of step t is `fold_in(key, t)`, so results do not depend on how
training is cut into chunks, nor on whether it was interrupted between them.

Under a mesh of devices (`vaejax.devices`) the runs are divided over its axis `run`, the batch of
each step over `data`.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from flax import struct
from jax import lax
from jax.sharding import PartitionSpec

from vaejax import devices
from vaejax.data.protocols import DataSource
from vaejax.data.streaming import step_keys, windows
from vaejax.objectives import Loss, Objective
from vaejax.types import Variables

Hyper = Mapping[str, jax.Array]
History = dict[str, jax.Array]


@dataclasses.dataclass(frozen=True)
class Recipe:
    """What runs of one program have in common; hashable, so it selects the compiled program.

    Attributes:
      model: A Linen module; its `init` is called as `model.init(key, images, key)`.
      objective: What it minimises.
      batch_size: Examples per step.
      batches: Batches per step that the objective takes (2 for FactorVAE).
    """

    model: nn.Module
    objective: Objective
    batch_size: int = 64
    batches: int = 1


@struct.dataclass
class TrainState:
    """Everything a run needs to go on.

    Attributes:
      step: Steps done, int32 `[]`.
      variables: Parameters and other collections of the model.
      opt_state: State of the optimizer.
      key: The run's PRNG key; never changes.
      diverged_at: The step whose loss, gradient or update was not finite, -1 if there was none.
        The state stays what it was before that step.
    """

    step: jax.Array
    variables: Variables
    opt_state: optax.OptState
    key: jax.Array
    diverged_at: jax.Array


def optimizer(learning_rate: jax.Array | float) -> optax.GradientTransformation:
    """Adam with the reference settings; (0.5, 0.9) for a submodule named `discriminator`.

    References:
      Locatello et al., `Challenging Common Assumptions in the Unsupervised Learning of
      Disentangled Representations <https://arxiv.org/abs/1811.12359>`_, 2019, tables 2 and 3.
    """
    transforms = {
        "model": optax.adam(learning_rate, b1=0.9, b2=0.999, eps=1e-8),
        "discriminator": optax.adam(learning_rate, b1=0.5, b2=0.9, eps=1e-8),
    }
    return optax.partition(transforms, _optimizer_labels)


def _optimizer_labels(params: Mapping[str, Any]) -> dict[str, str]:
    return {name: "discriminator" if name == "discriminator" else "model" for name in params}


def init(recipe: Recipe, image_shape: tuple[int, ...], keys: jax.Array) -> TrainState:
    """Fresh states for R runs. Compiles a program of its own: do not call it inside `jit`.

    Args:
      recipe: What to train.
      image_shape: Shape of one image, `source.image_shape`.
      keys: One PRNG key per run, `[R]`.

    Returns:
      States with a leading axis of R on every array.
    """
    keys = devices.place(keys, "run")
    return _compiled_init(jax.default_backend())(recipe.model, image_shape, keys)


def abstract_state(recipe: Recipe, image_shape: tuple[int, ...]) -> TrainState:
    """Shapes and types of one run's state, as `jax.ShapeDtypeStruct`; computes nothing."""
    return jax.eval_shape(
        functools.partial(_init_run, recipe.model, image_shape), jax.random.key(0)
    )


def _init_run(model: nn.Module, image_shape: tuple[int, ...], key: jax.Array) -> TrainState:
    images = jnp.zeros((1, *image_shape))
    init_key = jax.random.fold_in(key, 2**32 - 1)  # a number that no step has
    variables = dict(model.init(init_key, images, init_key))
    opt_state = optimizer(0.0).init(variables["params"])
    return TrainState(jnp.int32(0), variables, opt_state, key, jnp.int32(-1))


@functools.cache
def _compiled_init(backend: str) -> Callable[..., TrainState]:
    # It runs once, in milliseconds, and XLA's CPU backend would spend ten seconds optimising it.
    options = {"xla_backend_optimization_level": 0} if backend == "cpu" else None

    def init_runs(model: nn.Module, image_shape: tuple[int, ...], keys: jax.Array) -> TrainState:
        states = jax.vmap(_init_run, in_axes=(None, None, 0))(model, image_shape, keys)
        return devices.divide(states, "run")

    return jax.jit(init_runs, static_argnums=(0, 1), compiler_options=options)


@functools.partial(jax.jit, static_argnames=("recipe", "steps"), donate_argnames="states")
def train(
    recipe: Recipe,
    source: DataSource,
    states: TrainState,
    hyper: Hyper,
    *,
    steps: int,
    stored: jax.Array | None = None,
) -> tuple[TrainState, History]:
    """Trains R runs for some steps, as one program.

    A run whose loss, gradient or update is not finite stops there and keeps the state before that
    step; the others go on.

    Args:
      recipe: What to train.
      source: Where batches are drawn.
      states: States of R runs; their memory is given up to the result.
      hyper: The objective's hyperparameters and `learning_rate`, each `[R]`.
      steps: How many.
      stored: The images of every step as the source stores them, `[R, steps, n, ...]`, if they are
        fed from the host; by default the source draws them.

    Returns:
      The states after, and the history: `loss` and the objective's terms, each `[R, steps]`.

    Raises:
      ValueError: The mesh of devices in force does not divide the runs or the batch.
    """
    devices.check(len(states.step), recipe.batch_size)

    def train_run(
        source: DataSource, run: tuple[TrainState, Hyper, jax.Array | None]
    ) -> tuple[TrainState, History]:
        state, hyper, stored = run

        def step(state: TrainState, stored: jax.Array | None) -> tuple[TrainState, History]:
            return _step(recipe, source, state, hyper, stored)

        return lax.scan(step, state, stored, length=steps)

    states, history = _map_runs(train_run, source, (states, hyper, stored))
    # All devices have all of the history, so that every process can read it.
    return devices.divide(states, "run"), devices.divide(history)


def fit(
    recipe: Recipe,
    source: DataSource,
    states: TrainState,
    hyper: Hyper,
    *,
    start: int = 0,
    steps: int,
    chunk: int = 1000,
    on_chunk: Callable[[int, TrainState, History], None] | None = None,
) -> TrainState:
    """Trains R runs up to a step, in chunks of one compiled program.

    Args:
      recipe: What to train.
      source: Where batches are drawn.
      states: From `init`, or from a checkpoint.
      hyper: The objective's hyperparameters and `learning_rate`, each `[R]`.
      start: Steps that the states have behind them.
      steps: The step to stop at.
      chunk: Steps between calls of `on_chunk`.
      on_chunk: Called after each chunk with the steps done, the states and the chunk's history.

    Returns:
      The states at the end.

    Raises:
      ValueError: The mesh of devices in force does not divide the runs or the batch.

    Example:
      >>> import vaejax
      >>> source = vaejax.data.source("dsprites", image_size=32)
      >>> network = vaejax.zoo.Network(source.image_shape, width=0.1)
      >>> recipe = vaejax.zoo.recipe("beta_vae", network, batch_size=8)
      >>> states = vaejax.init(recipe, source.image_shape, jax.random.split(jax.random.key(0), 3))
      >>> hyper = {"beta": jnp.array([1.0, 4.0, 16.0]), "learning_rate": jnp.full(3, 1e-3)}
      >>> states = vaejax.fit(recipe, source, states, hyper, steps=4, chunk=2)
      >>> print(states.step)
      [4 4 4]
    """
    devices.check(len(states.step), recipe.batch_size)
    histories: list[History] = []
    n = recipe.batches * recipe.batch_size
    # On no mesh, as they draw the rows of windows in another thread, which knows of none.
    keys = devices.gather(states.key)
    # Once, not at every call of `train`.
    states, hyper = devices.place((states, hyper), "run")
    placed = devices.place(source)
    for window in windows(source, keys, n, start=start, steps=steps, chunk=chunk):
        length = window.stop - window.first
        stored = devices.place(window.stored, "run", None, "data")
        states, history = train(recipe, placed, states, hyper, steps=length, stored=stored)
        histories.append(history)
        if window.stop == steps or (window.stop - start) % chunk == 0:
            if on_chunk is not None:
                on_chunk(window.stop, states, _joined(histories))
            histories = []
    return states


def _joined(histories: list[History]) -> History:
    if len(histories) == 1:
        return histories[0]
    return jax.tree.map(lambda *parts: jnp.concatenate(parts, axis=1), *histories)


def unstack(states: TrainState) -> list[TrainState]:
    """The states of the single runs, their arrays on the host.

    On the device every shape among them would compile a slice of its own. Under a mesh of several
    processes all must call this.
    """
    states = devices.gather(states)
    keys, arrays = list(states.key), dataclasses.replace(states, key=states.step)
    return [
        dataclasses.replace(jax.tree.map(lambda leaf, i=i: np.asarray(leaf[i]), arrays), key=key)
        for i, key in enumerate(keys)
    ]


def _map_runs(function: Callable[[Any, Any], Any], shared: Any, runs: Any) -> Any:
    """`function(shared, run)` of every run, on the devices along the axis `run`."""
    mesh = devices.current()
    along_run, along_data = (1, 1) if mesh is None else (mesh.shape[axis] for axis in devices.AXES)
    # One run's step keeps all cores of a CPU busy and its activations in the cache; several at
    # once only push each other out of it. An accelerator has room for all. But their convolutions
    # together are a grouped one, and XLA's partitioner has every device do the whole batch of such
    # (https://github.com/openxla/xla/issues/47945).
    together = jax.default_backend() != "cpu" and along_data == 1

    def map_local(shared: Any, runs: Any) -> Any:
        of_run = functools.partial(function, shared)
        return jax.vmap(of_run)(runs) if together else lax.map(of_run, runs)

    if along_run == 1:
        return map_local(shared, runs)
    # For the same reason the partitioner is not asked to divide the runs. What is shared is an
    # argument, since arrays of the mesh that are closed over cannot be indexed in `shard_map`.
    return jax.shard_map(
        map_local,
        in_specs=(PartitionSpec(), PartitionSpec("run")),
        out_specs=PartitionSpec("run"),
        axis_names={"run"} if along_data > 1 else set(devices.AXES),
        check_vma=False,  # a loop's carry starts out equal on all devices
    )(shared, runs)


def _step(
    recipe: Recipe,
    source: Any,
    state: TrainState,
    hyper: Hyper,
    stored: jax.Array | None,
) -> tuple[TrainState, History]:
    data_key, loss_key = step_keys(state.key, state.step)
    if stored is None:
        images, _ = source.batch(data_key, recipe.batches * recipe.batch_size)
    else:
        images = jax.vmap(source.decode)(stored)
    images = devices.divide(images, "data")
    weights = dict(hyper)
    learning_rate = weights.pop("learning_rate")

    def total(params: Variables) -> tuple[jax.Array, Loss]:
        variables = {**state.variables, "params": params}
        loss = recipe.objective(recipe.model, variables, images, loss_key, **weights)
        value = loss.per_example.mean()
        return value if loss.auxiliary is None else value + loss.auxiliary.mean(), loss

    params = state.variables["params"]
    (value, loss), grads = jax.value_and_grad(total, has_aux=True)(params)
    updates, opt_state = optimizer(learning_rate).update(grads, state.opt_state, params)
    variables = {
        **state.variables,
        **loss.state,
        "params": optax.apply_updates(params, updates),
    }
    finite = jnp.isfinite(value) & _all_finite(grads) & _all_finite(updates)
    running = state.diverged_at < 0
    proposed = dataclasses.replace(
        state, step=state.step + 1, variables=variables, opt_state=opt_state
    )
    state = optax.tree.where(running & finite, proposed, state)
    diverged_at = jnp.where(running & ~finite, state.step, state.diverged_at)
    state = dataclasses.replace(state, diverged_at=diverged_at)
    return state, {"loss": loss.per_example.mean(), **loss.terms}


def _all_finite(tree: Any) -> jax.Array:
    finite = [jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(tree)]
    return jnp.stack(finite).all()
