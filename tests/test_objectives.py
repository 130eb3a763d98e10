"""Objectives: every term against a closed form, scipy, or arithmetic done by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from scipy import integrate, special, stats

from vaejax import Gaussian, objectives
from vaejax.models import VAE, VQVAE, Codebook, Discriminator, FactorVAE, MLPDecoder, MLPEncoder

KEY = jax.random.key(0)
IMAGES = jax.random.uniform(jax.random.key(1), (6, 5))

# A real model on vectors, for identities between losses and for gradients.
MODEL = VAE(MLPEncoder(2, (8,)), MLPDecoder((5,), (8,)))
FACTOR_MODEL = FactorVAE(MODEL.encoder, MODEL.decoder, discriminator=Discriminator((8,)))

init, factor_init = jax.jit(MODEL.init), jax.jit(FACTOR_MODEL.init)


class GivenPosterior(nn.Module):
    """Reads the posterior off its input, so that a test chooses it."""

    def __call__(self, x):
        return Gaussian(*jnp.split(x, 2, axis=1))


class Undecided(nn.Module):
    """Logits of zero: the reconstruction costs log 2 per element, whatever the input in [0, 1]."""

    elements: int

    def __call__(self, z):
        return jnp.zeros((z.shape[0], self.elements))


GIVEN = VAE(GivenPosterior(), Undecided(4))


def posterior_as_images(mean, logvar):
    return jnp.concatenate([jnp.asarray(mean, jnp.float32), jnp.asarray(logvar, jnp.float32)], 1)


def run(objective, model, variables, images, **hyper):
    """The objective, compiled: many small operations compile slowly one at a time."""
    return jax.jit(lambda variables: objective(model, variables, images, KEY, **hyper))(variables)


@pytest.fixture
def variables():
    return init(jax.random.key(2), IMAGES)


@pytest.fixture
def factor_variables():
    return factor_init(jax.random.key(2), IMAGES)


def scipy_kl(mean, logvar):
    """KL from N(mean, exp(logvar)) to N(0, 1), by integration of the definition."""
    q, p = stats.norm(mean, np.exp(logvar / 2)), stats.norm()
    low, high = q.mean() - 12 * q.std(), q.mean() + 12 * q.std()
    return integrate.quad(lambda z: q.pdf(z) * (q.logpdf(z) - p.logpdf(z)), low, high)[0]


@pytest.mark.parametrize(("mean", "logvar"), [(0.0, 0.0), (1.5, -2.0), (-0.7, 1.3), (3.0, -6.0)])
def test_kl_is_the_integral_of_its_definition(mean, logvar):
    posterior = Gaussian(jnp.full((1, 1), mean), jnp.full((1, 1), logvar))
    kl = objectives.kl_divergence(posterior)
    assert kl.shape == (1, 1)
    assert kl[0, 0] == pytest.approx(scipy_kl(mean, logvar), rel=1e-5, abs=1e-6)


def test_log_density_is_that_of_scipy():
    mean, logvar = np.array([[1.0, -2.0]]), np.array([[-3.0, 0.5]])
    z = np.array([[[0.3, 0.1]], [[1.2, 4.0]]])
    density = objectives.log_density(
        jnp.asarray(z, jnp.float32), Gaussian(jnp.float32(mean), jnp.float32(logvar))
    )
    np.testing.assert_allclose(density, stats.norm(mean, np.exp(logvar / 2)).logpdf(z), rtol=1e-5)


def test_the_elbo_is_that_of_scipy_and_beta_weighs_the_kl(variables):
    out = jax.jit(MODEL.apply)(variables, IMAGES, KEY)
    p = special.expit(np.float64(out.logits))
    x = np.float64(IMAGES)
    rec = -(x * np.log(p) + (1 - x) * np.log(1 - p)).sum(1)
    kl = np.vectorize(scipy_kl)(np.float64(out.posterior.mean), np.float64(out.posterior.logvar))
    for beta in (1.0, 4.0):
        loss = run(objectives.beta_vae, MODEL, variables, IMAGES, beta=beta)
        np.testing.assert_allclose(loss.per_example, rec + beta * kl.sum(1), rtol=1e-4)
        assert loss.terms["reconstruction"] == pytest.approx(rec.mean(), rel=1e-4)
        assert loss.terms["kl"] == pytest.approx(kl.sum(1).mean(), rel=1e-4)
    assert loss.auxiliary is None
    assert loss.state == {}


@pytest.mark.parametrize(
    ("objective", "hyper"),
    [
        (objectives.beta_tc_vae, {"beta": 1.0}),
        (objectives.dip_vae_ii, {"lambda_od": 0.0, "lambda_d": 0.0}),
    ],
)
def test_without_its_penalty_an_objective_is_the_elbo(variables, objective, hyper):
    elbo = run(objectives.beta_vae, MODEL, variables, IMAGES, beta=1.0)
    loss = run(objective, MODEL, variables, IMAGES, **hyper)
    np.testing.assert_allclose(loss.per_example, elbo.per_example, rtol=1e-6)


def test_factor_vae_without_its_penalty_is_the_elbo_of_the_first_batch(factor_variables):
    mean = np.random.default_rng(0).normal(size=(6, 2))
    logvar = np.random.default_rng(1).normal(size=(6, 2))
    model = FactorVAE(GIVEN.encoder, GIVEN.decoder, discriminator=Discriminator((8,)))
    images = posterior_as_images(mean, logvar)
    loss = run(objectives.factor_vae, model, factor_variables, images, gamma=0.0)
    expected = 4 * np.log(2) + np.vectorize(scipy_kl)(mean, logvar)[:3].sum(1)
    np.testing.assert_allclose(loss.per_example, expected, rtol=1e-5)
    assert loss.auxiliary.shape == (3,)


# ------------------------------------------------------------------ DIP-VAE


def test_aggregate_covariance_is_that_of_samples():
    rng = np.random.default_rng(0)
    mean, logvar = rng.normal(size=(5, 3)), rng.normal(size=(5, 3))
    covariance = objectives.aggregate_covariance(Gaussian(jnp.float32(mean), jnp.float32(logvar)))
    n = 400_000
    example = rng.integers(0, 5, n)
    z = mean[example] + np.exp(logvar[example] / 2) * rng.normal(size=(n, 3))
    assert covariance.shape == (3, 3)
    # The largest standard error of a variance here is about 0.01.
    np.testing.assert_allclose(covariance, np.cov(z.T), atol=0.04)


def test_the_dip_penalty_by_hand():
    mean = [[1.0, 2.0], [-1.0, -2.0]]
    variance = np.array([[1.0, 2.0], [3.0, 2.0]])
    images = posterior_as_images(mean, np.log(variance))
    # Cov[mean] = [[1, 2], [2, 4]] and E[variance] = (2, 2) make C = [[3, 2], [2, 6]].
    penalty = 3.0 * (2**2 + 2**2) + 0.5 * ((3 - 1) ** 2 + (6 - 1) ** 2)
    elbo = run(objectives.beta_vae, GIVEN, {}, images, beta=1.0)
    loss = run(objectives.dip_vae_ii, GIVEN, {}, images, lambda_od=3.0, lambda_d=0.5)
    np.testing.assert_allclose(loss.per_example - elbo.per_example, [penalty] * 2, rtol=1e-5)
    assert loss.terms["dip"] == pytest.approx(penalty, rel=1e-5)


# ------------------------------------------------------------------ Total correlation in a batch


def weighted_sampling_tc(z, mean, logvar, dataset_size):
    """Minibatch-weighted sampling of Chen et al. (2018), equation S5, in scipy and by loops."""
    batch, latents = z.shape
    std, total = np.exp(logvar / 2), np.zeros(batch)
    for i in range(batch):
        log_q = np.array([stats.norm(mean[j], std[j]).logpdf(z[i]) for j in range(batch)])
        log_normaliser = np.log(batch * dataset_size)
        joint = special.logsumexp(log_q.sum(1)) - log_normaliser
        marginals = [special.logsumexp(log_q[:, k]) - log_normaliser for k in range(latents)]
        total[i] = joint - sum(marginals)
    return total


def example_posteriors(batch=3, latents=2):
    rng = np.random.default_rng(0)
    mean, logvar = rng.normal(size=(batch, latents)), rng.normal(size=(batch, latents))
    return mean + np.exp(logvar / 2) * rng.normal(size=mean.shape), mean, logvar


def minibatch_tc(z, mean, logvar):
    posterior = Gaussian(jnp.float32(mean), jnp.float32(logvar))
    return jax.jit(objectives.minibatch_total_correlation)(jnp.float32(z), posterior)


def test_minibatch_tc_and_its_gradient_are_those_of_weighted_sampling():
    arrays, dataset_size = example_posteriors(), 1000
    # (D - 1) log N more, which has no gradient.
    expected = weighted_sampling_tc(*arrays, dataset_size) - np.log(dataset_size)
    np.testing.assert_allclose(minibatch_tc(*arrays), expected, rtol=1e-4)

    def total(z, mean, logvar):
        return objectives.minibatch_total_correlation(z, Gaussian(mean, logvar)).sum()

    floats = tuple(jnp.float32(array) for array in arrays)
    gradients = jax.jit(jax.grad(total, argnums=(0, 1, 2)))(*floats)
    for which, gradient in enumerate(gradients):
        numerical = np.zeros(gradient.shape)
        for index in np.ndindex(gradient.shape):
            for sign in (1, -1):
                moved = [array.copy() for array in arrays]
                moved[which][index] += sign * 1e-5
                numerical[index] += sign * weighted_sampling_tc(*moved, dataset_size).sum() / 2e-5
        np.testing.assert_allclose(gradient, numerical, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("means", "tc"),
    [
        # Four examples, far apart where they differ, so that each latent is a discrete variable.
        ([[0, 0], [0, 0], [0, 0], [0, 0]], 0.0),
        ([[0, 0], [1, 0], [2, 0], [3, 0]], 0.0),  # one latent constant
        ([[0, 0], [0, 1], [1, 0], [1, 1]], 0.0),  # independent
        ([[0, 0], [1, 1], [2, 2], [3, 3]], np.log(4)),  # one latent twice
        ([[0, 0], [0, 0], [1, 1], [1, 1]], np.log(2)),
        ([[0, 0, 0], [1, 1, 1], [2, 2, 2], [3, 3, 3]], 2 * np.log(4)),  # three times
    ],
)
def test_minibatch_tc_of_discrete_latents(means, tc):
    mean = 100.0 * np.array(means)
    z = mean + np.random.default_rng(0).normal(size=mean.shape)
    np.testing.assert_allclose(minibatch_tc(z, mean, np.zeros_like(mean)), tc, atol=1e-4)


def test_minibatch_tc_does_not_depend_on_the_order_of_latents_or_examples():
    arrays = example_posteriors(batch=6, latents=4)
    tc = minibatch_tc(*arrays)
    latents, examples = [2, 0, 3, 1], [5, 1, 0, 2, 4, 3]
    reordered = minibatch_tc(*(array[:, latents] for array in arrays))
    np.testing.assert_allclose(reordered, tc, rtol=1e-4)
    shuffled = minibatch_tc(*(array[examples] for array in arrays))
    np.testing.assert_allclose(shuffled, np.asarray(tc)[examples], rtol=1e-4)


def test_beta_tc_vae_weighs_the_total_correlation_by_beta_less_one(variables):
    out = jax.jit(MODEL.apply)(variables, IMAGES, KEY)
    arrays = (out.z, out.posterior.mean, out.posterior.logvar)
    tc = weighted_sampling_tc(*(np.float64(array) for array in arrays), dataset_size=1)
    elbo = run(objectives.beta_vae, MODEL, variables, IMAGES, beta=1.0)
    loss = run(objectives.beta_tc_vae, MODEL, variables, IMAGES, beta=6.0)
    np.testing.assert_allclose(loss.per_example - elbo.per_example, 5 * tc, rtol=1e-3, atol=1e-5)
    assert loss.terms["tc"] == pytest.approx(tc.mean(), rel=1e-3)


# ------------------------------------------------------------------ FactorVAE


def test_both_losses_of_factor_vae_by_hand():
    # Posteriors without spread: the codes are (1, 2), (3, -1), and of the second batch (-2, 1).
    codes = np.array([[1.0, 2.0], [3.0, -1.0], [-2.0, 1.0], [-2.0, 1.0]])
    images = posterior_as_images(codes, np.full((4, 2), -60.0))
    kernel, bias = np.array([[0.5, -0.2], [0.1, 0.3]]), np.array([0.2, 0.1])
    model = FactorVAE(GIVEN.encoder, GIVEN.decoder, discriminator=Discriminator(()))
    variables = {"params": {"discriminator": {"logits": {"kernel": kernel, "bias": bias}}}}
    variables = jax.tree.map(jnp.float32, variables)
    # logit0 - logit1 = 0.7 z_1 - 0.2 z_2 + 0.1
    tc = np.array([0.4, 2.4])
    probability = special.softmax(codes @ kernel + bias, axis=1)
    auxiliary = -0.5 * (np.log(probability[:2, 0]) + np.log(probability[2:, 1]))

    without = run(objectives.factor_vae, model, variables, images, gamma=0.0)
    loss = run(objectives.factor_vae, model, variables, images, gamma=10.0)
    np.testing.assert_allclose(loss.per_example - without.per_example, 10 * tc, rtol=1e-4)
    np.testing.assert_allclose(loss.auxiliary, auxiliary, rtol=1e-5)
    assert loss.terms["tc"] == pytest.approx(1.4, rel=1e-5)
    assert loss.terms["discriminator"] == pytest.approx(auxiliary.mean(), rel=1e-5)


def test_each_loss_of_factor_vae_trains_its_own_part(factor_variables):
    @jax.jit
    def losses_and_gradients(params):
        def evaluate(params):
            loss = objectives.factor_vae(FACTOR_MODEL, {"params": params}, IMAGES, KEY, gamma=10.0)
            model, discriminator = loss.per_example.mean(), loss.auxiliary.mean()
            return model, discriminator, model + discriminator

        return jax.jacrev(evaluate)(params)

    model, discriminator, both = losses_and_gradients(factor_variables["params"])
    for part, own, other in [
        ("encoder", model, discriminator),
        ("decoder", model, discriminator),
        ("discriminator", discriminator, model),
    ]:
        for gradient in jax.tree.leaves(other[part]):
            np.testing.assert_array_equal(gradient, 0.0)
        leaves = jax.tree.leaves(own[part])
        assert any(jnp.abs(leaf).max() > 1e-4 for leaf in leaves)
        for gradient, expected in zip(jax.tree.leaves(both[part]), leaves, strict=True):
            np.testing.assert_array_equal(gradient, expected)


def test_the_penalty_of_factor_vae_reaches_the_encoder(factor_variables):
    @jax.jit
    def gradient(params, gamma):
        def total(params):
            loss = objectives.factor_vae(FACTOR_MODEL, {"params": params}, IMAGES, KEY, gamma=gamma)
            return loss.per_example.mean()

        return jax.grad(total)(params)["encoder"]["mean"]["kernel"]

    with_penalty, without = (gradient(factor_variables["params"], g) for g in (10.0, 0.0))
    assert jnp.abs(with_penalty - without).max() > 1e-3


def test_permuted_codes_keep_their_marginals_and_lose_their_dependence():
    n = 5000
    z = jnp.tile(jax.random.normal(KEY, (n, 1)), (1, 3)) * jnp.array([[1.0, -2.0, 3.0]])
    permuted = np.asarray(objectives.permute_codes(jax.random.key(1), z))
    np.testing.assert_array_equal(np.sort(permuted, axis=0), np.sort(z, axis=0))
    correlation = np.corrcoef(np.concatenate([permuted.T, z[:, :1].T]))
    assert abs(correlation[np.triu_indices(4, 1)]).max() < 4 / np.sqrt(n)


def test_a_trained_discriminator_knows_the_total_correlation():
    correlation = jnp.array([[1.0, 0.8, 0.3], [0.8, 1.0, 0.5], [0.3, 0.5, 1.0]])
    expected = -0.5 * np.log(np.linalg.det(correlation))
    root, model, optimizer = jnp.linalg.cholesky(correlation), Discriminator((64, 64)), None

    def codes(key, n):
        return jax.random.normal(key, (n, 3)) @ root.T

    steps, batch = 1500, 256
    optimizer = optax.adam(optax.cosine_decay_schedule(3e-3, steps))

    @jax.jit
    def train(key):
        def step(carry, key):
            params, state = carry
            keys = jax.random.split(key, 3)

            def loss(params):
                permuted = objectives.permute_codes(keys[2], codes(keys[1], batch))
                logits = (model.apply(params, z) for z in (codes(keys[0], batch), permuted))
                return objectives.discriminator_loss(*logits).mean()

            updates, state = optimizer.update(jax.grad(loss)(params), state)
            return (optax.apply_updates(params, updates), state), None

        params = model.init(key, jnp.zeros((1, 3)))
        keys = jax.random.split(key, steps)
        (params, _), _ = jax.lax.scan(step, (params, optimizer.init(params)), keys)
        fresh = model.apply(params, codes(jax.random.key(9), 20_000))
        return objectives.density_ratio(fresh).mean()

    assert train(KEY) == pytest.approx(expected, rel=0.1)


# ------------------------------------------------------------------ VQ-VAE


class GivenGrid(nn.Module):
    """Each element of the input is a vector of one dimension."""

    def __call__(self, x):
        return x[..., None]


class UndecidedGrid(nn.Module):
    def __call__(self, quantized):
        return jnp.zeros(quantized.shape[:2])


def test_the_vq_loss_and_its_codebook_by_hand():
    model = VQVAE(GivenGrid(), UndecidedGrid(), codebook_size=3, code_dim=1)
    embedding = jnp.array([[0.0], [1.0], [9.0]])
    codebook = Codebook(embedding, jnp.full(3, 100.0), 100 * embedding)
    variables = {"codebook": {"codes": codebook}}
    images = jnp.array([[0.2, 0.9], [0.7, 1.0]])

    @jax.jit
    def evaluate(images, variables):
        def total(images, variables):
            loss = objectives.vq_vae(model, variables, images, KEY, commitment=0.25)
            return loss.per_example.sum(), loss

        return jax.grad(total, argnums=(0, 1), has_aux=True)(images, variables)

    (gradient, codebook_gradient), loss = evaluate(images, variables)
    commitment = np.array([0.2**2 + 0.1**2, 0.3**2])
    np.testing.assert_allclose(loss.per_example, 2 * np.log(2) + 0.25 * commitment, rtol=1e-5)
    np.testing.assert_allclose(gradient, [[0.1, -0.05], [-0.15, 0.0]], rtol=1e-5, atol=1e-7)
    for leaf in jax.tree.leaves(codebook_gradient):
        np.testing.assert_array_equal(leaf, 0.0)
    assert loss.terms["commitment"] == pytest.approx(commitment.mean(), rel=1e-5)
    # One vector has code 0 and three have code 1.
    entropy = -0.25 * np.log(0.25) - 0.75 * np.log(0.75)
    assert loss.terms["perplexity"] == pytest.approx(np.exp(entropy), rel=1e-5)

    new = loss.state["codebook"]["codes"]
    np.testing.assert_allclose(new.counts, [99.01, 99.03, 99.0], rtol=1e-5)
    np.testing.assert_allclose(new.sums[:, 0], [0.002, 99.026, 891.0], rtol=1e-5)
