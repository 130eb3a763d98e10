"""Encoders and decoders: the reference convolutional pair, and a plain one for vectors.

The convolutional network is the one of Locatello et al. (2019), appendix: four stride-2
convolutions (4x4/32, 4x4/32, 2x2/64, 2x2/64) and a dense layer of 256 up, a dense layer of 256
and one of 1024 and four transposed convolutions (4x4: 64, 32, 32, C) down, ReLU throughout. The
sizes are attributes; `vaejax.models.zoo` derives those of other widths and image sizes.
"""

from __future__ import annotations

import math

import jax
from flax import linen as nn

from vaejax.models.layers import Conv, ConvTranspose, Dense, leaky_relu, relu
from vaejax.types import Gaussian


class ConvEncoder(nn.Module):
    """Images to a Gaussian over the latents.

    Sites: `conv_1 .. conv_n`, `dense`, `mean`, `logvar`.

    Attributes:
      latent_dim: Number of latents D.
      widths: Channels of each convolution.
      kernel_sizes: Kernel size of each convolution.
      hidden: Units of the dense layer.
    """

    latent_dim: int = 10
    widths: tuple[int, ...] = (32, 32, 64, 64)
    kernel_sizes: tuple[int, ...] = (4, 4, 2, 2)
    hidden: int = 256

    @nn.compact
    def __call__(self, x: jax.Array) -> Gaussian:
        """Maps `[B, H, W, C]` to mean and logvar, each `[B, D]`."""
        h = _convolve(x, self.widths, self.kernel_sizes)
        h = Dense(self.hidden, relu, name="dense")(h.reshape(h.shape[0], -1))
        return _gaussian_head(h, self.latent_dim)


class ConvDecoder(nn.Module):
    """Latents to the logits of images.

    Sites: `dense_1`, `dense_2`, `up_1 .. up_n`; the last is the logits.

    Attributes:
      image_shape: `(H, W, C)`; H and W divisible by 2 to the number of layers.
      widths: Channels of each transposed convolution but the last, which has C.
      base_width: Channels of the smallest feature map, which `dense_2` fills.
      hidden: Units of `dense_1`.
    """

    image_shape: tuple[int, int, int]
    widths: tuple[int, ...] = (64, 32, 32)
    base_width: int = 64
    hidden: int = 256

    @nn.compact
    def __call__(self, z: jax.Array) -> jax.Array:
        """Maps `[B, D]` to logits `[B, H, W, C]`."""
        height, width, channels = self.image_shape
        shrink = 2 ** (len(self.widths) + 1)
        base = (height // shrink, width // shrink, self.base_width)
        h = Dense(self.hidden, relu, name="dense_1")(z)
        h = Dense(math.prod(base), relu, name="dense_2")(h)
        return _deconvolve(h.reshape(-1, *base), self.widths, channels)


class GridEncoder(nn.Module):
    """Images to a grid of vectors, for quantisation: the convolutions of `ConvEncoder`.

    Sites: `conv_1 .. conv_n`, `project`.

    Attributes:
      code_dim: Dimension d of each vector.
      widths: Channels of each convolution.
      kernel_sizes: Kernel size of each convolution.
    """

    code_dim: int = 64
    widths: tuple[int, ...] = (32, 32, 64, 64)
    kernel_sizes: tuple[int, ...] = (4, 4, 2, 2)

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps `[B, H, W, C]` to `[B, P, d]`, the positions P of the grid row by row."""
        h = _convolve(x, self.widths, self.kernel_sizes)
        h = Dense(self.code_dim, name="project")(h)
        return h.reshape(h.shape[0], -1, self.code_dim)


class GridDecoder(nn.Module):
    """A grid of vectors to the logits of images: the transposed convolutions of `ConvDecoder`.

    Sites: `expand`, `up_1 .. up_n`; the last is the logits.

    Attributes:
      image_shape: `(H, W, C)`; H and W divisible by 2 to the number of layers.
      widths: Channels of each transposed convolution but the last, which has C.
      base_width: Channels of the smallest feature map, which `expand` fills.
    """

    image_shape: tuple[int, int, int]
    widths: tuple[int, ...] = (64, 32, 32)
    base_width: int = 64

    @nn.compact
    def __call__(self, z: jax.Array) -> jax.Array:
        """Maps `[B, P, d]` to logits `[B, H, W, C]`."""
        height, width, channels = self.image_shape
        shrink = 2 ** (len(self.widths) + 1)
        h = Dense(self.base_width, relu, name="expand")(z)
        h = h.reshape(-1, height // shrink, width // shrink, self.base_width)
        return _deconvolve(h, self.widths, channels)


class MLPEncoder(nn.Module):
    """Vectors, or anything flattened to vectors, to a Gaussian over the latents.

    Sites: `dense_1 .. dense_n`, `mean`, `logvar`.

    Attributes:
      latent_dim: Number of latents D.
      hidden: Units of each dense layer.
    """

    latent_dim: int = 10
    hidden: tuple[int, ...] = (256, 256)

    @nn.compact
    def __call__(self, x: jax.Array) -> Gaussian:
        """Maps `[B, ...]` to mean and logvar, each `[B, D]`."""
        h = x.reshape(x.shape[0], -1)
        for i, units in enumerate(self.hidden, 1):
            h = Dense(units, relu, name=f"dense_{i}")(h)
        return _gaussian_head(h, self.latent_dim)


class MLPDecoder(nn.Module):
    """Latents to the logits of vectors, or of anything that is reshaped from a vector.

    Sites: `dense_1 .. dense_n`, `logits`.

    Attributes:
      output_shape: Shape of one example, `(M,)` for vectors.
      hidden: Units of each dense layer.
    """

    output_shape: tuple[int, ...]
    hidden: tuple[int, ...] = (256, 256)

    @nn.compact
    def __call__(self, z: jax.Array) -> jax.Array:
        """Maps `[B, D]` to logits `[B, *output_shape]`."""
        h = z
        for i, units in enumerate(self.hidden, 1):
            h = Dense(units, relu, name=f"dense_{i}")(h)
        h = Dense(math.prod(self.output_shape), name="logits")(h)
        return h.reshape(-1, *self.output_shape)


class Discriminator(nn.Module):
    """Tells codes of the aggregate posterior (class 0) from permuted ones (class 1).

    Kim and Mnih (2018): six layers of 1000 leaky ReLU units. Sites: `dense_1 .. dense_n`, `logits`.

    Attributes:
      hidden: Units of each dense layer.
    """

    hidden: tuple[int, ...] = (1000,) * 6

    @nn.compact
    def __call__(self, z: jax.Array) -> jax.Array:
        """Maps `[B, D]` to the logits of both classes, `[B, 2]`."""
        h = z
        for i, units in enumerate(self.hidden, 1):
            h = Dense(units, leaky_relu, name=f"dense_{i}")(h)
        return Dense(2, name="logits")(h)


def _convolve(x: jax.Array, widths: tuple[int, ...], kernel_sizes: tuple[int, ...]) -> jax.Array:
    for i, (width, kernel_size) in enumerate(zip(widths, kernel_sizes, strict=True), 1):
        x = Conv(width, kernel_size, relu, name=f"conv_{i}")(x)
    return x


def _deconvolve(h: jax.Array, widths: tuple[int, ...], channels: int) -> jax.Array:
    for i, width in enumerate(widths, 1):
        h = ConvTranspose(width, activation=relu, name=f"up_{i}")(h)
    return ConvTranspose(channels, name=f"up_{len(widths) + 1}")(h)


def _gaussian_head(h: jax.Array, latent_dim: int) -> Gaussian:
    mean = Dense(latent_dim, name="mean")(h)
    logvar = Dense(latent_dim, name="logvar")(h)
    return Gaussian(mean, logvar)
