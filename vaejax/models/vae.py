"""The Gaussian VAE, and FactorVAE, which adds a discriminator to it."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import linen as nn

from vaejax.likelihoods import Bernoulli, Likelihood
from vaejax.models.layers import Site
from vaejax.types import Gaussian, VAEOutput


def reparameterize(key: jax.Array, posterior: Gaussian) -> jax.Array:
    """Draws `z = mean + exp(logvar / 2) * noise`, differentiable in the posterior.

    Args:
      key: PRNG key.
      posterior: Mean and logvar, each `[B, D]`.

    Returns:
      One sample per example, `[B, D]`.

    References:
      Kingma and Welling, `Auto-Encoding Variational Bayes
      <https://arxiv.org/abs/1312.6114>`_, 2013.

    Example:
      >>> certain = Gaussian(mean=jnp.ones((1, 2)), logvar=jnp.full((1, 2), -jnp.inf))
      >>> print(reparameterize(jax.random.key(0), certain))
      [[1. 1.]]
    """
    noise = jax.random.normal(key, posterior.mean.shape, posterior.mean.dtype)
    return posterior.mean + jnp.exp(0.5 * posterior.logvar) * noise


class VAE(nn.Module):
    """A VAE with a Gaussian posterior, from any encoder and decoder.

    Sites: those of the encoder and decoder, `z`, and `reconstruction`.

    Attributes:
      encoder: Module from images `[B, ...]` to a `Gaussian`.
      decoder: Module from latents `[B, D]` to logits `[B, ...]`.
      likelihood: Turns logits into decoded means and log-likelihoods.

    Example:
      >>> from vaejax.models import MLPDecoder, MLPEncoder
      >>> model = VAE(MLPEncoder(latent_dim=2), MLPDecoder(output_shape=(5,)))
      >>> x, key = jnp.zeros((3, 5)), jax.random.key(0)
      >>> variables = model.init(key, x, key)
      >>> model.apply(variables, x, key).reconstruction.shape
      (3, 5)
      >>> model.apply(variables, jnp.zeros((7, 2)), method="decode").shape
      (7, 5)
    """

    encoder: nn.Module
    decoder: nn.Module
    likelihood: Likelihood = Bernoulli()

    def setup(self) -> None:
        """Names the latents and the decoded means."""
        self.z = Site()
        self.reconstruction = Site()

    def __call__(self, x: jax.Array, key: jax.Array | None = None) -> VAEOutput:
        """Encodes, samples and decodes `x [B, ...]`; without a key `z` is the posterior mean."""
        posterior = self.encode(x)
        z = self.z(posterior.mean if key is None else reparameterize(key, posterior))
        logits = self.decoder(z)
        reconstruction = self.reconstruction(self.likelihood.mean(logits))
        return VAEOutput(posterior, z, logits, reconstruction)

    def encode(self, x: jax.Array) -> Gaussian:
        """The posterior `q(z | x)` of images `[B, ...]`."""
        return self.encoder(x)

    def latents(self, x: jax.Array) -> jax.Array:
        """The representation `[B, D]` that is measured and intervened on: the posterior mean."""
        return self.encode(x).mean

    def logits(self, z: jax.Array) -> jax.Array:
        """The decoder's logits for latents `[B, D]`."""
        return self.decoder(self.z(z))

    def decode(self, z: jax.Array) -> jax.Array:
        """Decoded means, e.g. pixel intensities in [0, 1], for latents `[B, D]`."""
        return self.reconstruction(self.likelihood.mean(self.logits(z)))


class FactorVAE(VAE):
    """A VAE that carries the discriminator of its total correlation penalty.

    Attributes:
      discriminator: Module from latents `[B, D]` to two logits `[B, 2]`: class 0 is the aggregate
        posterior, class 1 the product of its marginals.

    References:
      Kim and Mnih, `Disentangling by Factorising <https://arxiv.org/abs/1802.05983>`_, 2018.
    """

    discriminator: nn.Module | None = None

    def __call__(self, x: jax.Array, key: jax.Array | None = None) -> VAEOutput:
        """As `VAE`; the discriminator takes no part in it."""
        out = super().__call__(x, key)
        if self.is_initializing():
            self.discriminate(out.z)
        return out

    def discriminate(self, z: jax.Array) -> jax.Array:
        """Logits `[B, 2]` of latents `[B, D]`."""
        assert self.discriminator is not None
        return self.discriminator(z)
