"""Checkpoints come back bit for bit, alone, and in spite of damage."""

import dataclasses
import shutil

import jax
import numpy as np
import pytest

from vaejax import checkpoint, init, zoo

NETWORK = zoo.Network((32, 32, 1), width=0.05, discriminator_width=4, codebook_size=4, code_dim=2)
RUNS = 2


def new_states(model, seed=0):
    recipe = zoo.recipe(model, NETWORK, 4)
    return init(recipe, NETWORK.image_shape, jax.random.split(jax.random.key(seed), RUNS))


def writer(folder, model="vae"):
    config = {"model": model, "network": dataclasses.asdict(NETWORK), "batch_size": 4}
    paths = [folder / f"seed_{i}" for i in range(RUNS)]
    return checkpoint.Writer(paths, [{**config, "seed": i} for i in range(RUNS)])


def assert_same(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        if jax.numpy.issubdtype(x.dtype, jax.dtypes.prng_key):
            x, y = jax.random.key_data(x), jax.random.key_data(y)
        np.testing.assert_array_equal(x, y)
        assert x.dtype == y.dtype


def damage(folder, run, step):
    for path in (folder / f"seed_{run}/checkpoints/{step}").rglob("*"):
        if path.is_file():
            path.write_bytes(b"")


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Steps 1, 2 and 3 of two runs; the states differ from step to step."""
    folder = tmp_path_factory.mktemp("saved")
    with writer(folder) as w:
        for step in (1, 2, 3):
            w.save(step, new_states("vae", seed=step))
    return folder


@pytest.fixture
def folder(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / "runs")


@pytest.mark.parametrize("model", ["factor_vae", "vq_vae"])
def test_every_part_of_a_state_comes_back(tmp_path, model):
    states = new_states(model)
    with writer(tmp_path, model) as w:
        w.save(7, states)
    with writer(tmp_path, model) as w:
        step, restored = w.restore()
    assert step == 7
    assert_same(restored, states)


def test_the_last_two_steps_are_kept(saved):
    assert checkpoint.saved_steps(saved / "seed_0") == [2, 3]


def test_one_run_restores_alone(saved):
    restored = checkpoint.restore(saved / "seed_1")
    expected = jax.tree.map(lambda leaf: leaf[1], new_states("vae", seed=3))
    assert_same(restored.state, expected)
    assert_same(restored.variables, expected.variables)
    assert restored.model == zoo.recipe("vae", NETWORK).model
    assert restored.config["seed"] == 1


def test_runs_go_on_from_the_last_step_they_all_have(folder):
    shutil.rmtree(folder / "seed_1/checkpoints/3")
    with writer(folder) as w:
        step, states = w.restore()
        assert step == 2
        assert_same(states, new_states("vae", seed=2))
        w.save(3, new_states("vae", seed=3))
    assert [checkpoint.saved_steps(folder / f"seed_{i}") for i in range(RUNS)] == [[2, 3]] * 2


def test_a_damaged_step_is_passed_over(folder):
    damage(folder, 0, 3)
    with writer(folder) as w:
        step, states = w.restore()
    assert step == 2
    assert_same(states, new_states("vae", seed=2))
    assert int(checkpoint.restore(folder / "seed_0").config["seed"]) == 0


def test_runs_without_a_readable_step_start_over_and_keep_what_they_save(folder):
    damage(folder, 0, 2)
    damage(folder, 0, 3)
    with pytest.raises(ValueError, match="no readable checkpoint"):
        checkpoint.restore(folder / "seed_0")
    with writer(folder) as w:
        assert w.restore() is None
        w.save(1, new_states("vae", seed=1))
    with writer(folder) as w:
        step, states = w.restore()
    assert step == 1
    assert_same(states, new_states("vae", seed=1))


def test_a_path_without_a_checkpoint_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no checkpoint in .*nowhere"):
        checkpoint.restore(tmp_path / "nowhere")


def test_a_configuration_of_no_zoo_model_is_named(tmp_path):
    with checkpoint.Writer([tmp_path / "a", tmp_path / "b"], [{"model": "mine"}] * 2) as w:
        w.save(1, new_states("vae"))
    with pytest.raises(ValueError, match="no checkpoint of a model of the zoo"):
        checkpoint.restore(tmp_path / "a")
