"""One sweep by many processes: shards, a shared directory, a Ray cluster that loses a worker."""

import contextlib
import importlib.util
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from subprocess import PIPE

import jax
import numpy as np
import pytest
from command_lines import ROOT, free_port, rows_of, run

from experiments import launch, presets
from vaejax import checkpoint

pytest.importorskip("fcntl")

# Two groups, the first two models and the third, which are measured by the same programs.
SMOKE = ("--preset", "smoke", "--models", "vae", "beta_vae", "beta_tc_vae", "--seeds", "0")
SMOKE = (*SMOKE, "--metrics", "mig")
EACH_ONCE = ["beta_tc_vae", "beta_vae", "vae"]


@pytest.fixture(scope="module")
def finished(same_compiler, tmp_path_factory):
    """What one process leaves."""
    out = tmp_path_factory.mktemp("finished")
    done = sweep(out)
    assert done.returncode == 0, done.stderr
    return out


def sweep(out, *options):
    return run("sweep", *SMOKE, "--out", out, *options)


def measured(*stdouts):
    """The models that were measured, one entry for each time."""
    return sorted(model for text in stdouts for model in re.findall(r"(\w+), seed 0: mea", text))


def models(out):
    return [row["model"] for row in rows_of(out / "results.csv")]


# Commands whose training is real and whose measuring, which takes longest, only notes what it does.
NOTING = """
import os, sys
from experiments import files, launch, readouts, runs, sweep

def finish(run, state, readout, path, *, columns):
    with (path / "noted").open("a") as file:
        print(os.getpid(), file=file)
    row = {"dataset": run.dataset, "model": run.model, "source": "redrawn", "status": "ok"}
    files.write_json(path / "metrics.json", row | {"seed": run.seed, "steps": int(state.step)})

def work(out, job):
    runs.finish, readouts.get = finish, lambda *_: None
    return launch._work(out, job)  # in a worker this is what it always is

if "ray" in sys.argv:
    launch._work = work
else:
    runs.finish, readouts.get = finish, lambda *_: None
sweep.main(sys.argv[1:])
"""


def noted(out, model):
    """The processes that have measured a run."""
    return list(map(int, (out / f"runs/dsprites/{model}/seed_0/noted").read_text().split()))


def trained_parameters(out, model):
    return jax.tree.leaves(checkpoint.restore(out / f"runs/dsprites/{model}/seed_0").variables)


# Shards


def test_shards_in_turn_leave_the_table_of_the_whole(finished, tmp_path):
    # More shards than groups: single runs, and nothing for the last.
    alone, nothing = (sweep(tmp_path, "--shard", shard) for shard in ("2/4", "4/4"))
    assert alone.returncode == nothing.returncode == 0, alone.stderr + nothing.stderr
    assert models(tmp_path) == ["beta_vae"]
    assert "1 of 3 runs are finished" in nothing.stdout
    saved = tmp_path / "runs/dsprites/beta_vae/seed_0/checkpoints/20"
    before = saved.stat().st_mtime_ns
    # As many shards as groups: of the first, what was trained alone is not trained again.
    halves = [sweep(tmp_path, "--shard", shard) for shard in ("1/2", "2/2")]
    assert saved.stat().st_mtime_ns == before
    assert "2 of 3 runs are finished" in halves[0].stdout
    assert "runs are finished" not in halves[1].stdout
    assert measured(alone.stdout, *(half.stdout for half in halves)) == EACH_ONCE
    assert models(tmp_path) == models(finished)
    for model in EACH_ONCE:  # a run alone is another program than two together
        for found, expected in zip(
            trained_parameters(tmp_path, model), trained_parameters(finished, model), strict=True
        ):
            np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--shard", "0/2"], "expected I/N"),
        (["--shard", "3/2"], "expected I/N"),
        (["--shard", "2"], "expected I/N"),
        (["--shard", "-1/2"], "expected"),
        (["--shard", "one/two"], "expected I/N"),
        (["--shard", "1/2", "--launcher", "ray"], "give one"),
        (["--shard", "1/2", "--fresh"], "other shards"),
        (["--shard", "1/2", "--launcher", "jax"], "give one"),
        (["--launcher", "slurm"], "invalid choice: 'slurm'"),
        (["--launcher", "jax"], "cannot connect with other processes"),
        (["--launcher", "ray"], "pip install 'vaejax[ray]'"),
    ],
)
@pytest.mark.usefixtures("same_compiler")
def test_wrong_arguments_get_one_line(options, said, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "ray", None)  # as if it were not installed
    refused = sweep(tmp_path, *options)
    assert refused.returncode == 2
    assert said in refused.stderr
    assert refused.stderr.count("\n") == 1
    assert not list(tmp_path.iterdir())


# One directory, several processes


def test_processes_that_start_at_once_share_the_work(tmp_path):
    script = """
import sys, time
from experiments import files, report, runs, sweep

def train(out, group, console):
    time.sleep(0.5)
    return None, 0.0

def finish_all(out, group, states, seconds, console):
    for run in group:
        console.print(f"{run.dataset} {run.model}, seed {run.seed}: measuring")
        row = {"dataset": run.dataset, "model": run.model, "source": "redrawn", "status": "ok"}
        files.write_json(run.path(out) / "metrics.json", row | {"seed": run.seed})

runs.train, runs.finish_all = train, finish_all
sweep.main(sys.argv[1:])
"""
    options = ["--preset", "smoke", "--out", str(tmp_path), "--datasets", "dsprites", "shapes3d"]
    command = [sys.executable, "-c", script, *options, "--seeds", "0"]
    started = [
        subprocess.Popen(command, cwd=ROOT, stdout=PIPE, stderr=PIPE, text=True) for _ in range(2)
    ]
    ended = [process.communicate() for process in started]
    assert [process.returncode for process in started] == [0, 0], ended
    shares = [measured(stdout) for stdout, _ in ended]
    assert all(shares), shares
    assert sorted(shares[0] + shares[1]) == sorted(2 * presets.MODELS)
    # Whoever ended last: the table is that of both.
    rows = rows_of(tmp_path / "results.csv")
    assert [(row["dataset"], row["model"]) for row in rows] == [
        (dataset, model) for dataset in ("dsprites", "shapes3d") for model in presets.MODELS
    ]


def test_processes_that_jax_connects_train_together_and_share_the_measuring(
    environment, finished, tmp_path
):
    options = [*SMOKE, "--models", "vae", "beta_vae", "--out", str(tmp_path)]
    command = [sys.executable, "-c", NOTING, *options, "--launcher", "jax"]
    slurm = {
        "JAX_COORDINATOR_PORT": str(free_port()),
        "JAX_PLATFORMS": "cpu",
        "SLURM_JOB_ID": str(os.getpid()),
        "SLURM_NTASKS": "2",
        "SLURM_STEP_NODELIST": "127.0.0.1",
    }
    started = [
        subprocess.Popen(
            command,
            cwd=ROOT,
            env=environment | slurm | {"SLURM_PROCID": str(index), "SLURM_LOCALID": str(index)},
            stdout=PIPE,
            stderr=PIPE,
            text=True,
        )
        for index in range(2)
    ]
    watchdog = threading.Timer(600, lambda: [process.kill() for process in started])
    watchdog.start()
    ended = [process.communicate() for process in started]
    watchdog.cancel()
    assert [process.returncode for process in started] == [0, 0], ended
    assert [noted(tmp_path, model) for model in ("vae", "beta_vae")] == [
        [process.pid] for process in started
    ]
    assert models(tmp_path) == ["vae", "beta_vae"]
    assert "wrote" in ended[0][0]
    assert "wrote" not in ended[1][0]
    for model in ("vae", "beta_vae"):
        history = rows_of(tmp_path / f"runs/dsprites/{model}/seed_0/history.csv")
        assert [row["step"] for row in history] == ["10", "20"]
        for found, expected in zip(
            trained_parameters(tmp_path, model), trained_parameters(finished, model), strict=True
        ):
            np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-7)


# Ray


@pytest.mark.parametrize(
    ("nodes", "needs", "slots"),
    [
        ([{"CPU": 4.0}, {"CPU": 2.0}], {"num_cpus": 1}, 6),
        ([{"CPU": 4.0}, {"CPU": 2.0, "GPU": 2.0}, {"GPU": 1.0}], {"num_gpus": 1}, 3),
        ([{"CPU": 4.0, "TPU": 4.0}, {"TPU": 8.0}], {"resources": {"TPU": 4.0}}, 2),
    ],
)
def test_a_job_takes_an_accelerator_if_there_is_one(nodes, needs, slots):
    assert launch.requirements(nodes) == (needs, slots)


@pytest.fixture(scope="module")
def head(environment):
    """The address of a Ray cluster with room for two jobs."""
    if importlib.util.find_spec("ray") is None:
        pytest.skip("needs Ray")
    port = free_port()
    # Its sockets are in there, whose paths must be short.
    with tempfile.TemporaryDirectory(prefix="ray") as directory:
        command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block"]
        command += ["--node-ip-address=127.0.0.1", f"--port={port}", f"--temp-dir={directory}"]
        command += ["--num-cpus=2", "--num-gpus=0", "--object-store-memory=80000000"]
        command += ["--min-worker-port=0", "--max-worker-port=0", "--dashboard-agent-listen-port=0"]
        command += ["--include-dashboard=false", "--disable-usage-stats"]
        # Ray gives its own processes half a minute to start, which a busy machine takes.
        patient = {
            "RAY_agent_register_timeout_ms": "600000",
            "RAY_raylet_start_wait_time_s": "600",
            "RAY_worker_register_timeout_seconds": "600",
        }
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=environment | patient,
            stdout=PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        try:
            said = ""
            for line in process.stdout:
                said += line
                if "Ray runtime started" in line:
                    break
            else:
                pytest.fail(said)
            yield f"127.0.0.1:{port}"
        finally:
            process.terminate()
            process.communicate(timeout=60)


@contextlib.contextmanager
def on_ray(head, environment, out):
    # The driver must not compute: JAX knows no such platform.
    environment = environment | {"RAY_ADDRESS": head, "JAX_PLATFORMS": "none"}
    command = [sys.executable, "-c", NOTING, *SMOKE, "--out", str(out)]
    process = subprocess.Popen(
        [*command, "--launcher", "ray"],
        cwd=ROOT,
        env=environment,
        stdout=PIPE,
        stderr=PIPE,
        text=True,
    )
    watchdog = threading.Timer(1200, process.kill)  # rather than wait for ever
    watchdog.start()
    try:
        with process:
            yield process
    finally:
        watchdog.cancel()


def test_a_worker_of_a_ray_cluster_is_killed_and_every_run_is_done_once(
    head, environment, finished, tmp_path
):
    stdout, killed = "", None
    with on_ray(head, environment, tmp_path) as process:
        for line in process.stdout:
            stdout += line
            started = re.search(r"pid=(\d+)\) dsprites .*: step 0 of 20$", line)
            if started and not killed:
                killed = started
                os.kill(int(killed[1]), signal.SIGKILL)
        stderr = process.stderr.read()
    assert process.returncode == 0, stderr
    for model in EACH_ONCE:
        (pid,) = noted(tmp_path, model)
        assert pid != int(killed[1])
    assert "1 of 2 jobs to go" in stdout
    assert sorted(models(tmp_path)) == EACH_ONCE
    for model in EACH_ONCE:
        jax.tree.map(
            np.testing.assert_array_equal,
            trained_parameters(tmp_path, model),
            trained_parameters(finished, model),
        )


def test_a_job_that_fails_on_a_ray_cluster_is_one_line(head, environment, finished, tmp_path):
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    broken = tmp_path / "runs/dsprites/beta_tc_vae"
    shutil.rmtree(broken)
    broken.touch()  # where a directory should be
    with on_ray(head, environment, tmp_path) as process:
        stdout, stderr = process.communicate()
    assert process.returncode == 1
    said = "sweep: 1 job failed: dsprites beta_tc_vae, 1 run"
    assert stderr.splitlines()[-1].startswith(said)
    assert "Traceback" not in stdout + stderr
    assert models(tmp_path) == ["vae", "beta_vae"]
