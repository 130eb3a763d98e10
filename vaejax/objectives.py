"""What each architecture minimises: pure functions from a batch to one loss per example.

The terms (`kl_divergence`, `minibatch_total_correlation`, ...) are plain array functions. An
`Objective` puts them together for one architecture, with the signature that `vaejax.training`
calls:

    objective(model, variables, images, key, **hyper) -> Loss

`hyper` are scalars, possibly traced, so that runs with different values share one program.
Reconstruction terms are summed over pixels, everything is in nats.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import struct

from vaejax.models.vae import reparameterize
from vaejax.models.vqvae import perplexity, update_codebook
from vaejax.types import Gaussian, VAEOutput, Variables


@struct.dataclass
class Loss:
    """What an objective computed for a batch.

    Attributes:
      per_example: The loss of each example, `[B]`; its mean is minimised.
      terms: Named scalars for progress and logs, means over the batch.
      state: The collections other than `params` after this batch (a moved codebook).
      auxiliary: Loss of parts trained beside the model (a discriminator), `[B]`. Its gradient is
        confined to those parts, so that the sum of both losses trains each on its own.
    """

    per_example: jax.Array
    terms: dict[str, jax.Array]
    state: Variables = struct.field(default_factory=dict)
    auxiliary: jax.Array | None = None


# (model, variables, images [B, H, W, C], key, **hyper) -> Loss
Objective = Callable[..., Loss]


def kl_divergence(posterior: Gaussian) -> jax.Array:
    """KL from each latent's posterior to the standard normal, `[B, D]`, in nats.

    `0.5 (mean^2 + exp(logvar) - 1 - logvar)`.

    Args:
      posterior: Mean and logvar, each `[B, D]`.

    Returns:
      `[B, D]`; the sum over D is the KL divergence of the example.

    Example:
      >>> print(kl_divergence(Gaussian(jnp.array([[0.0, 2.0]]), jnp.zeros((1, 2)))))
      [[0. 2.]]
    """
    mean, logvar = posterior.mean, posterior.logvar
    return 0.5 * (mean**2 + jnp.exp(logvar) - 1 - logvar)


def log_density(z: jax.Array, posterior: Gaussian) -> jax.Array:
    """Log density of a diagonal Gaussian for each latent, in nats; broadcasts."""
    mean, logvar = posterior.mean, posterior.logvar
    return -0.5 * (math.log(2 * math.pi) + logvar + (z - mean) ** 2 * jnp.exp(-logvar))


def minibatch_total_correlation(z: jax.Array, posterior: Gaussian) -> jax.Array:
    """Minibatch estimate of `log q(z) - sum_j log q(z_j)` at each sample, `[B]`, in nats.

    The batch stands for the dataset: `q(z) = 1/B sum_b q(z | x_b)`. The estimate is biased, by
    tens of nats for common batch sizes: use it to train, never as a measurement of total
    correlation. It differs from the minibatch-weighted sampling of Chen et al. by the constant
    `(D - 1) log N` for a dataset of N examples, so the gradients are the same.

    Args:
      z: Samples, `[B, D]`, one from each posterior.
      posterior: The batch's posteriors, mean and logvar `[B, D]`.

    Returns:
      `[B]`.

    References:
      Chen et al., `Isolating Sources of Disentanglement in VAEs
      <https://arxiv.org/abs/1802.04942>`_, 2018, equation S5.
    """
    # [B, B, D]: the density of each sample under the posterior of each example.
    log_q = log_density(z[:, None], jax.tree.map(lambda leaf: leaf[None], posterior))
    log_batch = math.log(len(z))
    log_joint = jax.nn.logsumexp(log_q.sum(-1), axis=1) - log_batch
    log_marginals = jax.nn.logsumexp(log_q, axis=1) - log_batch
    return log_joint - log_marginals.sum(-1)


def aggregate_covariance(posterior: Gaussian) -> jax.Array:
    """Covariance of the aggregate posterior of a batch, `Cov[mean] + E[diag(var)]`, `[D, D]`."""
    centred = posterior.mean - posterior.mean.mean(0)
    covariance = centred.T @ centred / len(centred)
    return covariance + jnp.diag(jnp.exp(posterior.logvar).mean(0))


def permute_codes(key: jax.Array, z: jax.Array) -> jax.Array:
    """Shuffles each latent over the batch by itself: samples of the product of marginals.

    Args:
      key: PRNG key.
      z: Codes, `[B, D]`.

    Returns:
      `[B, D]`; every column holds the same values as before, in an order of its own.
    """
    return jax.random.permutation(key, z, axis=0, independent=True)


def density_ratio(logits: jax.Array) -> jax.Array:
    """`logit0 - logit1`, the discriminator's estimate of `log q(z) / prod_j q(z_j)`, `[B]`."""
    return logits[:, 0] - logits[:, 1]


def discriminator_loss(joint: jax.Array, permuted: jax.Array) -> jax.Array:
    """Cross-entropy of telling codes (class 0) from permuted codes (class 1), in nats, `[B]`.

    Args:
      joint: Logits for codes of the aggregate posterior, `[B, 2]`.
      permuted: Logits for permuted codes, `[B, 2]`.

    Example:
      >>> undecided = jnp.zeros((1, 2))
      >>> print(discriminator_loss(undecided, undecided))  # log 2
      [0.6931472]
    """
    return 0.5 * (jax.nn.softplus(-density_ratio(joint)) + jax.nn.softplus(density_ratio(permuted)))


def beta_vae(
    model: nn.Module, variables: Variables, images: jax.Array, key: jax.Array, *, beta: jax.Array
) -> Loss:
    """`rec + beta KL`; with beta = 1 the negative evidence lower bound, the VAE's objective.

    References:
      Kingma and Welling, `Auto-Encoding Variational Bayes
      <https://arxiv.org/abs/1312.6114>`_, 2013.
      Higgins et al., `beta-VAE <https://openreview.net/forum?id=Sy2fzU9gl>`_, 2017.
    """
    out = _apply(model, variables, images, key)
    rec, kl = _elbo_terms(model, out, images)
    return Loss(rec + beta * kl, _means(reconstruction=rec, kl=kl))


def beta_tc_vae(
    model: nn.Module,
    variables: Variables,
    images: jax.Array,
    key: jax.Array,
    *,
    beta: jax.Array,
) -> Loss:
    """`rec + KL + (beta - 1) TC`, with the minibatch estimate of the total correlation.

    References:
      Chen et al., `Isolating Sources of Disentanglement in VAEs
      <https://arxiv.org/abs/1802.04942>`_, 2018.
    """
    out = _apply(model, variables, images, key)
    rec, kl = _elbo_terms(model, out, images)
    tc = minibatch_total_correlation(out.z, out.posterior)
    return Loss(rec + kl + (beta - 1) * tc, _means(reconstruction=rec, kl=kl, tc=tc))


def dip_vae_ii(
    model: nn.Module,
    variables: Variables,
    images: jax.Array,
    key: jax.Array,
    *,
    lambda_od: jax.Array,
    lambda_d: jax.Array,
) -> Loss:
    """`rec + KL + lambda_od sum_{i != j} C_ij^2 + lambda_d sum_i (C_ii - 1)^2`.

    C is the covariance of the aggregate posterior, estimated on the batch: the penalty is one
    number that every example of the batch carries.

    References:
      Kumar et al., `Variational Inference of Disentangled Latent Concepts from Unlabeled
      Observations <https://arxiv.org/abs/1711.00848>`_, 2018.
    """
    out = _apply(model, variables, images, key)
    rec, kl = _elbo_terms(model, out, images)
    covariance = aggregate_covariance(out.posterior)
    diagonal = jnp.diag(covariance)
    off_diagonal = jnp.sum(covariance**2) - jnp.sum(diagonal**2)
    penalty = lambda_od * off_diagonal + lambda_d * jnp.sum((diagonal - 1) ** 2)
    return Loss(rec + kl + penalty, _means(reconstruction=rec, kl=kl, dip=penalty))


def factor_vae(
    model: nn.Module, variables: Variables, images: jax.Array, key: jax.Array, *, gamma: jax.Array
) -> Loss:
    """`rec + KL + gamma TC`, the TC estimated by a discriminator, which is trained beside it.

    The first half of the batch gives the loss; the codes of the second half are permuted and
    shown to the discriminator as samples of the product of marginals. Each loss holds the other's
    part fixed, so their sum trains both.

    Args:
      model: A `FactorVAE`.
      variables: Its variables.
      images: Two batches, `[2 B, H, W, C]`.
      key: PRNG key.
      gamma: Weight of the total correlation.

    Returns:
      A loss of `[B]`, with the discriminator's as `auxiliary`.

    References:
      Kim and Mnih, `Disentangling by Factorising <https://arxiv.org/abs/1802.05983>`_, 2018,
      algorithm 2.
    """
    key, second_key, permutation_key = jax.random.split(key, 3)
    first, second = jnp.split(images, 2)
    out = _apply(model, variables, first, key)
    rec, kl = _elbo_terms(model, out, first)
    frozen = _freeze(variables, "discriminator")
    tc = density_ratio(_apply(model, frozen, out.z, method="discriminate"))

    z = jax.lax.stop_gradient(out.z)
    # The generator takes no gradient from here, and needs no decoder for the second batch.
    second_posterior = _apply(model, jax.lax.stop_gradient(variables), second, method="encode")
    permuted = permute_codes(permutation_key, reparameterize(second_key, second_posterior))
    logits = _apply(model, variables, jnp.concatenate([z, permuted]), method="discriminate")
    auxiliary = discriminator_loss(*jnp.split(logits, 2))
    terms = _means(reconstruction=rec, kl=kl, tc=tc, discriminator=auxiliary)
    return Loss(rec + kl + gamma * tc, terms, auxiliary=auxiliary)


def vq_vae(
    model: nn.Module,
    variables: Variables,
    images: jax.Array,
    key: jax.Array,
    *,
    commitment: jax.Array,
) -> Loss:
    """`rec + commitment ||encoded - sg(code)||^2`, summed over positions; the codebook by EMA.

    References:
      van den Oord et al., `Neural Discrete Representation Learning
      <https://arxiv.org/abs/1711.00937>`_, 2017.
    """
    out = _apply(model, variables, images)
    rec = model.likelihood.negative_log_likelihood(images, out.logits)
    distance = out.encoded - jax.lax.stop_gradient(out.quantized)
    commit = jnp.sum(distance**2, axis=(1, 2))
    codebook = variables["codebook"]["codes"]
    vectors = jax.lax.stop_gradient(out.encoded).reshape(-1, out.encoded.shape[-1])
    codebook = update_codebook(codebook, vectors, out.codes.reshape(-1), key)
    terms = _means(reconstruction=rec, commitment=commit)
    terms["perplexity"] = perplexity(out.codes, len(codebook.counts))
    return Loss(rec + commitment * commit, terms, state={"codebook": {"codes": codebook}})


def _apply(model: nn.Module, *args: Any, method: str | None = None) -> Any:
    return model.apply(*args, method=method)


def _elbo_terms(model: nn.Module, out: VAEOutput, images: jax.Array) -> tuple[jax.Array, jax.Array]:
    rec = model.likelihood.negative_log_likelihood(images, out.logits)
    return rec, kl_divergence(out.posterior).sum(-1)


def _means(**terms: jax.Array) -> dict[str, jax.Array]:
    return {name: term.mean() for name, term in terms.items()}


def _freeze(variables: Variables, name: str) -> Variables:
    """The variables with no gradient into the parameters of one submodule."""
    frozen = jax.lax.stop_gradient(variables["params"][name])
    return {**variables, "params": {**variables["params"], name: frozen}}
