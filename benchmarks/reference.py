"""The network that all benchmarks run: the reference network for 64x64x1, and PyTorch beside it."""

from __future__ import annotations

import argparse
import contextlib
import functools
import json
import math
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax import struct
from flax.traverse_util import flatten_dict

import vaejax
from vaejax.training import unstack
from vaejax.types import Variables

BATCH = 64

SITES = (
    *(f"encoder/conv_{i}" for i in (1, 2, 3, 4)),
    *("encoder/dense", "encoder/mean", "decoder/dense_1", "decoder/dense_2"),
    *(f"decoder/up_{i}" for i in (1, 2, 3, 4)),
)
"""The layers, each fed by the one before it. `logvar` is left out: no reconstruction shows it."""


@struct.dataclass
class Reference:
    """The reference VAE on dSprites; a pytree, so that jitted functions take it.

    Attributes:
      recipe: How it is trained.
      source: The images.
      variables: Of a fresh run, or one that has been trained for a while.
      clean: `[64, 64, 64, 1]` images.
      corrupted: As many others.
    """

    recipe: vaejax.Recipe = struct.field(pytree_node=False)
    source: vaejax.data.DataSource
    variables: Variables
    clean: jax.Array
    corrupted: jax.Array

    def decode(self, latents: jax.Array) -> Any:
        """Decoded means."""
        return self.recipe.model.apply(self.variables, latents, method="decode")

    @property
    def reconstruct(self) -> Callable[[Variables, jax.Array], jax.Array]:
        """From variables and images to decoded means; always the same function."""
        return _reconstructor(self.recipe.model)


@functools.cache
def _reconstructor(model: nn.Module) -> Callable[[Variables, jax.Array], jax.Array]:
    def reconstruct(variables: Variables, images: jax.Array) -> jax.Array:
        out: Any = model.apply(variables, images)
        return out.reconstruction

    return reconstruct


def reference(steps: int = 0) -> Reference:
    """The network, trained for some steps."""
    source = vaejax.data.source("dsprites")
    recipe = vaejax.zoo.recipe("vae", vaejax.zoo.Network(source.image_shape), BATCH)
    states = vaejax.init(recipe, source.image_shape, jax.random.key(1)[None])
    if steps:
        hyper = {"beta": jnp.ones(1), "learning_rate": jnp.full(1, 1e-3)}
        states = vaejax.fit(recipe, source, states, hyper, steps=steps, chunk=100)
    (clean, _), (corrupted, _) = (source.batch(jax.random.key(i), BATCH) for i in (2, 3))
    return Reference(recipe, source, unstack(states)[0].variables, clean, corrupted)


def flops(variables: Variables, image_size: int = 64) -> dict[str, float]:
    """Operations of each layer's matrix product for one example, by site.

    As is usual, a kernel counts in full at the borders, where part of it lies on padding.
    """
    found = {}
    for path, kernel in flatten_dict(variables["params"], sep="/").items():
        site, _, kind = path.rpartition("/")
        if kind != "kernel":
            continue
        layer, positions = site.split("/")[1], 1
        if layer.startswith("conv"):  # of the output
            positions = (image_size // 2 ** int(layer[-1])) ** 2
        elif layer.startswith("up"):  # of the input
            positions = (image_size // 16 * 2 ** (int(layer[-1]) - 1)) ** 2
        found[site] = 2.0 * positions * math.prod(kernel.shape)
    return found


def suffix_flops(variables: Variables, site: str) -> float:
    """Operations from the activation of a site to the reconstruction, for one example."""
    of_layer = flops(variables)
    return sum(of_layer[after] for after in SITES[SITES.index(site) + 1 :])


class Peer:
    """PyTorch in a process and an environment of its own, asked step by step beside ours."""

    def __init__(self, python: str, folder: Path, network: Reference) -> None:
        self.folder = folder
        flat: Mapping[str, Any] = flatten_dict(network.variables["params"], sep="/")
        np.savez(folder / "params.npz", **flat)
        np.save(folder / "clean.npy", np.asarray(network.clean))
        np.save(folder / "corrupted.npy", np.asarray(network.corrupted))
        script = Path(__file__).with_name("torch_peer.py")
        files = [folder / name for name in ("params.npz", "clean.npy", "corrupted.npy")]
        self._process = subprocess.Popen(
            [python, str(script), *map(str, files)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def ask(self, task: str, **arguments: Any) -> Any:
        """Has a task done, and waits for the answer."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps({"task": task, **arguments}) + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        if not answer:
            raise RuntimeError("the peer died; its error is above")
        return json.loads(answer)

    def array(self, task: str, **arguments: Any) -> Any:
        """What a task leaves in its `out` file."""
        path = self.folder / f"{task}.out"
        self.ask(task, out=str(path), **arguments)
        (written,) = self.folder.glob(f"{task}.out*")
        found = np.load(written)
        return dict(found) if isinstance(found, np.lib.npyio.NpzFile) else found

    def close(self) -> None:
        """Ends it."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


def arguments(description: str, rounds: int) -> argparse.Namespace:
    """The options of a benchmark that has PyTorch beside it: `peer_python` and `rounds`.

    Args:
      description: Its first line is shown by `--help`.
      rounds: The default.
    """
    parser = argparse.ArgumentParser(description=description.splitlines()[0])
    parser.add_argument("--peer-python", default=sys.executable, metavar="PATH")
    parser.add_argument("--rounds", type=int, default=rounds)
    return parser.parse_args()


@contextlib.contextmanager
def torch_peer(python: str, network: Reference) -> Iterator[Peer | None]:
    """PyTorch with the network's parameters; None, with a word, if the interpreter has none."""
    probe = subprocess.run([python, "-c", "import torch"], capture_output=True, check=False)
    if probe.returncode:
        print(f"skipped PyTorch: {python} has none (see --peer-python)")
        yield None
        return
    with tempfile.TemporaryDirectory() as folder:
        peer = Peer(python, Path(folder), network)
        try:
            yield peer
        finally:
            peer.close()


def check_equal(ours: Any, theirs: Any, what: str, tolerance: float = 1e-4) -> None:
    """Refuses to go on when the peer's answer is another, by `tolerance` of its largest number."""
    ours, theirs = np.asarray(ours), np.asarray(theirs)
    difference = np.abs(ours - theirs).max()
    if not difference <= tolerance * np.abs(theirs).max():
        raise RuntimeError(f"{what}: PyTorch's answer is another, by up to {difference:.2g}")
