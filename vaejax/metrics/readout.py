"""A factor read-out: a frozen classifier that says which ground-truth factors an image shows.

Effects in pixels say how much of an image an intervention changes, not what it changes. Through a
read-out they are stated in units of factors, each factor's range scaled to 1 [R].
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from flax import struct
from flax.traverse_util import flatten_dict, unflatten_dict
from jax import lax

from vaejax.data.protocols import DataSource, Factor
from vaejax.models.layers import Conv, Dense, relu

TEST_BATCHES = 64
"""Fresh batches that accuracy and error are measured on."""

_CHANNELS = (16, 32, 64, 64, 64, 64)
_HIDDEN = 128


class Classifier(nn.Module):
    """Images to the logits of every class of every factor.

    Convolutions of stride 2 down to a side of 4 (or to an odd one), a hidden layer, and one linear
    layer for all factors. Sites: `conv_1 .. conv_n`, `dense`, `logits`.

    Attributes:
      outputs: Number of classes of all factors together.
    """

    outputs: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps `[B, H, W, C]` to `[B, outputs]`."""
        for i, channels in enumerate(_CHANNELS, 1):
            height, width = x.shape[1:3]
            if height % 2 or width % 2 or min(height, width) <= 4:
                break
            x = Conv(channels, 4, relu, name=f"conv_{i}")(x)
        h = Dense(_HIDDEN, relu, name="dense")(x.reshape(x.shape[0], -1))
        return Dense(self.outputs, name="logits")(h)


@struct.dataclass
class FactorReadout:
    """A trained classifier of factors, whose answers are distances in units of factors [R].

    Call it on images `[B, H, W, C]`, true or decoded. It answers with one array for each of the K
    factors:

    *   ordered, `[B, 1]`: the expected class divided by `size - 1`, so that the range of the factor
        has length 1. 0 for a factor of one class.
    *   categorical, `[B, size]`: half the probability of each class, so that absolute changes add
        up to the total variation distance, which is 1 between two certain classes.

    In both the sum of absolute changes over the last axis is the effect on that factor, between 0
    and 1. A pytree: pass it to jitted functions as an argument.

    It is as good as `error` says, and on the images that it was trained on: what it says of images
    unlike them, such as very blurred ones, is an extrapolation. Where images do not determine a
    factor, nobody could do better: in dSprites the orientation of a square repeats four times in
    its range and that of an ellipse twice, and the last class is the first again. Such a read-out
    is spread over the classes in question, its accuracy low and its error high although nothing is
    wrong with it.

    Attributes:
      params: Parameters of the `Classifier`.
      accuracy: `[K]` how often the most likely class is the true one, on fresh images.
      error: `[K]` mean distance from the true answer on the same images, in the units above: mean
        absolute error over the range if ordered, one minus the probability of the true class if
        categorical. Guessing the middle of an ordered factor has an error of about 1/4.
      factors: The K factors, in the order of the answers.
      image_shape: `(H, W, C)`.

    Example:
      >>> from vaejax import data
      >>> source = data.source("dsprites", image_size=32)
      >>> readout = train_readout(source, jax.random.key(0), steps=2, batch_size=8)
      >>> images, _ = source.batch(jax.random.key(1), 5)
      >>> [answer.shape for answer in readout(images)]
      [(5, 3), (5, 1), (5, 1), (5, 1), (5, 1)]
      >>> readout.vector(images).shape, readout.predict(images).shape
      ((5, 7), (5, 5))
    """

    params: Any
    accuracy: jax.Array
    error: jax.Array
    factors: tuple[Factor, ...] = struct.field(pytree_node=False)
    image_shape: tuple[int, int, int] = struct.field(pytree_node=False)

    @property
    def chance(self) -> jax.Array:
        """`[K]` accuracy of a guess, 1 / size."""
        return 1 / jnp.array([factor.size for factor in self.factors], jnp.float32)

    def __call__(self, images: jax.Array) -> tuple[jax.Array, ...]:
        """Reads images `[B, H, W, C]`: K arrays `[B, 1]` (ordered) or `[B, size]` (categorical)."""
        logits = _logits(self.factors, self.params, images)
        return tuple(map(_in_units, self.factors, map(jax.nn.softmax, logits)))

    def vector(self, images: jax.Array) -> jax.Array:
        """The same as one array `[B, F]`, for L2 norms."""
        return jnp.concatenate(self(images), axis=-1)

    def predict(self, images: jax.Array) -> jax.Array:
        """The most likely class of every factor, `[B, K]` int32."""
        logits = _logits(self.factors, self.params, images)
        return jnp.stack([given.argmax(axis=-1) for given in logits], axis=-1).astype(jnp.int32)

    def ideal(self, classes: jax.Array) -> tuple[jax.Array, ...]:
        """What a read-out without error answers to images of the classes `[B, K]`."""
        return _ideal(self.factors, classes)

    def arrays(self) -> dict[str, np.ndarray]:
        """Everything in it as named arrays, for `numpy.savez`; none needs pickle."""
        params = flatten_dict(jax.device_get(self.params), sep="/")
        return {
            **{f"params/{name}": np.asarray(array) for name, array in params.items()},
            "accuracy": np.asarray(self.accuracy),
            "error": np.asarray(self.error),
            "names": np.array([factor.name for factor in self.factors]),
            "sizes": np.array([factor.size for factor in self.factors]),
            "categorical": np.array([factor.categorical for factor in self.factors]),
            "image_shape": np.array(self.image_shape),
        }

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray]) -> FactorReadout:
        """The read-out that `arrays()` returned, or `numpy.load` of it.

        Raises:
          ValueError: An array is missing, unknown or not of the shape that it must have.
        """
        arrays = {name: np.asarray(arrays[name]) for name in arrays}
        described = ("names", "sizes", "categorical", "image_shape")
        if absent := [name for name in described if name not in arrays]:
            raise ValueError(f"not the arrays of a factor read-out: no {', '.join(absent)}")
        names, sizes, categorical, shape = (arrays.pop(name).tolist() for name in described)
        if not len(names) == len(sizes) == len(categorical):
            counts = f"{len(names)} names, {len(sizes)} sizes and {len(categorical)} kinds"
            raise ValueError(f"not the arrays of a factor read-out: {counts} of factors")
        factors = tuple(map(Factor, names, sizes, categorical))
        _check(factors, tuple(shape))
        template = jax.eval_shape(
            functools.partial(_init, factors, tuple(shape)), jax.random.key(0)
        )
        expected = {
            f"params/{name}": a.shape for name, a in flatten_dict(template, sep="/").items()
        }
        expected |= dict.fromkeys(("accuracy", "error"), (len(factors),))
        for name in sorted({*expected, *arrays}):
            there = arrays[name].shape if name in arrays else "none"
            if there != expected.get(name, "none"):
                raise ValueError(
                    f"not the arrays of a factor read-out: expected {name} of shape "
                    f"{expected.get(name, 'none')}, got {there}"
                )
        values = {name: jnp.asarray(array) for name, array in arrays.items()}
        accuracy, error = values.pop("accuracy"), values.pop("error")
        params = unflatten_dict(values, sep="/")["params"]
        return cls(params, accuracy, error, factors, tuple(shape))


def train_readout(
    source: DataSource,
    key: jax.Array,
    *,
    steps: int,
    batch_size: int = 64,
    learning_rate: float = 5e-3,
) -> FactorReadout:
    """Trains a read-out on images of a source, as one compiled program; not inside `jit`.

    Minimises the cross-entropy of all factors together by Adam, its learning rate falling to 0
    along a cosine. Accuracy and error are then measured on `TEST_BATCHES` fresh batches. Equal keys
    give equal read-outs.

    Args:
      source: Where images and their factors are drawn.
      key: Draws the initial parameters and every batch.
      steps: Of training; 2000 are enough for all of dSprites but its orientation.
      batch_size: Images per step.
      learning_rate: Of the first step.

    Returns:
      The read-out, frozen: nothing trains it further.

    Raises:
      ValueError: `steps` or `batch_size` is below 1, or the source has no factors or a factor
        without classes.
    """
    if steps < 1 or batch_size < 1:
        raise ValueError(f"expected steps and batch_size >= 1, got {steps} and {batch_size}")
    _check(source.factors, source.image_shape)
    init_key, batch_key = jax.random.split(key)
    # It runs once, in milliseconds, and XLA's CPU backend would spend five seconds optimising it.
    options = {"xla_backend_optimization_level": 0} if jax.default_backend() == "cpu" else None
    init = jax.jit(_init, static_argnums=(0, 1), compiler_options=options)
    params = init(source.factors, source.image_shape, init_key)
    params, accuracy, error = _train(source, params, batch_key, learning_rate, steps, batch_size)
    return FactorReadout(params, accuracy, error, source.factors, source.image_shape)


@functools.partial(jax.jit, static_argnames=("steps", "batch_size"))
def _train(
    source: DataSource,
    params: Any,
    key: jax.Array,
    learning_rate: float,
    steps: int,
    batch_size: int,
) -> tuple[Any, jax.Array, jax.Array]:
    """Trains for `steps` batches and tests on `TEST_BATCHES` more: parameters, accuracy, error."""
    factors = source.factors
    # From step `steps` on the learning rate is exactly 0: the same loop then only tests. A loop of
    # its own would draw images and run the network in programs that take as long to compile again.
    optimizer = optax.adam(optax.cosine_decay_schedule(learning_rate, steps))

    def loss(params: Any, images: jax.Array, classes: jax.Array) -> tuple[jax.Array, Any]:
        logits = _logits(factors, params, images)
        losses = [
            optax.softmax_cross_entropy_with_integer_labels(given, true).mean()
            for given, true in zip(logits, classes.T, strict=True)
        ]
        return jnp.stack(losses).sum(), logits

    def step(state: tuple[Any, Any], t: jax.Array) -> tuple[tuple[Any, Any], Any]:
        params, opt_state = state
        images, classes = source.batch(jax.random.fold_in(key, t), batch_size)
        grads, logits = jax.grad(loss, has_aux=True)(params, images, classes)
        updates, opt_state = optimizer.update(grads, opt_state)
        return (optax.apply_updates(params, updates), opt_state), _score(factors, logits, classes)

    state = (params, optimizer.init(params))
    (params, _), scores = lax.scan(step, state, jnp.arange(steps + TEST_BATCHES))
    accuracy, error = jax.tree.map(lambda score: score[steps:].mean(axis=0), scores)
    return params, accuracy, error


def _score(
    factors: tuple[Factor, ...], logits: list[jax.Array], classes: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Accuracy and error `[K]` of one batch."""
    right = jnp.stack([given.argmax(axis=-1) for given in logits], axis=-1) == classes
    answers = map(_in_units, factors, map(jax.nn.softmax, logits))
    distances = [
        jnp.abs(answer - true).sum(axis=-1).mean()
        for answer, true in zip(answers, _ideal(factors, classes), strict=True)
    ]
    return right.mean(axis=0), jnp.stack(distances)


def _check(factors: tuple[Factor, ...], image_shape: tuple[int, ...]) -> None:
    if len(image_shape) != 3:
        raise ValueError(f"expected images of shape (H, W, C), got {image_shape}")
    if not factors:
        raise ValueError("expected a source with factors to read, got none")
    for factor in factors:
        if factor.size < 1:
            raise ValueError(f"expected at least one class of {factor.name}, got {factor.size}")


def _init(factors: tuple[Factor, ...], image_shape: tuple[int, ...], key: jax.Array) -> Any:
    classifier = Classifier(sum(factor.size for factor in factors))
    return classifier.init(key, jnp.zeros((1, *image_shape)))["params"]


def _logits(factors: tuple[Factor, ...], params: Any, images: jax.Array) -> list[jax.Array]:
    sizes = np.array([factor.size for factor in factors])
    logits = Classifier(int(sizes.sum())).apply({"params": params}, images)
    return jnp.split(jnp.asarray(logits), np.cumsum(sizes)[:-1], axis=-1)


def _in_units(factor: Factor, probabilities: jax.Array) -> jax.Array:
    """Class probabilities `[B, size]` as the answer of a read-out, `[B, 1]` or `[B, size]`."""
    if factor.categorical:
        return probabilities / 2
    scale = jnp.arange(factor.size) / max(factor.size - 1, 1)
    return probabilities @ scale[:, None]


def _ideal(factors: tuple[Factor, ...], classes: jax.Array) -> tuple[jax.Array, ...]:
    return tuple(
        _in_units(factor, jax.nn.one_hot(column, factor.size))
        for factor, column in zip(factors, classes.T, strict=True)
    )
