"""What the sweep makes of the disentanglement metrics."""

import sys

import numpy as np
import pytest

from experiments import scores
from experiments.cli import UsageError

FACTORS = np.tile(np.indices((2, 3)).reshape(2, 6).T, (50, 1))
PERFECT = scores.Representation("means", FACTORS * [1.0, -2.0], FACTORS)
CODES = scores.Representation("codes", FACTORS[:, ::-1], FACTORS)


@pytest.mark.parametrize("representation", [PERFECT, CODES])
def test_a_perfect_code_scores_one(representation):
    names = ("mig", "dci", "factor_vae_score", "beta_vae_score", "modularity_rm", "irs")
    columns, arrays, record = scores.disentanglement(
        representation, names=names, scored=10**6, votes=100
    )  # more are asked for than there are
    assert columns.pop("representation") == representation.name
    assert columns == pytest.approx(dict.fromkeys(columns, 1.0), abs=1e-6)
    assert len(columns) == len(names) + 2
    assert arrays["dci_completeness_matrix"].shape == (2, 2)
    assert record["mig"]["representation"] == representation.name


def test_train_and_test_are_different_examples():
    # The last third is at odds with the others, so what is learnt of them is wrong there.
    turned = FACTORS.copy()
    turned[200:, 0] = 1 - turned[200:, 0]
    latents = scores.Representation("means", FACTORS * 1.0, turned)
    columns, arrays, _ = scores.disentanglement(latents, names=("dci",), scored=300, votes=1)
    np.testing.assert_allclose(arrays["dci_informativeness_per_factor"], [0, 1], atol=0.01)
    columns, *_ = scores.disentanglement(latents, names=("dci",), scored=150, votes=1)
    assert columns["dci_informativeness"] == pytest.approx(1.0)


def test_latents_that_are_not_active_are_left_out():
    noisy = np.column_stack([PERFECT.latents, np.arange(300) % 7])
    active = np.array([True, True, False])
    latents = scores.Representation("means", noisy, FACTORS, active)
    columns, _, record = scores.disentanglement(latents, names=("mig", "irs"), scored=9, votes=1)
    assert columns["mig"] == columns["irs"] == pytest.approx(1.0)
    assert record["irs"]["passive_latents_left_out"] == 1


def test_a_missing_library_gets_one_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "lightgbm", None)
    with pytest.raises(UsageError, match='lightgbm installed, or estimator="sklearn-gbt"'):
        scores.disentanglement(PERFECT, names=("dci",), scored=30, votes=1)
