"""Pictures of one model: reconstructions, and what each latent does."""

from __future__ import annotations

import io
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
from etils import epath
from flax import linen as nn
from matplotlib.figure import Figure

from experiments import files
from vaejax.data import DataSource
from vaejax.types import Variables

_IMAGES = 10  # columns of both pictures
_ROWS = 10  # latents of a traversal
_KEY = 7  # seed of the images shown


def draw(
    path: epath.Path,
    model: nn.Module,
    variables: Variables,
    source: DataSource,
    arrays: Mapping[str, np.ndarray],
) -> None:
    """Writes `reconstructions.png` and `traversal.png` into a run's directory.

    The traversal sets one latent of the first image to values from -3 to 3 standard deviations of
    its aggregate posterior, for the ten latents of strongest calibrated effect.
    """
    images, _ = source.batch(jax.random.key(_KEY), _IMAGES)
    out = model.apply(variables, images)
    rows = {"image": images, "decoded": out.reconstruction}
    files.write_bytes(path / "reconstructions.png", _grid(rows, "Images and reconstructions"))

    latents = model.apply(variables, images[:1], method="latents")
    strongest = np.argsort(-arrays["ces_calibrated"], kind="stable")[:_ROWS]
    steps = jnp.linspace(-3, 3, _IMAGES)
    rows = {}
    for i in strongest:
        z = jnp.tile(latents, (_IMAGES, 1)).at[:, i].set(steps * arrays["latent_std"][i])
        label = f"z{i}  CES {arrays['ces_calibrated'][i]:.2f}"
        rows[label] = model.apply(variables, z, method="decode")
    title = "Latents from -3 to 3 standard deviations"
    files.write_bytes(path / "traversal.png", _grid(rows, title))


def _grid(rows: Mapping[str, jax.Array], title: str) -> bytes:
    """A labelled row of images `[B, H, W, C]` each, as PNG."""
    first = next(iter(rows.values()))
    count, height, width, _ = first.shape
    margin = 1  # pixels between images
    canvas = np.ones((len(rows) * (height + margin), count * (width + margin), 3))
    for r, images in enumerate(rows.values()):
        for c, image in enumerate(np.clip(np.asarray(images), 0, 1)):
            top, left = r * (height + margin), c * (width + margin)
            canvas[top : top + height, left : left + width] = image
    with matplotlib.rc_context({"font.size": 7}):
        figure = Figure(figsize=(7, 0.55 * len(rows) + 0.4), layout="constrained")
        axes = figure.add_subplot()
        axes.imshow(canvas, interpolation="nearest")
        axes.set_title(title)
        axes.set_xticks([])
        axes.set_yticks((np.arange(len(rows)) + 0.5) * (height + margin), list(rows))
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
        content = io.BytesIO()
        # The version of matplotlib is left out, so that equal pictures are equal files.
        figure.savefig(content, format="png", dpi=150, metadata={"Software": None})
    return content.getvalue()
