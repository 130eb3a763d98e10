"""Checkpoints of runs, with orbax: everything to go on training, or to analyse the model alone.

A run's directory holds `checkpoints/<step>/` with two items: `state`, the arrays of its
`TrainState`, and `config`, the JSON it was made from. The last two steps are kept, so that a save
that was cut short costs one of them.

Where `jax.distributed` connects several processes, all of them make the same calls in the same
order, with a directory that all reach; the first one writes.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from flax import linen as nn

from vaejax import devices, zoo
from vaejax.training import Recipe, TrainState, abstract_state, unstack
from vaejax.types import Variables

Config = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """A restored run.

    Attributes:
      model: The Linen module.
      variables: Its parameters and other collections, for `model.apply(variables, ...)`.
      config: The configuration that was saved with it.
      state: The whole training state, variables included.
    """

    model: nn.Module
    variables: Variables
    config: dict[str, Any]
    state: TrainState


def restore(path: epath.PathLike) -> Checkpoint:
    """Restores the last readable checkpoint of one run; needs nothing but its directory.

    Args:
      path: The run's directory, e.g. `results/demo/runs/dsprites/vae/seed_0`.

    Returns:
      The model, its variables, configuration and training state, on the default device.

    Raises:
      FileNotFoundError: If there is no checkpoint at `path`.
      ValueError: If no checkpoint there can be read, or if it is of no model of the zoo.
    """
    path = _absolute(path)
    steps = saved_steps(path)
    if not steps:
        raise FileNotFoundError(
            f"no checkpoint in {path}: expected the directory of a run, such as "
            "results/demo/runs/dsprites/vae/seed_0"
        )
    problems = []
    for step in reversed(steps):
        try:
            return _restore_step(path, step)
        except _UnreadableError as error:
            problems.append(str(error))
    raise ValueError(f"no readable checkpoint in {path}: {'; '.join(problems)}")


def saved_steps(path: epath.PathLike) -> list[int]:
    """The steps that have a checkpoint in a run's directory, in order."""
    root = _root(path)
    return sorted(ocp.utils.checkpoint_steps(root)) if root.exists() else []


class Writer:
    """Saves the runs of one program, each into its own directory, while training goes on.

    Use it as a context manager: leaving it waits for what is still being written.

    Attributes:
      paths: One directory per run.
      configs: One configuration per run, anything JSON can hold. `restore` builds the model from
        the entries `model`, `network` and `batch_size`, see `vaejax.zoo.recipe`.
    """

    def __init__(self, paths: Sequence[epath.PathLike], configs: Sequence[Config]) -> None:
        self.paths = [_absolute(path) for path in paths]
        self.configs = [dict(config) for config in configs]
        self._managers = [
            ocp.CheckpointManager(
                _root(path),
                options=ocp.CheckpointManagerOptions(
                    max_to_keep=2,
                    cleanup_tmp_directories=True,
                    # Or processes that wait for each other take one run for another.
                    multiprocessing_options=ocp.options.MultiprocessingOptions(
                        barrier_sync_key_prefix=f"run_{index}"
                    ),
                ),
            )
            for index, path in enumerate(self.paths)
        ]

    def __enter__(self) -> Writer:
        return self

    def __exit__(self, *_: object) -> None:
        for manager in self._managers:
            manager.wait_until_finished()
            manager.close()

    def save(self, step: int, states: TrainState) -> None:
        """Saves R states under one step number; returns before the files are complete."""
        # No run may be two saves ahead of another, or a kill could leave them no common step.
        for manager in self._managers:
            manager.wait_until_finished()
        for manager, config, state in zip(
            self._managers, self.configs, unstack(states), strict=True
        ):
            items = {
                "state": ocp.args.StandardSave(_with_key_data(state)),
                "config": ocp.args.JsonSave(config),
            }
            manager.save(step, args=ocp.args.Composite(**items), force=True)

    def restore(self) -> tuple[int, TrainState] | None:
        """The last step that all runs have, and their states; None if there is none.

        A step that cannot be read in one of them, as after a power cut, is passed over.
        """
        # As the first process finds them: files may change while another looks.
        steps = devices.agree(lambda: [saved_steps(path) for path in self.paths])
        for step in sorted(set.intersection(*map(set, steps)), reverse=True):
            try:
                states = [_restore_step(path, step).state for path in self.paths]
            except _UnreadableError:
                continue
            self._forget_after(step, steps)
            return step, jax.tree.map(lambda *leaves: jnp.stack(leaves), *states)
        self._forget_after(-1, steps)
        return None

    def _forget_after(self, step: int, saved: Sequence[Sequence[int]]) -> None:
        # Later steps are those that only some runs have, or that cannot be read: training will
        # save them again.
        for manager, of_run in zip(self._managers, saved, strict=True):
            for later in of_run:
                if later > step:
                    manager.delete(later)
            manager.reload()


class _UnreadableError(Exception):
    """A checkpoint is damaged."""


def _absolute(path: epath.PathLike) -> epath.Path:
    # orbax takes absolute paths only. One in a bucket is absolute, but epath takes it for one under
    # the current directory.
    path = epath.Path(path)
    return path if "://" in os.fspath(path) else path.absolute()


def _root(path: epath.PathLike) -> epath.Path:
    return _absolute(path) / "checkpoints"


def _restore_step(path: epath.Path, step: int) -> Checkpoint:
    with ocp.CheckpointManager(_root(path)) as manager:
        config = _read(manager, step, config=ocp.args.JsonRestore())
        try:
            network = zoo.Network(**config["network"])
            recipe = zoo.recipe(config["model"], network, config["batch_size"])
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"{path} holds no checkpoint of a model of the zoo: {error}"
            ) from error
        template = ocp.args.StandardRestore(_template(recipe, network.image_shape))
        # As arrays of no device in particular, which may go on under any mesh.
        state = jax.tree.map(jnp.asarray, _read(manager, step, state=template))
    state = dataclasses.replace(state, key=jax.random.wrap_key_data(state.key))
    return Checkpoint(recipe.model, state.variables, config, state)


def _read(manager: ocp.CheckpointManager, step: int, **item: Any) -> Any:
    (name,) = item
    try:
        return manager.restore(step, args=ocp.args.Composite(**item))[name]
    except Exception as error:  # orbax, tensorstore and json each fail in ways of their own
        raise _UnreadableError(f"step {step}: {error}") from error


def _with_key_data(state: TrainState) -> TrainState:
    return dataclasses.replace(state, key=jax.random.key_data(state.key))


def _template(recipe: Recipe, image_shape: tuple[int, ...]) -> TrainState:
    """One run's state as it is saved, in arrays of the host without content."""
    state = abstract_state(recipe, image_shape)
    state = dataclasses.replace(state, key=jax.eval_shape(jax.random.key_data, state.key))
    return jax.tree.map(lambda leaf: np.empty(leaf.shape, leaf.dtype), state)
