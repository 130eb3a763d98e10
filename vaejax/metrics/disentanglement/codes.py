"""Codes of a VQ-VAE as numbers."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray


def pooled_codes(codes: ArrayLike, size: int) -> NDArray[np.float64]:
    """How much of an image each entry of the codebook makes up, wherever it is [R].

    Positions of a grid of codes are latents too (`discrete=True`), but a thing that moves changes
    all of them; pooled over positions, an entry stands for what is in the image and not where.

    Args:
      codes: `[N, ...]` integer codes of N images, `0 .. size - 1`.
      size: Entries of the codebook.

    Returns:
      `[N, size]`, the share of an image's positions that hold each entry; rows sum to 1. An entry
      that is never used is a dead latent.

    Raises:
      ValueError: A code is not an integer from 0 to `size - 1`.

    Examples:
      >>> pooled_codes([[0, 1, 1, 1], [2, 2, 0, 0]], size=3)
      array([[0.25, 0.75, 0.  ],
             [0.5 , 0.  , 0.5 ]])
    """
    numbers = np.asarray(codes)
    if numbers.ndim < 2 or numbers.size == 0 or numbers.dtype.kind not in "iu":
        raise ValueError(f"expected integer codes [N, ...], got {numbers.dtype} {numbers.shape}")
    numbers = numbers.reshape(len(numbers), -1)
    if numbers.min() < 0 or numbers.max() >= size:
        raise ValueError(
            f"expected codes from 0 to {size - 1}, got {numbers.min()} to {numbers.max()}"
        )
    cells = np.arange(len(numbers))[:, None] * size + numbers
    counts = np.bincount(cells.ravel(), minlength=len(numbers) * size)
    return counts.reshape(len(numbers), size) / numbers.shape[1]
