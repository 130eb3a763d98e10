"""Networks written by hand whose edges and gates are known."""

from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from vaejax.models.layers import Site

FIRST = np.array([[1.0, 0.0, 0.5], [0.02, 2.0, 0.5]], np.float32)
SECOND = np.array([[1.0, 1.0], [2.0, 0.5], [0.25, 0.25]], np.float32)
LAST = np.array([[1.0], [2.0]], np.float32)


class Layered(nn.Module):
    """Sites `a [B, 2] = x`, `b [B, 3] = a FIRST`, `c [B, 2] = b SECOND`, and `y = c LAST`.

    No path leads around a site. `activation` is applied to b and c.
    """

    activation: Any = None

    @nn.compact
    def __call__(self, x):
        act = self.activation or (lambda value: value)
        a = Site(name="a")(x)
        b = Site(name="b")(act(a @ FIRST))
        c = Site(name="c")(act(b @ SECOND))
        return c @ LAST


class Gates(nn.Module):
    """Site `u [B, 4] = x`, and `w [B, 3]`: `u0 u1`, `u2 - u3` and `relu(u3)`.

    The first is a gate of units 0 and 1, and there is no other.
    """

    @nn.compact
    def __call__(self, x):
        u = Site(name="u")(x)
        columns = [u[:, 0] * u[:, 1], u[:, 2] - u[:, 3], nn.relu(u[:, 3])]
        return Site(name="w")(jnp.stack(columns, 1)).sum(1)
