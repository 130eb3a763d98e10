"""What the benchmarks' figures are made of."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import vaejax
from benchmarks import circuits, common, costs, layers, precision, reference
from benchmarks.common import Case, Goal
from experiments import jobs, output, runs
from experiments.presets import PRESETS


def of_seconds(*seconds):
    """A workload that takes these times, the first of which warms up."""
    times = iter(seconds)
    return lambda: next(times)


@pytest.fixture
def rows(monkeypatch):
    # A matrix product that takes one second: as many operations as it has make the peak.
    monkeypatch.setattr(common, "matmul", lambda: of_seconds(9, 1, 1, 1))
    operations = 2 * common._MATMUL**3
    cases = {
        "ours": Case(of_seconds(9, 2, 1, 4), 10, operations, {"compile": 3.0}),
        "theirs": Case(of_seconds(9, 6, 4, 8), 5),
    }
    return common.compare(cases, "images", 3, ["theirs", "not installed"])


def test_speeds_are_medians_and_ratios_are_of_pairs(rows):
    ours, theirs = rows
    assert ours["images/s"] == 10 / 2
    assert theirs["images/s"] == 5 / 6
    # Operations over the peak take a second: 1/2, 1/1 and 1/4 of the seconds that were taken.
    assert ours["of the floor"] == (0.5, 0.25, 1.0)
    assert theirs["of the floor"] is None
    # Per unit of work theirs took twice 3, 4 and 2 times as long.
    assert ours["x theirs"] == pytest.approx((6.0, 4.0, 8.0))
    assert theirs["x theirs"] is None
    assert "x not installed" not in ours
    assert ours["compile s"] == 3.0


def test_workloads_take_turns():
    said = []
    workloads = {name: lambda name=name: said.append(name) or 1.0 for name in "AB"}
    times = common.alternate(workloads, 2)
    assert "".join(said) == "ABABAB"
    assert [len(times[name]) for name in "AB"] == [2, 2]


def test_growth_is_fitted_by_a_power_and_by_a_line():
    work = [1, 2, 4, 8]
    fit = common.linear_fit(work, [3.0 * n**0.5 for n in work])
    assert fit["exponent"] == pytest.approx(0.5)
    fit = common.linear_fit(work, [2.0 + 0.25 * n for n in work])
    assert fit["s per unit"] == pytest.approx(0.25)
    assert fit["s at 0"] == pytest.approx(2.0)


@pytest.mark.parametrize(
    ("at_least", "wanted", "met"),
    [
        (5, "at least 5", "yes"),
        (7, "at least 7", "no"),
        (-7, "at most 7", "yes"),
        (-5, "at most 5", "no"),
    ],
)
def test_a_goal_is_judged_by_the_median(rows, at_least, wanted, met, monkeypatch, tmp_path):
    monkeypatch.setattr(common, "RESULTS", tmp_path)
    goals = [Goal("ours", "x theirs", at_least), Goal("ours", "x not installed", 1)]
    common.report("tried", rows, goals, growth=[{"work": 1, "seconds": 2.0}])
    written = json.loads((tmp_path / "tried.json").read_text())
    assert [(goal["wanted"], goal["met"]) for goal in written["goals"]] == [(wanted, met)]
    assert written["rows"][0]["x theirs"] == pytest.approx([6.0, 4.0, 8.0])
    assert written["growth"] == [{"work": 1, "seconds": 2.0}]


def test_an_answer_that_differs_stops_a_benchmark():
    reference.check_equal([1.0, 2.0], [1.0, 2.00019], "images")
    for other in ([1.0, 2.0003], [1.0, np.nan]):
        with pytest.raises(RuntimeError, match="images: PyTorch's answer is another"):
            reference.check_equal(other, [1.0, 2.0], "images")


@pytest.fixture(scope="module")
def variables():
    recipe = vaejax.zoo.recipe("vae", vaejax.zoo.Network((64, 64, 1)), 1)
    shapes = vaejax.training.abstract_state(recipe, (64, 64, 1)).variables
    return recipe.model, jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes)


def test_the_floor_counts_what_xla_counts(variables, monkeypatch):
    model, variables = variables
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")  # its own convolutions
    z = jnp.zeros((1, 10))
    lowered = jax.jit(lambda z: model.apply(variables, z, method="decode")).lower(z)
    counted = lowered.cost_analysis()["flops"]
    assert reference.suffix_flops(variables, "encoder/mean") == pytest.approx(counted, rel=0.12)
    images = jnp.zeros((1, 64, 64, 1))
    lowered = jax.jit(lambda x: model.apply(variables, x)).lower(images)
    counted = lowered.cost_analysis()["flops"]
    assert sum(reference.flops(variables).values()) == pytest.approx(counted, rel=0.12)


def test_a_suffix_begins_after_its_site(variables):
    of_layer = reference.flops(variables[1])
    assert reference.suffix_flops(variables[1], "decoder/up_3") == of_layer["decoder/up_4"]
    assert reference.suffix_flops(variables[1], reference.SITES[-1]) == 0


@pytest.mark.parametrize(("bits", "error"), [(23, 0), (10, 2**-10), (7, 2**-7)])
def test_both_factors_of_a_product_are_rounded(bits, error):
    model = vaejax.models.layers.Dense(1)
    image, kernel = jnp.array([[1 + 2**-11 + 2**-8]]), jnp.array([[1 + 2**-12 + 2**-9]])
    variables = {"params": {"kernel": kernel, "bias": jnp.array([2.0**-20])}}
    rounded = [float(jax.lax.reduce_precision(x, 8, bits)[0, 0]) for x in (image, kernel)]
    found = float(precision._rounded(model, bits, (), variables, image)[0, 0])
    assert found == pytest.approx(np.prod(rounded) + 2**-20, rel=1e-7)
    exact = float(image[0, 0] * kernel[0, 0]) + 2**-20
    assert abs(found - exact) <= 2 * error
    assert (found == pytest.approx(exact, rel=1e-7)) == (bits == 23)


def test_a_machine_takes_as_long_as_its_busiest_worker():
    preset = PRESETS["paper"]
    grid = runs.grid(preset)
    models = {job[0].model for job in jobs.groups(grid)}
    # A run's step takes 2 s of computing on a worker, or 3 s of launching for a whole program.
    step = {"GFLOP per step": 2.0, "kernels per step": 3}
    machine = costs.Machine("", workers=1, devices=2, peak=2e9, share=0.25, launch=1.0)
    row = costs._elsewhere(machine, preset, dict.fromkeys(models, step), measuring=8.0)
    seconds = sum(max(2 * len(job), 3) for job in jobs.groups(grid))
    assert row["training, h"] == pytest.approx(seconds * preset.steps / 3600)
    assert row["measuring, h"] == 8.0
    # 90 single runs on 64 workers: two in turn on the busiest.
    many = costs.Machine("", workers=64, devices=2, peak=2e9, share=0.25, launch=1.0)
    row = costs._elsewhere(many, preset, dict.fromkeys(models, step), measuring=64.0)
    assert row["measuring, h"] == 1.0
    assert row["training, h"] == pytest.approx(2 * 3 * preset.steps / 3600)


def test_kernels_are_counted_in_the_largest_loop():
    program = """
%body.1 (p: f32[]) -> f32[] {
  %a = f32[] fusion(%p), kind=kLoop
  %b = f32[] dot(%a, %a)
  ROOT %c = f32[] copy(%b)
}
%fused (p: f32[]) -> f32[] {
  %r = f32[] reduce(%p)
}
ENTRY %main (p: f32[]) -> f32[] {
  %x = f32[] fusion(%p), kind=kLoop
  ROOT %w = f32[] while(%x), condition=%cond, body=%body.1
}
"""
    assert costs._kernels(program) == 2


@pytest.mark.parametrize("layer", ["conv_4", "up_1"])
def test_the_products_of_a_layer_are_each_others_adjoints(layer):
    kernel = jax.random.normal(jax.random.key(0), (4, 4, 3, 5))
    products = layers._products(layer, kernel)
    (forward, x), (by_input, y), (by_kernel, pair) = products.values()
    expected = jnp.vdot(forward(x), y)
    np.testing.assert_allclose(jnp.vdot(by_input(y), x), expected, rtol=1e-4)
    np.testing.assert_allclose(jnp.vdot(by_kernel(pair), kernel), expected, rtol=1e-4)


def test_ranks_agree_over_units_and_factors():
    exact = np.array([[4.0, 0.4], [3.0, 0.3], [2.0, 0.2], [1.0, 0.1]])
    assert circuits.rank_correlation(exact, 2 * exact**3) == pytest.approx((1.0, 1.0, 1.0))
    # Of ranks 8 4, 7 3, 6 2, 5 1 the second's first two rows are exchanged: 1 - 6 * 4 / (8 * 63).
    value, low, high = circuits.rank_correlation(exact, exact[[1, 0, 2, 3]])
    assert value == pytest.approx(1 - 6 * 4 / (8 * 63))
    assert 0 < low < value < high == pytest.approx(1.0)
    assert circuits.rank_correlation(exact, np.ones_like(exact)) is None
    assert circuits.rank_correlation(exact[:0], exact[:0]) is None


def test_a_screen_is_to_find_the_strongest_units_of_each_factor():
    exact = np.zeros((20, 3))
    exact[[3, 4], 0] = 2.0, 1.0
    exact[[5, 6, 7], 1] = 3.0, 2.0, 1.0  # the third is none of the first 10%
    attributed = np.zeros((20, 3))
    attributed[[4, 9, 3], 0] = 3.0, 2.0, 1.0
    attributed[[5, 6], 1] = 1.0, 2.0
    # Half of them for one factor, all for the next; for the last there is nothing to find.
    assert circuits.recall(exact, attributed, 0.1) == 0.75
    assert circuits.recall(exact, attributed, 0.15) == 1.0
    assert circuits.recall(np.zeros((20, 3)), attributed, 0.1) is None


TINY = ("--pairs", "4", "--sites", "z")


@pytest.fixture(scope="module")
def tiny_circuits(same_compiler, tmp_path_factory):
    # As the analysis sets it up itself, which then finds these programs.
    output.set_up_compiler(PRESETS["smoke"])
    options = ("--preset", "smoke", "--steps", "1", "--analyses", "--rounds", "1", "--screen", "1")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(common, "RESULTS", tmp_path_factory.mktemp("results"))
        circuits.main([*options, *TINY])
        return json.loads((common.RESULTS / "circuits.json").read_text())


def test_attribution_is_held_against_exact_patches(tiny_circuits):
    names = [row["case"] for row in tiny_circuits["rows"]]
    assert names[:2] == ["patch_units", "attribute"]
    assert all(row["effects/s"] > 0 for row in tiny_circuits["rows"])
    of_site, of_all = tiny_circuits["agreement"]
    assert (of_site["case"], of_all["case"]) == ("z", "all")
    assert of_site["units"] == of_all["units"] == 10
    # A screen patches at least the first unit of a factor, and at most that of each of five.
    assert 0.1 <= of_site["patched"] <= 0.5


def test_an_analysis_has_as_many_patches_as_units_and_pairs(tiny_circuits, capsys):
    circuits.main(["--alone", "smoke", *TINY, "--repeats", "2"])
    first, again = json.loads(capsys.readouterr().out)
    assert first["units"] == 10
    assert first["patches"] == again["patches"] == 10 * 4 * 5
    assert again["time / floor"] == pytest.approx(again["seconds"] / again["floor, s"])
    assert again["peak MiB"] >= first["peak MiB"] >= first["start MiB"] > 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--pairs", "3"], "--pairs: expected at least 4, half of them held out, got 3"),
        (["--run", "nowhere"], "nowhere"),
        (["--alone", "smoke", "--pairs", "4", "--sites", "y"], "unknown site 'y'"),
    ],
)
def test_wrong_arguments_are_one_line(arguments, message, capsys, same_compiler):
    with pytest.raises(SystemExit) as stopped:
        circuits.main(arguments)
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err.splitlines()[-1]
