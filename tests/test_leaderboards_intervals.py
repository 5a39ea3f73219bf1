"""Intervals keep their promise: exact against scipy, nominal coverage under prompt heterogeneity, no order effects."""

import numpy as np
import pytest
from scipy import stats

from leaderboards.bootstrap import Draws, FloatArray, hierarchical, resample
from leaderboards.intervals import difference, holm, p_value, percentile, prompt_mean, wilson

NAN = float("nan")


@pytest.mark.parametrize(("hits", "n"), [(0, 1), (0, 50), (1, 7), (13, 40), (50, 50), (0, 142)])
@pytest.mark.parametrize("level", [0.9, 0.95])
def test_wilson_is_scipys(hits: int, n: int, level: float) -> None:
    reference = stats.binomtest(hits, n).proportion_ci(level, method="wilson")
    assert wilson(hits, n, level) == pytest.approx((reference.low, reference.high), abs=1e-12)


def test_wilson_of_nothing_is_missing() -> None:
    assert np.isnan(wilson(0, 0)).all()


def test_coverage_under_prompt_heterogeneity_where_pooled_wilson_fails() -> None:
    rng = np.random.default_rng(1)
    runs, prompts, images = 1500, 50, 8
    rates = rng.beta(0.5, 0.5, size=(runs, prompts))  # true mean 0.5
    hits = rng.binomial(images, rates)
    held = [i.low <= 0.5 <= i.high for h in hits for i in [prompt_mean(h / images, Draws(1000, 0), is_share=True)]]
    pooled = [wilson(int(h.sum()), prompts * images) for h in hits]
    assert 0.93 <= np.mean(held) <= 0.97
    assert np.mean([low <= 0.5 <= high for low, high in pooled]) < 0.8


def test_coverage_with_attack_seeds_that_share_prompts() -> None:
    rng = np.random.default_rng(2)
    runs, seeds, prompts = 300, 5, 40
    held = []
    for run in range(runs):
        level = rng.normal(0.5, 0.02, size=(seeds, 1)) + rng.normal(0, 0.2, size=prompts)
        hits = level + rng.normal(0, 0.05, size=(seeds, prompts))
        means, draws = hierarchical(hits[None, None], ["lora"], ["cat"], Draws(400, run))
        interval = percentile(float(means[0]), draws[:, 0])
        held.append(interval.low <= 0.5 <= interval.high)
    assert 0.91 <= np.mean(held) <= 0.99


@pytest.mark.parametrize("units", [2, 3, 40])
def test_resampled_mean_has_the_unbiased_variance(units: int) -> None:
    values = np.random.default_rng(3).normal(size=units)
    weights = resample(units, 40_000, np.random.default_rng(4))
    assert (weights @ values / weights.sum(axis=1)).var() == pytest.approx(values.var(ddof=1) / units, rel=0.05)


def test_a_single_unit_is_not_resampled() -> None:
    assert (resample(1, 5, np.random.default_rng(0)) == 1).all()


@pytest.mark.parametrize("level", [0.0, 1.0])
def test_degenerate_presence_falls_back_to_wilson_on_prompts(level: float) -> None:
    interval = prompt_mean(np.full(12, level), Draws(100, 0), is_share=True)
    assert interval[1:] == pytest.approx(wilson(12 * level, 12))


def test_no_prompt_is_missing_and_one_prompt_of_a_score_has_no_interval() -> None:
    assert np.isnan(prompt_mean(np.array([]), Draws(100, 0), is_share=True)).all()
    one = prompt_mean(np.array([0.31]), Draws(100, 0), is_share=False)
    assert one.value == 0.31 and np.isnan(one.low) and np.isnan(one.high)


def test_hierarchical_means_weigh_concepts_equally_and_ignore_missing_cells() -> None:
    hits = np.full((2, 2, 2, 3), np.nan)
    hits[0, 0] = [[0, 0, 1], [1, 1, 1]]
    hits[1, 0, 0, :2] = [0, 1]  # one seed, two prompts
    hits[0, 1, 0] = 0.25  # an arm that only one concept has
    means, draws = hierarchical(hits, ["lora", "ti"], ["cat", "dog"], Draws(200, 0))
    assert means == pytest.approx([((1 / 3 + 1) / 2 + 0.5) / 2, 0.25])
    assert draws.shape == (200, 2)
    assert draws[np.isfinite(draws[:, 1]), 1] == pytest.approx(0.25)


def test_hierarchical_leaves_missing_arms_missing() -> None:
    hits = np.full((1, 2, 1, 3), np.nan)
    hits[0, 0] = 0.5
    means, draws = hierarchical(hits, ["lora", "lora"], ["cat"], Draws(50, 0))
    assert means[0] == 0.5 and np.isnan(means[1]) and np.isnan(draws[:, 1]).all()


def test_concepts_that_disagree_widen_the_interval() -> None:
    rng = np.random.default_rng(5)
    noise = rng.normal(0, 0.05, size=(6, 1, 2, 20))
    apart = noise + np.linspace(0.2, 0.8, 6)[:, None, None, None]
    same, wide = (hierarchical(hits, ["lora"], list("abcdef"), Draws(300, 0))[1].std() for hits in (noise + 0.5, apart))
    assert wide > 3 * same


def test_holm_by_hand_and_with_missing() -> None:
    adjusted = holm(np.array([0.03, 0.01, NAN, 0.04, 0.5]))
    assert adjusted[[0, 1, 3, 4]] == pytest.approx([0.09, 0.04, 0.09, 0.5])
    assert np.isnan(adjusted[2])
