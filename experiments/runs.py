"""Runs: what one is, where it is kept, and how those of one program are trained and measured."""

from __future__ import annotations

import dataclasses
import functools
import json
import time
from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from rich.console import Console

from experiments import files, output, pictures, readouts
from experiments.cli import UsageError
from experiments.measure import measure
from experiments.presets import Preset
from experiments.progress import training_progress
from vaejax import checkpoint, data, devices, zoo
from vaejax.circuits import to_graphml
from vaejax.metrics import FactorReadout
from vaejax.training import History, Recipe, TrainState, fit, init, unstack


@dataclasses.dataclass(frozen=True)
class Run:
    """One training: a model, a dataset and a seed, in the setting of a preset."""

    preset: Preset
    dataset: str
    model: str
    seed: int

    def path(self, out: epath.Path) -> epath.Path:
        """The run's directory."""
        return out / "runs" / self.dataset / self.model / f"seed_{self.seed}"

    def source(self) -> data.registry.Source:
        """The images."""
        return _source(self.dataset, self.preset.image_size, self.preset.source == "genuine")

    def network(self) -> zoo.Network:
        """The sizes of the model."""
        return self._network(self.source().image_shape)

    def _network(self, image_shape: tuple[int, int, int]) -> zoo.Network:
        return zoo.Network(
            image_shape,
            self.preset.latent_dim,
            self.preset.width,
            self.preset.discriminator_width,
            self.preset.codebook_size,
            self.preset.code_dim,
        )

    def program(self) -> Hashable:
        """What runs that can train together have in common; the images need not be there."""
        # Runs on one dataset have equal recipes for its images if they have for any.
        size = self.preset.image_size
        network = self._network((size, size, 1))
        return self.dataset, zoo.recipe(self.model, network, self.preset.batch_size)

    def recipe(self) -> Recipe:
        """How it is trained; runs with equal recipes train in one program."""
        return zoo.recipe(self.model, self.network(), self.preset.batch_size)

    def hyper(self) -> dict[str, float]:
        """Its hyperparameters, the learning rate among them."""
        learning_rate = {"learning_rate": self.preset.learning_rate}
        return {**zoo.architecture(self.model).hyper, **learning_rate}

    def config(self) -> dict[str, Any]:
        """What is saved with its checkpoints: enough to build, train and measure it again."""
        return {
            "dataset": self.dataset,
            "source": self.source().origin,
            "model": self.model,
            "seed": self.seed,
            "network": dataclasses.asdict(self.network()),
            "batch_size": self.preset.batch_size,
            "hyper": self.hyper(),
            "preset": dataclasses.asdict(self.preset),
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Run:
        """The run whose checkpoint holds this configuration."""
        saved = config["preset"].items()
        preset: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in saved}
        return cls(Preset(**preset), config["dataset"], config["model"], config["seed"])


@functools.lru_cache(maxsize=1)  # the runs of a dataset come one after the other
def _source(dataset: str, image_size: int, genuine: bool) -> data.registry.Source:
    return data.source(dataset, image_size, genuine=genuine)


def grid(preset: Preset, datasets: Iterable[str] | None = None) -> list[Run]:
    """Every run of a preset, in the order of the table, or those on some of its datasets."""
    return [
        Run(preset, dataset, model, seed)
        for dataset in (preset.datasets if datasets is None else datasets)
        for model in preset.models
        for seed in preset.seeds
    ]


def present(preset: Preset, console: Console) -> tuple[str, ...]:
    """The datasets of a preset whose images are there: all of them, if they are redrawn.

    Args:
      preset: What is wanted.
      console: Told which published images are not there, and how to get them.

    Raises:
      UsageError: None is there.
    """
    if preset.source == "redrawn":
        return preset.datasets
    there = []
    for name in preset.datasets:
        try:
            data.find(name.partition("@")[0], data.root_directory())
            there.append(name)
        except data.DataError as error:
            console.print(f"{name} is left out: {error}")
    if not there:
        raise UsageError(
            f"no genuine images of {', '.join(preset.datasets)}: see "
            "`python -m experiments.data list`"
        )
    return tuple(there)


def label(group: Sequence[Run]) -> str:
    """What to call a group: its dataset, its models, how many runs."""
    models = " + ".join(dict.fromkeys(run.model for run in group))
    return f"{group[0].dataset} {models}, {len(group)} run{'s' if len(group) > 1 else ''}"


def result(out: epath.Path, run: Run) -> dict[str, Any] | None:
    """The row of a finished run, None if it is not finished."""
    path = run.path(out) / "metrics.json"
    return json.loads(path.read_text()) if path.exists() else None


def train(out: epath.Path, group: Sequence[Run], console: Console) -> tuple[TrainState, float]:
    """Trains runs of one program to the end, from the last step that all of them have saved.

    They are divided over all devices, those of other processes as well if `jax.distributed`
    connects some: then all call this.

    Returns:
      Their states, and the seconds that it took just now.
    """
    source, recipe, preset = group[0].source(), group[0].recipe(), group[0].preset
    paths = [run.path(out) for run in group]
    began = time.monotonic()
    mesh = devices.mesh(len(group), preset.batch_size)
    with devices.use(mesh), checkpoint.Writer(paths, [run.config() for run in group]) as writer:
        restored = writer.restore()
        if restored is None:
            keys = jnp.stack([jax.random.key(run.seed) for run in group])
            restored = 0, init(recipe, source.image_shape, keys)
        start, states = restored
        if start == preset.steps:
            return states, 0.0
        hyper = _stack([run.hyper() for run in group])
        with training_progress(console, label(group), start, preset.steps, len(group)) as update:

            def on_chunk(done: int, states: TrainState, history: History) -> None:
                means = {name: np.asarray(term).mean(1) for name, term in history.items()}
                for index, path in enumerate(paths if jax.process_index() == 0 else []):
                    _append_history(path, done, {name: m[index] for name, m in means.items()})
                writer.save(done, states)
                update(done, float(means["loss"].mean()))

            states = fit(
                recipe,
                source,
                states,
                hyper,
                start=start,
                steps=preset.steps,
                chunk=preset.chunk,
                on_chunk=on_chunk,
            )
    return states, time.monotonic() - began


def finish_all(
    out: epath.Path,
    group: Sequence[Run],
    states: TrainState,
    seconds: float,
    console: Console,
) -> None:
    """Measures runs that have been trained together, and puts them into an output directory.

    Processes that `jax.distributed` connects share them out, and return when all are measured.

    Args:
      out: The output directory.
      group: The runs.
      states: Their states at the end of training.
      seconds: What training took.
      console: Told about progress.
    """
    trained = list(zip(group, unstack(states), strict=True))
    seconds_each = round(seconds / len(group), 2)
    for run, state in trained[jax.process_index() :: jax.process_count()]:
        readout = None
        if readouts.needed(run.preset.metrics):
            readout = readouts.get(run.source(), run.preset, out, console)
        console.print(f"{run.dataset} {run.model}, seed {run.seed}: measuring")
        finish(run, state, readout, run.path(out), columns={"train_seconds": seconds_each})
    devices.agree(lambda: None)


def finish(
    run: Run,
    state: TrainState,
    readout: FactorReadout | None,
    path: epath.Path | None,
    *,
    columns: Mapping[str, Any] | None = None,
    **options: Any,
) -> dict[str, Any]:
    """Measures a trained run, on all devices of this process.

    Args:
      run: The run.
      state: Its state at the end.
      readout: The factor read-out of its dataset; None if no effects of latents are measured.
      path: Where to write `latents.npz`, `units.npz`, `disentanglement.json`, graphs, pictures and,
        last, `metrics.json`; None to write nothing.
      columns: What else to put into the row.
      **options: What to measure, as `measure` takes it.

    Returns:
      The run's row of `results.csv`.
    """
    source, diverged_at = run.source(), int(state.diverged_at)
    row: dict[str, Any] = {
        "dataset": run.dataset,
        "source": source.origin,
        "model": run.model,
        "seed": run.seed,
        "status": "ok" if diverged_at < 0 else "diverged",
        "steps": int(state.step),
        "correlated_factors": source.correlated,
    }
    if diverged_at < 0:
        model = run.recipe().model
        with output.on_all_devices():
            measurement = measure(model, state.variables, source, run.preset, readout, **options)
        row |= measurement.row
        if path is not None:
            files.write_npz(path / "latents.npz", measurement.latents)
            files.write_npz(path / "units.npz", measurement.units)
            files.write_json(path / "disentanglement.json", measurement.scores)
            for name, graph in measurement.graphs.items():
                files.write_bytes(path / f"{name}.graphml", to_graphml(graph).encode())
            if "ces_calibrated" in measurement.latents:  # which says what latents to draw
                pictures.draw(path, model, state.variables, source, measurement.latents)
    row |= columns or {}
    if path is not None:
        files.write_json(path / "metrics.json", row)
    return row


def _append_history(path: epath.Path, step: int, means: dict[str, float]) -> None:
    # Rows from here on are those of a training that was interrupted after them.
    earlier = [row for row in files.read_csv(path / "history.csv") if int(row["step"]) < step]
    row = {"step": step, **{name: float(mean) for name, mean in means.items()}}
    files.write_csv(path / "history.csv", list(row), [*earlier, row])


def _stack(hypers: Sequence[dict[str, float]]) -> dict[str, jax.Array]:
    return {name: jnp.array([hyper[name] for hyper in hypers]) for name in hypers[0]}
