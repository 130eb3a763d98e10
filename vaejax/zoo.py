"""The architectures by name: module, objective, and default hyperparameters with their source.

To add one, write its module (if it needs its own), its objective, and a line in `ZOO`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Literal

from flax import linen as nn

from vaejax import objectives
from vaejax.errors import unknown_name
from vaejax.likelihoods import Bernoulli, Likelihood, Normal
from vaejax.models.networks import (
    ConvDecoder,
    ConvEncoder,
    Discriminator,
    GridDecoder,
    GridEncoder,
)
from vaejax.models.vae import VAE, FactorVAE
from vaejax.models.vqvae import VQVAE
from vaejax.training import Recipe

_LIKELIHOODS: dict[str, Likelihood] = {"bernoulli": Bernoulli(), "normal": Normal()}


@dataclasses.dataclass(frozen=True)
class Network:
    """Sizes of the convolutional network that all architectures of the zoo share.

    The defaults are the reference network of Locatello et al. (2019) at 64x64. At 32x32 it has one
    4x4 layer less on either side, so the smallest feature map stays 4x4.

    Attributes:
      image_shape: `(64, 64, C)` or `(32, 32, C)`.
      latent_dim: Latents D of the Gaussian family.
      width: Multiplies the number of channels and of hidden units of encoder and decoder.
      discriminator_width: Units of each of the six layers of FactorVAE's discriminator.
      codebook_size: Codes K of the VQ-VAE.
      code_dim: Dimension of a code of the VQ-VAE.
      likelihood: `"bernoulli"` or `"normal"`.

    Raises:
      ValueError: If the image size is neither 64 nor 32.
    """

    image_shape: tuple[int, int, int] = (64, 64, 1)
    latent_dim: int = 10
    width: float = 1.0
    discriminator_width: int = 1000
    codebook_size: int = 512
    code_dim: int = 64
    likelihood: Literal["bernoulli", "normal"] = "bernoulli"

    def __post_init__(self) -> None:
        """Checks the image size, and makes a tuple of a shape that was read from JSON."""
        object.__setattr__(self, "image_shape", tuple(self.image_shape))
        if self.image_shape[:2] not in ((64, 64), (32, 32)):
            size = "x".join(map(str, self.image_shape[:2]))
            raise ValueError(f"the zoo's networks take 64x64 or 32x32 images, got {size}")

    def scale(self, *widths: int) -> tuple[int, ...]:
        """The widths multiplied by `width`, at least 1."""
        return tuple(max(1, round(self.width * w)) for w in widths)

    @property
    def encoder_widths(self) -> tuple[int, ...]:
        """Channels of the convolutions."""
        return self.scale(32, 32, 64, 64) if self.image_shape[0] == 64 else self.scale(32, 64, 64)

    @property
    def kernel_sizes(self) -> tuple[int, ...]:
        """Kernel sizes of the convolutions."""
        return (4, 4, 2, 2) if self.image_shape[0] == 64 else (4, 2, 2)

    @property
    def decoder_widths(self) -> tuple[int, ...]:
        """Channels of the transposed convolutions but the last."""
        return self.scale(64, 32, 32) if self.image_shape[0] == 64 else self.scale(64, 32)


@dataclasses.dataclass(frozen=True)
class Architecture:
    """One entry of the zoo.

    Attributes:
      build: Makes the Linen module for a network's sizes.
      objective: What it minimises.
      hyper: Default hyperparameters, the keyword arguments of the objective.
      source: Where the defaults come from.
      batches: How many batches of images one step of the objective takes.
    """

    build: Callable[[Network], nn.Module]
    objective: objectives.Objective
    hyper: Mapping[str, float]
    source: str
    batches: int = 1


def _vae(network: Network) -> VAE:
    return VAE(_encoder(network), _decoder(network), _LIKELIHOODS[network.likelihood])


def _factor_vae(network: Network) -> FactorVAE:
    return FactorVAE(
        _encoder(network),
        _decoder(network),
        _LIKELIHOODS[network.likelihood],
        Discriminator((network.discriminator_width,) * 6),
    )


def _vq_vae(network: Network) -> VQVAE:
    return VQVAE(
        GridEncoder(network.code_dim, network.encoder_widths, network.kernel_sizes),
        GridDecoder(network.image_shape, network.decoder_widths, *network.scale(64)),
        network.codebook_size,
        network.code_dim,
        _LIKELIHOODS[network.likelihood],
    )


def _encoder(network: Network) -> ConvEncoder:
    sizes = network.encoder_widths, network.kernel_sizes
    return ConvEncoder(network.latent_dim, *sizes, *network.scale(256))


def _decoder(network: Network) -> ConvDecoder:
    return ConvDecoder(network.image_shape, network.decoder_widths, *network.scale(64, 256))


ZOO: Mapping[str, Architecture] = {
    "vae": Architecture(_vae, objectives.beta_vae, {"beta": 1.0}, "Kingma and Welling 2013"),
    "beta_vae": Architecture(_vae, objectives.beta_vae, {"beta": 4.0}, "Higgins et al. 2017"),
    "factor_vae": Architecture(
        _factor_vae, objectives.factor_vae, {"gamma": 40.0}, "Kim and Mnih 2018", batches=2
    ),
    "beta_tc_vae": Architecture(_vae, objectives.beta_tc_vae, {"beta": 6.0}, "Chen et al. 2018"),
    "dip_vae_ii": Architecture(
        _vae, objectives.dip_vae_ii, {"lambda_od": 10.0, "lambda_d": 10.0}, "Kumar et al. 2018"
    ),
    "vq_vae": Architecture(
        _vq_vae, objectives.vq_vae, {"commitment": 0.25}, "van den Oord et al. 2017"
    ),
}


def architecture(name: str) -> Architecture:
    """The entry of the zoo with this name.

    Raises:
      ValueError: If there is none; the message names the nearest.
    """
    if name not in ZOO:
        raise ValueError(unknown_name("model", name, ZOO))
    return ZOO[name]


def recipe(name: str, network: Network, batch_size: int = 64) -> Recipe:
    """How to train an architecture of the zoo at a network's sizes.

    Args:
      name: Name of the architecture.
      network: Sizes of its networks.
      batch_size: Examples per step.

    Returns:
      The recipe for `vaejax.init` and `vaejax.fit`; architectures that differ in the values of
      hyperparameters alone have equal recipes, and can train in one program.

    Raises:
      ValueError: If there is no such architecture.

    Example:
      >>> vae, beta_vae = (recipe(name, Network()) for name in ("vae", "beta_vae"))
      >>> vae == beta_vae
      True
    """
    entry = architecture(name)
    return Recipe(entry.build(network), entry.objective, batch_size, entry.batches)
