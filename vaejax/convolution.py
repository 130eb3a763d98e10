"""Stride-2 convolutions and their transposes, in the form that is fast on the backend at hand.

XLA's CPU backend runs strided and transposed convolutions, and above all their gradients, several
times slower than matrix products of the same size; under `vmap` over weights it falls back to
grouped convolutions, which are slower still. A convolution with a `2m x 2m` kernel and stride 2 is
a space-to-depth followed by an `m x m` convolution of blocks, that is a sum of `m * m` matrix
products, and its transpose is the adjoint of exactly that. Both directions and the gradient of
the kernel are therefore three small functions, and each is the derivative of another. They are JAX
primitives, so that forward mode, reverse mode, any order and `vmap` all work.

Parameters and results are those of `flax.linen.Conv` and `flax.linen.ConvTranspose` with
`strides=(2, 2), padding="SAME"`; the tests hold the two forms together.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.core import ShapedArray
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

_DIMENSIONS = ("NHWC", "HWIO", "NHWC")
_LARGE = 16  # an output from which on copies of blocks leave a core's cache


def conv(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Convolution with stride 2 and SAME padding.

    Args:
      x: Images `[B, H, W, C]`; H and W even.
      kernel: `[2m, 2m, C, F]`, as `flax.linen.Conv` stores it.

    Returns:
      `[B, H / 2, W / 2, F]`.

    Raises:
      ValueError: If a spatial size or the kernel size is odd.

    Example:
      >>> conv(jnp.ones((1, 8, 8, 3)), jnp.ones((4, 4, 3, 5))).shape
      (1, 4, 4, 5)
    """
    _check_even(x.shape[1:3], kernel.shape[:2])
    if jax.default_backend() == "cpu":
        return _matmul_conv(x, kernel)
    return lax.conv_general_dilated(x, kernel, (2, 2), "SAME", dimension_numbers=_DIMENSIONS)


def conv_transpose(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Transposed convolution with stride 2 and SAME padding: doubles height and width.

    Args:
      x: `[B, H, W, C]`.
      kernel: `[2m, 2m, C, F]`, as `flax.linen.ConvTranspose` stores it.

    Returns:
      `[B, 2 H, 2 W, F]`.

    Raises:
      ValueError: If the kernel size is odd.

    Example:
      >>> conv_transpose(jnp.ones((1, 4, 4, 3)), jnp.ones((4, 4, 3, 5))).shape
      (1, 8, 8, 5)
    """
    _check_even(kernel.shape[:2])
    if jax.default_backend() == "cpu":
        return _matmul_conv_transpose(x, kernel)
    return lax.conv_transpose(x, kernel, (2, 2), "SAME", dimension_numbers=_DIMENSIONS)


def _check_even(*shapes: tuple[int, ...]) -> None:
    for shape in shapes:
        if any(size % 2 for size in shape):
            raise ValueError(f"stride-2 convolutions need even sizes, got {shape}")


def _matmul_conv(x: jax.Array, kernel: jax.Array) -> jax.Array:
    return _conv_p.bind(x, kernel, m=kernel.shape[0] // 2)


def _matmul_conv_transpose(x: jax.Array, kernel: jax.Array) -> jax.Array:
    # The adjoint of a convolution is the transposed convolution with the kernel turned by half a
    # turn and its channels swapped.
    turned = kernel[::-1, ::-1].swapaxes(2, 3)
    return _adjoint_p.bind(x, turned, m=kernel.shape[0] // 2)


def _gather(x: jax.Array, kernel: jax.Array, *, m: int) -> jax.Array:
    """The convolution: `[B, 2h, 2w, C]` and `[2m, 2m, C, F]` to `[B, h, w, F]`."""
    weights = _blocks_of_kernel(kernel)
    blocks, size = _blocks(x, m), (x.shape[1] // 2, x.shape[2] // 2)
    if _is_thin(x):
        joined = jnp.concatenate(_shifts(blocks, m, size), -1)
        return joined @ weights.reshape(-1, kernel.shape[-1])
    if min(size) < _LARGE:
        parts = [
            block @ weight for block, weight in zip(_shifts(blocks, m, size), weights, strict=True)
        ]
    else:
        # One product, whose parts are shifted instead of the blocks: they are smaller.
        product = blocks @ weights.swapaxes(0, 1).reshape(blocks.shape[-1], -1)
        parts = [
            _shift(part, offset, size)
            for part, offset in zip(jnp.split(product, m * m, -1), _offsets(m), strict=True)
        ]
    return sum(parts[1:], parts[0])


def _scatter(y: jax.Array, kernel: jax.Array, *, m: int) -> jax.Array:
    """The adjoint of `_gather` in its image: `[B, h, w, F]` to `[B, 2h, 2w, C]`."""
    _, h, w, _ = y.shape
    return spread(y, kernel, m=m)[:, m - 1 : m - 1 + 2 * h, m - 1 : m - 1 + 2 * w]


def spread(y: jax.Array, kernel: jax.Array, *, m: int) -> jax.Array:
    """A transposed convolution with stride 2 and nothing cut off.

    Args:
      y: `[B, h, w, F]`.
      kernel: `[2m, 2m, C, F]`: what one number of `y` makes.
      m: Half the kernel's size.

    Returns:
      `[B, 2 (h + m - 1), 2 (w + m - 1), C]`, of which SAME padding would leave out the first and
      the last `m - 1` rows and columns.
    """
    channels, features = kernel.shape[2:]
    _, h, w, _ = y.shape
    weights = _blocks_of_kernel(kernel).reshape(-1, features).T
    padded = _placed(jnp.split(y @ weights, m * m, axis=-1), m)
    blocks = sum(padded[1:], padded[0])
    image = blocks.reshape(-1, h + m - 1, w + m - 1, 2, 2, channels).swapaxes(2, 3)
    return image.reshape(-1, 2 * (h + m - 1), 2 * (w + m - 1), channels)


def _correlate(x: jax.Array, y: jax.Array, *, m: int) -> jax.Array:
    """The adjoint of `_gather` in its kernel: `[B, 2h, 2w, C]`, `[B, h, w, F]` to the kernel."""
    channels, features = x.shape[-1], y.shape[-1]
    blocks = _blocks(x, m)
    if _is_thin(x):
        joined = jnp.concatenate(_shifts(blocks, m, y.shape[1:3]), -1)
        weights = joined.reshape(-1, joined.shape[-1]).T @ y.reshape(-1, features)
    else:
        # One product with `y` at all offsets, which has fewer channels than the blocks.
        rows = jnp.concatenate(_placed([y] * (m * m), m), -1).reshape(-1, m * m * features)
        product = blocks.reshape(-1, 4 * channels).T @ rows
        weights = product.reshape(4 * channels, m * m, features).swapaxes(0, 1)
    weights = weights.reshape(m, m, 2, 2, channels, features).swapaxes(1, 2)
    return weights.reshape(2 * m, 2 * m, channels, features)


def _is_thin(x: jax.Array) -> bool:
    # With so few channels one product over concatenated blocks beats several over slices.
    return x.shape[-1] < 8


def _offsets(m: int) -> list[tuple[int, int]]:
    return [(i, j) for i in range(m) for j in range(m)]


def _blocks(x: jax.Array, m: int) -> jax.Array:
    """The 2x2 blocks of the padded image, `[B, h + m - 1, w + m - 1, 4C]`."""
    _, height, width, channels = x.shape
    h, w = height // 2, width // 2
    x = jnp.pad(x, ((0, 0), (m - 1, m - 1), (m - 1, m - 1), (0, 0)))
    blocks = x.reshape(-1, h + m - 1, 2, w + m - 1, 2, channels).swapaxes(2, 3)
    return blocks.reshape(-1, h + m - 1, w + m - 1, 4 * channels)


def _shift(blocks: jax.Array, offset: tuple[int, int], size: tuple[int, ...]) -> jax.Array:
    return blocks[:, offset[0] : offset[0] + size[0], offset[1] : offset[1] + size[1]]


def _shifts(blocks: jax.Array, m: int, size: tuple[int, ...]) -> list[jax.Array]:
    """All `m * m` shifts of blocks, each `[B, h, w, 4C]`."""
    return [_shift(blocks, offset, size) for offset in _offsets(m)]


def _placed(parts: Sequence[jax.Array], m: int) -> list[jax.Array]:
    """The reverse: `m * m` parts `[B, h, w, ...]`, each put at its offset among zeros."""
    return [
        jnp.pad(part, ((0, 0), (i, m - 1 - i), (j, m - 1 - j), (0, 0)))
        for part, (i, j) in zip(parts, _offsets(m), strict=True)
    ]


def _blocks_of_kernel(kernel: jax.Array) -> jax.Array:
    """`[2m, 2m, C, F]` to `[m * m, 4C, F]`, in the order of `_offsets`."""
    m, channels, features = kernel.shape[0] // 2, *kernel.shape[2:]
    blocks = kernel.reshape(m, 2, m, 2, channels, features).swapaxes(1, 2)
    return blocks.reshape(m * m, 4 * channels, features)


@functools.lru_cache(maxsize=1024)  # every trace of a network asks anew
def _output(function: Callable[..., jax.Array], m: int, *args: jax.ShapeDtypeStruct) -> Any:
    return jax.eval_shape(functools.partial(function, m=m), *args)


def _bilinear(name: str, function: Callable[..., jax.Array]) -> Primitive:
    """A JAX primitive computed by a function that is linear in each of its two arguments."""
    primitive = Primitive(name)

    def abstract_eval(*args: ShapedArray, m: int) -> ShapedArray:
        out = _output(function, m, *(jax.ShapeDtypeStruct(of.shape, of.dtype) for of in args))
        # Of the mesh that the image is on, if there is one.
        return args[0].update(shape=out.shape, dtype=out.dtype, weak_type=False)

    def batch(
        args: Sequence[jax.Array], axes: Sequence[int | None], *, m: int
    ) -> tuple[jax.Array, int]:
        return jax.vmap(functools.partial(function, m=m), tuple(axes))(*args), 0

    primitive.def_impl(jax.jit(function, static_argnames="m"))
    primitive.def_abstract_eval(abstract_eval)
    batching.primitive_batchers[primitive] = batch
    mlir.register_lowering(primitive, mlir.lower_fun(function, multiple_results=False))
    return primitive


# Left to itself, JAX would transpose the slices and pads of each function one by one, which takes
# up to four times longer. As primitives the three are each other's transposes: they are the
# derivatives of one form that is linear in image, kernel and output, <_gather(x, kernel), y>.
# A custom_vjp would do the same for gradients, but refuse forward mode.
_conv_p = _bilinear("stride_2_conv", _gather)
_adjoint_p = _bilinear("stride_2_conv_adjoint", _scatter)
_correlate_p = _bilinear("stride_2_conv_correlate", _correlate)

ad.defbilinear(
    _conv_p,
    lambda ct, x, kernel, m: _adjoint_p.bind(ct, kernel, m=m),
    lambda ct, x, kernel, m: _correlate_p.bind(x, ct, m=m),
)
ad.defbilinear(
    _adjoint_p,
    lambda ct, y, kernel, m: _conv_p.bind(ct, kernel, m=m),
    lambda ct, y, kernel, m: _correlate_p.bind(ct, y, m=m),
)
ad.defbilinear(
    _correlate_p,
    lambda ct, x, y, m: _adjoint_p.bind(y, ct, m=m),
    lambda ct, x, y, m: _conv_p.bind(x, ct, m=m),
)
