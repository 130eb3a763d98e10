"""The factor read-out on images whose factors are plain to see."""

import dataclasses
import io
import math

import chex
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vaejax.data import Factor
from vaejax.metrics import specificity_factor
from vaejax.metrics.readout import FactorReadout, train_readout

FACTORS = (Factor("side", 3, categorical=True), Factor("light", 5), Factor("nothing", 1))


@flax.struct.dataclass
class Bars:
    """8x8 images of a bar at one of three places, in one of five shades."""

    factors: tuple[Factor, ...] = flax.struct.field(pytree_node=False, default=FACTORS)
    name = "bars"
    origin = "redrawn"
    image_shape = (8, 8, 1)

    def __len__(self):
        return math.prod(factor.size for factor in self.factors)

    def render(self, g):
        here = (jnp.arange(8) // 2 == g[0] + 0.0)[None, :, None]
        return jnp.where(here, 0.2 * (g[1] + 1), 0.0) * jnp.ones((8, 1, 1))

    def batch(self, key, n):
        factors = jax.random.randint(key, (n, 3), 0, jnp.array([3, 5, 1]))
        return jax.vmap(self.render)(factors), factors


@pytest.fixture(scope="module")
def readout():
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", True)
    yield train_readout(Bars(), jax.random.key(0), steps=300, batch_size=32)
    jax.config.update("jax_disable_most_optimizations", before)


@pytest.fixture
def examples():
    return Bars().batch(jax.random.key(9), 64)


def test_it_learns_the_factors(readout, examples):
    images, classes = examples
    np.testing.assert_allclose(readout.chance, [1 / 3, 1 / 5, 1])
    assert (np.asarray(readout.accuracy) > [0.95, 0.9, 0.999]).all()
    assert (np.asarray(readout.error) < [0.1, 0.1, 1e-6]).all()
    assert readout.error[2] == 0
    predicted = readout.predict(images)
    assert predicted.dtype == jnp.int32
    np.testing.assert_array_equal((predicted == classes).mean(axis=0) > 0.85, True)


def test_untrained_accuracy_is_near_chance():
    fresh = train_readout(Bars(), jax.random.key(1), steps=1, batch_size=64, learning_rate=0.0)
    assert (fresh.accuracy[:2] < 0.7).all()
    assert (fresh.error[:2] > 0.15).all()


def test_answers_are_in_units_of_the_range(readout, examples):
    images, classes = examples
    answers = jax.jit(lambda r, x: r(x))(readout, images)
    assert [answer.shape for answer in answers] == [(64, 3), (64, 1), (64, 1)]
    np.testing.assert_allclose(answers[0].sum(axis=1), 0.5, rtol=1e-5)
    assert ((answers[1] >= 0) & (answers[1] <= 1)).all()
    assert (answers[2] == 0).all()
    np.testing.assert_array_equal(readout.vector(images), jnp.concatenate(readout(images), axis=1))
    # The recorded error is the distance from the ideal answer, here on other images.
    distance = [
        np.abs(a - b).sum(axis=1).mean()
        for a, b in zip(answers, readout.ideal(classes), strict=True)
    ]
    np.testing.assert_allclose(distance, readout.error, atol=0.03)


def test_answers_follow_from_planted_logits(readout):
    """With no weights, the logits are the biases, whatever the image."""
    params = jax.tree.map(jnp.zeros_like, readout.params)
    p_side, p_light = np.array([0.5, 0.3, 0.2]), np.array([0.1, 0.2, 0.3, 0.4, 0.0])
    bias = np.log(np.concatenate([p_side, p_light, [1.0]]) + 1e-30)
    params["logits"]["bias"] = jnp.asarray(bias, jnp.float32)
    planted = dataclasses.replace(readout, params=params)
    side, light, nothing = planted(jnp.ones((2, 8, 8, 1)))
    np.testing.assert_allclose(side, [p_side / 2] * 2, rtol=1e-5)
    np.testing.assert_allclose(light, [[(0.2 + 0.6 + 1.2) / 4]] * 2, rtol=1e-5)
    np.testing.assert_array_equal(nothing, [[0]] * 2)
    np.testing.assert_array_equal(planted.predict(jnp.ones((2, 8, 8, 1))), [[0, 3, 0]] * 2)


def test_ideal_distances(readout):
    """Two sides are 1 apart, whichever; the shades are evenly spaced over a range of 1."""
    one, other = (readout.ideal(jnp.array([g])) for g in ([0, 0, 0], [2, 3, 0]))
    moved = [float(jnp.abs(a - b).sum()) for a, b in zip(one, other, strict=True)]
    np.testing.assert_allclose(moved, [1, 0.75, 0])


def test_effects_of_a_decoder_in_units_of_factors(readout):
    """A decoder whose latents are the factors moves one factor by each latent."""

    def read(z):
        blurred = jax.nn.softmax(-4 * jnp.square(z[:, :1] - jnp.arange(3)))
        images = jnp.stack(
            [jax.vmap(Bars().render)(jnp.stack([k + 0 * z[:, 1], z[:, 1]], 1)) for k in range(3)],
            axis=1,
        )
        return readout((blurred[:, :, None, None, None] * images).sum(axis=1))

    latents = jnp.array([[0.0, 4.0, 0.0], [1.0, 3.0, 1.0], [2.0, 4.0, 2.0]])
    values = jnp.array([[0.0, 1.0, 2.0], [2.0, 3.0, 4.0], [0.0, 1.0, 2.0]])

    def light(z):
        return read(z)[1][:, 0]

    @jax.jit
    def measure(z):
        step = jnp.array([0.0, 1.0, 0.0])
        _, slopes = jax.jvp(light, (z,), (step * jnp.ones_like(z),))
        differences = (light(z + 0.01 * step) - light(z - 0.01 * step)) / 0.02
        one_by_one = jax.vmap(lambda row: light(row[None])[0])(z)
        return specificity_factor(read, z, values), slopes, differences, one_by_one, light(z)

    result, slopes, differences, one_by_one, together = measure(latents)
    assert (result.per_latent[:2] > 0.3).all()
    assert result.num_dead == 1
    assert (slopes > 0.01).all()
    np.testing.assert_allclose(slopes, differences, rtol=0.15)  # kinks of the ReLUs
    np.testing.assert_allclose(one_by_one, together, atol=1e-5)


def test_equal_keys_give_equal_readouts():
    first, same, other = (
        train_readout(Bars(), jax.random.key(key), steps=3, batch_size=4) for key in (0, 0, 1)
    )
    chex.assert_trees_all_equal(first, same)
    assert (first.params["dense"]["kernel"] != other.params["dense"]["kernel"]).any()


def test_saved_and_restored(readout, examples):
    file = io.BytesIO()
    np.savez(file, **readout.arrays())
    file.seek(0)
    with np.load(file, allow_pickle=False) as arrays:
        restored = FactorReadout.from_arrays(arrays)
    chex.assert_trees_all_equal(restored, readout)
    assert restored.factors == FACTORS
    assert restored.image_shape == (8, 8, 1)
    np.testing.assert_array_equal(restored.vector(examples[0]), readout.vector(examples[0]))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a: a.pop("sizes"), "no sizes"),
        (lambda a: a.pop("error"), r"expected error of shape \(3,\), got none"),
        (lambda a: a.pop("params/dense/bias"), "params/dense/bias of shape .*got none"),
        (lambda a: a.update(other=np.zeros(2)), r"other of shape none, got \(2,\)"),
        (lambda a: a.update(accuracy=np.zeros(2)), r"accuracy of shape \(3,\), got \(2,\)"),
        (lambda a: a.update(sizes=np.array([3, 4, 1])), r"logits/bias of shape \(8,\), got \(9,\)"),
        (lambda a: a.update(image_shape=np.array([8, 8])), r"\(H, W, C\), got \(8, 8\)"),
        (lambda a: a.update(names=np.array(["side"])), "1 names, 3 sizes and 3"),
    ],
)
def test_other_arrays_are_refused(readout, change, message):
    arrays = readout.arrays()
    change(arrays)
    with pytest.raises(ValueError, match=message) as error:
        FactorReadout.from_arrays(arrays)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("factors", "settings", "message"),
    [
        ((), {"steps": 1}, "factors to read, got none"),
        ((Factor("empty", 0),), {"steps": 1}, "one class of empty, got 0"),
        (FACTORS, {"steps": 0}, "steps and batch_size >= 1, got 0 and 64"),
        (FACTORS, {"steps": 1, "batch_size": 0}, "got 1 and 0"),
    ],
)
def test_wrong_arguments_are_named(factors, settings, message):
    with pytest.raises(ValueError, match=message) as error:
        train_readout(Bars(factors), jax.random.key(0), **settings)
    assert "\n" not in str(error.value)
