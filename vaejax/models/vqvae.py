"""VQ-VAE: a grid of discrete codes, with a codebook learnt by moving averages."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import struct

from vaejax.likelihoods import Bernoulli, Likelihood
from vaejax.models.layers import Site
from vaejax.types import VQOutput


@struct.dataclass
class Codebook:
    """K code vectors and the moving averages that they are learnt from.

    Attributes:
      embedding: The codes, `[K, d]`.
      counts: Moving average of how many vectors of a batch a code is nearest to, `[K]`.
      sums: Moving average of the sum of those vectors, `[K, d]`.
    """

    embedding: jax.Array
    counts: jax.Array
    sums: jax.Array

    @classmethod
    def create(cls, key: jax.Array, size: int, dim: int) -> Codebook:
        """Draws `size` codes of dimension `dim` from a standard normal.

        Their counts are zero, so the first update moves every code onto the first batch.
        """
        embedding = jax.random.normal(key, (size, dim))
        return cls(embedding, jnp.zeros(size), jnp.zeros((size, dim)))


def nearest(embedding: jax.Array, vectors: jax.Array) -> jax.Array:
    """Index of the code nearest to each vector, the lowest of those equally near.

    Args:
      embedding: The codes, `[K, d]`.
      vectors: `[..., d]`.

    Returns:
      `[...]` int32, by Euclidean distance.

    Example:
      >>> print(nearest(jnp.array([[0.0], [1.0]]), jnp.array([[0.2], [0.9]])))
      [0 1]
    """
    # |v - e|^2 up to |v|^2, which is the same for every code.
    squares = jnp.sum(embedding**2, -1)
    return jnp.argmin(squares - 2 * vectors @ embedding.T, -1).astype(jnp.int32)


def update_codebook(
    codebook: Codebook,
    vectors: jax.Array,
    codes: jax.Array,
    key: jax.Array,
    *,
    decay: float = 0.99,
    revive_below: float = 0.05,
) -> Codebook:
    """One step of the moving averages; codes that nobody uses restart at a random vector.

    `counts <- decay counts + (1 - decay) n`, `sums <- decay sums + (1 - decay) s` and
    `embedding = sums / counts`, where `n [K]` and `s [K, d]` are the number and the sum of this
    batch's vectors for each code.

    Args:
      codebook: The codebook before the step.
      vectors: Encoder outputs of a batch, `[N, d]`.
      codes: Their nearest codes, `[N]`.
      key: Draws the vectors at which dead codes restart.
      decay: Decay of the moving averages; 0.99 in van den Oord et al.
      revive_below: A code is dead when its count falls below this. From the count of 1 that a
        restarted code gets, 0.05 is reached after 300 unused steps.

    Returns:
      The codebook after the step.

    References:
      van den Oord et al., `Neural Discrete Representation Learning
      <https://arxiv.org/abs/1711.00937>`_, 2017, appendix A.1. Restarting dead codes follows
      Dhariwal et al., `Jukebox <https://arxiv.org/abs/2005.00341>`_, 2020, section 3.1.
    """
    assigned = jax.nn.one_hot(codes, len(codebook.counts), dtype=vectors.dtype)
    counts = decay * codebook.counts + (1 - decay) * assigned.sum(0)
    sums = decay * codebook.sums + (1 - decay) * (assigned.T @ vectors)
    restart = vectors[jax.random.randint(key, counts.shape, 0, len(vectors))]
    dead = counts < revive_below
    counts = jnp.where(dead, 1.0, counts)
    sums = jnp.where(dead[:, None], restart, sums)
    return Codebook(sums / counts[:, None], counts, sums)


def perplexity(codes: jax.Array, size: int) -> jax.Array:
    """`exp` of the entropy of the codes' frequencies: how many of `size` codes are in use, `[]`.

    Example:
      >>> print(perplexity(jnp.array([0, 1, 0, 1]), size=512))
      2.0
    """
    frequency = jnp.bincount(codes.reshape(-1), length=size) / codes.size
    return jnp.exp(jax.scipy.special.entr(frequency).sum())


class VQVAE(nn.Module):
    """A VQ-VAE from any encoder to, and decoder from, a grid of vectors.

    The codebook is in the collection `codebook` and is not trained by gradients:
    `update_codebook` moves it, called by the objective.

    Latents in the sense of interventions are the `D = P d` coordinates of the encoder's output
    before quantisation: `latents` gives them and `decode` quantises them first.

    Sites: those of the encoder and decoder, `encoded`, `quantized`, and `reconstruction`.

    Attributes:
      encoder: Module from images `[B, ...]` to `[B, P, d]`.
      decoder: Module from `[B, P, d]` to logits `[B, ...]`.
      codebook_size: Number of codes K.
      code_dim: Dimension d of a code.
      likelihood: Turns logits into decoded means and log-likelihoods.
    """

    encoder: nn.Module
    decoder: nn.Module
    codebook_size: int = 512
    code_dim: int = 64
    likelihood: Likelihood = Bernoulli()

    def setup(self) -> None:
        """Creates the codebook and names the tensors around quantisation."""
        self.encoded = Site()
        self.quantized = Site()
        self.reconstruction = Site()
        self.codebook = self.variable("codebook", "codes", self._new_codebook)

    def _new_codebook(self) -> Codebook:
        return Codebook.create(self.make_rng("params"), self.codebook_size, self.code_dim)

    def __call__(self, x: jax.Array, key: jax.Array | None = None) -> VQOutput:
        """Encodes, quantises and decodes `x [B, ...]`; deterministic, so the key is not used."""
        del key
        encoded = self.encode(x)
        codes, quantized = self.quantize(encoded)
        logits = self.decoder(quantized)
        reconstruction = self.reconstruction(self.likelihood.mean(logits))
        return VQOutput(encoded, codes, quantized, logits, reconstruction)

    def encode(self, x: jax.Array) -> jax.Array:
        """The encoder's output before quantisation, `[B, P, d]`, for images `[B, ...]`."""
        return self.encoded(self.encoder(x))

    def quantize(self, encoded: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Nearest codes `[B, P]` and their vectors `[B, P, d]`, with straight-through gradient."""
        codes = nearest(self.codebook.value.embedding, encoded)
        vectors = self.codebook.value.embedding[codes]
        # The difference is exactly zero, so the value is exactly the code's.
        straight_through = vectors + (encoded - jax.lax.stop_gradient(encoded))
        return codes, self.quantized(straight_through)

    def latents(self, x: jax.Array) -> jax.Array:
        """The representation `[B, P d]` that is intervened on: the encoder's output, flattened."""
        encoded = self.encode(x)
        return encoded.reshape(encoded.shape[0], -1)

    def logits(self, z: jax.Array) -> jax.Array:
        """The decoder's logits for latents `[B, P d]`, which are quantised first."""
        _, quantized = self.quantize(z.reshape(z.shape[0], -1, self.code_dim))
        return self.decoder(quantized)

    def decode(self, z: jax.Array) -> jax.Array:
        """Decoded means for latents `[B, P d]`, which are quantised first."""
        return self.reconstruction(self.likelihood.mean(self.logits(z)))

    def decode_quantized(self, quantized: jax.Array) -> jax.Array:
        """Decoded means for vectors `[B, P, d]`, taken as they are."""
        return self.reconstruction(self.likelihood.mean(self.decoder(quantized)))
