"""Layers whose outputs are named sites.

A *site* is the output of a module call, named by the module's path (`encoder/conv_1`): that is
where interventions read and write. Activation functions are no modules, so each layer here applies
its own: `encoder/conv_1` is the activation that the next layer sees, `encoder/conv_1/pre` the
value before the nonlinearity.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import linen as nn

from vaejax import convolution

Activation = Callable[[jax.Array], jax.Array]

# The initialiser of the reference implementation (TensorFlow 1's default for its layers).
_kernel_init = nn.initializers.glorot_uniform()


class Site(nn.Module):
    """The identity, there to give a tensor a name."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Returns `x`."""
        return x


class Dense(nn.Module):
    """A linear map followed by an activation; parameters as `flax.linen.Dense`.

    Attributes:
      features: Number of outputs.
      activation: Applied to the result; None for a linear layer, which has no `pre` site.
    """

    features: int
    activation: Activation | None = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps `[..., C]` to `[..., features]`."""
        kernel = _parameter(self, "kernel", _kernel_init, (x.shape[-1], self.features))
        bias = _parameter(self, "bias", nn.initializers.zeros, (self.features,))
        return _activate(x @ kernel + bias, self.activation)


class Conv(nn.Module):
    """Convolution with stride 2, SAME padding: halves height and width.

    Parameters as `flax.linen.Conv`.

    Attributes:
      features: Number of output channels.
      kernel_size: Even; 4 and 2 in the reference network.
      activation: Applied to the result; None for a linear layer, which has no `pre` site.
    """

    features: int
    kernel_size: int = 4
    activation: Activation | None = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps `[B, H, W, C]` to `[B, H / 2, W / 2, features]`."""
        shape = (self.kernel_size, self.kernel_size, x.shape[-1], self.features)
        kernel = _parameter(self, "kernel", _kernel_init, shape)
        bias = _parameter(self, "bias", nn.initializers.zeros, (self.features,))
        return _activate(self.convolve(x, kernel) + bias, self.activation)

    def convolve(self, x: jax.Array, kernel: jax.Array) -> jax.Array:
        """The convolution alone."""
        return convolution.conv(x, kernel)


class ConvTranspose(Conv):
    """Transposed convolution, stride 2, SAME padding: doubles height and width.

    Attributes as `Conv`, parameters as `flax.linen.ConvTranspose`.
    """

    def convolve(self, x: jax.Array, kernel: jax.Array) -> jax.Array:
        """The convolution alone, `[B, H, W, C]` to `[B, 2 H, 2 W, features]`."""
        return convolution.conv_transpose(x, kernel)


def _parameter(
    module: nn.Module, name: str, init: Callable[..., jax.Array], shape: tuple[int, ...]
) -> jax.Array:
    """`module.param`, which traces the initializer each time to learn the shape that it would have.

    That takes two thirds of the time to trace a network.
    """
    if module.has_variable("params", name):
        there: jax.Array = module.get_variable("params", name)
        if jnp.shape(there) == shape:
            return there
    return module.param(name, init, shape)


def _activate(x: jax.Array, activation: Activation | None) -> jax.Array:
    return x if activation is None else activation(Site(name="pre")(x))


def relu(x: jax.Array) -> jax.Array:
    """`max(x, 0)`; a plain function, so that modules holding it compare equal and hash.

    Its derivative at 0 is 0. That of `jnp.maximum` would be a half, by way of a division.
    """
    return jnp.where(x <= 0, 0, x)  # in this order, NaN stays what it is


def leaky_relu(x: jax.Array) -> jax.Array:
    """`max(x, 0.2 x)`, the slope of the reference implementation of FactorVAE."""
    return jnp.where(x >= 0, x, 0.2 * x)
