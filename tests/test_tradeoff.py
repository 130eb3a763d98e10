"""The correlation of strength and disentanglement: SciPy's value, and an interval over clusters."""

import csv

import numpy as np
import pytest
from scipy import stats

from experiments.tradeoff import clustered_spearman, main, rows


@pytest.mark.parametrize("levels", [1000, 4])  # without ties and with
def test_the_value_is_scipys(levels):
    generator = np.random.default_rng(0)
    x, y = generator.integers(0, levels, (2, 18))
    value, low, high = clustered_spearman(x, y, np.arange(18) // 3)
    assert value == pytest.approx(stats.spearmanr(x, y).statistic, rel=1e-12)
    assert low < value < high


def test_the_interval_is_that_of_resampled_clusters():
    generator = np.random.default_rng(1)
    x, y = generator.normal(size=(2, 12))
    clusters = np.arange(12) // 3
    _, low, high = clustered_spearman(x, y, clusters)
    naive = []
    for drawn in generator.integers(0, 4, (4000, 4)):
        index = np.concatenate([np.flatnonzero(clusters == c) for c in drawn])
        naive.append(stats.spearmanr(x[index], y[index]).statistic)
    np.testing.assert_allclose([low, high], np.quantile(naive, [0.025, 0.975]), atol=0.05)


def test_more_seeds_of_an_architecture_that_never_varies_tell_nothing():
    x, y = np.array([1.0, 2.0, 4.0, 3.0, 5.0]), np.array([5.0, 4.0, 1.0, 2.0, 3.0])
    once = clustered_spearman(x, y, np.arange(5))
    ten_times = clustered_spearman(*(np.repeat(a, 10) for a in (x, y, np.arange(5))))
    np.testing.assert_allclose(ten_times, once)
    as_if_independent = clustered_spearman(np.repeat(x, 10), np.repeat(y, 10), np.arange(50))
    assert as_if_independent[2] - as_if_independent[1] < 0.6 * (once[2] - once[1])


def test_what_is_constant_has_no_correlation():
    assert np.isnan(clustered_spearman([1, 1, 1], [1, 2, 3], [0, 1, 2])).all()


def table():
    """Three runs of three models: strength falls with disentanglement but for the VQ-VAE."""
    strengths = {"vae": 3.0, "beta_vae": 2.0, "vq_vae": 0.1}
    scores = {"vae": 0.2, "beta_vae": 0.4, "vq_vae": 0.1}
    return [
        {
            "dataset": "dsprites",
            "source": "redrawn",
            "model": model,
            "status": "ok",
            "ces_fixed": strengths[model] - seed / 10,
            "ces_calibrated": strengths[model] / 2 - seed / 10,
            "dci_disentanglement": scores[model] + seed / 100,
        }
        for model in strengths
        for seed in range(3)
    ]


def test_with_and_without_vq_vae():
    found = {(row["strength"], row["models"]): row for row in rows(table())}
    assert len(found) == 4
    without = found["ces_fixed", "without vq_vae"]
    assert (without["runs"], without["architectures"]) == (6, 2)
    assert without["spearman"] == -1.0
    assert without["spearman_high"] == -1.0
    assert found["ces_fixed", "all"]["spearman"] > -0.5
    assert found["ces_fixed", "all"]["runs"] == 9


def write(path, lines):
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(lines[0]))
        writer.writeheader()
        writer.writerows(lines)


def test_the_command_prints_and_writes_what_it_found(tmp_path, capsys):
    diverged = {**table()[0], "status": "diverged", "ces_fixed": "", "ces_calibrated": ""}
    write(tmp_path / "results.csv", [*table(), diverged])
    with pytest.raises(SystemExit) as stop:
        main([str(tmp_path)])
    assert stop.value.code == 0
    assert "-1.00 to -1.00" in capsys.readouterr().out
    with (tmp_path / "tradeoff.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert [float(line["spearman"]) for line in lines[1::2]] == [-1.0, -1.0]


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        (None, "no results.csv in"),
        ([{"model": "vae", "status": "ok"}], "has no column ces_fixed, ces_calibrated"),
        (table()[:3], "fewer than two architectures"),
    ],
)
def test_results_that_do_not_serve_get_one_line(tmp_path, capsys, lines, said):
    if lines is not None:
        write(tmp_path / "results.csv", lines)
    with pytest.raises(SystemExit) as stop:
        main([str(tmp_path)])
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1
