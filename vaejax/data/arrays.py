"""A source of images that have labels, in no particular order: your own dataset, or CelebA."""

from __future__ import annotations

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike

from vaejax.data.errors import DataError
from vaejax.data.protocols import Factor
from vaejax.data.sizes import CANVAS, resize
from vaejax.data.storage import Storage, store


@flax.struct.dataclass
class ArraySource:
    """Images and factors of N examples that are given; batches draw from them with replacement.

    A pytree: pass it to jitted functions as an argument, as every source. Factors may be
    correlated, and not every combination of them need exist, so images cannot be asked for by
    factor: interventions on factors need a `Renderable`.

    Attributes:
      images: `[N, H, W, C]`, float32 in [0, 1] or uint8.
      labels: `[N, K]` int32 classes.
      factors: The K factors.
      name: The dataset.
      origin: `"own"` or `"genuine"`.
      halved: Whether images of 64x64 are given as 32x32, the mean over 2x2 blocks.

    Example:
      >>> source = ArraySource.of(np.zeros((5, 8, 8, 1)), [[0, 2], [1, 0], [0, 1], [1, 2], [0, 0]])
      >>> [factor.size for factor in source.factors]
      [2, 3]
      >>> images, factors = source.batch(jax.random.key(0), 16)
      >>> images.shape, factors.shape
      ((16, 8, 8, 1), (16, 2))
    """

    images: Storage
    labels: jax.Array
    factors: tuple[Factor, ...] = flax.struct.field(pytree_node=False)
    name: str = flax.struct.field(pytree_node=False, default="own")
    origin: str = flax.struct.field(pytree_node=False, default="own")
    halved: bool = flax.struct.field(pytree_node=False, default=False)

    @classmethod
    def of(cls, images: ArrayLike, labels: ArrayLike, name: str = "own") -> ArraySource:
        """A source of arrays, with factors `factor_0`, `factor_1` and so on.

        Args:
          images: `[N, H, W, C]` numbers in [0, 1], or uint8, of which 255 is 1.
          labels: `[N, K]` classes, integers from 0, K at least 1.
          name: What to call the dataset.

        Raises:
          DataError: A shape, dtype or range is not the one above.
        """
        given, classes = np.asarray(images), np.asarray(labels)
        if given.ndim != 4 or not given.size or given.dtype.kind not in "biuf":
            raise DataError(
                f"{name}: expected images [N, H, W, C], not empty, got {given.dtype} {given.shape}"
            )
        # `not all` holds for NaN too.
        if given.dtype != np.uint8 and not ((given >= 0) & (given <= 1)).all():
            raise DataError(
                f"{name}: expected images in [0, 1], or uint8, "
                f"got {given.dtype} from {given.min()} to {given.max()}"
            )
        if (
            classes.ndim != 2
            or not classes.size
            or len(classes) != len(given)
            or classes.dtype.kind not in "iu"
        ):
            raise DataError(
                f"{name}: expected integer labels [N, K], N = {len(given)}, "
                f"got {classes.dtype} {classes.shape}"
            )
        if classes.min() < 0:
            raise DataError(f"{name}: expected labels from 0, got {classes.min()}")
        sizes = classes.max(axis=0) + 1
        factors = tuple(Factor(f"factor_{k}", int(size)) for k, size in enumerate(sizes))
        stored = given if given.dtype == np.uint8 else given.astype(np.float32)
        return cls(store(stored), jnp.asarray(classes, jnp.int32), factors, name)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """`(H, W, C)`."""
        _, height, width, channels = self.images.shape
        return (height // 2, width // 2, channels) if self.halved else (height, width, channels)

    @property
    def correlated(self) -> bool:
        """`True`: nothing is known of how the factors were drawn."""
        return True

    def __len__(self) -> int:
        return self.images.shape[0]

    def decode(self, stored: jax.Array) -> jax.Array:
        """One image as it is stored, as float32 in [0, 1]."""
        scale = 255 if stored.dtype == jnp.uint8 else 1
        image = stored.astype(jnp.float32) / scale
        return resize(image, CANVAS // 2) if self.halved else image

    def draw_rows(self, key: jax.Array, n: int) -> tuple[jax.Array, jax.Array]:
        """The examples that `batch` draws: indices `[n]` of images, and their factors `[n, K]`."""
        rows = jax.random.randint(key, (n,), 0, len(self))
        return rows, self.labels[rows]

    def batch(self, key: jax.Array, n: int) -> tuple[jax.Array, jax.Array]:
        """Draws `n` examples uniformly, with replacement.

        Args:
          key: PRNG key.
          n: Number of examples, static under jit.

        Returns:
          Images `[n, H, W, C]` float32 in [0, 1] and their factors `[n, K]` int32.
        """
        rows, factors = self.draw_rows(key, n)
        return jax.vmap(self.decode)(self.images.take(rows)), factors
