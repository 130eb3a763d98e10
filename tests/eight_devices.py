"""What `test_devices` compares, computed in a process of eight simulated devices.

python -m tests.eight_devices FOUND.npz, with
XLA_FLAGS=--xla_force_host_platform_device_count=8.
"""

import contextlib
import dataclasses
import functools
import math
import re
import sys
import tempfile
import warnings

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh

from vaejax import (
    Recipe,
    checkpoint,
    chunking,
    circuits,
    devices,
    fit,
    init,
    interventions,
    metrics,
    objectives,
    train,
    zoo,
)
from vaejax.data import ArraySource, streaming
from vaejax.data.storage import OnDevice, OnHost
from vaejax.interventions import passes
from vaejax.metrics.disentanglement import sets
from vaejax.models import VAE, ConvEncoder, Discriminator, FactorVAE, MLPDecoder, MLPEncoder
from vaejax.training import abstract_state, unstack

SHAPES = {"2x4": (2, 4), "8x1": (8, 1), "1x8": (1, 8)}
RUNS, BATCH, STEPS = 8, 8, 4
ENCODER, DECODER = MLPEncoder(2, ()), MLPDecoder((4, 4, 1), ())
MODEL = VAE(ENCODER, DECODER)
DEEPER = VAE(MLPEncoder(2, (8,)), MLPDecoder((4, 4, 1), (8,)))
RECIPES = {
    "beta_tc_vae": (Recipe(MODEL, objectives.beta_tc_vae, BATCH), {"beta": 6.0}),
    "dip_vae_ii": (
        Recipe(MODEL, objectives.dip_vae_ii, BATCH),
        {"lambda_od": 10.0, "lambda_d": 10.0},
    ),
    "factor_vae": (
        Recipe(
            FactorVAE(ENCODER, DECODER, discriminator=Discriminator((4,))),
            objectives.factor_vae,
            BATCH,
            batches=2,
        ),
        {"gamma": 10.0},
    ),
}
# Every program is compiled once more for each mesh, which takes most of the time.
TRAINED = [
    ("beta_tc_vae", "2x4"),
    ("beta_tc_vae", "8x1"),
    ("beta_tc_vae", "1x8"),
    ("dip_vae_ii", "1x8"),
    ("factor_vae", "2x4"),
]
ORDER = ("none", "2x4", "none", "2x4", "1x8")
ANALYSES = (
    *("ces_fixed", "patch_units", "attribute", "mediate", "factor_effects", "encode_pool"),
    "find_circuits",
)
LOOPS = ("vmap", "gradient", "nested", "keys", "remainder", "outside_jit")
# runs, batch size and devices to the shape of the mesh.
MESHES = {
    (8, 64, 8): (8, 1),
    (16, 64, 8): (8, 1),
    (6, 64, 8): (2, 4),
    (3, 64, 8): (1, 8),
    (1, 4, 8): (1, 4),
    (4, 3, 8): (4, 1),
    (3, 64, 6): (3, 2),
    (5, 64, 6): (1, 2),
    (7, 7, 1): (1, 1),
}


def mesh_of(name):
    """A mesh by its name, or None."""
    return None if name == "none" else devices.mesh(SHAPES[name][0], BATCH)


def under(mesh):
    return contextlib.nullcontext() if mesh is None else devices.use(mesh)


def leaves(tree):
    """Its arrays on the host, keys as the integers in them."""
    return [
        np.asarray(
            jax.random.key_data(leaf) if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf
        )
        for leaf in jax.tree.leaves(tree)
    ]


def images(n=24):
    return np.random.default_rng(0).integers(0, 256, (n, 4, 4, 1), np.uint8)


def listed(storage):
    labels = np.random.default_rng(1).integers(0, 3, (24, 2))
    listed = ArraySource.of(images(), labels)
    return listed.replace(images=storage(images()))


def on_device(array):
    return OnDevice(jnp.asarray(array))


def keys(runs=RUNS):
    return jax.random.split(jax.random.key(0), runs)


def hyper(weights, runs=RUNS):
    weights = {**weights, "learning_rate": 1e-3}
    return {name: jnp.full(runs, value) for name, value in weights.items()}


@functools.cache
def arrays_to_start_from(name):
    states = init(RECIPES[name][0], (4, 4, 1), keys())
    return jax.device_get(states.replace(key=states.step))


def fresh(name, runs=RUNS):
    """States of a recipe's runs, on no device in particular."""
    arrays = jax.tree.map(lambda leaf: leaf[:runs], arrays_to_start_from(name))
    return arrays.replace(key=keys(runs))


def trained(name, mesh, storage=on_device, start=fresh):
    """On how many devices a few steps end, and arrays of the states and the histories."""
    recipe, weights = RECIPES[name]
    seen = []
    states = start(name)
    with under(mesh):
        end = fit(
            recipe,
            listed(storage),
            states,
            hyper(weights),
            steps=STEPS,
            chunk=2,
            on_chunk=lambda done, states, history: seen.append(history),
        )
        return len(end.step.sharding.device_set), leaves((end, seen))


def work(function, *arguments):
    """The FLOPs of each device, where all loops of more than one step are nested."""
    traced = jax.jit(function).trace(*arguments)
    lengths = re.findall(r"length=(\d+)", str(traced.jaxpr))
    analysis = traced.lower().compile().cost_analysis()
    once = (analysis[0] if isinstance(analysis, list) else analysis)["flops"]
    return once * math.prod(map(int, lengths))  # it counts what is in a loop once


def work_of_training(runs, mesh):
    network = VAE(ConvEncoder(2, (3,), (4,), 5), MLPDecoder((8, 8, 1), ()))
    recipe = Recipe(network, objectives.beta_vae, 256)
    source = ArraySource.of(np.zeros((4, 8, 8, 1), np.uint8), np.arange(4)[:, None])
    with under(mesh):
        states = init(recipe, source.image_shape, keys(runs))
        return work(
            lambda *arguments: train(recipe, source, *arguments, steps=1),
            *devices.place((states, hyper({"beta": 1.0}, runs)), "run"),
        )


@functools.cache
def initial():
    """Variables of the deeper model, on the host."""
    x = jnp.zeros((1, 4, 4, 1))
    return jax.device_get(jax.jit(DEEPER.init)(jax.random.key(1), x, jax.random.key(2)))


def analyses():
    """Each analysis as a function without arguments."""
    x, y = (image.astype(np.float32) / 255 for image in (images(21), images(42)[21:]))
    variables = initial()
    latents = np.random.default_rng(2).normal(size=(21, 2)).astype(np.float32)
    factors = np.stack([np.arange(21) % 3, np.arange(21) % 2], axis=1)

    @jax.jit
    def ces(latents):
        return metrics.ces_fixed(
            lambda z: DEEPER.apply(variables, z, method="decode"), latents, chunk=2
        )

    def readout(output):
        return output.reconstruction

    def encode(variables, images):
        return DEEPER.apply(variables, images).posterior.mean

    def render(factors):
        return jnp.eye(4)[..., None] * factors[0] / 2 + jnp.ones((4, 4, 1)) * factors[1] / 2

    arguments = DEEPER.apply, variables, x, y
    sites = ["encoder/dense_1", "decoder/dense_1"]
    return {
        # Of arrays that are on the mesh already.
        "ces_fixed": lambda: ces(jnp.sin(latents)),
        "patch_units": lambda: interventions.patch_units(
            *arguments, readout=readout, sites=sites, chunk=2
        ),
        "attribute": lambda: interventions.attribute(*arguments, readout=readout, chunk=2),
        "mediate": lambda: interventions.mediate(*arguments, "z", readout=readout, chunk=2),
        "find_circuits": lambda: jax.tree.map(
            np.asarray,
            circuits.find_circuits(
                *arguments, np.arange(21) % 2, readout=readout, sites=sites, chunk=2
            ),
        ),
        "factor_effects": jax.jit(
            lambda: interventions.factor_effects(
                functools.partial(encode, variables),
                render,
                jnp.asarray(factors),
                ([0, 1, 2], [0, 1]),
                chunk=2,
            )
        ),
        "encode_pool": lambda: sets.encode_pool(
            encode, variables, listed(on_device), jax.random.key(3), n=50, discrete=False
        ),
    }


def work_of_an_analysis():
    """What a device does with a mesh, relative to one without."""
    variables = initial()

    def ces(variables, latents):
        return metrics.ces_fixed(
            lambda z: DEEPER.apply(variables, z, method="decode"), latents, chunk=4
        )

    latents = np.zeros((32, 2), np.float32)
    alone = work(ces, variables, latents)
    with devices.use(mesh_of("2x4")):
        return {"work/ces": [work(ces, variables, latents) / alone]}


def loops():
    """Loops in chunks, in company of what may be around or inside of them."""
    table = jnp.arange(42.0).reshape(2, 21)

    def chunked(row, chunk=2):
        return chunking.map_chunks(lambda i: row[i] ** 2, len(row), chunk)

    inner = jax.jit(lambda scale: chunking.map_chunks(lambda i: scale * i, 9, 2).sum())

    @jax.jit
    def found(table):
        inner(2)  # traced for a mesh, if there is one, before it is used inside of a share
        return {
            "vmap": jax.vmap(chunked)(table),
            "gradient": jax.grad(lambda row: chunked(row).sum())(table[0]),
            "nested": chunking.map_chunks(jax.vmap(inner), 21, 2),
            "keys": chunking.map_items(
                lambda key: jax.random.normal(key, (3,)), jax.random.split(jax.random.key(4), 5)
            ),
            "remainder": [chunked(table[0, :n], chunk) for n, chunk in ((2, 3), (2, 1), (9, 1))],
        }

    return found(table) | {"outside_jit": chunked(table[0])}


def where_programs_run():
    """On how many devices the same functions run without, with, and again without a mesh."""
    traces = []

    def chunked(x):
        traces.append(x)
        return chunking.map_chunks(lambda i: x[i], 4, 1)

    chunked = jax.jit(chunked)
    x, pictures = np.arange(4.0), images(4) / np.float32(255)
    variables = initial()
    functions = {
        "chunks": lambda: chunked(x),
        "record": lambda: passes.record(
            DEEPER.apply, variables, pictures, (), lambda output: output.logits, 2
        )[0],
    }
    counts = {f"devices/{name}": [] for name in functions}
    for mesh in map(mesh_of, ORDER):
        for name, function in functions.items():
            with under(mesh):
                counts[f"devices/{name}"].append(len(function().sharding.device_set))
    traced = len(traces)
    chosen = []
    for half in (jax.devices()[:4], jax.devices()[4:]):
        with devices.use(devices.mesh(2, 2, half)):
            chosen.append({device.id for device in chunked(x).sharding.device_set})
    return {**counts, "traces": [traced], "disjoint": [chosen[0].isdisjoint(chosen[1])]}


def a_run_on_each_device():
    """Training whose objective says when it is run; and what each device starts from and holds."""
    calls = []

    def objective(model, variables, images, key, **weights):
        jax.debug.callback(lambda value: calls.append(value), images[0, 0, 0, 0])
        return objectives.beta_tc_vae(model, variables, images, key, **weights)

    recipe, weights = RECIPES["beta_tc_vae"]
    recipe, seen = dataclasses.replace(recipe, objective=objective), []
    with devices.use(mesh_of("8x1")):
        states = init(recipe, (4, 4, 1), keys())
        start = leaves(states)
        for _ in range(STEPS // 2):
            states, history = train(recipe, listed(on_device), states, hyper(weights), steps=2)
            seen.append(history)
        jax.effects_barrier()
    apart = unstack(states)
    stacked = jax.tree.map(lambda *rows: np.stack(rows), *(state.variables for state in apart))
    return {
        "apart": leaves([jnp.stack([state.key for state in apart]), stacked]),
        "together": leaves([keys(), states.variables]),
        "init/8x1": start,
        "init/none": leaves(fresh("beta_tc_vae")),
        "beta_tc_vae/8x1": leaves((states, seen)),
        "steps": [len(calls)],
        "runs_of_each": [len(shard.data) for shard in states.step.addressable_shards],
    }


def saved_and_restored():
    """The states of a checkpoint that was written and read under a mesh, before and after."""
    network = zoo.Network((32, 32, 1), latent_dim=2, width=0.05)
    config = {"model": "vae", "network": vars(network), "batch_size": BATCH}
    abstract = abstract_state(zoo.recipe("vae", network, BATCH), network.image_shape)
    draw = np.random.default_rng(3)
    states = jax.tree.map(
        lambda leaf: draw.integers(0, 9, (2, *leaf.shape)).astype(leaf.dtype),
        abstract.replace(key=abstract.step),
    )
    with tempfile.TemporaryDirectory() as folder, devices.use(mesh_of("2x4")):
        states = devices.place(states.replace(key=keys(2)), "run")
        paths = [f"{folder}/{run}" for run in range(2)]
        with checkpoint.Writer(paths, [config] * 2) as writer:
            writer.save(0, states)
        with checkpoint.Writer(paths, [config] * 2) as writer:
            _, restored = writer.restore()
        variables = checkpoint.restore(paths[1]).variables
        # A program under the mesh takes them.
        twice = jax.jit(lambda variables: jax.tree.map(lambda leaf: 2 * leaf, variables))(variables)
    return {
        "saved": leaves(states),
        "restored": leaves(restored),
        "saved_twice": [2 * leaf[1] for leaf in leaves(states.variables)],
        "restored_twice": leaves(twice),
    }


def refusals():
    recipe, weights = RECIPES["beta_tc_vae"]
    found = {}
    arguments = recipe, listed(on_device), fresh("beta_tc_vae", 3), hyper(weights, 3)
    auto, explicit = (AxisType.Auto,) * 2, (AxisType.Explicit,) * 2
    grid = np.array(jax.devices()).reshape(2, 4)
    attempts = {
        "fit": (mesh_of("2x4"), lambda: fit(*arguments, steps=1)),
        "train": (mesh_of("2x4"), lambda: train(*arguments, steps=1)),
        "axes": (Mesh(grid, ("x", "y"), axis_types=auto), lambda: None),
        "types": (Mesh(grid, devices.AXES, axis_types=explicit), lambda: None),
    }
    for name, (mesh, attempt) in attempts.items():
        try:
            with devices.use(mesh):
                attempt()
        except ValueError as error:
            found[f"refused/{name}"] = [str(error)]
    return found


def main(path):
    warnings.simplefilter("error")
    jax.config.update("jax_disable_most_optimizations", True)
    assert jax.device_count() == 8
    found = {}
    found |= a_run_on_each_device()
    for name, mesh in [*((name, "none") for name in RECIPES), *TRAINED]:
        if mesh != "8x1":
            _, found[f"{name}/{mesh}"] = trained(name, mesh_of(mesh))
    found["devices/fit"] = [trained("beta_tc_vae", mesh_of(mesh))[0] for mesh in ORDER]

    def committed(name):
        return jax.device_put(jax.device_put(fresh(name), jax.devices()[3]), jax.devices()[0])

    # Two steps of a window.
    streaming.WINDOW_BYTES = 2 * RUNS * BATCH * 16
    _, found["streamed"] = trained("beta_tc_vae", mesh_of("2x4"), OnHost)
    _, found["committed"] = trained("beta_tc_vae", mesh_of("1x8"), start=committed)

    functions = analyses()
    for mesh in ("none", "2x4"):
        for name, function in functions.items():
            with under(mesh_of(mesh)):
                found[f"{name}/{mesh}"] = leaves(function())
        with under(mesh_of(mesh)):
            found |= {f"{name}/{mesh}": leaves(tree) for name, tree in loops().items()}
    found |= work_of_an_analysis()
    found |= where_programs_run() | saved_and_restored() | refusals()

    shapes = {(r, b, d): devices.mesh(r, b, jax.devices()[:d]) for r, b, d in MESHES}
    found |= {f"mesh/{r}/{b}/{d}": [mesh.devices.shape] for (r, b, d), mesh in shapes.items()}

    # As an accelerator does it: its runs together, in XLA's own convolutions.
    jax.default_backend = lambda: "gpu"
    alone = work_of_training(1, None)
    for mesh in SHAPES:
        found[f"work/{mesh}"] = [work_of_training(RUNS, mesh_of(mesh)) / alone]
    np.savez(path, **{f"{name}:{i}": x for name, xs in found.items() for i, x in enumerate(xs)})


if __name__ == "__main__":
    main(sys.argv[1])
