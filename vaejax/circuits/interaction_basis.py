"""The interaction basis of a site: its directions by what they do to the output."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax import lax

from vaejax.chunking import even_chunk, map_chunks
from vaejax.circuits.bases import LinearBasis, check_array, product
from vaejax.estimates import Estimate, bootstrap_mean
from vaejax.interventions import intervene
from vaejax.interventions.edits import add
from vaejax.interventions.passes import Readout, count_examples, read, shapes_of, take


@struct.dataclass
class InteractionBasis:
    """The directions of a site that vary, sorted by what they do to the output: F of C.

    The two kinds of degeneracy of a layer are `C - variance_rank` directions that never vary and
    `C - gradient_rank` that nothing downstream reads.

    Attributes:
      basis: Directions whose features have unit variance and, with the gradients of the output by
        them, no correlation.
      eigenvalues: Of each feature, the variance of the output that it makes to first order, summed
        over outputs: `[F]`, falling. Intervals are for the directions as they are.
      rank: Features with an eigenvalue above `tolerance` times the largest: those that both vary
        and are read.
      variance_rank: F, directions of a variance above `tolerance` times the largest.
      gradient_rank: Directions of activations, varying or not, in which the output's mean square
        derivative is above `tolerance` times the largest.
      effective: Participation ratio of the eigenvalues, `(sum)^2 / sum of squares`, `[]`: how many
        equally important directions would be as concentrated.
      output_variance: Variance of the output over examples, summed over outputs, `[]`. The sum of
        the eigenvalues equals it for a linear network with this site as a complete cut.
    """

    basis: LinearBasis
    eigenvalues: Estimate
    rank: int = struct.field(pytree_node=False)
    variance_rank: int = struct.field(pytree_node=False)
    gradient_rank: int = struct.field(pytree_node=False)
    effective: Estimate
    output_variance: jax.Array


def interaction_basis(
    apply_fn: Callable[..., Any],
    variables: Any,
    inputs: Any,
    site: str,
    *,
    readout: Readout = None,
    probes: int = 16,
    tolerance: float = 1e-6,
    chunk: int | None = None,
    key: jax.Array | None = None,
) -> InteractionBasis:
    """The basis in which activations and gradients of a site are both uncorrelated [R].

        G = cov(a),   M = E[J^T J],   J = dY/da,   G^1/2 M G^1/2 = V diag(eigenvalues) V^T
        f = V^T G^-1/2 (a - E a)

    Activations are whitened, which leaves out directions without variance, and rotated to the
    eigenvectors of the second moment of gradients. An eigenvalue is the variance of Y that its
    direction makes, to first order. Coordinates in which the network stores the activations do not
    matter. It is the local interaction basis of Bushnaq et al. but for the gradients: those of the
    output (of any read-out) and not of the features of the next layer.

    For feature maps `[B, H, W, C]` directions are of channels: G is the covariance over examples at
    one position, mean over positions, and M the sum over positions; so the sum of the eigenvalues
    is the variance of Y when positions are independent and alike, and otherwise is not: what they
    make together is left out, of either sign. Moments are accumulated in float64 on the host.

    Args:
      apply_fn: The network: `apply_fn(variables, inputs) -> output`.
      variables: Its variables.
      inputs: `[N, ...]` or a pytree of such arrays.
      site: Where; one array `[B, ..., C]`.
      readout: From the output to the quantity of interest Y, `[B, ...]`; by default the output.
      probes: Backward passes for each example, each of a random sign times every output. Where Y
        has no more numbers than that, one for each of them instead, which is exact.
      tolerance: Relative size below which a variance or an eigenvalue counts as none. The
        variance that float32 rounding makes is about 1e-15 of the largest.
      chunk: Examples run at once, see `vaejax.chunking.resolve_chunk`.
      key: Draws the signs, and the bootstrap's resamples.

    Returns:
      An `InteractionBasis`.

    Raises:
      ValueError: An unknown site, one that is not an array `[B, ..., C]`, or one that never varies.

    Example:
      >>> from flax import linen as nn
      >>> model = nn.Sequential([nn.Dense(3), nn.Dense(1)])
      >>> x = jax.random.normal(jax.random.key(0), (64, 5))
      >>> variables = model.init(jax.random.key(1), x)
      >>> found = interaction_basis(model.apply, variables, x, "layers_0")
      >>> found.variance_rank, found.gradient_rank, found.rank  # one output reads one direction
      (3, 1, 1)

    References:
      Bushnaq et al., `The Local Interaction Basis <https://arxiv.org/abs/2405.10928>`_ and `Using
      Degeneracy in the Loss Landscape for Mechanistic Interpretability
      <https://arxiv.org/abs/2405.10927>`_, 2024.
    """
    total = count_examples(inputs)
    chunk = even_chunk(chunk, total)
    if probes < 1:
        raise ValueError(f"expected probes >= 1, got {probes}")
    shape = shapes_of([site], apply_fn, variables, take(inputs, jnp.arange(1)))[site]
    check_array(shape)
    width = shape.shape[-1]
    signs = jax.random.key(0) if key is None else key

    positions = math.prod(shape.shape[1:-1])
    sums = np.zeros((positions, width))
    second, gradient = np.zeros((width, width)), np.zeros((width, width))
    outputs: list[np.ndarray] = []
    # A shift to an example's activation: the variance is not to be a difference of large numbers.
    shift = np.zeros((positions, width))
    for rows in _rows(total, chunk):
        found = _pass(apply_fn, variables, inputs, rows, signs, site, readout, probes)
        there = len(np.unique(rows))
        # Padding repeats the last row, so what is wanted is at the front.
        activation, gradients, output = (np.asarray(a, np.float64)[:there] for a in found)
        shift = shift if outputs else activation[0]
        activation = activation - shift
        sums += activation.sum(0)
        second += np.tensordot(activation, activation, ((0, 1), (0, 1)))
        gradient += np.tensordot(gradients, gradients, ((0, 1, 2), (0, 1, 2)))
        outputs.append(output)
    means = sums / total
    covariance = second / (total * positions) - means.T @ means / positions
    gradient /= total

    variances, axes = _eigen(covariance)
    varies = variances > tolerance * variances[0]
    if not varies.any() or variances[0] <= 0:
        raise ValueError(f"site {site!r}: expected activations that vary over the inputs")
    deviations, axes = np.sqrt(variances[varies]), axes[:, varies]
    whitened = deviations[:, None] * (axes.T @ gradient @ axes) * deviations
    eigenvalues, rotation = _eigen(whitened)
    read_by = _eigen(gradient)[0]

    basis = LinearBasis(
        center=jnp.asarray((means + shift).mean(0), jnp.float32),
        inward=jnp.asarray(axes / deviations @ rotation, jnp.float32),
        outward=jnp.asarray(rotation.T * deviations @ axes.T, jnp.float32),
    )
    squares = _squares(
        apply_fn,
        variables,
        inputs,
        (means + shift).reshape(shape.shape[1:]).astype(np.float32),
        basis,
        signs,
        site,
        readout,
        probes,
        chunk,
    )
    (low, low_effective), (high, high_effective) = _intervals(squares, key)
    return InteractionBasis(
        basis=basis,
        eigenvalues=Estimate(jnp.asarray(eigenvalues, jnp.float32), low, high),
        rank=_above(eigenvalues, tolerance),
        variance_rank=int(varies.sum()),
        gradient_rank=_above(read_by, tolerance),
        effective=Estimate(_participation(eigenvalues), low_effective, high_effective),
        output_variance=jnp.asarray(np.concatenate(outputs).var(0).sum(), jnp.float32),
    )


def _eigen(matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Eigenvalues, falling and not negative, and eigenvectors in columns, of a covariance."""
    values, vectors = np.linalg.eigh((matrix + matrix.T) / 2)
    vectors = vectors[:, ::-1]
    # Of the two signs, that in which the largest entry is positive: solvers differ in it.
    largest = vectors[np.abs(vectors).argmax(0), np.arange(len(values))]
    return np.maximum(values[::-1], 0), vectors * np.where(largest < 0, -1, 1)


def _above(values: np.ndarray, tolerance: float) -> int:
    return int((values > tolerance * values[0]).sum())


def _participation(eigenvalues: Any) -> jax.Array:
    eigenvalues = jnp.asarray(eigenvalues, jnp.float32)
    # By the largest: squares of small numbers would round to zero. Without any there are none.
    largest = eigenvalues.max()
    share = eigenvalues / jnp.where(largest > 0, largest, 1)
    return jnp.where(largest > 0, share.sum() ** 2 / jnp.sum(share**2), 0)


def _rows(total: int, chunk: int) -> Iterator[np.ndarray]:
    for start in range(0, total, chunk):
        yield np.minimum(np.arange(start, start + chunk), total - 1)


def _gradients(
    apply_fn: Callable[..., Any],
    variables: Any,
    inputs: Any,
    rows: jax.Array,
    key: jax.Array,
    site: str,
    readout: Readout,
    probes: int,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Activations `[B, ...]`, gradients `[R, B, ...]` scaled such that M is a sum, Y `[B, F]`."""
    inputs = take(inputs, rows)
    shape = shapes_of([site], apply_fn, variables, inputs)[site]
    steered = intervene(apply_fn, {site: add}, record=site)

    def steer(steering: jax.Array) -> tuple[jax.Array, jax.Array]:
        output, activations = steered(variables, {site: steering}, inputs)
        return read(readout, output), activations[site]

    zeros = jnp.zeros(shape.shape, shape.dtype)
    output, derivative, activation = jax.vjp(steer, zeros, has_aux=True)
    size = output.shape[1]
    if size <= probes:
        signs = jnp.broadcast_to(jnp.eye(size, dtype=output.dtype)[:, None], (size, *output.shape))
    else:
        # The same for an example in whichever chunk it is.
        keys = jax.vmap(lambda row: jax.random.fold_in(key, row))(rows)
        draw = functools.partial(jax.random.rademacher, shape=(probes, size), dtype=output.dtype)
        signs = jnp.moveaxis(jax.vmap(draw)(keys), 1, 0) / math.sqrt(probes)
    gradients = lax.map(lambda sign: derivative(sign)[0], signs)
    return activation, gradients, output


@functools.partial(jax.jit, static_argnames=("apply_fn", "site", "readout", "probes"))
def _pass(
    apply_fn: Callable[..., Any],
    variables: Any,
    inputs: Any,
    rows: jax.Array,
    key: jax.Array,
    site: str,
    readout: Readout,
    probes: int,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Activations `[B, P, C]`, gradients `[B, R, P, C]` and Y `[B, F]`."""
    activation, gradients, output = _gradients(
        apply_fn, variables, inputs, rows, key, site, readout, probes
    )
    batch, width = len(activation), activation.shape[-1]
    gradients = jnp.moveaxis(gradients, 0, 1).reshape(batch, len(gradients), -1, width)
    return activation.reshape(batch, -1, width), gradients, output


@functools.partial(jax.jit, static_argnames=("apply_fn", "site", "readout", "probes", "chunk"))
def _squares(
    apply_fn: Callable[..., Any],
    variables: Any,
    inputs: Any,
    means: jax.Array,
    basis: LinearBasis,
    key: jax.Array,
    site: str,
    readout: Readout,
    probes: int,
    chunk: int,
) -> tuple[jax.Array, jax.Array]:
    """Of each example the squares of features and of gradients by them, each `[N, F]`.

    `means [..., C]` are those of the activations at each position. Features are averaged over
    positions, gradients summed.
    """

    def run(rows: jax.Array) -> tuple[jax.Array, jax.Array]:
        activation, gradients, _ = _gradients(
            apply_fn, variables, inputs, rows, key, site, readout, probes
        )
        features = jnp.square(product(activation.astype(means.dtype) - means, basis.inward))
        gradients = jnp.square(product(gradients, basis.outward.T)).sum(0)
        features, gradients = (
            x.reshape(len(x), -1, basis.inward.shape[1]) for x in (features, gradients)
        )
        return features.mean(1), gradients.sum(1)

    return map_chunks(run, count_examples(inputs), chunk)


@jax.jit
def _intervals(squares: tuple[jax.Array, jax.Array], key: jax.Array) -> tuple[Any, Any]:
    def statistic(means: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        eigenvalues = means[0] * means[1]
        return eigenvalues, _participation(eigenvalues)

    return bootstrap_mean(statistic, squares, key=key)
