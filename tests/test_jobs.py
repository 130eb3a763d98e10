"""How a process goes through its jobs."""

import io

import jax
from etils import epath
from rich.console import Console

from experiments import jobs, presets, runs


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
    jobs.complete(epath.Path(tmp_path), todo, Console(file=io.StringIO()))

    assert said.count("forget") == 1
    before, after = said[: said.index("forget")], said[said.index("forget") + 1 :]
    for part, dataset in ((before, "smallnorb"), (after, "dsprites")):
        assert sorted(part) == sorted(
            f"{what} {dataset} {model}" for what in ("train", "measure") for model in preset.models
        )
