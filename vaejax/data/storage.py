"""Where the images of a source are kept: on the device, or on the host for those too large for it.

Both answer `take(rows)` under `jit` and `vmap`. What fits on the device belongs there. `fit` feeds
a program from the host ahead of time; anywhere else, every `take` waits for the host.
"""

from __future__ import annotations

import dataclasses

import flax.struct
import jax
import numpy as np

_CPU_LIMIT = 2 << 30  # on a CPU the page cache of the system serves as well as memory of ours
_DEVICE_SHARE = 0.5  # of an accelerator's memory; the rest is for training


@flax.struct.dataclass
class OnDevice:
    """Images in the device's memory.

    Attributes:
      array: `[N, ...]`.
    """

    array: jax.Array

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the array."""
        return self.array.shape

    @property
    def dtype(self) -> np.dtype:
        """Of the array."""
        return np.dtype(self.array.dtype)

    def take(self, rows: jax.Array) -> jax.Array:
        """The images `[*rows.shape, ...]` at these indices."""
        return self.array[rows]


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True, eq=False)
class OnHost:
    """Images in the host's memory or, better, in a mapped file.

    A pytree without arrays: jitted functions call back to the host for their rows.

    Attributes:
      array: `[N, ...]`, never written to.
    """

    array: np.ndarray

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the array."""
        return self.array.shape

    @property
    def dtype(self) -> np.dtype:
        """Of the array."""
        return self.array.dtype

    def take(self, rows: jax.Array) -> jax.Array:
        """The images `[*rows.shape, ...]` at these indices."""
        shape = (*rows.shape, *self.shape[1:])
        return jax.pure_callback(
            lambda rows: self.array[np.asarray(rows)],
            jax.ShapeDtypeStruct(shape, self.dtype),
            rows,
            vmap_method="broadcast_all",
        )


Storage = OnDevice | OnHost


def store(array: np.ndarray) -> Storage:
    """Puts images on the device if they fit, else leaves them where they are.

    What fits is half of the device's memory; on a CPU, 2 GiB.

    Args:
      array: `[N, ...]`, a mapped file if it is large.
    """
    stats = jax.local_devices()[0].memory_stats() or {}
    limit = _DEVICE_SHARE * stats["bytes_limit"] if "bytes_limit" in stats else _CPU_LIMIT
    if array.nbytes > limit:
        return OnHost(array)
    # device_put takes one copy fewer than jnp.asarray.
    return OnDevice(jax.device_put(np.asarray(array)))
