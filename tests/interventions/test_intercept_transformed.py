"""The transform under and over JAX's own: jit, vmap, derivatives, scan."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import traverse_util
from linen_modules import (
    IMAGES,
    KEY,
    Branching,
    Mapped,
    Perturbed,
    Scanned,
    Within,
    X,
    assert_close,
    assert_equal,
    dense,
    initialised,
    message,
    of_the_zoo,
)

from vaejax.interventions.edits import add, replace, scale, swap
from vaejax.interventions.intercept import intervene, sites


def test_one_trace_serves_all_values(chain, variables, x):
    traces = []

    def apply_fn(variables, x):
        traces.append("apply")
        return chain.apply(variables, x)

    def edit(activation, value):
        traces.append("edit")
        return swap(activation, value)

    g = jax.jit(intervene(apply_fn, {"first": edit, "middle": add}, record=["last"]))
    results = []
    for i in range(5):
        values = {
            "first": (jnp.arange(5) < i, jnp.full((4, 5), float(i))),
            "middle": jnp.arange(4.0) * i,
        }
        # Equal but freshly made, in another order.
        results.append(g(variables, dict(reversed(values.items())), x + i)[0])
    assert traces == ["apply", "edit"]
    assert len({result.tobytes() for result in map(np.asarray, results)}) == 5


def test_no_tracer_leaks(chain, variables, x):
    values = {"first": jnp.ones(5), "last": (True, jnp.zeros(3))}
    scanned, xs = Scanned(), X[:, :3]
    scanned_variables = initialised(scanned, xs)
    with jax.checking_leaks():
        g = intervene(chain.apply, {"first": add, "last": swap}, record=["middle"])
        jax.jit(g)(variables, values, x)
        stacked = jax.tree.map(lambda a: jnp.stack([jnp.asarray(a)] * 2), values)
        jax.jit(jax.vmap(g, (None, 0, None)))(variables, stacked, x)

        def total(values):
            output, activations = g(variables, values, x)
            return output.sum(), activations

        jax.jit(jax.grad(total, has_aux=True, allow_int=True))(values)
        jax.jit(lambda x: jnp.zeros(len(sites(chain.apply, variables, x))))(x)
        inner = intervene(scanned.apply, {"cell/dense": add}, record=["embed"])
        jax.jit(inner)(scanned_variables, {"cell/dense": 1.0}, xs)


def test_vmap_is_a_loop_over_values(chain, variables, x):
    g = intervene(chain.apply, {"first": add, "middle": swap}, record=["first", "last"])
    masks = jnp.arange(4) == jnp.arange(4)[:, None]
    values = {
        "first": jax.random.normal(KEY, (4, 5)),
        "middle": (masks, jax.random.normal(KEY, (4, 4, 4))),
    }
    together = jax.jit(jax.vmap(g, (None, 0, None)))(variables, values, x)
    g = jax.jit(g)
    loop = [g(variables, jax.tree.map(lambda a, i=i: a[i], values), x) for i in range(4)]
    assert_close(together, jax.tree.map(lambda *rows: jnp.stack(rows), *loop))


def test_vmap_is_a_loop_over_seeds(chain, x):
    runs = jax.jit(jax.vmap(chain.init, (0, None)))(jax.random.split(KEY, 3), x)
    g = intervene(chain.apply, {"middle": scale}, record=["middle"])
    factors = {"middle": jnp.array([0.0, 1.0, 2.0])}
    together = jax.jit(jax.vmap(g, (0, 0, None)))(runs, factors, x)
    g = jax.jit(g)
    for i in range(3):
        one = jax.tree.map(lambda a, i=i: a[i], (runs, factors))
        assert_close(jax.tree.map(lambda a, i=i: a[i], together), g(*one, x))


def products(jaxpr):
    """The shapes of all matrix products of a program without inner ones."""
    return [e.outvars[0].aval.shape for e in jaxpr.eqns if e.primitive.name == "dot_general"]


def test_what_is_before_an_edited_site_is_computed_once_for_all_values(chain, variables, x):
    g = intervene(chain.apply, {"middle": add})
    values = {"middle": jnp.ones((7, 4))}
    jaxpr = jax.make_jaxpr(jax.vmap(g, (None, 0, None)))(variables, values, x)
    first, middle, last = products(jaxpr.jaxpr)
    assert first == (4, 5)
    assert middle == (4, 4)
    assert np.prod(last) == 7 * 4 * 3


def test_what_an_edit_replaces_is_not_computed():
    # An encoder that is a thousand times the decoder.
    model = nn.Sequential([nn.Dense(1000), nn.Dense(1000), nn.Dense(2), nn.Dense(1)])
    variables = jax.eval_shape(model.init, KEY, X)

    def flops(edits):
        g = jax.jit(lambda *args: intervene(model.apply, edits)(*args)[0])
        cost = g.lower(variables, {site: jnp.ones(2) for site in edits}, X).compile()
        cost = cost.cost_analysis()
        return (cost[0] if isinstance(cost, list) else cost)["flops"]

    jax.config.update("jax_disable_most_optimizations", False)
    whole = flops({})
    assert whole > 2 * 4 * 1000 * 1000
    assert flops({"layers_2": add}) > 2 * 4 * 1000 * 1000
    assert flops({"layers_2": replace}) < whole / 1000


def test_the_gradient_of_an_added_value_is_that_of_a_perturbation():
    model = Perturbed()
    variables = initialised(model, X)
    params, zeros = variables["params"], variables["perturbations"]

    def perturbed(perturbations):
        variables = {"params": params, "perturbations": perturbations}
        return (model.apply(variables, X) ** 2).sum()

    def edited(values):
        return (intervene(model.apply, {"hidden": add})(variables, values, X)[0] ** 2).sum()

    expected = jax.jit(jax.grad(perturbed))(zeros)["h"]
    assert jnp.abs(expected).max() > 0.1
    gradient = jax.jit(jax.grad(edited))
    assert_close(gradient({"hidden": jnp.zeros((4, 5))})["hidden"], expected)
    # The derivative in a value for all examples is the sum of theirs.
    assert_close(gradient({"hidden": jnp.zeros(5)})["hidden"], expected.sum(0))


def test_derivatives_are_finite_differences(chain, variables, x):
    g = intervene(chain.apply, {"first": add, "middle": scale})
    at = {"first": jnp.linspace(-1, 1, 5), "middle": jnp.linspace(1, 2, 16).reshape(4, 4)}
    direction = jax.tree.map(lambda a: jax.random.normal(KEY, a.shape), at)

    @jax.jit
    def f(values):
        return (g(variables, values, x)[0] ** 2).sum()

    def difference(f, step=1e-2):
        ahead, behind = (
            f(jax.tree.map(lambda a, d, s=s: a + s * d, at, direction)) for s in (step, -step)
        )
        return jax.tree.map(lambda a, b: (a - b) / (2 * step), ahead, behind)

    gradient = jax.jit(jax.grad(f))
    along, hessian = jax.jvp(f, (at,), (direction,))[1], jax.jvp(gradient, (at,), (direction,))[1]
    assert abs(along) > 0.1
    assert_close(along, difference(f), rtol=1e-2, atol=1e-3)
    products = jax.tree.map(jnp.vdot, gradient(at), direction)
    assert_close(jax.tree.reduce(jnp.add, products), along, rtol=1e-4)
    assert_close(hessian, difference(gradient), rtol=2e-2, atol=1e-2)


def test_all_derivatives_reach_through_the_convolutions_of_the_zoo():
    model, variables = of_the_zoo("vae")
    site = "encoder/conv_1/pre"
    apply_fn = functools.partial(model.apply, method="latents")
    g = intervene(apply_fn, {site: add})
    flat = traverse_util.flatten_dict(variables)
    path = "params", "encoder", "conv_1", "bias"
    direction = jax.random.normal(KEY, flat[path].shape)

    def edited(shift):
        value = jnp.broadcast_to(shift, (16, 16, *shift.shape))
        return (g(variables, {site: value}, IMAGES)[0] ** 2).sum()

    def biased(shift):
        changed = traverse_util.unflatten_dict(flat | {path: flat[path] + shift})
        return (apply_fn(changed, IMAGES) ** 2).sum()

    def derivatives(f, shift, direction):
        (value, gradient), (along, hessian) = jax.jvp(jax.value_and_grad(f), (shift,), (direction,))
        return value, gradient, along, hessian

    run = jax.jit(derivatives, static_argnums=0)
    got, expected = (run(f, jnp.zeros_like(direction), direction) for f in (edited, biased))
    assert all(jnp.abs(part).max() > 1e-6 for part in expected)
    for a, b in zip(got, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-3 * float(jnp.abs(b).max()))


def jitted_inside(model):
    jitted = jax.jit(model.apply)
    return lambda variables, x: jitted(variables, x)


def jitted_itself(model):
    return jax.jit(model.apply)


def scanned_inside(model):
    def body(variables, x):
        return variables, model.apply(variables, x)

    return lambda variables, x: jax.lax.scan(body, variables, x[None])[1][0]


def rematerialised_inside(model):
    remat = jax.checkpoint(model.apply)
    return lambda variables, x: remat(variables, x)


def jitted_module(model):
    del model
    return Within(nn.jit).apply


@pytest.mark.parametrize(
    "make", [jitted_inside, jitted_itself, scanned_inside, rematerialised_inside, jitted_module]
)
def test_a_warm_function_is_edited_and_a_clean_one_stays_clean(make):
    model, site = Within(lambda module: module), "block/inner"
    variables = initialised(model, X)
    inner, out = variables["params"]["block"]["inner"], variables["params"]["out"]
    clean, edited = (dense(out, jnp.tanh(dense(inner, X, shift))) for shift in (0.0, 1.0))
    assert np.abs(clean - edited).max() > 0.1
    values = {site: jnp.ones(())}

    cold = make(model)
    g = jax.jit(intervene(cold, {site: add}))
    assert_close(g(variables, values, X)[0], edited)
    assert_close(cold(variables, X), clean)
    assert_close(jax.jit(cold)(variables, X), clean)
    assert_close(g(variables, {site: jnp.zeros(())}, X)[0], clean)
    assert site in sites(cold, variables, X)

    warm = make(model)
    assert_close(warm(variables, X), clean)
    g = jax.jit(intervene(warm, {site: add}))
    assert_close(g(variables, values, X)[0], edited)
    assert_close(warm(variables, X), clean)
    both = jax.jit(lambda v, values, x: (warm(v, x), g(v, values, x)[0], warm(v, x)))
    assert_close(both(variables, values, X), (clean, edited, clean))
    ones = {site: jnp.linspace(0, 1, 2)}
    mapped = jax.jit(jax.vmap(intervene(warm, {site: add}), (None, 0, None)))
    assert_close(mapped(variables, ones, X)[0], jnp.stack([clean, edited]))
    slope = jax.jit(jax.grad(lambda values: g(variables, values, X)[0].sum()))(values)
    assert jnp.abs(slope[site]) > 1e-3

    if make is not jitted_itself:  # which is unwrapped
        for f in (make(model), warm):
            eager = intervene(f, {site: add})
            assert message(eager, variables, values, X) == (
                f"site {site!r} is inside nn.scan, nn.remat, jit or the like: "
                "call the intervened function under jax.jit"
            )
            assert_close(f(variables, X), clean)
        assert "it can be edited but not recorded" in message(
            jax.jit(intervene(warm, {}, record=[site])), variables, {}, X
        )
    else:
        eager = intervene(warm, {site: add}, record=[site])
        assert_close(eager(variables, values, X)[0], edited)


def test_an_edit_in_a_scan_is_in_every_iteration_and_nothing_is_recorded_there():
    model, xs = Scanned(), X[:, :3]
    variables = initialised(model, xs)
    params, shift = variables["params"], jnp.array([0.5, -1.0, 2.0])
    carry, ys = jnp.zeros(3), []
    for x in dense(params["embed"], xs):
        carry = jnp.tanh(dense(params["cell"]["dense"], carry + x, shift))
        ys.append(2 * carry)
    ys = jnp.stack(ys)
    g = jax.jit(intervene(model.apply, {"cell/dense": add}, record=["out"]))
    output, activations = g(variables, {"cell/dense": shift}, xs)
    assert_close(output, dense(params["out"], ys))
    assert_equal(activations["out"], output)
    # Flax traces the body more than once; it is a first call each time.
    assert list(sites(model.apply, variables, xs)) == ["embed", "cell/dense", "cell", "out"]
    assert sites(model.apply, variables, xs)["cell/dense"].shape == (3,)

    def total(values):
        return g(variables, values, xs)[0].sum()

    step = 1e-2
    for i in range(3):
        ahead, behind = (total({"cell/dense": shift.at[i].add(s)}) for s in (step, -step))
        slope = jax.grad(total)({"cell/dense": shift})["cell/dense"][i]
        assert_close(slope, (ahead - behind) / (2 * step), rtol=2e-2, atol=1e-3)

    eager = intervene(model.apply, {"cell/dense": add})
    assert "under jax.jit" in message(eager, variables, {"cell/dense": shift}, xs)
    for site in ("cell/dense", "cell"):
        recording = jax.jit(intervene(model.apply, {}, record=[site]))
        assert "can be edited but not recorded" in message(recording, variables, {}, xs)


def test_an_edit_in_remat_is_in_the_value_and_in_the_gradient():
    plain, model = Within(lambda module: module), Within(nn.remat)
    variables, value = initialised(plain, X), {"block/inner": jnp.arange(4.0)}

    def derivatives(model):
        def total(variables, values):
            output, _ = intervene(model.apply, {"block/inner": add})(variables, values, X)
            return (output**2).sum()

        return jax.jit(jax.value_and_grad(total, (0, 1)))(variables, value)

    assert_close(derivatives(model), derivatives(plain))
    recording = jax.jit(intervene(model.apply, {}, record=["block"]))
    assert "can be edited but not recorded" in message(recording, variables, {}, X)
    eager = intervene(model.apply, {"block/inner": add})
    assert "under jax.jit" in message(eager, variables, value, X)


def test_an_edit_in_vmap_is_in_every_copy():
    model, x = Mapped(), X.reshape(2, 2, 6)
    variables = initialised(model, x)
    inner, shift = variables["params"]["blocks"]["inner"], jnp.array([0.5, -1.0, 2.0])
    assert inner["kernel"].shape == (2, 6, 3)
    copies = [dense(jax.tree.map(lambda a, i=i: a[i], inner), x[i], shift) for i in range(2)]
    g = jax.jit(intervene(model.apply, {"blocks/inner": add}))
    output, _ = g(variables, {"blocks/inner": shift}, x)
    assert_close(output, jnp.tanh(jnp.stack(copies)).sum(0))
    assert sites(model.apply, variables, x)["blocks/inner"].shape == (2, 3)
    eager = intervene(model.apply, {"blocks/inner": add})
    assert "under jax.jit" in message(eager, variables, {"blocks/inner": shift}, x)


def test_an_edit_is_in_every_branch():
    model = Branching()
    variables = initialised(model, X)
    params = variables["params"]["block"]["inner"]
    g = jax.jit(intervene(model.apply, {"block": add}))
    for x in (jnp.abs(X), -jnp.abs(X)):
        h = jnp.tanh(dense(params, x)) + 3
        expected = h if x.sum() > 0 else 2 * h
        assert_close(g(variables, {"block": 3.0}, x)[0], expected)
