"""The factor read-out of a dataset: trained once for an output directory, and kept there."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Collection

import jax
import numpy as np
from etils import epath
from rich.console import Console

from experiments import files, locks
from experiments.presets import Preset
from vaejax.data import DataSource
from vaejax.metrics import FactorReadout, train_readout

_KEY = 20_260_401  # no run and no measurement draws its images with it


def needed(metrics: Collection[str]) -> bool:
    """Whether one of these takes a read-out, of `presets.METRICS`."""
    return "latent_effects" in metrics


def get(
    source: DataSource, preset: Preset, directory: epath.Path | None, console: Console
) -> FactorReadout:
    """The read-out of a dataset, from the directory or else trained, and then put there.

    Where there are locks, one process trains it and those that need it meanwhile wait; elsewhere
    each trains it, which gives the same.

    Args:
      source: The dataset.
      preset: How long to train.
      directory: The output directory of a sweep; None to keep nothing.
      console: Told about training, which takes half a minute.
    """
    if directory is None:
        return _train(source, preset, console)
    path = directory / "readouts" / f"{source.name}.npz"
    readout = _read(path)
    if readout is None:
        with locks.hold(directory, f"readout.{source.name}", wait=True):
            readout = _read(path)
            if readout is None:
                if path.exists():
                    console.print(f"{path} cannot be read, training anew")
                readout = _train(source, preset, console)
                files.write_npz(path, readout.arrays())
    return readout


def _read(path: epath.Path) -> FactorReadout | None:
    if not path.exists():
        return None
    try:
        with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as arrays:
            return FactorReadout.from_arrays(arrays)
    except (ValueError, EOFError, zipfile.BadZipFile):
        return None


def _train(source: DataSource, preset: Preset, console: Console) -> FactorReadout:
    console.print(f"{source.name}: training the factor read-out, {preset.readout_steps} steps")
    readout = train_readout(source, jax.random.key(_KEY), steps=preset.readout_steps)
    for factor, accuracy, error in zip(
        source.factors, readout.accuracy, readout.error, strict=True
    ):
        console.print(f"  {factor.name}: accuracy {accuracy:.3f}, error {error:.3f} of the range")
    return readout
