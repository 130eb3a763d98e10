"""Changes that are followed by windows equal those of the whole array, and stay small."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from planted_networks import normal

from vaejax import convolution
from vaejax.interventions import windows
from vaejax.interventions.local import block_size, follow
from vaejax.interventions.windows import Changed, Index, Window

IMAGE = (1, 8, 6, 3)


def lax_conv(x, kernel=(3, 3), strides=(1, 1), padding="SAME", features=2, **options):
    weight = normal(7, *kernel, x.shape[-1], features)
    return lax.conv_general_dilated(
        x, weight, strides, padding, dimension_numbers=("NHWC", "HWIO", "NHWC"), **options
    )


def positioned_last(x):
    """A convolution whose channels come before its positions."""
    weight = normal(7, 5, 3, 3, 3)
    out = lax.conv_general_dilated(jnp.moveaxis(x, 3, 1), weight, (1, 1), "SAME")
    return jnp.tanh(out)


def residual(x):
    return lax_conv(x, features=3) + x


def jitted_activations(x):
    return jax.jit(nn.silu)(nn.relu(x) + 1) * jnp.arange(6.0)[:, None]


def normalised(x):
    return nn.softmax(lax_conv(x), axis=-1) - x.mean((1, 2), keepdims=True)[..., :2]


def scanned(x):
    return lax.scan(lambda c, _: (jnp.sin(c), None), x, length=3)[0]


FUNCTIONS = {
    "elementwise": lambda x: jnp.where(x > 0, jnp.exp(-x), x**2) * 3,
    "activations in jit and with derivatives of their own": jitted_activations,
    "conv": lax_conv,
    "conv of even size": functools.partial(lax_conv, kernel=(4, 2)),
    "conv without padding": functools.partial(lax_conv, padding="VALID"),
    "conv with stride": functools.partial(lax_conv, strides=(2, 2)),
    "conv with a stride above its size": functools.partial(lax_conv, kernel=(2, 1), strides=(3, 2)),
    "conv of spread kernel": functools.partial(lax_conv, rhs_dilation=(2, 1)),
    "transposed conv": lambda x: lax.conv_transpose(x, normal(7, 4, 4, 3, 2), (2, 2), "SAME"),
    "conv of groups": lambda x: lax_conv(x[..., :1], feature_group_count=1),
    "conv with channels first": positioned_last,
    "our conv": lambda x: convolution._matmul_conv(x, normal(7, 4, 4, 3, 2)),
    "our small conv": lambda x: convolution._matmul_conv(x, normal(7, 2, 2, 3, 2)),
    "our large conv": lambda x: convolution._matmul_conv(x, normal(7, 6, 6, 3, 2)),
    "our transposed conv": lambda x: convolution._matmul_conv_transpose(x, normal(7, 4, 4, 3, 2)),
    "our large transposed conv": lambda x: convolution._matmul_conv_transpose(
        x, normal(7, 6, 6, 3, 2)
    ),
    "two convs": lambda x: lax_conv(jnp.tanh(lax_conv(x, strides=(2, 1)))),
    "one to one conv": lambda x: nn.relu(x) @ normal(7, 3, 4),
    "residual": residual,
    "transposed and squeezed": lambda x: jnp.squeeze(jnp.transpose(x, (3, 0, 2, 1)), 1) * 2,
    "broadcast": lambda x: jnp.broadcast_to(x[:, None], (1, 2, 8, 6, 3)) + 1,
    "flattened, then dense": lambda x: nn.relu(x.reshape(1, -1) @ normal(7, 144, 5)),
    "normalised": normalised,
    "scanned": scanned,
    "not of the argument": lambda x: jnp.ones(4),
}

# Corner and size of what is changed: one number, at every corner; a channel; a place; all.
PLACES = [
    *(((0, i, j, c), (1, 1, 1, 1)) for i, j, c in [(0, 0, 0), (7, 0, 1), (0, 5, 2), (7, 5, 0)]),
    *(((0, i, j, 0), (1, 1, 1, 1)) for i, j in [(3, 2), (4, 3), (1, 4), (6, 1)]),
    ((0, 0, 0, 1), (1, 8, 6, 1)),
    ((0, 2, 3, 0), (1, 1, 1, 3)),
    ((0, 5, 0, 0), (1, 2, 6, 3)),
    ((0, 0, 0, 0), (1, 8, 6, 3)),
]


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_change_is_that_of_the_whole_array(name):
    fn, base, donor = FUNCTIONS[name], normal(1, *IMAGE), normal(2, *IMAGE)

    @jax.jit
    def both(base, donor):
        follower = follow(fn, base)
        pairs = []
        for corner, shape in PLACES:
            window = Window(corner, lax.dynamic_slice(donor, corner, shape))
            changed = lax.dynamic_update_slice(base, window.values, corner)
            same = Window(corner, lax.dynamic_slice(base, corner, shape))
            pairs.append((follower.change(window), fn(changed) - fn(base), follower.change(same)))
        return pairs

    for found, expected, nothing in both(base, donor):
        assert found.shape == expected.shape
        np.testing.assert_allclose(found, expected, atol=2e-5)
        # A sum over all elements may be rounded in another order.
        np.testing.assert_allclose(nothing, 0, atol=1e-6 if name == "normalised" else 0)


@pytest.mark.parametrize("name", ["conv with stride", "our transposed conv", "two convs"])
def test_places_may_be_traced_and_mapped_over(name):
    fn, base = FUNCTIONS[name], normal(1, *IMAGE)
    corners = jnp.array([[i, j] for i in (0, 3, 7) for j in (0, 2, 5)])

    @jax.jit
    @jax.vmap
    def found(corner):
        window = Window((0, corner[0], corner[1], 0), jnp.full((1, 1, 1, 3), 9.0))
        return follow(fn, base).change(window)

    for corner, change in zip(corners, found(corners), strict=True):
        changed = base.at[0, corner[0], corner[1]].set(9.0)
        np.testing.assert_allclose(change, fn(changed) - fn(base), atol=2e-4)


def decoder(z):
    """A dense layer that becomes an image: 4 x 4 pixels of 6 channels, of 48 numbers to 32 x 32."""
    h = nn.relu(z).reshape(1, 4, 4, 6)
    h = nn.relu(convolution._matmul_conv_transpose(h, normal(3, 4, 4, 6, 8)) + normal(4, 8))
    h = nn.relu(convolution._matmul_conv_transpose(h, normal(5, 4, 4, 8, 8)) + normal(6, 8))
    return convolution._matmul_conv_transpose(h, normal(8, 4, 4, 8, 1))


def test_units_of_a_block_share_their_place():
    base = normal(1, 1, 96)
    assert block_size(decoder, base) == 6
    follower = follow(decoder, base)

    def change(unit):
        start = (0, Index(unit // 6 * 6, unit % 6, 6))
        return follower.change(Window(start, jnp.full((1, 1), 2.0)))

    for unit in (0, 5, 41, 95):
        changed = base.at[0, unit].set(2.0)
        expected = decoder(changed) - decoder(base)
        np.testing.assert_allclose(jax.jit(change)(unit), expected, atol=1e-4)

    def of_block(place):
        return jax.vmap(lambda c: follower.change(Window((0, Index(6 * place, c, 6)), ONE)))(FIRST)

    program = str(jax.make_jaxpr(of_block)(0))
    assert "dynamic_slice" in program
    # Of the kernel's channels, and of the numbers of a dense layer; not of any image.
    images = [line for line in program.splitlines() if "gather" in line and "8,8" in line]
    assert not images


ONE, FIRST = jnp.ones((1, 1)), jnp.arange(4)


def test_work_is_that_of_the_window():
    base = normal(1, 1, 96)
    follower = follow(decoder, base)

    def flops(fn, *args):
        return jax.jit(fn).lower(*args).compile().cost_analysis()["flops"]

    whole = flops(decoder, base)
    one = flops(lambda unit: follower.change(Window((0, Index(0, unit, 6)), ONE)), 3)
    assert one < 0.45 * whole


def test_windows_reach_as_far_as_kernels(monkeypatch):
    sizes = []
    after = windows.window_after

    def watching(equation, operands, base):
        results = after(equation, operands, base)
        sizes.append((equation.primitive.name, results[0].window.values.shape))
        return results

    monkeypatch.setattr("vaejax.interventions.local.window_after", watching)
    follow(decoder, normal(1, 1, 96)).change(Window((0, 20), ONE))
    of_convolutions = [shape for name, shape in sizes if name == "stride_2_conv_adjoint"]
    assert of_convolutions == [(1, 4, 4, 8), (1, 10, 10, 8), (1, 22, 22, 1)]


def test_an_operation_that_nobody_knows_is_carried_out_whole():
    changed = Changed(jnp.arange(6.0).reshape(1, 6), Window((0, 2), jnp.full((1, 1), 9.0)))
    jaxpr = jax.make_jaxpr(lambda x: jnp.cumsum(x, 1))(changed.base).jaxpr
    (equation,) = jaxpr.eqns
    base = windows.run(equation, [changed.base])
    (found,) = windows.window_after(equation, [changed], base)
    np.testing.assert_array_equal(found.window.values, [[0, 1, 10, 13, 17, 22]])


def test_the_block_is_all_of_the_axis_if_it_is_not_divided():
    assert block_size(lambda x: x.reshape(1, 4, 3).reshape(1, 2, 2, 3), jnp.zeros((1, 12))) == 3
    assert block_size(lambda x: x @ jnp.ones((12, 4)), jnp.zeros((1, 12))) == 12
    assert block_size(lambda x: (x @ jnp.eye(12)).reshape(1, 4, 3), jnp.zeros((1, 12))) == 12
    assert block_size(lambda x: x.reshape(12, 1), jnp.zeros((1, 12))) == 12
