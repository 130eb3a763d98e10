"""The command lines end to end: one sweep, what it leaves, resuming, refusing, analysing."""

import dataclasses
import json
import shutil
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
from command_lines import ROOT, rows_of, run, table
from etils import epath
from rich.console import Console

from experiments import jobs, output, presets, report, runs, sweep, train
from vaejax import checkpoint, data, zoo
from vaejax.models.layers import ConvTranspose

SMOKE = ("--preset", "smoke", "--models", "vae", "vq_vae", "--seeds", "0", "1")
BRIEF = ("--metrics", "mig")


@pytest.fixture(scope="module")
def finished(same_compiler, tmp_path_factory):
    """An uninterrupted sweep."""
    out = tmp_path_factory.mktemp("finished")
    done = run("sweep", *SMOKE, "--out", out)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return out, done.stdout


def test_the_sweep_leaves_one_row_per_run(finished):
    out, stdout = finished
    rows = rows_of(out / "results.csv")
    assert [(row["model"], row["seed"]) for row in rows] == [
        ("vae", "0"),
        ("vae", "1"),
        ("vq_vae", "0"),
        ("vq_vae", "1"),
    ]
    assert list(rows[0]) == report.COLUMNS
    assert all(row["status"] == "ok" and row["source"] == "redrawn" for row in rows)
    for row in rows:
        gaussian = row["model"] == "vae"
        assert bool(row["kl"]) == bool(row["active_latents"]) == gaussian
        assert bool(row["ces_code_swap"]) == (not gaussian)
        assert bool(row["perplexity"]) == (not gaussian)
        assert row["representation"] == ("means" if gaussian else "codes")
        assert 0 <= float(row["dci_informativeness"]) <= 1
        assert float(row["reconstruction"]) > 0
        size = 32 * 32
        assert float(row["ces_fixed_rms"]) == pytest.approx(float(row["ces_fixed"]) / size**0.5)
    assert "dsprites (redrawn), 4 runs" in stdout


def test_the_sweep_leaves_arrays_pictures_and_history(finished):
    run_directory = finished[0] / "runs/dsprites/vae/seed_0"
    row = json.loads((run_directory / "metrics.json").read_text())
    with np.load(run_directory / "latents.npz", allow_pickle=False) as arrays:
        assert arrays["ces_fixed"].mean() == pytest.approx(row["ces_fixed"], rel=1e-6)
        assert arrays["kl"].sum() == pytest.approx(row["kl"], rel=1e-6)
        assert arrays["mig_matrix"].shape == arrays["dci_disentanglement_matrix"].shape == (10, 5)
        assert arrays["factor_latents"].shape == arrays["mediated_fraction"].shape == (5, 10)
        assert np.all(arrays["ces_fixed_low"] <= arrays["ces_fixed"])
    with np.load(run_directory / "units.npz", allow_pickle=False) as arrays:
        assert arrays["factor_encoder/conv_1"].shape == (5, 4)
        assert arrays["attribution_decoder/dense_1_high"].shape == (5, 32)
    for name in ("reconstructions.png", "traversal.png"):
        assert (run_directory / name).read_bytes().startswith(b"\x89PNG")
    history = rows_of(run_directory / "history.csv")
    assert [int(line["step"]) for line in history] == [10, 20]


def test_the_summary_has_means_and_intervals(finished):
    rows = rows_of(finished[0] / "results.csv")
    summary = rows_of(finished[0] / "summary.csv")
    assert [line["model"] for line in summary] == ["vae", "vq_vae"]
    values = [float(row["mig"]) for row in rows[:2]]
    mean, half = np.mean(values), 12.706 * abs(values[0] - values[1]) / 2  # t(0.975, 1 df)
    assert float(summary[0]["mig"]) == pytest.approx(mean)
    assert float(summary[0]["mig_low"]) == pytest.approx(mean - half, rel=1e-3)
    assert float(summary[0]["mig_high"]) == pytest.approx(mean + half, rel=1e-3)


def test_a_finished_sweep_trains_nothing_again(finished):
    out, _ = finished
    before = {p: p.stat().st_mtime_ns for p in out.glob("runs/**/checkpoints/*")}
    again = run("sweep", *SMOKE, "--out", out)
    assert again.returncode == 0
    assert "step" not in again.stdout
    assert before == {p: p.stat().st_mtime_ns for p in out.glob("runs/**/checkpoints/*")}


def test_another_configuration_is_refused(finished):
    out, _ = finished
    refused = run("sweep", *SMOKE, "--steps", 30, "--out", out)
    assert refused.returncode == 2
    assert refused.stderr.count("\n") == 1
    assert "steps was 20, is 30" in refused.stderr
    assert "--fresh" in refused.stderr
    refused = run("sweep", *SMOKE, "--precision", "bfloat16", "--out", out)
    assert "precision was float32, is bfloat16" in refused.stderr


def test_a_checkpoint_restores_alone(finished):
    restored = checkpoint.restore(finished[0] / "runs/dsprites/vae/seed_1")
    images, _ = data.source("dsprites", 32).batch(jax.random.key(0), 4)
    out = restored.model.apply(restored.variables, images)
    assert out.reconstruction.shape == images.shape
    assert restored.config["seed"] == 1
    assert int(restored.state.step) == 20


def test_analyze_measures_the_same_again(finished, tmp_path):
    run_directory = finished[0] / "runs/dsprites/vq_vae/seed_0"
    done = run("analyze", run_directory, "--out", tmp_path)
    assert done.returncode == 0, done.stderr
    there = json.loads((run_directory / "metrics.json").read_text())
    again = json.loads((tmp_path / "metrics.json").read_text())
    del there["train_seconds"]
    assert again.keys() == there.keys()
    assert again == there
    for name in ("latents.npz", "units.npz"):
        with np.load(run_directory / name) as arrays, np.load(tmp_path / name) as same:
            assert set(same) == set(arrays)
            for array in arrays:
                np.testing.assert_array_equal(same[array], arrays[array])


def test_analyze_measures_what_is_asked_for(finished):
    run_directory = finished[0] / "runs/dsprites/vq_vae/seed_0"
    options = ("--metrics", "mig", "sap", "--representation", "pooled")
    done = run("analyze", run_directory, *options)
    assert done.returncode == 0, done.stderr
    printed = dict(line.split(maxsplit=1) for line in done.stdout.splitlines())
    assert printed["representation"] == "pooled"
    assert {"mig", "sap"} < set(printed)
    assert not {"irs", "ces_fixed", "readout_error", "pairs"} & set(printed)
    there = json.loads((run_directory / "disentanglement.json").read_text())
    assert there["sap"]["representation"] == "codes"
    assert float(printed["sap"]) != there["sap"]["score"]

    refused = run("analyze", run_directory, "--metrics", "mig", "--without-passive")
    assert refused.returncode == 2
    assert "a VQ-VAE has no posterior" in refused.stderr
    assert refused.stderr.count("\n") == 1


def test_train_is_a_sweep_of_one_run(monkeypatch):
    # That a run alone is the same as in company is tested with the training.
    seen = {}
    monkeypatch.setattr(sweep, "sweep", lambda *args, **kwargs: seen.update(args=args, **kwargs))
    given = ["--seed", "1", "--steps", "7", "--precision", "bfloat16", "--metrics", "mig", "dci"]
    with pytest.raises(SystemExit) as stop:
        train.main(["--preset", "smoke", "--model", "vae", *given])
    assert stop.value.code == 0
    preset, out = seen["args"]
    smoke = presets.PRESETS["smoke"]
    changed = {"models": ("vae",), "seeds": (1,), "steps": 7, "precision": "bfloat16"}
    assert preset == dataclasses.replace(smoke, **changed, metrics=("mig", "dci"))
    assert (out, seen["fresh"]) == ("results/train/dsprites_vae_1", False)


@pytest.fixture(scope="module")
def brief(same_compiler, tmp_path_factory):
    """An uninterrupted sweep that measures little."""
    out = tmp_path_factory.mktemp("brief")
    done = run("sweep", *SMOKE, *BRIEF, "--out", out)
    assert done.returncode == 0, done.stderr
    return out


def test_a_sweep_measures_what_it_is_asked_for(brief):
    for row in rows_of(brief / "results.csv"):
        assert float(row["mig"]) >= 0
        assert row["ces_fixed"] == row["dci_informativeness"] == row["circuit_overlap"] == ""
    assert not (brief / "readouts").exists()


def test_a_killed_sweep_goes_on_to_the_same_table(environment, brief, tmp_path):
    """Killed by SIGINT while it trains and by SIGKILL while it measures, then left to finish."""
    # A shell has what it starts in the background ignore SIGINT, and so what that starts in turn.
    heeding = "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); "
    heeding += "from experiments import sweep; sweep.main(sys.argv[1:])"
    command = [sys.executable, "-c", heeding, *SMOKE, *BRIEF, "--out", str(tmp_path)]

    def some_steps_are_saved(process):
        while not list(tmp_path.glob("runs/*/*/*/checkpoints/10")) and process.poll() is None:
            time.sleep(0.02)

    def a_run_is_measured(process):
        assert any(": measuring" in line for line in process.stdout)

    moments = {signal.SIGINT: some_steps_are_saved, signal.SIGKILL: a_run_is_measured}
    for signal_number, wait in moments.items():
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        wait(process)
        process.send_signal(signal_number)
        _, stderr = process.communicate()
        assert process.returncode in (-signal_number, 130), stderr
        if process.returncode == 130:
            assert stderr.splitlines()[-1].startswith("sweep: interrupted")
    done = run("sweep", *SMOKE, *BRIEF, "--out", tmp_path)
    assert done.returncode == 0, done.stderr
    assert table(tmp_path) == table(brief)


def test_a_damaged_last_checkpoint_costs_one_chunk(brief, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(brief, out)
    for path in out.glob("runs/*/vae/*/metrics.json"):
        path.unlink()
    for path in (out / "runs/dsprites/vae/seed_0/checkpoints/20").rglob("*"):
        if path.is_file():
            path.write_bytes(b"")
    done = run("sweep", *SMOKE, *BRIEF, "--out", out)
    assert done.returncode == 0, done.stderr
    assert "step 10 of 20" in done.stdout
    assert table(out) == table(brief)


@pytest.mark.usefixtures("brief")
def test_a_diverged_run_is_recorded_and_the_others_go_on(tmp_path, monkeypatch):
    preset = dataclasses.replace(presets.PRESETS["smoke"], metrics=("mig",))
    grid = [runs.Run(preset, "dsprites", "vae", seed) for seed in (0, 1)]
    hyper = runs.Run.hyper
    monkeypatch.setattr(
        runs.Run,
        "hyper",
        lambda self: hyper(self) | ({"learning_rate": 1e30} if self.seed == 1 else {}),
    )
    out = epath.Path(tmp_path)
    jobs.complete(out, [grid], Console(quiet=True))
    rows = [runs.result(out, run) for run in grid]
    assert [row["status"] for row in rows] == ["ok", "diverged"]
    assert rows[1]["steps"] < preset.steps
    assert "mig" not in rows[1]
    report.write(out, rows)
    summary = rows_of(tmp_path / "summary.csv")[0]
    assert (summary["runs"], summary["diverged"]) == ("2", "1")


@pytest.mark.parametrize(
    ("module", "arguments", "said"),
    [
        ("sweep", ["--preset", "dmeo"], "did you mean 'demo'?"),
        ("sweep", ["--models", "beta_vea"], "did you mean 'beta_vae'?"),
        ("sweep", ["--datasets", "dsprits"], "did you mean 'dsprites'?"),
        ("sweep", ["--datasets", "dsprites@chian"], "did you mean 'chain'?"),
        ("sweep", ["--source", "real"], "invalid choice: 'real'"),
        ("data", ["show", "shapes"], "did you mean 'shapes3d'?"),
        ("data", ["shwo"], "invalid choice: 'shwo'"),
        ("sweep", ["--modles", "vae"], "did you mean --models?"),
        ("sweep", ["--precision", "float16"], "invalid choice: 'float16'"),
        ("sweep", ["--seeds", "-1"], "whole number"),
        ("sweep", ["--seeds", "1", "1"], "more than once"),
        ("sweep", ["--steps", "0"], "1 or more"),
        ("sweep", ["--metrics", "circuit"], "did you mean 'circuits'?"),
        ("sweep", ["--metrics", "mig", "mig"], "more than once"),
        ("train", [], "--model"),
        ("analyze", ["nowhere"], "no checkpoint in"),
        ("analyze", ["nowhere", "--metrics", "mgi"], "did you mean 'mig'?"),
        ("tradeoff", ["nowhere"], "no results.csv in nowhere"),
        ("sweep", ["--out", "README.md"], "cannot use README.md as output directory"),
    ],
)
def test_wrong_arguments_get_one_line(module, arguments, said, monkeypatch):
    monkeypatch.chdir(ROOT)
    refused = run(module, *arguments)
    assert refused.returncode == 2
    assert said in refused.stderr
    assert refused.stderr.count("\n") == 1


@pytest.mark.parametrize(("precision", "said"), [("float32", "HIGHEST"), ("bfloat16", "DEFAULT")])
def test_products_have_the_precision_that_is_asked_for(same_compiler, precision, said):
    output.set_up_compiler(presets.Preset(precision=precision))
    layer, x = ConvTranspose(2), np.ones((1, 4, 4, 3), np.float32)
    variables = layer.init(jax.random.key(0), x)
    assert f"precision = [{said}, {said}]" in jax.jit(layer.apply).lower(variables, x).as_text()


def test_help_needs_no_jax_and_import_no_tensorflow():
    probe = "import sys; sys.argv = ['sweep', '--help']; from experiments import sweep\n"
    probe += "try: sweep.main()\nexcept SystemExit: pass\nassert 'jax' not in sys.modules"
    subprocess.run([sys.executable, "-c", probe], cwd=ROOT, check=True, capture_output=True)
    probe = "import sys, vaejax; assert not {'tensorflow', 'matplotlib'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", probe], cwd=ROOT, check=True)


def test_the_dry_run_counts_runs_and_parameters():
    options = ("--preset", "paper", "--models", "vae", "--datasets", "dsprites", "--dry-run")
    done = run("sweep", *options)
    assert done.returncode == 0, done.stderr
    assert "3 runs in 1 programs" in done.stdout
    assert "690,517" in done.stdout  # counted by hand from the published layers


def test_the_presets_know_every_architecture_and_dataset():
    assert set(presets.MODELS) == set(zoo.ZOO)
    assert data.REDRAWN == presets.DATASETS


def test_the_interval_is_students():
    mean, low, high = report.interval([1.0, 2.0, 6.0])
    assert mean == 3.0
    half = 4.302653 * np.std([1.0, 2.0, 6.0], ddof=1) / 3**0.5
    assert (low, high) == pytest.approx((3 - half, 3 + half))
    assert report.interval([]) == (None, None, None)
