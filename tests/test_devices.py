"""One program on many devices: the results of one device, and each device does its share."""

import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from eight_devices import ANALYSES, LOOPS, MESHES, RUNS, SHAPES, STEPS, TRAINED

from vaejax import chunking, devices


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """What the script found, lists of arrays by name."""
    path = tmp_path_factory.mktemp("devices") / "found.npz"
    environment = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=8",
    }
    done = subprocess.run(
        [sys.executable, "-m", "tests.eight_devices", path],
        env=environment,
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    arrays = {}
    with np.load(path) as loaded:
        for name in loaded.files:  # in the order in which they were saved
            arrays.setdefault(name.rpartition(":")[0], []).append(loaded[name])
    return arrays


def assert_close(found, one, many, **tolerance):
    assert len(found[one]) == len(found[many]) > 0
    for a, b in zip(found[one], found[many], strict=True):
        if a.dtype.kind == "f":
            np.testing.assert_allclose(b, a, **tolerance)
        else:
            np.testing.assert_array_equal(b, a)


@pytest.mark.parametrize(("name", "mesh"), TRAINED)
def test_training_ends_where_it_does_on_one_device(found, name, mesh):
    assert_close(found, f"{name}/none", f"{name}/{mesh}", rtol=2e-5, atol=1e-6)


def test_images_are_streamed_to_the_devices_of_their_runs(found):
    assert_close(found, "beta_tc_vae/none", "streamed", rtol=2e-5, atol=1e-6)


def test_runs_start_from_the_weights_of_one_device(found):
    assert_close(found, "init/none", "init/8x1", rtol=1e-6)


def test_states_are_taken_apart_on_the_host(found):
    assert_close(found, "together", "apart", rtol=0)


def test_states_may_come_from_one_device(found):
    assert_close(found, "beta_tc_vae/none", "committed", rtol=2e-5, atol=1e-6)


def test_a_device_holds_its_own_runs_and_takes_only_their_steps(found):
    np.testing.assert_array_equal(found["runs_of_each"], [1] * 8)
    assert found["steps"] == [RUNS * STEPS]


@pytest.mark.parametrize("mesh", SHAPES)
def test_eight_devices_train_eight_runs_with_the_work_of_one_run_each(found, mesh):
    # All but the optimizer's work, which the devices of one run all do.
    assert 0.95 < found[f"work/{mesh}"][0] < 1.2


@pytest.mark.parametrize("name", ANALYSES)
def test_an_analysis_finds_what_it_does_on_one_device(found, name):
    assert_close(found, f"{name}/none", f"{name}/2x4", rtol=1e-4, atol=1e-6)


def test_each_of_eight_devices_does_an_eighth_of_an_analysis(found):
    assert found["work/ces"][0] == pytest.approx(1 / 8, rel=0.01)


@pytest.mark.parametrize("name", LOOPS)
def test_a_loop_in_chunks_gives_what_it_does_on_one_device(found, name):
    assert_close(found, f"{name}/none", f"{name}/2x4", rtol=1e-6)


@pytest.mark.parametrize("name", ["chunks", "record", "fit"])
def test_a_program_compiled_without_a_mesh_is_not_used_under_one_nor_the_reverse(found, name):
    np.testing.assert_array_equal(found[f"devices/{name}"], [1, 8, 1, 8, 8])


def test_a_mesh_of_the_same_shape_on_other_devices_runs_there(found):
    assert found["disjoint"] == [True]


def test_a_program_is_traced_once_for_each_mesh(found):
    assert found["traces"] == [3]


def test_checkpoints_are_written_and_read_under_a_mesh(found):
    assert_close(found, "saved", "restored", rtol=0)
    assert_close(found, "saved_twice", "restored_twice", rtol=0)


@pytest.mark.parametrize("sizes", MESHES)
def test_a_mesh_has_as_many_devices_as_divide_the_runs_and_the_batch(found, sizes):
    np.testing.assert_array_equal(found["mesh/" + "/".join(map(str, sizes))][0], MESHES[sizes])


@pytest.mark.parametrize("call", ["fit", "train"])
def test_runs_that_a_mesh_does_not_divide_are_refused(found, call):
    assert str(found[f"refused/{call}"][0]) == (
        "a mesh of 2 x 4 devices does not divide 3 runs and batches of 8: "
        "vaejax.devices.mesh(3, 8) makes one that does"
    )


def test_a_mesh_with_other_axes_is_refused(found):
    assert "with axes ('run', 'data'), both of type Auto" in str(found["refused/axes"][0])
    assert "got ('run', 'data') of types (Explicit, Explicit)" in str(found["refused/types"][0])


def test_one_device_needs_no_mesh():
    traces = []

    @jax.jit
    def chunked(x):
        traces.append(x)
        return chunking.map_chunks(lambda i: 2 * x[i], 4, 1)

    x = jnp.arange(4.0)
    without = chunked(x)
    with devices.use(devices.mesh(4, 8, jax.devices()[:1])):
        assert devices.current() is None
        assert devices.count() == 1
        assert devices.place(x, "run") is x
        np.testing.assert_array_equal(chunked(x), without)
    assert len(traces) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0, 8), "runs and batch_size >= 1, got 0 and 8"),
        ((8, 0), "runs and batch_size >= 1, got 8 and 0"),
        ((8, 8, []), "at least one device, got none"),
    ],
)
def test_a_mesh_of_nothing_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        devices.mesh(*arguments)
