"""How processes share an output directory: jobs, locks, files; training is only pretended."""

import contextlib
import json
import threading
import time
import types

import fsspec
import jax
import numpy as np
import pytest
from command_lines import compiling_as, rows_of, run, table
from etils import epath
from fsspec.implementations.memory import MemoryFileSystem
from rich.console import Console

from experiments import cli, files, jobs, locks, output, presets, readouts, report, runs
from experiments import sweep as sweep_command
from vaejax import checkpoint

pytest.importorskip("fcntl")

# Two groups, the first two models and the third.
SMOKE = ("--preset", "smoke", "--models", "vae", "beta_vae", "beta_tc_vae", "--seeds", "0")
QUIET = Console(quiet=True)


@pytest.fixture
def same_compiler(tmp_path_factory):
    """Nothing is compiled; what the command sets is put back."""
    cache = tmp_path_factory.mktemp("cache")
    with compiling_as({"JAX_COMPILATION_CACHE_DIR": str(cache)}):
        yield


def sweep(out, *options):
    return run("sweep", *SMOKE, "--out", out, *options)


def models(out):
    return [row["model"] for row in rows_of(out / "results.csv")]


def grid_of(*names, seeds=(0,)):
    preset = cli.resolve("smoke", {"models": names, "seeds": seeds})
    return runs.grid(preset)


def held_locks(out):
    """The locks of a directory that somebody holds."""
    held = []
    for path in (out / ".locks").iterdir():
        with locks.hold(epath.Path(out), path.name) as free:
            held += [] if free else [path.name]
    return sorted(held)


@pytest.mark.parametrize("count", range(1, 9))
def test_shards_are_disjoint_and_leave_nothing_out(count):
    grid = grid_of("vae", "beta_vae", "beta_tc_vae", seeds=(0, 1))
    shares = [jobs.split(grid, count)[index::count] for index in range(count)]
    shared_out = [run for share in shares for job in share for run in job]
    assert sorted(shared_out, key=grid.index) == grid
    # As few programs as there are shards to do them.
    assert sum(map(len, shares)) == (2 if count <= 2 else len(grid))


def test_a_table_written_while_a_run_finishes_has_it(tmp_path, monkeypatch):
    out, grid = epath.Path(tmp_path), grid_of("vae", "beta_vae", "beta_tc_vae")
    late = list(grid)
    write = report.write

    def write_slowly(out, rows):
        write(out, rows)
        if late:  # another process finishes a run, and has written its table before us
            run = late.pop()
            row = {"dataset": "dsprites", "source": "redrawn", "model": run.model}
            files.write_json(run.path(out) / "metrics.json", row | {"status": "ok"})

    monkeypatch.setattr(report, "write", write_slowly)
    sweep_command.write_table(out, grid)
    assert models(tmp_path) == ["vae", "beta_vae", "beta_tc_vae"]


def test_programs_are_forgotten_between_datasets_and_not_while_they_are_in_use(
    tmp_path, monkeypatch
):
    said = []

    def train(out, group, console):
        said.append(f"train {group[0].dataset} {group[0].model}")
        return None, 0.0

    def measure(out, group, states, seconds, console):
        said.append(f"measure {group[0].dataset} {group[0].model}")

    monkeypatch.setattr(runs, "train", train)
    monkeypatch.setattr(runs, "finish_all", measure)
    monkeypatch.setattr(jax, "clear_caches", lambda: said.append("forget"))
    preset = presets.Preset(("dsprites", "smallnorb"), models=("vae", "vq_vae"), seeds=(0,))
    todo = jobs.split(runs.grid(preset))
    jobs.complete(epath.Path(tmp_path), todo, QUIET)

    assert said.count("forget") == 1
    before, after = said[: said.index("forget")], said[said.index("forget") + 1 :]
    for part, dataset in ((before, "smallnorb"), (after, "dsprites")):
        assert sorted(part) == sorted(
            f"{what} {dataset} {model}" for what in ("train", "measure") for model in preset.models
        )


@pytest.fixture
def pretended(tmp_path, monkeypatch):
    """Whatever is trained and measured is only noted down, with the locks that are held."""
    seen = []

    def measure(out, group, states, seconds, console):
        seen.append((sorted(each.model for each in group), held_locks(tmp_path)))
        for each in group:
            row = {"dataset": each.dataset, "source": "redrawn", "model": each.model}
            files.write_json(each.path(out) / "metrics.json", row | {"status": "ok", "seed": 0})

    monkeypatch.setattr(runs, "train", lambda out, group, console: (None, 0.0))
    monkeypatch.setattr(runs, "finish_all", measure)
    return seen


def test_jobs_of_others_are_left_to_them(same_compiler, pretended, tmp_path):
    out = epath.Path(tmp_path)
    with contextlib.ExitStack() as elsewhere:
        # In another process, a single run of the first group is being done ...
        elsewhere.enter_context(locks.hold(out, "dsprites.vae", shared=True))
        elsewhere.enter_context(locks.hold(out, "dsprites.beta_vae.0"))
        whole = sweep(tmp_path)
        assert whole.returncode == 0, whole.stderr
        assert whole.stdout.count("another process works on this") == 1
        assert "1 of 3 runs are finished" in whole.stdout
        assert models(tmp_path) == ["beta_tc_vae"]
        # ... which keeps nobody from the other run alone.
        both = [sweep(tmp_path, "--shard", f"{index}/4") for index in (1, 2)]
        assert "2 of 3 runs are finished" in both[1].stdout
        assert models(tmp_path) == ["vae", "beta_tc_vae"]
    # Then that process has died, and another goes on.
    assert sweep(tmp_path).returncode == 0
    assert models(tmp_path) == ["vae", "beta_vae", "beta_tc_vae"]
    assert [what for what, _ in pretended] == [["beta_tc_vae"], ["vae"], ["beta_vae"]]


def test_a_job_is_held_until_it_is_measured(pretended, tmp_path):
    out, grid = epath.Path(tmp_path), grid_of("vae", "beta_vae", "beta_tc_vae")
    assert not jobs.complete(out, [grid[:2]], QUIET)
    assert not jobs.complete(out, [grid[2:]], QUIET)
    assert pretended == [
        (["beta_vae", "vae"], ["dsprites.vae"]),
        # A single run holds itself, and its group with other single runs.
        (["beta_tc_vae"], ["dsprites.beta_tc_vae", "dsprites.beta_tc_vae.0"]),
    ]
    assert not held_locks(tmp_path)


def test_a_job_that_others_drop_is_done_in_the_end(pretended, tmp_path):
    out, grid = epath.Path(tmp_path), grid_of("vae", "beta_vae", "beta_tc_vae")
    with contextlib.ExitStack() as elsewhere:
        elsewhere.enter_context(locks.hold(out, "dsprites.vae"))
        # They drop it when the other job is measured, which is done after it was passed over.
        assert not jobs.complete(out, [grid[2:], grid[:2]], QUIET, elsewhere.close)
    assert [what for what, _ in pretended] == [["beta_tc_vae"], ["beta_vae", "vae"]]


def test_a_job_is_waited_for_if_asked(pretended, tmp_path, monkeypatch):
    out, grid = epath.Path(tmp_path), grid_of("vae", "beta_vae")
    with contextlib.ExitStack() as elsewhere:
        elsewhere.enter_context(locks.hold(out, "dsprites.vae"))
        waits = []
        monkeypatch.setattr(time, "sleep", waits.append)
        assert jobs.complete(out, [grid], QUIET, patience=60.0) == grid
        assert sum(waits) == 60.0
        assert not pretended
        monkeypatch.setattr(time, "sleep", lambda _: elsewhere.close())
        assert not jobs.complete(out, [grid], QUIET, patience=60.0)


def test_runs_that_were_trained_apart_lose_no_more_than_a_chunk(monkeypatch):
    out, grid = epath.Path("out"), grid_of("vae", "beta_vae", seeds=(0, 1))
    steps = dict(zip(grid, ([20], [], [10], [10, 20]), strict=True))
    saved = {each.path(out): steps[each] for each in grid}
    monkeypatch.setattr(checkpoint, "saved_steps", saved.__getitem__)
    assert jobs._in_step(out, grid) == [[grid[1], grid[2]], [grid[0], grid[3]]]


@pytest.mark.usefixtures("same_compiler", "pretended")
def test_deleting_is_refused_while_others_work(tmp_path):
    assert sweep(tmp_path).returncode == 0
    before = table(tmp_path)
    with locks.hold(epath.Path(tmp_path), "directory", shared=True):
        refused = sweep(tmp_path, "--fresh")
    assert refused.returncode == 2
    assert "another process is working" in refused.stderr
    assert refused.stderr.count("\n") == 1
    assert table(tmp_path) == before


def test_deleting_leaves_nothing_of_an_earlier_sweep(tmp_path):
    out = epath.Path(tmp_path)
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "runs/dsprites").mkdir(parents=True)
    (tmp_path / ".results.csv.0.partial").touch()
    (tmp_path / "config.json").write_text('{"steps": 10}')
    with (
        pytest.raises(cli.UsageError, match="steps was 10, is 20"),
        output.claim(out, {"steps": 20}, fresh=False),
    ):
        pass
    with output.claim(out, {"steps": 20}, fresh=True):
        left = sorted(path.name for path in tmp_path.iterdir())
        assert left == [".locks", "config.json", "notes.txt"]
        # Others may come now, who want the same.
        with output.claim(out, {"steps": 20}, fresh=False):
            assert json.loads((tmp_path / "config.json").read_text()) == {"steps": 20}


def test_many_writers_of_one_file_leave_one_whole_file(tmp_path):
    path = epath.Path(tmp_path) / "table.csv"
    contents = [bytes([65 + writer]) * 100_000 for writer in range(8)]
    failures = []

    def write(content):
        try:
            for _ in range(20):
                files.write_bytes(path, content)
        except OSError as error:
            failures.append(error)

    at_once(*(lambda content=content: write(content) for content in contents))
    assert not failures
    assert path.read_bytes() in contents
    assert [entry.name for entry in tmp_path.iterdir()] == ["table.csv"]


def test_a_read_out_is_trained_once_by_those_who_need_it_at_once(tmp_path, monkeypatch):
    out, trained, arrays = epath.Path(tmp_path), [], {"weights": np.arange(3.0)}
    source = types.SimpleNamespace(name="dsprites", factors=())

    def train(*_, steps):
        time.sleep(0.2)
        trained.append(steps)
        return types.SimpleNamespace(accuracy=(), error=(), arrays=lambda: arrays)

    monkeypatch.setattr(readouts, "train_readout", train)
    monkeypatch.setattr(readouts.FactorReadout, "from_arrays", dict)
    preset = presets.PRESETS["smoke"]
    at_once(*[lambda: readouts.get(source, preset, out, QUIET)] * 3)
    assert trained == [preset.readout_steps]


def at_once(*calls):
    threads = [threading.Thread(target=call) for call in calls]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def test_a_bucket_takes_what_a_directory_takes(monkeypatch, tmp_path):
    """One in memory; checkpoints, which orbax writes, are not in it."""

    class Bucket(MemoryFileSystem):
        protocol = "s3"
        store, pseudo_dirs = {}, [""]

        @classmethod
        def _strip_protocol(cls, path):
            return super()._strip_protocol(str(path).removeprefix("s3:/"))

    monkeypatch.chdir(tmp_path)
    known = fsspec.filesystem
    monkeypatch.setattr(
        fsspec, "filesystem", lambda name, **kw: Bucket() if name == "s3" else known(name, **kw)
    )
    out, grid = epath.Path("s3://bucket/out"), grid_of("vae")
    with output.claim(out, {"steps": 10}, fresh=False):
        row = {"dataset": "dsprites", "source": "redrawn", "model": "vae", "status": "ok"}
        files.write_json(grid[0].path(out) / "metrics.json", row)
        assert sweep_command.write_table(out, grid) == [row]
        assert (out / "results.csv").read_text().startswith("dataset,source")
        # There are no locks: what keeps processes apart is up to them.
        with locks.hold(out, "dsprites.vae"), locks.hold(out, "dsprites.vae") as second:
            assert second
    with output.claim(out, {"steps": 20}, fresh=True):
        assert [path.name for path in out.iterdir()] == ["config.json"]
    assert files.absolute(out) == out
    assert not list(tmp_path.iterdir())
