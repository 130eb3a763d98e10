"""The zoo: every architecture at every size it offers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vaejax.zoo import ZOO, Network, architecture, recipe

# Each program once: the VAE and the beta-VAE share theirs.
PROGRAMS = [name for name in ZOO if name != "vae"]


def gradients(name, network):
    """A function from a key to variables, the loss, and its gradients for a batch of 2."""
    entry, made = architecture(name), recipe(name, network, batch_size=2)

    def evaluate(key):
        images = jax.random.uniform(key, (2 * made.batches, *network.image_shape))
        variables = made.model.init(key, images, key)

        def total(params):
            changed = {**variables, "params": params}
            loss = made.objective(made.model, changed, images, key, **entry.hyper)
            value = loss.per_example.mean()
            return value if loss.auxiliary is None else value + loss.auxiliary.mean(), loss

        (_, loss), grads = jax.value_and_grad(total, has_aux=True)(variables["params"])
        return variables, loss, grads

    return evaluate


@pytest.mark.parametrize("name", PROGRAMS)
@pytest.mark.parametrize("shape", [(64, 64, 1), (64, 64, 3), (32, 32, 1)])
def test_every_architecture_fits_together_at_every_size(name, shape):
    variables, loss, grads = jax.eval_shape(gradients(name, Network(shape)), jax.random.key(0))
    assert loss.per_example.shape == (2,)
    assert all(term.shape == () for term in loss.terms.values())
    assert jax.tree.map(jnp.shape, grads) == jax.tree.map(jnp.shape, variables["params"])
    # What the objective returns as state takes the place of what it was given.
    for collection, state in loss.state.items():
        before = variables[collection]
        assert jax.tree.structure(state) == jax.tree.structure(before)
        assert jax.tree.map(jnp.shape, state) == jax.tree.map(jnp.shape, before)


@pytest.mark.parametrize("name", PROGRAMS)
def test_losses_and_gradients_are_finite_and_reach_every_parameter(name):
    network = Network((32, 32, 1), width=0.1, discriminator_width=20, codebook_size=8)
    key = jax.random.key(0, impl="rbg")  # compiles faster than the default
    _, loss, grads = jax.jit(gradients(name, network))(key)
    assert np.isfinite(loss.per_example).all()
    for grad in jax.tree.leaves(grads):
        assert np.isfinite(grad).all()
        assert np.any(grad)


def test_defaults_are_those_of_the_papers():
    assert {name: dict(entry.hyper) for name, entry in ZOO.items()} == {
        "vae": {"beta": 1.0},
        "beta_vae": {"beta": 4.0},
        "factor_vae": {"gamma": 40.0},
        "beta_tc_vae": {"beta": 6.0},
        "dip_vae_ii": {"lambda_od": 10.0, "lambda_d": 10.0},
        "vq_vae": {"commitment": 0.25},
    }
    assert recipe("vae", Network()).batch_size == 64
    assert recipe("factor_vae", Network()).batches == 2


def test_architectures_that_differ_in_hyperparameters_alone_have_equal_recipes():
    vae, beta_vae, factor_vae = (recipe(n, Network()) for n in ("vae", "beta_vae", "factor_vae"))
    assert vae == beta_vae
    assert hash(vae) == hash(beta_vae)
    assert vae != factor_vae
    assert vae != recipe("vae", Network(latent_dim=5))
    assert vae != recipe("vae", Network(likelihood="normal"))


def test_an_unknown_name_is_answered_with_the_nearest():
    with pytest.raises(ValueError, match=r"unknown model 'factorvae': did you mean 'factor_vae'\?"):
        recipe("factorvae", Network())
    with pytest.raises(ValueError, match=r"unknown model 'gan': \(one of vae, beta_vae, "):
        architecture("gan")


def test_other_image_sizes_are_refused():
    with pytest.raises(ValueError, match="64x64 or 32x32 images, got 48x64"):
        Network((48, 64, 1))


def test_an_image_shape_read_from_json_is_made_a_tuple():
    assert Network([32, 32, 3]) == Network((32, 32, 3))
    assert hash(Network([32, 32, 3])) == hash(Network((32, 32, 3)))
