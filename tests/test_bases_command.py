"""The command line of other bases end to end, on one short training."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from command_lines import run
from etils import epath
from rich.console import Console

from experiments import bases, basis_effects, effects, output, presets, runs
from vaejax import data

FACTORS = ["shape", "scale", "orientation", "x", "y"]
SITES = ("z", "decoder/dense_1", "decoder/dense_2")
WANTED = (
    "--sites",
    *SITES[::-1],
    "--dictionary",
    "decoder/dense_1",
    "--features",
    24,
    "--pairs",
    8,
)


@pytest.fixture(scope="module")
def checkpoint(same_compiler, tmp_path_factory):
    """The directory of a run on a world that is trained but not measured."""
    out = tmp_path_factory.mktemp("sweep")
    preset = dataclasses.replace(presets.PRESETS["smoke"], steps=2, chunk=2)
    output.set_up_compiler(preset)
    group = [runs.Run(preset, "dsprites@chain", "vae", 0)]
    runs.train(epath.Path(out), group, Console(quiet=True))
    return out / "runs/dsprites@chain/vae/seed_0"


@pytest.fixture(autouse=True, scope="module")
def _small():
    sizes = {"_IMAGES": 48, "_FEW": 8, "_DRAWS": 3, "_SAMPLES": 64, "_STEPS": 40, "_JUDGED": 64}
    with pytest.MonkeyPatch.context() as patch:
        for name, size in sizes.items():
            patch.setattr(bases if name in ("_IMAGES", "_FEW") else basis_effects, name, size)
        yield


@pytest.fixture(scope="module")
def looked_at(checkpoint):
    """What `bases` prints and the directory that it writes by default."""
    done = run("bases", checkpoint, *WANTED)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout, checkpoint / "bases"


def files_of(directory):
    with np.load(directory / "bases.npz", allow_pickle=False) as arrays:
        return json.loads((directory / "bases.json").read_text()), dict(arrays)


def test_directions_of_each_site_are_counted_as_the_arrays_say(looked_at):
    record, arrays = files_of(looked_at[1])
    assert list(record["sites"]) == list(SITES)  # in the order of the network
    for site, found in record["sites"].items():
        eigenvalues = arrays[f"eigenvalues_{site}_value"]
        inward, outward = arrays[f"{site}_inward"], arrays[f"{site}_outward"]
        assert inward.shape == outward.T.shape == (found["units"], found["vary"])
        np.testing.assert_allclose(outward @ inward, np.eye(found["vary"]), atol=5e-3)
        assert found["both"] == (eigenvalues > 1e-6 * eigenvalues[0]).sum()
        assert found["both"] <= min(found["vary"], found["read"])
        shares = eigenvalues[: found["99%"]].sum() / eigenvalues.sum()
        fewer = eigenvalues[: found["99%"] - 1].sum() / eigenvalues.sum()
        assert fewer < 0.99 <= shares + 1e-6
        effective = eigenvalues.sum() ** 2 / np.square(eigenvalues).sum()
        assert found["effective"]["value"] == pytest.approx(effective, rel=1e-4)
    # What the decoder's first layer does, it does to what ten latents say.
    assert record["sites"]["z"]["units"] == 10


def test_modularity_is_of_all_neighbours_in_both_bases(looked_at):
    record, _ = files_of(looked_at[1])
    assert list(record["modularity"]) == [
        "z to decoder/dense_1",
        "decoder/dense_1 to decoder/dense_2",
        "all",
    ]
    for of_part in record["modularity"].values():
        assert list(of_part) == ["units", "directions"]
        for found in of_part.values():
            assert -0.5 <= found["modularity"] <= 1
            assert found["communities"] >= 1
            assert 1 / 4 - 1e-6 <= found["p"] <= 1  # of three draws


def test_the_dictionary_is_judged_beside_directions_units_and_labels(looked_at):
    record, arrays = files_of(looked_at[1])
    found = record["dictionary"]
    assert found["site"] == "decoder/dense_1"
    units = record["sites"]["decoder/dense_1"]["units"]
    assert arrays["dictionary_decoder/dense_1_inward"].shape == (units, 24)
    assert found["dead"] == (arrays["dictionary_decoder/dense_1_firing"] == 0).sum()
    widths = {name: of["features"] for name, of in found["bases"].items()}
    both = record["sites"]["decoder/dense_1"]["both"]
    assert widths == {"dictionary": 24, "directions": both, "units": units}
    assert found["bases"]["units"]["approximation"]["value"] == 1
    # They are those that the output depends on, so that the rest makes no difference.
    assert found["bases"]["directions"]["approximation"]["value"] > 0.99
    assert list(found["factors"]) == FACTORS
    for of_factor in found["factors"].values():
        assert set(of_factor) == {"dictionary", "directions", "units", "supervised", "chance"}
        for name, scores in of_factor.items():
            assert ("mf_8" in scores) == (name != "supervised")
            for score in scores.values():
                if score["value"] is not None:
                    assert score["low"] <= score["value"] <= score["high"]


def test_tables_show_what_files_hold(looked_at):
    printed, directory = looked_at
    record, _ = files_of(directory)
    rows = [line.split() for line in printed.splitlines()]
    for site, found in record["sites"].items():
        counts = [str(found[name]) for name in ("units", "vary", "read", "both", "99%")]
        assert [site, *counts] in [row[:6] for row in rows]
    for factor, of_factor in record["dictionary"]["factors"].items():
        for name, scores in of_factor.items():
            value = scores["mf_1"]["value"]
            shown = "-" if value is None else f"{value:.2f}"
            assert [f"{factor},", name, shown] in [row[:3] for row in rows]
    assert "…" not in printed
    assert f"written to {directory}" in printed.replace("\n", "")


def test_classes_are_those_of_the_images_of_pairs():
    source = data.source("dsprites@chain", 32)
    _, values = effects.draw(source, jax.random.key(0), 4)
    changed = effects.changed_factors(source, values)
    of_pairs = np.tile(values, (len(source.factors), 1)), changed
    for drawn, of in zip(effects.factor_pairs(source, values), of_pairs, strict=True):
        np.testing.assert_allclose(drawn, jax.vmap(source.render)(of), atol=1e-6)
        classes = basis_effects._classes(source, of)
        assert classes.min() >= 0
        assert classes.max(0).tolist() <= [2, 5, 7, 7, 7]


def test_the_same_command_leaves_the_same_numbers_and_a_part_of_it_no_dictionary(
    checkpoint, looked_at, tmp_path
):
    done = run("bases", checkpoint, "--sites", "z", "--out", tmp_path)
    assert done.returncode == 0
    record, arrays = files_of(tmp_path)
    before, arrays_before = files_of(looked_at[1])
    assert record["dictionary"] is None
    assert record["modularity"] == {}
    assert record["sites"] == {"z": before["sites"]["z"]}
    for name, array in arrays.items():
        np.testing.assert_array_equal(array, arrays_before[name])
    assert "Modularity" not in done.stdout


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--sites", "decoder/up_9"], "unknown site 'decoder/up_9': did you mean 'decoder/up_"),
        (["--dictionary", "decoder"], "unknown site 'decoder'"),
        (["--dictionary", "reconstruction"], "(one of encoder/conv_1, "),
        (["--dictionary", "z", "--pairs", "3"], "--pairs: expected at least 4, half of them held"),
        (["--features", "9"], "--features: of what? expected --dictionary SITE too"),
        (["--features", "0"], "--features: expected a whole number, 1 or more"),
    ],
)
def test_wrong_options_get_one_line(checkpoint, arguments, said):
    refused = run("bases", checkpoint, *arguments)
    assert refused.returncode == 2
    assert said in refused.stderr
    assert refused.stderr.count("\n") == 1


def test_a_site_that_never_varies_gets_one_line(checkpoint, monkeypatch):
    reconstruct = effects.reconstruct

    def constant(model):
        network = reconstruct(model)
        return lambda variables, images: network(variables, 0 * images)

    monkeypatch.setattr(effects, "reconstruct", constant)
    refused = run("bases", checkpoint, "--sites", "z")
    assert refused.returncode == 2
    assert refused.stderr == "bases: site 'z': expected activations that vary over the inputs\n"


def test_what_cannot_be_intervened_on_has_no_dictionary(checkpoint, monkeypatch):
    class Published:
        name = "dsprites"

    monkeypatch.setattr(runs.Run, "source", lambda _: Published())
    refused = run("bases", checkpoint, "--dictionary", "z")
    assert refused.returncode == 2
    assert refused.stderr == "bases: dsprites cannot draw images with one factor changed\n"


def test_no_checkpoint_gets_one_line(tmp_path):
    refused = run("bases", tmp_path)
    assert refused.returncode == 2
    assert "no checkpoint in" in refused.stderr
    assert refused.stderr.count("\n") == 1
