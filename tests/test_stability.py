"""Agreement of seeds, on runs with planted units: permuted ones, unrelated ones, other sites."""

import itertools
import json
import math

import numpy as np
import pytest
from command_lines import rows_of, run

from experiments import report, stability


def plant(directory, dataset, model, seed, sites, **columns):
    """A finished run: for each site effects `[S, K]` and circuits `[S, K]`."""
    path = directory / "runs" / dataset / model / f"seed_{seed}"
    path.mkdir(parents=True)
    row = {"dataset": dataset, "model": model, "seed": seed, "status": "ok", **columns}
    (path / "metrics.json").write_text(json.dumps(row))
    arrays = {"mediated_fraction_z": np.ones(3)}
    for site, (effect, circuit) in sites.items():
        arrays |= {f"effect_{site}": effect.T, f"circuit_{site}": circuit.T}
        arrays[f"circuit_faithfulness_{site}"] = np.ones(len(effect.T))
    np.savez(path / "units.npz", **arrays)


def strongest(effect, size):
    """The units of most effect on each factor are its circuit."""
    return np.argsort(np.argsort(-effect, axis=0), axis=0) < size


def effects(generator, num):
    """Of units that do much for one or two factors."""
    return generator.gamma(0.3, size=(num, 5))


def test_seeds_whose_units_are_permuted_agree_in_all(tmp_path):
    generator = np.random.default_rng(0)
    effect = np.concatenate([effects(generator, 24), np.zeros((4, 5))])  # four have no effect
    circuit = strongest(effect, 5)
    for seed in range(3):
        order = generator.permutation(28)
        gain = generator.uniform(0.5, 2, (28, 1))  # similarity is of directions
        plant(tmp_path, "dsprites", "vae", seed, {"z": ((effect * gain)[order], circuit[order])})
    done = run("stability", tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    rows = rows_of(tmp_path / "circuit_stability.csv")
    assert list(rows[0]) == list(stability.COLUMNS)
    assert [(row["seed_a"], row["seed_b"]) for row in rows] == [("0", "1"), ("0", "2"), ("1", "2")]
    # Two sets of 5 of the 24 units that have an effect share k with hypergeometric probability.
    ways = [math.comb(5, k) * math.comb(19, 5 - k) for k in range(6)]
    random = sum(n * k / (10 - k) for k, n in enumerate(ways)) / math.comb(24, 5)
    for row in rows:
        assert (row["site"], row["units"], row["factors"]) == ("z", "24", "5")
        assert float(row["similarity"]) == pytest.approx(1)
        assert float(row["jaccard"]) == 1
        assert float(row["similarity_p"]) == pytest.approx(0.01)
        assert float(row["similarity_permuted"]) < 0.97
        assert float(row["similarity_shuffled"]) < 0.97
        assert float(row["jaccard_random"]) == pytest.approx(random)
        assert float(row["jaccard_random"]) < float(row["jaccard_shuffled"]) < 0.6
    assert "1.00 (1.00, 1.00)" in done.stdout
    assert rows_of(tmp_path / "unit_fractions.csv") == []  # there is nothing but the VAE


def test_seeds_that_have_nothing_in_common_agree_as_shuffled_units_do():
    """And better than random sets: units are paired because they carry the same factors."""
    generator = np.random.default_rng(0)
    found = []
    for _ in range(12):
        pair = [effects(generator, 24) for _ in range(2)]
        found.append(stability.agreement(*(stability.Units(e, strongest(e, 5)) for e in pair)))
    mean = {name: np.mean([of[name] for of in found]) for name in found[0]}
    assert mean["jaccard"] == pytest.approx(mean["jaccard_shuffled"], abs=0.03)
    assert mean["similarity"] == pytest.approx(mean["similarity_shuffled"], abs=0.02)
    assert mean["similarity"] == pytest.approx(mean["similarity_permuted"], abs=0.02)
    assert mean["jaccard"] > mean["jaccard_random"] + 0.1
    assert np.mean([of["similarity_p"] < 0.05 for of in found]) < 0.3


def test_circuits_that_have_nothing_to_do_with_effects_agree_as_random_sets_do():
    generator = np.random.default_rng(1)
    found = [
        stability.agreement(
            *(
                stability.Units(effects(generator, 24), strongest(effects(generator, 24), 5))
                for _ in range(2)
            )
        )
        for _ in range(12)
    ]
    jaccard, random = (
        np.mean([of[name] for of in found]) for name in ("jaccard", "jaccard_random")
    )
    assert jaccard == pytest.approx(random, abs=0.04)


def test_agreement_does_not_depend_on_the_order_of_the_two():
    generator = np.random.default_rng(2)
    first, second = (
        stability.Units(e, strongest(e, 5)) for e in (effects(generator, n) for n in (20, 12))
    )
    assert stability.agreement(first, second)["units"] == 12
    for name, value in stability.agreement(first, second).items():
        assert stability.agreement(second, first)[name] == value


def test_where_there_is_nothing_to_compare_no_number_is_given():
    nothing = stability.Units(np.zeros((0, 5)), np.zeros((0, 5), bool))
    effect = effects(np.random.default_rng(3), 6)
    some = stability.Units(effect, strongest(effect, 2))
    found = stability.agreement(nothing, some)
    assert (found["units"], found["factors"]) == (0, 0)
    assert found["similarity"] is found["jaccard"] is None
    without = stability.agreement(some, some._replace(circuit=np.zeros_like(some.circuit)))
    assert (without["jaccard"], without["jaccard_random"]) == (0, 0)
    empty = some._replace(circuit=np.zeros_like(some.circuit))
    assert stability.agreement(empty, empty)["jaccard"] is None
    assert stability.agreement(empty, empty)["similarity"] == pytest.approx(1)
    # All units for four factors, none for the fifth, which has no part in the means.
    all_for_four = np.broadcast_to(np.arange(5) < 4, some.circuit.shape)
    of_four = stability.agreement(*[some._replace(circuit=all_for_four)] * 2)
    assert (of_four["factors"], of_four["jaccard"], of_four["jaccard_shuffled"]) == (4, 1, 1)


def test_the_interval_over_pairs_of_seeds_is_that_of_the_seeds():
    """Of sums of what seeds contribute, it is twice Student's interval of the contributions."""
    generator = np.random.default_rng(4)
    for num in (3, 4, 7):
        of_seed = generator.normal(size=num)
        pairs = {
            (a, b): float(of_seed[a] + of_seed[b]) for a, b in itertools.combinations(range(num), 2)
        }
        expected = 2 * np.array(report.interval(of_seed.tolist()))
        np.testing.assert_allclose(stability.seed_interval(pairs), expected)
    assert stability.seed_interval({(0, 1): 0.5}) == (0.5, None, None)
    assert stability.seed_interval({}) == (None, None, None)


def test_sites_and_models_are_compared_each_with_its_own(tmp_path):
    generator = np.random.default_rng(5)
    alike = effects(generator, 8)
    for model, seed in itertools.product(("vae", "vq_vae"), (0, 1)):
        other = effects(generator, 8)
        sites = {"z": (alike, strongest(alike, 2)), "dense": (other, strongest(other, 2))}
        if model == "vq_vae":
            del sites["z"]
        plant(tmp_path, "dsprites", model, seed, sites)
    plant(tmp_path, "dsprites", "vae", 8, sites)
    (tmp_path / "runs/dsprites/vae/seed_8/units.npz").unlink()
    plant(tmp_path, "dsprites", "vae", 9, sites, status="diverged")

    def keys():
        rows = rows_of(tmp_path / "circuit_stability.csv")
        return [(row["model"], row["site"], float(row["jaccard"]) == 1) for row in rows]

    assert run("stability", tmp_path).returncode == 0
    assert keys() == [("vae", "z", True), ("vae", "dense", False), ("vq_vae", "dense", False)]
    assert run("stability", tmp_path, "--site", "z").returncode == 0
    assert keys() == [("vae", "z", True)]
    refused = run("stability", tmp_path, "--site", "dens")
    assert refused.returncode == 2
    assert refused.stderr == (
        "stability: unknown site 'dens': did you mean 'dense'? (one of z, dense)\n"
    )


def test_runs_without_circuits_are_refused(tmp_path):
    for seed in (0, 1):
        plant(tmp_path, "dsprites", "vae", seed, {})
    refused = run("stability", tmp_path)
    assert refused.returncode == 2
    assert "has no finished run with circuits" in refused.stderr
    assert refused.stderr.count("\n") == 1


def test_one_seed_of_each_model_is_refused(tmp_path):
    effect = effects(np.random.default_rng(6), 4)
    for model in ("vae", "beta_vae"):
        plant(tmp_path, "dsprites", model, 0, {"z": (effect, strongest(effect, 1))})
    refused = run("stability", tmp_path)
    assert refused.returncode == 2
    assert "has circuits at z of one seed of each model" in refused.stderr
    assert refused.stderr.count("\n") == 1


def test_models_are_compared_with_the_vae_seed_by_seed(tmp_path):
    effect = effects(np.random.default_rng(7), 4)
    sites = {"z": (effect, strongest(effect, 1))}
    mono = {"vae": (0.1, 0.3, 0.2), "beta_vae": (0.3, 0.4, 0.6), "dip_vae_ii": (None, 0.9)}
    for model, values in mono.items():
        for seed, value in enumerate(values):
            columns = dict.fromkeys(stability.FRACTIONS, 0.5) | {"monosemantic_fraction": value}
            plant(tmp_path, "dsprites", model, seed, sites, **columns)
    plant(tmp_path, "mpi3d", "beta_vae", 0, sites, monosemantic_fraction=0.9)  # it has no VAE
    done = run("stability", tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    rows = {(row["model"], row["column"]): row for row in rows_of(tmp_path / "unit_fractions.csv")}
    assert set(rows) == set(itertools.product(("beta_vae", "dip_vae_ii"), stability.FRACTIONS))
    row = rows["beta_vae", "monosemantic_fraction"]
    assert (row["dataset"], row["seeds"]) == ("dsprites", "3")
    # Differences 0.2, 0.1 and 0.4; t(0.975, 2) = 4.302653.
    half = 4.302653 * np.std([0.2, 0.1, 0.4], ddof=1) / 3**0.5
    numbers = [float(row[name]) for name in stability.FRACTION_COLUMNS[4:]]
    assert numbers == pytest.approx([1.3 / 3, 0.2, 0.7 / 3, 0.7 / 3 - half, 0.7 / 3 + half])
    row = rows["dip_vae_ii", "monosemantic_fraction"]  # the first seed has no number
    assert (row["seeds"], row["mean"], row["vae"], row["difference_low"]) == ("1", "0.9", "0.3", "")
    assert float(row["difference"]) == pytest.approx(0.6)
    assert float(rows["beta_vae", "polysemantic_fraction"]["difference_high"]) == 0
    assert "+0.23 (-0.15, +0.61)" in done.stdout
