"""Pictures of one model: reconstructions, and what each latent does."""

from __future__ import annotations

import functools
import io
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
from etils import epath
from flax import linen as nn
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments import files
from vaejax.data import DataSource
from vaejax.types import Variables

_IMAGES = 10  # columns of both pictures
_ROWS = 10  # latents of a traversal
_KEY = 7  # seed of the images shown
_DPI = 120


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
    strongest = np.argsort(-arrays["ces_calibrated"], kind="stable")[:_ROWS]
    values = np.linspace(-3, 3, _IMAGES) * arrays["latent_std"][strongest, None]
    images, decoded, traversed = jax.device_get(
        _decoded(model, variables, source, strongest, values.astype(np.float32))
    )
    rows = {"image": images, "decoded": decoded}
    files.write_bytes(path / "reconstructions.png", grid(rows, "Images and reconstructions"))
    rows = {
        f"z{i}  CES {arrays['ces_calibrated'][i]:.2f}": row
        for i, row in zip(strongest, traversed, strict=True)
    }
    title = "Latents from -3 to 3 standard deviations"
    files.write_bytes(path / "traversal.png", grid(rows, title))


@functools.partial(jax.jit, static_argnames="model")
def _decoded(
    model: nn.Module,
    variables: Variables,
    source: DataSource,
    latents: jax.Array,
    values: jax.Array,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Images and reconstructions `[B, H, W, C]`, and the first image's traversal `[L, B, ...]`."""
    images, _ = source.batch(jax.random.key(_KEY), _IMAGES)
    out: Any = model.apply(variables, images)
    first: Any = model.apply(variables, images[:1], method="latents")

    def traverse(i: jax.Array, values: jax.Array) -> Any:
        z = jnp.tile(first, (_IMAGES, 1)).at[:, i].set(values)
        return model.apply(variables, z, method="decode")

    return images, out.reconstruction, jax.vmap(traverse)(latents, values)


def grid(rows: Mapping[str, np.ndarray], title: str) -> bytes:
    """A labelled row of images `[B, H, W, C]` each, as PNG."""
    with matplotlib.rc_context({"font.size": 7}):
        height = 0.55 * len(rows) + 0.3
        figure = Figure(figsize=(6.7, height))
        # Placed by hand: a layout engine takes longer than everything else together.
        axes = figure.add_axes((0.16, 0.0, 0.84, 1 - 0.25 / height))
        _draw_rows(axes, rows, title)
        return png(figure)


def side_by_side(columns: Sequence[Mapping[str, Mapping[str, np.ndarray]]]) -> bytes:
    """Columns of titled grids, one below the other, every pixel of an image as one of the PNG.

    Args:
      columns: For each its grids by title; all images have one size.
    """
    first = next(iter(next(iter(columns[0].values())).values()))
    with matplotlib.rc_context({"font.size": 7}):
        # Inches; an image has a margin of one pixel.
        image, label, title, gap = (first.shape[1] + 1) / _DPI, 1.1, 0.22, 0.1
        widths = [
            label + gap + image * max(_width(rows) for rows in grids.values()) for grids in columns
        ]
        heights = [
            sum(title + gap + image * len(rows) for rows in grids.values()) for grids in columns
        ]
        width, height = sum(widths), max(heights)
        figure = Figure(figsize=(width, height))
        left = 0.0
        for grids, column_width in zip(columns, widths, strict=True):
            top = height
            for name, rows in grids.items():
                across, down = image * _width(rows), image * len(rows)
                top -= title + down
                box = ((left + label) / width, top / height, across / width, down / height)
                _draw_rows(figure.add_axes(box), rows, name)
                top -= gap
            left += column_width
        return png(figure)


def _width(rows: Mapping[str, np.ndarray]) -> int:
    """Images in each row."""
    return len(next(iter(rows.values())))


def _draw_rows(axes: Axes, rows: Mapping[str, np.ndarray], title: str) -> None:
    """Images `[B, H, W, C]` in rows, with the rows' names."""
    first = next(iter(rows.values()))
    count, height, width, _ = first.shape
    margin = 1  # pixels between images
    canvas = np.ones((len(rows) * (height + margin), count * (width + margin), 3))
    for r, images in enumerate(rows.values()):
        for c, image in enumerate(np.clip(images, 0, 1)):
            top, left = r * (height + margin), c * (width + margin)
            canvas[top : top + height, left : left + width] = image
    axes.imshow(canvas, interpolation="nearest")
    axes.set_title(title)
    axes.set_xticks([])
    axes.set_yticks((np.arange(len(rows)) + 0.5) * (height + margin), list(rows))
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)


def png(figure: Figure) -> bytes:
    """The picture as a file."""
    content = io.BytesIO()
    # The version of matplotlib is left out, so that equal pictures are equal files.
    figure.savefig(content, format="png", dpi=_DPI, metadata={"Software": None})
    return content.getvalue()
