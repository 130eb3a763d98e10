"""One program in two processes: the results of one, in both, and files that are written once."""

import os
import subprocess
import sys
import threading

import jax
import numpy as np
import pytest
from command_lines import ROOT, free_port

from tests.two_processes import ANALYSES, computed
from vaejax import devices


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("processes")


@pytest.fixture(scope="module")
def found(folder):
    """What each of the two found, lists of arrays by name."""
    environment = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=2",
    }
    address = f"127.0.0.1:{free_port()}"
    started = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.two_processes", folder, address, "2", str(index)],
            env=environment,
            cwd=ROOT,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for index in range(2)
    ]
    # One that fails has the other wait for it; SIGTERM is taken by `jax.distributed`.
    watchdog = threading.Timer(600, lambda: [process.kill() for process in started])
    watchdog.start()
    said = [process.communicate()[1][-4000:] for process in started]
    watchdog.cancel()
    assert [process.returncode for process in started] == [0, 0], "\n".join(said)
    return [by_name(folder / f"{index}.npz") for index in range(2)]


def by_name(path):
    arrays = {}
    with np.load(path) as loaded:
        for name in loaded.files:  # in the order in which they were saved
            arrays.setdefault(name.rpartition(":")[0], []).append(loaded[name])
    return arrays


@pytest.fixture(scope="module")
def alone():
    """What this process finds on one device."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("vaejax.data.streaming.WINDOW_BYTES", 0)  # put back at the end
        return computed()


def assert_close(found, expected, **tolerance):
    assert len(found) == len(expected) > 0
    for a, b in zip(found, expected, strict=True):
        if b.dtype.kind == "f":
            np.testing.assert_allclose(a, b, **tolerance)
        else:
            np.testing.assert_array_equal(a, b)


def test_runs_and_batches_are_divided_over_the_devices_of_both(found):
    for process in found:
        np.testing.assert_array_equal(process["mesh"][0], [2, 2])
        assert process["runs_held"] == [2]


@pytest.mark.parametrize("name", ["trained", "streamed", *ANALYSES])
def test_both_find_what_one_process_finds(found, alone, name):
    for process in found:
        assert_close(process[name], alone[name], rtol=1e-4, atol=1e-5)


def test_what_the_first_decides_holds_in_both(found):
    assert found[0]["agreed"] == found[1]["agreed"]


def test_checkpoints_are_read_by_both_and_written_once(found, folder):
    for process in found:
        assert_close(process["restored"], process["saved"], rtol=0)
        assert_close(process["one"], [leaf[1] for leaf in process["saved"]], rtol=0)
        assert [int(step) for step in process["steps"]] == [3, 2, 3]
    for run in range(4):
        left = {path.name for path in (folder / f"run_{run}" / "checkpoints").iterdir()}
        assert left == {"2", "3"}


def test_arrays_of_one_process_are_gathered_as_they_are():
    key = jax.random.key(3)
    gathered = devices.gather({"x": jax.numpy.arange(3), "key": key})
    assert type(gathered["x"]) is np.ndarray
    assert jax.random.bits(gathered["key"]) == jax.random.bits(key)
    assert devices.agree(lambda: {"any": ["JSON", 1]}) == {"any": ["JSON", 1]}
