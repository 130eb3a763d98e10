"""The command lines of circuits end to end: one short training, what each command makes of it."""

import dataclasses
import itertools
import json

import networkx as nx
import numpy as np
import pytest
from command_lines import rows_of, run
from etils import epath
from rich.console import Console

from experiments import (
    circuit_effects,
    circuit_pictures,
    factor_graphs,
    output,
    presets,
    runs,
)
from vaejax import circuits, data

FACTORS = ["shape", "scale", "orientation", "x", "y"]
WANTED = ("--factor", "x", "scale", "--sites", "decoder/up_1", "z", "--pairs", 4)
PNG = b"\x89PNG\r\n\x1a\n"


@pytest.fixture(scope="module")
def sweep(same_compiler, tmp_path_factory):
    """The directory of a sweep over a world, of a run that is trained but not measured."""
    out = tmp_path_factory.mktemp("sweep")
    preset = dataclasses.replace(presets.PRESETS["smoke"], steps=2, chunk=2)
    output.set_up_compiler(preset)
    group = [runs.Run(preset, "dsprites@chain", "vae", 0)]
    runs.train(epath.Path(out), group, Console(quiet=True))
    return out


@pytest.fixture(scope="module")
def checkpoint(sweep):
    return sweep / "runs/dsprites@chain/vae/seed_0"


@pytest.fixture(scope="module")
def analyzed(checkpoint):
    """What `analyze` prints when it measures circuits into the run's own directory."""
    done = run("analyze", checkpoint, "--metrics", "circuits", "--out", checkpoint)
    assert (done.returncode, done.stderr) == (0, "")
    return dict(line.split(maxsplit=1) for line in done.stdout.splitlines())


@pytest.fixture(scope="module")
def taken_apart(checkpoint):
    """What `circuits` prints, where it writes by default, and what it has found."""
    seen = []
    anatomy = circuit_effects.anatomy

    def watched(*args, **options):
        seen.append((args, anatomy(*args, **options)))
        return seen[0][1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(circuit_effects, "anatomy", watched)
        done = run("circuits", checkpoint, *WANTED)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout, checkpoint / "circuits", *seen[0]


def arrays_of(path):
    with np.load(path, allow_pickle=False) as arrays:
        return dict(arrays)


def test_analyze_measures_the_circuits_of_the_latents_and_the_layers_beside_them(
    checkpoint, analyzed
):
    row = json.loads((checkpoint / "metrics.json").read_text())
    arrays = arrays_of(checkpoint / "units.npz")
    sites = ["encoder/dense", "z", "decoder/dense_1"]
    assert [name for name in arrays if name.startswith("label_")] == [f"label_{s}" for s in sites]
    labels = np.concatenate([arrays[f"label_{site}"] for site in sites])
    masks = [arrays[f"circuit_{site}"] for site in sites]
    faithfulness = [arrays[f"circuit_faithfulness_{site}"] for site in sites]
    overlaps = [
        (a & b).sum() / (a | b).sum()
        for of_site in masks
        for a, b in itertools.combinations(of_site, 2)
    ]
    assert row["monosemantic_fraction"] == np.mean(labels == circuits.MONOSEMANTIC)
    assert row["polysemantic_fraction"] == np.mean(labels == circuits.POLYSEMANTIC) > 0
    assert row["circuit_size"] == pytest.approx(np.mean([mask.mean() for mask in masks]))
    assert row["circuit_faithfulness"] == pytest.approx(np.mean(faithfulness), rel=1e-6)
    assert row["circuit_overlap"] == pytest.approx(np.mean(overlaps))
    assert float(analyzed["circuit_size"]) == row["circuit_size"]
    assert "mig" not in analyzed
    assert "pairs" not in analyzed

    graph = nx.read_graphml(checkpoint / "latent_factors.graphml")
    assert set(graph) == {*FACTORS, *(f"z:{unit}" for unit in range(10))}
    assert all(tail in FACTORS and head.startswith("z:") for tail, head in graph.edges)


def test_circuits_leaves_what_was_asked_for_and_files_agree(taken_apart):
    printed, directory, *_ = taken_apart
    summary = json.loads((directory / "circuits.json").read_text())
    arrays = arrays_of(directory / "units.npz")
    assert list(summary["circuits"]) == ["z", "decoder/up_1"]  # in the order of the network
    assert {name for name in arrays if name.startswith("effect_") and name[-3:] != "low"} == {
        *("effect_z", "effect_z_high", "effect_decoder/up_1", "effect_decoder/up_1_high")
    }
    for site, of_site in summary["circuits"].items():
        effect, masks = arrays[f"effect_{site}"], arrays[f"circuit_{site}"]
        assert effect.shape == (len(FACTORS), {"z": 10, "decoder/up_1": 8}[site])
        assert np.all(arrays[f"effect_{site}_low"] <= effect)
        assert np.all(effect <= arrays[f"effect_{site}_high"])
        assert list(of_site) == ["x", "scale"]  # as they were asked for
        for mask, value, circuit in zip(
            masks, arrays[f"circuit_faithfulness_{site}"], of_site.values(), strict=True
        ):
            assert circuit["units"] == {site: np.flatnonzero(mask).tolist()}
            assert circuit["size"] == mask.sum() == len(circuit["lost"]) > 0
            assert circuit["of"] == len(mask)
            assert circuit["faithfulness"]["value"] == pytest.approx(value)
            assert circuit["minimality"] == max(circuit["lost"])
            assert circuit["reached"] == (circuit["found"] >= 0.8)
            sizes = [point["size"] for point in circuit["curve"]]
            assert sizes == sorted(sizes)
            assert {0, circuit["size"]} <= set(sizes)
            at_size = circuit["curve"][sizes.index(circuit["size"])]["mediated_fraction"]
            assert at_size == pytest.approx(value, abs=1e-5)
            assert circuit["curve"][0]["mediated_fraction"] == pytest.approx(0, abs=1e-5)
            assert circuit["curve"][-1]["mediated_fraction"] == pytest.approx(1, abs=1e-5)
    labels = np.concatenate([arrays["label_z"], arrays["label_decoder/up_1"]])
    columns = summary["columns"]
    assert columns["polysemantic_fraction"] == np.mean(labels == circuits.POLYSEMANTIC) > 0
    for name, value in columns.items():
        assert f"{name:28} {value}" in printed
    assert f"written to {directory}" in printed.replace("\n", "")


def test_graphs_read_back_with_the_units_of_all_circuits(taken_apart):
    _, directory, *_ = taken_apart
    summary = json.loads((directory / "circuits.json").read_text())["circuits"]
    graph = nx.read_graphml(directory / "graph.graphml")
    assert set(graph) == {
        f"{site}:{unit}"
        for site, of_site in summary.items()
        for circuit in of_site.values()
        for unit in circuit["units"][site]
    }
    for node, attributes in graph.nodes(data=True):
        assert node == f"{attributes['site']}:{attributes['unit']}"
        assert set(json.loads(attributes["factors"])) <= set(FACTORS)
    assert graph.number_of_edges() > 0
    for tail, head, attributes in graph.edges(data=True):
        assert (tail[:2], head[:11]) == ("z:", "decoder/up_")
        assert set(json.loads(attributes["kept"])) <= set(FACTORS)
    dot = (directory / "graph.dot").read_text()
    assert dot.startswith("digraph {")
    assert dot.count(" -> ") == graph.number_of_edges()
    assert all(f'"{node}"' in dot for node in graph)


def test_pictures_are_of_the_factors_asked_for(taken_apart):
    _, directory, *_ = taken_apart
    pictures = {path.name: path.read_bytes() for path in directory.glob("*.png")}
    assert set(pictures) == {
        "units.png",
        "curves.png",
        "maps.png",
        "graph_x.png",
        "graph_scale.png",
    }
    for content in pictures.values():
        assert content.startswith(PNG)
        assert b"IEND" in content[-12:]


def test_masks_say_which_part_a_unit_marks(taken_apart):
    rows = rows_of(taken_apart[1] / "masks.csv")
    source = data.source("dsprites@chain", 32)
    assert rows
    assert {row["site"] for row in rows} == {"decoder/up_1"}  # z has no feature maps
    units = [int(row["unit"]) for row in rows]
    assert len(set(units)) == len(units)
    assert set(units) <= set(range(8))
    assert {row["part"] for row in rows} <= set(source.masks(np.zeros(5)))
    assert {row["marks"] for row in rows} <= {"on", "off"}
    iou = [float(row["iou"]) for row in rows]
    assert iou == sorted(iou, reverse=True)
    for row in rows:
        low, value, high = (float(row[name]) for name in ("iou_low", "iou", "iou_high"))
        assert 0 <= low <= value <= high <= 1
        assert 1 / 41 - 1e-6 <= float(row["p_value"]) <= 1


def test_latents_alone_have_neither_maps_nor_masks(taken_apart, tmp_path):
    *_, network, found = taken_apart
    of_latents = circuit_effects.Anatomy(
        found.factors, {"z": found.units["z"]}, {"z": found.circuits["z"]}
    )
    circuit_pictures.draw(epath.Path(tmp_path), *network, of_latents, None)
    assert {path.name for path in tmp_path.iterdir()} == {"units.png", "curves.png"}


def test_the_same_command_leaves_the_same_bytes_wherever_it_writes(
    checkpoint, taken_apart, tmp_path
):
    _, directory, *_ = taken_apart
    before = {path: path.stat().st_mtime_ns for path in directory.iterdir()}
    out = tmp_path / "elsewhere"
    done = run("circuits", checkpoint, *WANTED, "--out", out)
    assert done.returncode == 0
    assert {path.name for path in out.iterdir()} == {path.name for path in before}
    assert {path: path.stat().st_mtime_ns for path in directory.iterdir()} == before
    for name in ("circuits.json", "graph.graphml", "masks.csv"):
        assert (out / name).read_bytes() == (directory / name).read_bytes()
    arrays, same = arrays_of(directory / "units.npz"), arrays_of(out / "units.npz")
    for name, array in arrays.items():
        np.testing.assert_array_equal(same[name], array)


def test_options_reach_what_they_are_for(checkpoint, monkeypatch):
    """The search itself is tested with the package; here, that it is told what was asked for."""
    seen = {}

    class SeenError(Exception):
        pass

    def units(apply_fn, variables, clean, corrupted, changed, **options):
        seen.update(options, pairs=np.bincount(changed).tolist(), images=len(clean))
        return {}

    def find(*_, **options):
        seen.update(options)
        raise SeenError

    monkeypatch.setattr(circuit_effects.circuits, "factor_units", units)
    monkeypatch.setattr(circuit_effects.circuits, "find_circuits", find)
    options = ("--screen", 3, "--threshold", 0.5, "--pairs", 6, "--factor", "y")
    with pytest.raises(SeenError):
        run("circuits", checkpoint, *options)
    assert (seen["screen"], seen["threshold"], seen["factors"]) == (3, 0.5, [4])
    assert (seen["pairs"], seen["images"]) == ([6] * 5, 30)
    # All layers and the latents; of the encoder's outputs, z stands for both.
    assert seen["sites"] == [
        *("encoder/conv_1", "encoder/conv_2", "encoder/conv_3", "encoder/dense", "z"),
        *("decoder/dense_1", "decoder/dense_2", "decoder/up_1", "decoder/up_2"),
    ]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--factor", "scle"], "unknown factor 'scle': did you mean 'scale'?"),
        (["--sites", "decoder/up_9"], "unknown site 'decoder/up_9': did you mean 'decoder/up_"),
        (["--sites", "reconstruction"], "unknown site 'reconstruction'"),
        (["--pairs", "3"], "--pairs: expected at least 4, half of them held out, got 3"),
        (["--threshold", "1.1"], "--threshold: expected a number above 0 and up to 1"),
        (["--screen", "0"], "--screen: expected a whole number, 1 or more"),
        (["--graph-width", "0"], "--graph-width: expected a whole number, 1 or more"),
    ],
)
def test_wrong_options_of_circuits_get_one_line(checkpoint, arguments, said):
    refused = run("circuits", checkpoint, *arguments)
    assert refused.returncode == 2
    assert said in refused.stderr
    assert refused.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("module", "said"),
    [
        ("circuits", "no checkpoint in"),
        ("factor_graphs", "has no finished run on a world"),
        ("stability", "has no finished run with circuits"),
    ],
)
def test_what_is_not_there_gets_one_line(module, said, tmp_path):
    refused = run(module, tmp_path)
    assert refused.returncode == 2
    assert said in refused.stderr
    assert refused.stderr.count("\n") == 1


@pytest.mark.usefixtures("analyzed")
def test_factor_graphs_of_all_cases_are_scored_and_kept(sweep, checkpoint, monkeypatch):
    monkeypatch.setattr(factor_graphs, "_IMAGES", 1_000)
    done = run("factor_graphs", sweep, "--examples", 10)
    assert (done.returncode, done.stderr) == (0, "")
    rows = rows_of(sweep / "factor_graphs.csv")
    assert list(rows[0]) == list(factor_graphs.COLUMNS)
    assert [(row["case"], row["kind"]) for row in rows] == list(
        itertools.product(factor_graphs.CASES, factor_graphs.KINDS)
    )
    # scale -> x -> y, of which the first causes the last only through the second.
    truths = {
        "total": {("scale", "x"), ("x", "y"), ("scale", "y")},
        "direct": {("scale", "x"), ("x", "y")},
    }
    for row in rows:
        assert (row["dataset"], row["model"], row["seed"]) == ("dsprites@chain", "vae", "0")
        assert int(row["edges"]) == len(truths[row["kind"]])
        found, missed = int(row["found"]), len(truths[row["kind"]]) * (1 - float(row["recall"]))
        assert 0 <= float(row["recall"]) <= 1
        assert (row["precision"] == "") == (found == 0)
        assert row["precision"] == "" or 0 <= float(row["precision"]) <= 1
        wrong = found * (1 - float(row["precision"])) if found else 0
        # A reversed edge is one mistake, and so fewer than an edge too many and one missed.
        assert max(wrong, missed) - 1e-6 <= int(row["shd"]) <= wrong + missed + 1e-6
    for row in rows[:2]:
        graph = nx.read_graphml(checkpoint / f"factor_graph_{row['kind']}.graphml")
        assert list(graph) == FACTORS
        assert graph.number_of_edges() == int(row["found"])
        right = len(truths[row["kind"]] & set(graph.edges))
        assert float(row["recall"]) == pytest.approx(right / len(truths[row["kind"]]))
    assert "untrained" in done.stdout


@pytest.mark.usefixtures("analyzed")
def test_stability_reads_what_runs_leave(checkpoint, tmp_path):
    """A run and a copy of it under another seed agree in all."""
    row = json.loads((checkpoint / "metrics.json").read_text())
    for seed in (0, 1):
        path = tmp_path / f"runs/dsprites@chain/vae/seed_{seed}"
        path.mkdir(parents=True)
        (path / "metrics.json").write_text(json.dumps(row | {"seed": seed}))
        (path / "units.npz").write_bytes((checkpoint / "units.npz").read_bytes())
    assert run("stability", tmp_path).returncode == 0
    rows = rows_of(tmp_path / "circuit_stability.csv")
    assert [row["site"] for row in rows] == ["encoder/dense", "z", "decoder/dense_1"]
    for row in rows:
        assert float(row["similarity"]) == pytest.approx(1)
        assert float(row["jaccard"]) == 1
