"""Training: runs do not depend on each other, nor on how they are grouped or cut into chunks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import struct

from vaejax import Recipe, fit, init, objectives, train
from vaejax.models import (
    VAE,
    VQVAE,
    Discriminator,
    FactorVAE,
    GridDecoder,
    GridEncoder,
    MLPDecoder,
    MLPEncoder,
)
from vaejax.training import optimizer


@struct.dataclass
class Noise:
    """A source of images whose pixels all follow one hidden number, up to noise."""

    image_shape: tuple[int, ...] = struct.field(pytree_node=False, default=(6,))

    def batch(self, key, n):
        noise = jax.random.uniform(key, (n, *self.image_shape))
        level = noise.reshape(n, -1)[:, 0] > 0.5
        bright = level.reshape(n, *(1 for _ in self.image_shape))
        return 0.8 * bright + 0.2 * noise, level[:, None].astype(jnp.int32)


SOURCE = Noise()
MODEL = VAE(MLPEncoder(2, ()), MLPDecoder((6,), ()))
RECIPE = Recipe(MODEL, objectives.beta_vae, batch_size=8)
KEYS = jax.random.split(jax.random.key(0), 3)
# Each number of steps is a program to compile, so the tests share 1, 2 and 4. One step is no loop,
# and may round otherwise.
STEPS = 4


def hyper(beta=(1.0, 1.0, 1.0), learning_rate=1e-2):
    beta = jnp.array(beta)
    return {"beta": beta, "learning_rate": jnp.broadcast_to(jnp.array(learning_rate), beta.shape)}


def runs(tree, index):
    return jax.tree.map(lambda leaf: leaf[index], tree)


def arrays(tree):
    """The leaves as NumPy arrays, keys as the integers in them."""
    leaves = jax.tree.leaves(tree)
    is_key = [jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) for leaf in leaves]
    return [
        np.asarray(jax.random.key_data(leaf) if key else leaf)
        for leaf, key in zip(leaves, is_key, strict=True)
    ]


def assert_same(a, b, **tolerance):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(arrays(a), arrays(b), strict=True):
        if tolerance and x.dtype.kind == "f":
            np.testing.assert_allclose(x, y, **tolerance)
        else:
            np.testing.assert_array_equal(x, y)


def fresh(keys=KEYS):
    return init(RECIPE, SOURCE.image_shape, keys)


def trained(keys, hyper, steps=STEPS, recipe=RECIPE):
    return train(recipe, SOURCE, fresh(keys), hyper, steps=steps)


def beta_vae_together(model, variables, images, key, **hyper):
    return objectives.beta_vae(model, variables, images, key, **hyper)


@pytest.fixture(params=["cpu", "gpu"])
def recipe(request, monkeypatch):
    """A recipe whose runs are mapped as on this backend: in turn, or together under `vmap`."""
    monkeypatch.setattr(jax, "default_backend", lambda: request.param)
    if request.param == "cpu":
        return RECIPE
    # Another objective, so that the program compiled for the other backend is not found.
    return Recipe(MODEL, beta_vae_together, batch_size=8)


def test_fresh_states():
    states = fresh()
    assert all(leaf.shape[0] == 3 for leaf in jax.tree.leaves(states))
    np.testing.assert_array_equal(states.step, [0, 0, 0])
    np.testing.assert_array_equal(states.diverged_at, [-1, -1, -1])
    kernel = states.variables["params"]["encoder"]["mean"]["kernel"]
    assert kernel.shape == (3, 6, 2)
    # Each run starts from weights of its own, and from the same ones in whatever company.
    assert len(np.unique(np.asarray(kernel).reshape(3, -1), axis=0)) == 3
    assert_same(runs(states, slice(1, 2)), fresh(KEYS[1:2]))


def test_a_run_alone_is_the_same_as_in_company(recipe):
    betas = [0.5, 1.0, 4.0]
    states, history = trained(KEYS, hyper(betas), recipe=recipe)
    assert history["loss"].shape == (3, STEPS)
    assert set(history) == {"loss", "reconstruction", "kl"}
    alone, alone_history = trained(KEYS[1:2], hyper(betas[1:2]), recipe=recipe)
    tolerance = {"rtol": 1e-4, "atol": 1e-6} if recipe is not RECIPE else {}
    assert_same(alone, runs(states, slice(1, 2)), **tolerance)
    assert_same(alone_history, runs(history, slice(1, 2)), **tolerance)


@pytest.mark.parametrize("chunk", [2, 1000])
def test_chunks_leave_no_trace(chunk):
    expected, expected_history = trained(KEYS, hyper())
    calls = []
    states = fit(
        RECIPE,
        SOURCE,
        fresh(),
        hyper(),
        steps=STEPS,
        chunk=chunk,
        on_chunk=lambda done, states, history: calls.append(
            (done, np.asarray(states.step).tolist(), history)
        ),
    )
    assert_same(states, expected)
    ends = [2, 4] if chunk == 2 else [4]
    assert [(done, steps) for done, steps, _ in calls] == [(end, [end] * 3) for end in ends]
    history = jax.tree.map(lambda *parts: jnp.concatenate(parts, 1), *(call[2] for call in calls))
    assert_same(history, expected_history)


def test_fit_goes_on_from_where_a_state_is_and_stops_where_it_should():
    expected, _ = trained(KEYS, hyper())
    halfway, _ = trained(KEYS, hyper(), steps=2)
    states = fit(RECIPE, SOURCE, halfway, hyper(), start=2, steps=STEPS)
    assert_same(states, expected)
    assert fit(RECIPE, SOURCE, states, hyper(), start=STEPS, steps=STEPS) is states


def test_the_loss_of_a_step_is_the_objective_of_its_batch_before_the_update():
    # What the first step minimises, put together outside of the training loop.
    states = fresh()
    variables = runs(states.variables, 0)
    _, history = train(RECIPE, SOURCE, states, hyper([2.0, 1.0, 1.0]), steps=1)
    data_key, loss_key = jax.random.split(jax.random.fold_in(KEYS[0], 0))
    images, _ = SOURCE.batch(data_key, 8)
    loss = objectives.beta_vae(MODEL, variables, images, loss_key, beta=2.0)
    assert history["loss"][0, 0] == pytest.approx(float(loss.per_example.mean()), rel=1e-5)


def test_steps_and_runs_draw_batches_of_their_own():
    # With a learning rate of 0 the model stays, and the loss varies with the batch alone.
    _, history = trained(KEYS, hyper(learning_rate=0.0))
    assert len(np.unique(history["loss"])) == 3 * STEPS


def test_hyperparameters_are_those_of_each_run():
    same_key = jnp.stack([KEYS[0]] * 3)
    states, history = trained(same_key, hyper([1.0, 2.0, 100.0]))
    loss, rec, kl = (history[name][:, 0] for name in ("loss", "reconstruction", "kl"))
    np.testing.assert_allclose(loss, rec + jnp.array([1.0, 2.0, 100.0]) * kl, rtol=1e-5)
    assert len(np.unique(rec)) == 1
    kernels = states.variables["params"]["encoder"]["mean"]["kernel"]
    assert len(np.unique(np.asarray(kernels).reshape(3, -1), axis=0)) == 3

    still, _ = trained(same_key, hyper(learning_rate=[0.0, 1e-3, 1e-2]))
    start = fresh(same_key).variables
    bias, before = (v["params"]["decoder"]["logits"]["bias"] for v in (still.variables, start))
    moved = abs(bias - before).mean(1)
    assert moved[0] == 0.0
    assert moved[2] == pytest.approx(float(10 * moved[1]), rel=0.1)


def test_the_loss_falls():
    losses = []
    fit(
        RECIPE,
        SOURCE,
        fresh(),
        hyper(learning_rate=0.03),
        steps=300,
        chunk=STEPS,
        on_chunk=lambda done, states, history: losses.append(history["loss"].mean(1)),
    )
    # 6 log 2 = 4.2 without knowing the level; with it, the pixels are nearly certain.
    assert (losses[0] > 4.0).all()
    assert (np.mean(losses[-10:], axis=0) < 3.4).all()


def test_adam_has_the_reference_settings():
    def adam(gradients, b1, b2, eps=1e-8):
        m = v = x = 0.0
        for t, g in enumerate(gradients, 1):
            m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g**2
            x -= 0.1 * (m / (1 - b1**t)) / (np.sqrt(v / (1 - b2**t)) + eps)
        return x

    gradients = [1.0, -0.5, 0.25, 3.0]
    params = {name: jnp.zeros(()) for name in ("encoder", "decoder", "discriminator")}
    transformation = optimizer(0.1)
    state = transformation.init(params)
    for gradient in gradients:
        grads = jax.tree.map(lambda p, g=gradient: jnp.full_like(p, g), params)
        updates, state = transformation.update(grads, state, params)
        params = jax.tree.map(jnp.add, params, updates)
    for name, betas in [("encoder", (0.9, 0.999)), ("discriminator", (0.5, 0.9))]:
        assert params[name] == pytest.approx(adam(gradients, *betas), rel=1e-5)
    assert params["decoder"] == params["encoder"]


# ------------------------------------------------------------------ Divergence


def test_a_run_that_is_not_finite_from_the_start_stops_at_step_0(recipe):
    states, history = trained(KEYS, hyper([1.0, jnp.inf, 1.0]), recipe=recipe)
    np.testing.assert_array_equal(states.diverged_at, [-1, 0, -1])
    np.testing.assert_array_equal(states.step, [STEPS, 0, STEPS])
    start = fresh().replace(diverged_at=jnp.array([-1, 0, -1]))
    assert_same(runs(states, 1), runs(start, 1))
    assert not np.isfinite(history["loss"][1]).any()
    assert np.isfinite(history["loss"][jnp.array([0, 2])]).all()

    healthy, healthy_history = trained(KEYS, hyper(), recipe=recipe)
    for i in (0, 2):
        assert_same(runs(states, i), runs(healthy, i))
        assert_same(runs(history, i), runs(healthy_history, i))


def test_a_run_that_diverges_later_keeps_the_state_before_that_step():
    # The parameters after the first step are huge but finite, the loss of the next is not.
    rates = [1e-2, 1e25, 1e-2]
    states, history = trained(KEYS, hyper(learning_rate=rates))
    np.testing.assert_array_equal(states.diverged_at, [-1, 1, -1])
    np.testing.assert_array_equal(states.step, [STEPS, 1, STEPS])
    before, _ = trained(KEYS, hyper(learning_rate=rates), steps=1)
    before = before.replace(diverged_at=jnp.array([-1, 1, -1]))
    assert_same(runs(states, 1), runs(before, 1))
    assert np.isfinite(history["loss"][1, 0])


@pytest.mark.parametrize("learning_rate", [jnp.inf, jnp.nan])
def test_the_state_of_a_diverged_run_is_finite(learning_rate):
    states, _ = trained(KEYS, hyper(learning_rate=[1e-2, learning_rate, 1e-2]))
    assert states.diverged_at[1] >= 0
    for leaf in arrays(states.variables):
        assert np.isfinite(leaf).all()


def test_a_gradient_that_is_not_finite_stops_a_run_whose_loss_is():
    def objective(model, variables, images, key, *, beta):
        loss = objectives.beta_vae(model, variables, images, key, beta=1.0)
        # The value is 0, the gradient 0 * inf.
        bad = beta * jnp.sqrt(0.0 * loss.per_example)
        return loss.replace(per_example=loss.per_example + bad)

    recipe = Recipe(MODEL, objective, batch_size=8)
    states, history = trained(KEYS, hyper([0.0, 1.0, 1.0]), recipe=recipe)
    assert np.isfinite(history["loss"]).all()
    np.testing.assert_array_equal(states.diverged_at[1:], [0, 0])


def test_a_diverged_run_stays_stopped():
    states, _ = trained(KEYS, hyper([1.0, jnp.inf, 1.0]), steps=2)
    states = fit(RECIPE, SOURCE, states, hyper(), start=2, steps=STEPS)
    np.testing.assert_array_equal(states.diverged_at, [-1, 0, -1])
    np.testing.assert_array_equal(states.step, [STEPS, 0, STEPS])


# ------------------------------------------------------------------ Other architectures


def test_factor_vae_draws_two_batches_and_trains_both_its_parts():
    model = FactorVAE(MODEL.encoder, MODEL.decoder, discriminator=Discriminator((4,)))
    sizes = []

    def objective(model, variables, images, key, **hyper):
        sizes.append(len(images))
        return objectives.factor_vae(model, variables, images, key, **hyper)

    recipe = Recipe(model, objective, batch_size=8, batches=2)
    start = init(recipe, SOURCE.image_shape, KEYS[:1])
    weights = {"gamma": jnp.array([1.0]), "learning_rate": jnp.array([1e-2])}
    before = arrays(start.variables)
    states, history = train(recipe, SOURCE, start, weights, steps=2)
    assert set(sizes) == {16}
    assert set(history) == {"loss", "reconstruction", "kl", "tc", "discriminator"}
    assert all((a != b).any() for a, b in zip(arrays(states.variables), before, strict=True))


def test_the_codebook_moves_with_training_and_the_optimizer_does_not_know_it():
    source = Noise((4, 4, 1))
    model = VQVAE(GridEncoder(2, (3,), (2,)), GridDecoder((4, 4, 1), (), 3), 5, 2)
    recipe = Recipe(model, objectives.vq_vae, batch_size=8)
    start = init(recipe, source.image_shape, KEYS[:1])
    np.testing.assert_array_equal(start.variables["codebook"]["codes"].counts, np.zeros((1, 5)))
    weights = {"commitment": jnp.array([0.25]), "learning_rate": jnp.array([0.0])}
    states, _ = train(recipe, source, start, weights, steps=1)
    # 32 vectors: 0.01 of each count, and 1 for each of the codes with fewer than 5.
    counts = np.asarray(states.variables["codebook"]["codes"].counts[0])
    assert (counts > 0).all()
    shapes = {leaf.shape[1:] for leaf in jax.tree.leaves(states.opt_state)}
    assert (5, 2) not in shapes


# ------------------------------------------------------------------ Compilation


def test_other_hyperparameters_and_seeds_do_not_compile_again():
    traces = []

    def objective(model, variables, images, key, **hyper):
        traces.append(hyper)
        return objectives.beta_vae(model, variables, images, key, **hyper)

    recipe = Recipe(MODEL, objective, batch_size=8)
    trained(KEYS, hyper(), recipe=recipe)
    once = len(traces)
    trained(KEYS[::-1], hyper([2.0, 3.0, 4.0], 1e-3), recipe=recipe)
    same = Recipe(VAE(MLPEncoder(2, ()), MLPDecoder((6,), ())), objective, batch_size=8)
    trained(KEYS, hyper([5.0, 6.0, 7.0]), recipe=same)
    assert len(traces) == once


def test_no_tracer_leaks():
    recipe = Recipe(MODEL, objectives.beta_tc_vae, batch_size=4)
    with jax.checking_leaks():
        states, _ = jax.eval_shape(
            lambda states: train(recipe, SOURCE, states, hyper(), steps=2), fresh()
        )
    assert states.step.shape == (3,)
