"""The records that models return. All are pytrees; `B` is the batch, `D` the number of latents."""

from __future__ import annotations

from typing import Any

import jax
from flax import struct

# Everything `Module.apply` takes as its first argument: `{"params": ..., "codebook": ...}`.
Variables = dict[str, Any]


@struct.dataclass
class Gaussian:
    """A diagonal Gaussian over the latents, `q(z | x) = N(mean, diag(exp(logvar)))`.

    Attributes:
      mean: `[B, D]`.
      logvar: Logarithm of the variance, `[B, D]`.
    """

    mean: jax.Array
    logvar: jax.Array


@struct.dataclass
class VAEOutput:
    """One pass of a Gaussian VAE.

    Attributes:
      posterior: `q(z | x)`.
      z: The latents that were decoded, `[B, D]`.
      logits: Output of the decoder before its likelihood's link function, `[B, H, W, C]`.
      reconstruction: Decoded means, `[B, H, W, C]`.
    """

    posterior: Gaussian
    z: jax.Array
    logits: jax.Array
    reconstruction: jax.Array


@struct.dataclass
class VQOutput:
    """One pass of a VQ-VAE with a grid of `P` positions and codes of dimension `d`.

    Attributes:
      encoded: Output of the encoder, before quantisation, `[B, P, d]`.
      codes: Index of the nearest codebook entry, `[B, P]` int32.
      quantized: That entry, `[B, P, d]`; its gradient goes straight through to `encoded`.
      logits: Output of the decoder before its likelihood's link function, `[B, H, W, C]`.
      reconstruction: Decoded means, `[B, H, W, C]`.
    """

    encoded: jax.Array
    codes: jax.Array
    quantized: jax.Array
    logits: jax.Array
    reconstruction: jax.Array
