"""The transform: which sites there are, what an edit changes, and what is refused."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from linen_modules import (
    IMAGES,
    KEY,
    ZOO,
    Block,
    ByParts,
    Inheriting,
    Listed,
    OfSeveral,
    Perturbed,
    Scanned,
    Sharing,
    Stateful,
    Twice,
    X,
    assert_close,
    assert_equal,
    captured,
    initialised,
    message,
    of_the_zoo,
)

from vaejax.interventions.edits import add, replace, swap, zero
from vaejax.interventions.intercept import intervene, sites


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        (nn.Sequential([Block(4), nn.relu, nn.Dense(2)]), "layers_0/inner layers_0 layers_2"),
        (
            Listed(),
            "layers_0/inner layers_0 layers_1 head_a head_b/layers_0 head_b/layers_2 head_b",
        ),
        (
            ByParts(),
            "listed/layers_0/inner listed/layers_0 listed/layers_1 "
            "listed/head_a listed/head_b/layers_0 listed/head_b/layers_2 listed/head_b",
        ),
        (Twice(), "block/inner block block/inner#2 block#2 block/inner#3 block#3"),
        (OfSeveral("tuple"), "several/dense several"),
        (OfSeveral("dict"), "several/dense several"),
        (OfSeveral("record"), "several/dense several"),
        (Perturbed(), "hidden out"),
    ],
    ids=lambda model: type(model).__name__,
)
def test_every_call_of_a_module_is_a_site_as_flax_captures_it(model, expected):
    variables = initialised(model, X)
    found = sites(model.apply, variables, X)
    assert " ".join(found) == expected

    @jax.jit
    def run(variables, x):
        recorded = intervene(model.apply, {}, record=found)(variables, {}, x)
        return recorded, captured(model.apply, variables, x)

    recorded, flax = run(variables, X)
    assert_equal(recorded, flax)
    assert found == jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), flax[1])
    # And what is executed at once.
    assert_close(intervene(model.apply, {}, record=found)(variables, {}, X), flax)


def replace_or_swap(activation, value):
    """The first of `value` says where to replace; the others are those of `swap`."""
    replaced, mask, donor = value
    swapped = swap(activation, (mask, donor))
    return jax.tree.map(lambda a, b: jnp.where(replaced, a, b), replace(activation, donor), swapped)


@pytest.mark.parametrize("name", ZOO)
def test_on_the_zoo_recording_is_what_flax_captures_and_patching_with_it_changes_no_bit(name):
    model, variables = of_the_zoo(name)
    names = list(sites(model.apply, variables, IMAGES, KEY))
    assert {"encoder/conv_1/pre", "encoder/conv_1", "encoder", "reconstruction"} <= {*names}
    assert not any("discriminator" in site for site in names)

    @jax.jit
    def clean(*args):
        variables, *rest = args
        recorded = intervene(model.apply, {}, record=names)(variables, {}, *rest)
        return recorded, captured(model.apply, *args)

    recorded, flax = clean(variables, IMAGES, KEY)
    assert_equal(recorded, flax)

    # Every site is edited; the values say at which something happens. All in one program: between
    # two, XLA rounds differently.
    edits = dict.fromkeys(names, replace_or_swap)
    patched = jax.jit(intervene(model.apply, edits, record=names))
    broken = jax.tree.map(lambda a: jnp.full_like(a, jnp.nan), recorded[1])
    nowhere = {site: (False, False, broken[site]) for site in names}
    plain, own = patched(variables, nowhere, IMAGES, KEY)
    assert_close((plain, own), recorded)
    for site in names:
        for chosen in ((True, False), (False, True)):
            here = nowhere | {site: (*chosen, own[site])}
            assert_equal(patched(variables, here, IMAGES, KEY), (plain, own))
            # The same with another donor is seen.
            here = nowhere | {site: (*chosen, broken[site])}
            output, activations = patched(variables, here, IMAGES, KEY)
            assert_equal(activations[site], broken[site])
            assert not np.array_equal(output.reconstruction, plain.reconstruction)
    assert patched._cache_size() == 1


@pytest.mark.parametrize("name", ZOO)
def test_no_edit_is_the_plain_program(name):
    model, variables = of_the_zoo(name)
    for apply_fn in (model.apply, lambda *args: jax.jit(model.apply)(*args)):
        clean = jax.make_jaxpr(apply_fn)(variables, IMAGES, KEY)
        unedited = jax.make_jaxpr(
            lambda v, *args, f=apply_fn: intervene(f, {}, record=())(v, {}, *args)[0]
        )
        assert str(unedited(variables, IMAGES, KEY)) == str(clean)


def test_a_structured_output_is_edited_as_a_whole():
    for kind in ("tuple", "dict", "record"):
        model = OfSeveral(kind)
        variables = initialised(model, X)
        mean = sites(model.apply, variables, X)["several"]
        donor = jax.tree.map(lambda a: jnp.ones(a.shape, a.dtype), mean)
        output, activations = intervene(model.apply, {"several": replace}, record=["several"])(
            variables, {"several": donor}, X
        )
        assert_close(output, jnp.full((4, 2), np.e))
        assert_equal(activations["several"], donor)


def test_each_call_of_a_module_is_edited_by_itself():
    model = Twice()
    variables = initialised(model, X)
    block = {"params": variables["params"]["block"]}
    kernel, bias = block["params"]["inner"]["kernel"], block["params"]["inner"]["bias"]

    def f(x, shift=0.0):
        return jnp.tanh(x @ kernel + bias + shift)

    def run(site):
        return jax.jit(intervene(model.apply, {site: add}))(variables, {site: 0.5}, X)[0]

    assert_close(run("block"), f(f(X) + 0.5) + f(2 * X))
    assert_close(run("block#2"), f(f(X)) + 0.5 + f(2 * X))
    assert_close(run("block#3"), f(f(X)) + f(2 * X) + 0.5)
    assert_close(run("block/inner"), f(f(X, 0.5)) + f(2 * X))
    assert_close(run("block/inner#2"), f(f(X), 0.5) + f(2 * X))
    assert_close(run("block/inner#3"), f(f(X)) + f(2 * X, 0.5))


def test_a_call_of_the_inherited_call_is_edited_once():
    model = Inheriting()
    variables = initialised(model, X)
    assert list(sites(model.apply, variables, X)) == ["heir/dense", "heir"]
    output, activations = intervene(model.apply, {"heir": add}, record=["heir", "heir/dense"])(
        variables, {"heir": 100.0}, X
    )
    assert_close(activations["heir"], 101 + 10 * activations["heir/dense"])
    assert_close(output, activations["heir"] ** 2)


def test_a_module_in_the_scope_of_another_is_part_of_it():
    model = Sharing()
    variables = initialised(model, X)
    assert list(sites(model.apply, variables, X)) == ["Block_0/inner", "Block_0/own", "Block_0"]
    output, _ = intervene(model.apply, {"Block_0": add})(variables, {"Block_0": 1.0}, X)
    assert_close(output, 1 + model.apply(variables, X))


def test_other_methods_have_the_sites_they_call():
    model = Listed()
    variables = initialised(model, X)
    z = jnp.ones((2, 3))
    plain = model.apply(variables, z, method="decode")
    for apply_fn, kwargs in (
        (model.apply, {"method": "decode"}),
        (functools.partial(model.apply, method="decode"), {}),
        (functools.partial(model.apply, method=Listed.decode), {}),
        (jax.jit(functools.partial(model.apply, method="decode")), {}),
        (lambda variables, z: model.bind(variables).decode(z), {}),
    ):
        found = sites(apply_fn, variables, z, **kwargs)
        assert list(found) == ["head_a", "head_b/layers_0", "head_b/layers_2", "head_b"]
        g = intervene(apply_fn, {"head_a": add})
        (a, b), _ = g(variables, {"head_a": jnp.array([1.0, 2.0])}, z, **kwargs)
        assert_close((a, b), (plain[0] + jnp.array([1.0, 2.0]), plain[1]))
        assert "unknown site 'layers_0'" in message(
            intervene(apply_fn, {}, record=["layers_0"]), variables, {}, z, **kwargs
        )


def test_a_function_may_apply_several_models():
    one, two = nn.Sequential([nn.Dense(3)]), nn.Sequential([nn.Dense(2), nn.Dense(2)])
    variables = initialised(one, X), initialised(two, jnp.ones((1, 3)), seed=1)

    def both(variables, x):
        return two.apply(variables[1], one.apply(variables[0], x))

    assert list(sites(both, variables, X)) == ["layers_0", "layers_0#2", "layers_1"]
    h = jnp.arange(2.0)
    output, activations = intervene(both, {"layers_0#2": replace}, record=["layers_0"])(
        variables, {"layers_0#2": h}, X
    )
    last = variables[1]["params"]["layers_1"]
    assert_close(output, jnp.tile(h @ last["kernel"] + last["bias"], (4, 1)))
    assert_close(activations["layers_0"], one.apply(variables[0], X))


def test_collections_that_change_see_the_edit_and_dropout_draws_the_same():
    model = Stateful()
    key = jax.random.key(5)
    variables = jax.jit(model.init)({"params": KEY, "dropout": key}, X)
    kwargs = {"rngs": {"dropout": key}, "mutable": ["batch_stats"]}
    g = functools.partial(
        intervene(model.apply, {"dropout": add}, record=["dropout", "norm"]), **kwargs
    )
    g = jax.jit(g)
    (clean, _), activations = g(variables, {"dropout": 0.0}, X)
    (plain, state), dropped = jax.jit(
        lambda *args: (model.apply(*args, **kwargs), captured(model.apply, *args, **kwargs)[1])
    )(variables, X)
    assert_equal(clean, plain)
    assert_equal(activations, {site: dropped[site] for site in ("dropout", "norm")})
    assert (activations["dropout"] == 0).any()

    shift = jnp.arange(5.0)
    (output, updates), activations = g(variables, {"dropout": shift}, X)
    assert_close(activations["dropout"], dropped["dropout"] + shift)
    assert_close(output, plain, atol=1e-4)  # normalised away, and known to the averages alone
    moved = updates["batch_stats"]["norm"]["mean"] - state["batch_stats"]["norm"]["mean"]
    assert_close(moved, 0.01 * shift)


def test_flax_captures_what_an_edit_made_of_it_also_where_nothing_can_be_recorded():
    model, xs = Scanned(), X[:, :3]
    variables = initialised(model, xs)
    kwargs = {"capture_intermediates": True, "mutable": ["intermediates"]}
    g = intervene(model.apply, {"embed": zero, "cell/dense": add}, record=["embed"])
    values = {"embed": True, "cell/dense": 1.0}
    (_, state), activations = jax.jit(functools.partial(g, **kwargs))(variables, values, xs)
    np.testing.assert_array_equal(activations["embed"], 0)
    np.testing.assert_array_equal(state["intermediates"]["embed"]["__call__"][0], 0)


def test_sites_compute_nothing_and_take_whatever_the_function_takes(chain, variables, x):
    expected = {
        "first/inner": (4, 5),
        "first": (4, 5),
        "middle/inner": (4, 4),
        "middle": (4, 4),
        "last/inner": (4, 3),
        "last": (4, 3),
    }
    shapes = jax.eval_shape(lambda: (variables, x))
    found = sites(chain.apply, *shapes)
    assert {site: activation.shape for site, activation in found.items()} == expected
    assert list(found) == list(expected)
    assert {activation.dtype for activation in found.values()} == {jnp.dtype("float32")}
    inside = []
    jax.jit(lambda v, x: inside.append(sites(chain.apply, v, x)))(variables, x)
    assert inside == [found]
    model, params = of_the_zoo("vae")
    with_key = sites(model.apply, params, IMAGES, KEY)
    assert with_key == sites(model.apply, params, IMAGES, None)
    assert with_key == sites(model.apply, params, x=IMAGES, key=KEY)
    assert with_key["encoder"].logvar.shape == (3, 10)
    decode = sites(model.apply, params, jnp.zeros((7, 10)), method="decode")
    assert next(iter(decode)) == "z"
    assert decode["z"].shape == (7, 10)


def test_a_site_that_is_no_array_does_not_hide_the_others():
    class Odd(nn.Module):
        @nn.compact
        def __call__(self, x):
            return "text"

    class WithOdd(nn.Module):
        @nn.compact
        def __call__(self, x):
            return Odd(name="odd")(x), nn.Dense(2, name="dense")(x)

    model = WithOdd()
    variables = {"params": {"dense": nn.Dense(2).init(KEY, X)["params"]}}
    found = sites(model.apply, variables, X)
    assert found["odd"] is str
    assert found["dense"].shape == (4, 2)
    (text, dense), _ = intervene(model.apply, {"dense": zero})(variables, {"dense": True}, X)
    assert text == "text"
    np.testing.assert_array_equal(dense, 0)


def test_an_unknown_site_is_answered_with_the_nearest_and_all(chain, variables, x):
    expected = (
        "unknown site 'midle': did you mean 'middle'? "
        "(one of first/inner, first, middle/inner, middle, last/inner, last)"
    )
    for edits, record in (({"midle": add}, ()), ({}, ["midle"]), ({"last": add}, ["midle"])):
        g = intervene(chain.apply, edits, record=record)
        values = dict.fromkeys(edits, 0.0)
        assert message(g, variables, values, x) == expected
        assert message(jax.jit(g), variables, values, x) == expected
    # A second call that does not happen, and the whole.
    assert "unknown site 'last#2'" in message(
        intervene(chain.apply, {}, record=["last#2"]), variables, {}, x
    )
    assert "unknown site ''" in message(intervene(chain.apply, {}, record=[""]), variables, {}, x)


def test_values_are_for_the_edited_sites(chain, variables, x):
    g = jax.jit(intervene(chain.apply, {"first": add, "last": add}))
    expected = "expected values for the edited sites (first, last), got them for "
    assert message(g, variables, {"first": 0.0}, x) == expected + "first"
    assert message(g, variables, {}, x) == expected + "none"
    others = {"first": 0.0, "last": 0.0, "middle": 0.0}
    assert message(g, variables, others, x) == expected + "first, last, middle"
    none = intervene(chain.apply, {})
    assert message(none, variables, {"first": 0.0}, x) == (
        "expected values for the edited sites (none), got them for first"
    )


@pytest.mark.parametrize(
    ("edit", "got"),
    [
        (lambda a, value: a[:1], "[1, 3] float32"),
        (lambda a, value: a[None], "[1, 4, 3] float32"),
        (lambda a, value: a.sum(), "[] float32"),
        (lambda a, value: a.astype(jnp.bfloat16), "[4, 3] bfloat16"),
        (lambda a, value: a > value, "[4, 3] bool"),
        (lambda a, value: (a, a), "('[4, 3] float32', '[4, 3] float32')"),
        (lambda a, value: {"a": a}, "{'a': '[4, 3] float32'}"),
        (lambda a, value: None, "None"),
        (lambda a, value: 0.0, "[] float32"),
        (lambda a, value: "text", "str"),
    ],
)
def test_an_edit_returns_what_it_was_given(chain, variables, x, edit, got):
    g = intervene(chain.apply, {"last": edit})
    for call in (g, jax.jit(g)):
        assert message(call, variables, {"last": 0.0}, x) == (
            f"site 'last': expected the edit to return [4, 3] float32, got {got}"
        )


def test_an_edit_keeps_the_structure():
    for kind, change in (("tuple", list), ("dict", lambda pair: {"a": pair["a"]})):
        model = OfSeveral(kind)
        variables = initialised(model, X)
        g = intervene(model.apply, {"several": lambda pair, value, f=change: f(pair)})
        expected, got = message(g, variables, {"several": 0.0}, X).split(", got ")
        assert expected.startswith("site 'several': expected the edit to return ")
        assert got not in expected


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (np.ones((1, 3)), "expected the value to be of shape [4, 3] or [3] or [], got [1, 3]"),
        (np.ones((4, 1)), "expected the value to be of shape [4, 3] or [3] or [], got [4, 1]"),
        (np.ones(3, np.int32), "expected the value to be float32, got int32"),
        (jnp.ones(3, jnp.bfloat16), "expected the value to be float32, got bfloat16"),
    ],
)
def test_a_value_that_does_not_fit_is_refused_with_the_name_of_its_site(
    chain, variables, x, value, expected
):
    for edit in (add, replace):
        g = jax.jit(intervene(chain.apply, {"first": add, "last": edit}))
        values = {"first": 0, "last": value}
        assert message(g, variables, values, x) == f"site 'last': {expected}"


def test_an_edit_may_raise_what_it_likes(chain, variables, x):
    def raising(error):
        def edit(activation, value):
            raise error

        return intervene(chain.apply, {"first": edit})

    values = {"first": 0.0}
    assert message(raising(ValueError("no")), variables, values, x) == "site 'first': no"
    for error in (KeyError("no"), RuntimeError("no"), TypeError("no")):
        with pytest.raises(type(error)) as raised:
            raising(error)(variables, values, x)
        assert raised.value is error
    # And leaves nothing behind.
    assert_equal(intervene(chain.apply, {})(variables, {}, x)[0], chain.apply(variables, x))
