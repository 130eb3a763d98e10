"""Flax Linen modules: layers, networks, the Gaussian VAE family and VQ-VAE."""

from vaejax.models.layers import Conv, ConvTranspose, Dense, Site
from vaejax.models.networks import (
    ConvDecoder,
    ConvEncoder,
    Discriminator,
    GridDecoder,
    GridEncoder,
    MLPDecoder,
    MLPEncoder,
)
from vaejax.models.vae import VAE, FactorVAE, reparameterize
from vaejax.models.vqvae import VQVAE, Codebook, nearest, perplexity, update_codebook

__all__ = [
    "VAE",
    "VQVAE",
    "Codebook",
    "Conv",
    "ConvDecoder",
    "ConvEncoder",
    "ConvTranspose",
    "Dense",
    "Discriminator",
    "FactorVAE",
    "GridDecoder",
    "GridEncoder",
    "MLPDecoder",
    "MLPEncoder",
    "Site",
    "nearest",
    "perplexity",
    "reparameterize",
    "update_codebook",
]
