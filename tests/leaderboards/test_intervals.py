"""Intervals keep their promise: exact against scipy, nominal coverage under prompt heterogeneity, no order effects."""

from dataclasses import dataclass

import numpy as np
import pytest
from scipy import stats

from leaderboards.bootstrap import Draws, combine, draw_prompts, hierarchical, resample
from leaderboards.intervals import (
    difference,
    holm,
    of_draws,
    p_value,
    percentile,
    prompt_mean,
    proportion,
    wilson,
)
from leaderboards.student import normal_tail, t_quantile, t_tail

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


@dataclass(frozen=True)
class World:
    """Presence that differs by concept, attack seed and prompt; standard deviations in logits."""

    concepts: int
    seeds: int
    prompts: int
    of_concepts: float
    of_seeds: float
    images: int = 4

    def coverage(self, runs: int) -> tuple[float, float]:
        """Share of runs whose 95 % interval holds the true mean: the bootstrap's, and pooled Wilson's."""
        rng = np.random.default_rng(0)
        spread = np.sqrt(self.of_concepts**2 + self.of_seeds**2 + 1)
        nodes, weight = np.polynomial.hermite_e.hermegauss(60)
        truth = float((weight / weight.sum()) @ (1 / (1 + np.exp(-1 - spread * nodes))))
        held = [[low <= truth <= high for low, high in self.intervals(rng, run)] for run in range(runs)]
        ours, pooled = np.mean(held, axis=0)
        return float(ours), float(pooled)

    def intervals(self, rng: np.random.Generator, run: int) -> list[tuple[float, float]]:
        shape = self.concepts, self.seeds, self.prompts
        logits = (
            1 + self.of_concepts * rng.normal(size=(self.concepts, 1, 1)) + rng.normal(size=(shape[0], 1, shape[2]))
        )
        logits = logits + self.of_seeds * rng.normal(size=(*shape[:2], 1))
        hits = rng.binomial(self.images, 1 / (1 + np.exp(-logits)))
        names = [f"concept{i}" for i in range(self.concepts)]
        drawn = hierarchical(hits[:, None] / self.images, ["lora"], names, Draws(400, run))
        size = self.concepts * self.prompts
        ours = proportion(float(drawn.means[0]), drawn.draws[:, 0], size, drawn.freedom)
        return [(ours.low, ours.high), wilson(int(hits.sum()), hits.size * self.images)]


@pytest.mark.slow
def test_hierarchical_coverage_is_nominal_where_pooled_wilson_fails() -> None:
    ours, pooled = World(concepts=10, seeds=3, prompts=20, of_concepts=0.6, of_seeds=0.4).coverage(300)
    assert 0.93 <= ours <= 0.97
    assert pooled < 0.5


@pytest.mark.slow
@pytest.mark.parametrize(
    "world",
    [
        World(concepts=1, seeds=1, prompts=50, of_concepts=0, of_seeds=0),
        World(concepts=1, seeds=3, prompts=50, of_concepts=0, of_seeds=0.05),
        World(concepts=5, seeds=3, prompts=20, of_concepts=0.6, of_seeds=0.4),
        World(concepts=20, seeds=3, prompts=10, of_concepts=0.6, of_seeds=0.4),
        World(concepts=20, seeds=3, prompts=10, of_concepts=0.1, of_seeds=0.4),
        World(concepts=40, seeds=2, prompts=10, of_concepts=0.6, of_seeds=0.4, images=2),
    ],
)
def test_hierarchical_coverage_is_nominal_in_many_worlds(world: World) -> None:
    ours, pooled = world.coverage(600)
    assert 0.92 <= ours <= 0.98
    assert pooled < 0.92


def test_coverage_of_paired_differences_that_share_prompts_and_concepts() -> None:
    rng = np.random.default_rng(8)
    held, width, apart = [], [], []
    for run in range(120):
        common = rng.normal(0.5, 0.2, size=(10, 1, 1, 1)) + rng.normal(0, 0.2, size=(10, 1, 1, 20))
        a, b = (common + rng.normal(0, 0.05, size=(10, 1, 2, 20)) + shift for shift in (0.1, 0.0))
        draw = [draw_prompts(hits, ["lora"], list("abcdefghij"), Draws(300, run)) for hits in (a, b)]
        one, other = combine(*draw)
        sample = (one.draws - other.draws)[:, 0]
        found = difference(float(one.means[0]), float(other.means[0]), sample, 200, one.freedom, differing=200)
        held.append(found.low <= 0.1 <= found.high)
        width.append(found.high - found.low)
        alone = hierarchical(a, ["lora"], list("abcdefghij"), Draws(300, run))
        apart.append(np.ptp(np.quantile(alone.draws[:, 0], [0.025, 0.975])))
    assert 0.92 <= np.mean(held) <= 0.98
    assert np.mean(width) < np.mean(apart) / 5  # what both share cancels


def test_coverage_with_attack_seeds_that_share_prompts() -> None:
    rng = np.random.default_rng(2)
    runs, seeds, prompts = 300, 5, 40
    held = []
    for run in range(runs):
        level = rng.normal(0.5, 0.02, size=(seeds, 1)) + rng.normal(0, 0.2, size=prompts)
        hits = level + rng.normal(0, 0.05, size=(seeds, prompts))
        drawn = hierarchical(hits[None, None], ["lora"], ["cat"], Draws(400, run))
        interval = percentile(float(drawn.means[0]), drawn.draws[:, 0], drawn.freedom)
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
    drawn = hierarchical(hits, ["lora", "ti"], ["cat", "dog"], Draws(200, 0))
    means, draws = drawn.means, drawn.draws
    assert means == pytest.approx([((1 / 3 + 1) / 2 + 0.5) / 2, 0.25])
    assert draws.shape == (200, 2)
    assert draws[np.isfinite(draws[:, 1]), 1] == pytest.approx(0.25)


def test_hierarchical_leaves_missing_arms_missing() -> None:
    hits = np.full((1, 2, 1, 3), np.nan)
    hits[0, 0] = 0.5
    drawn = hierarchical(hits, ["lora", "lora"], ["cat"], Draws(50, 0))
    means, draws = drawn.means, drawn.draws
    assert means[0] == 0.5 and np.isnan(means[1]) and np.isnan(draws[:, 1]).all()


def test_concepts_that_disagree_widen_the_interval() -> None:
    rng = np.random.default_rng(5)
    noise = rng.normal(0, 0.05, size=(6, 1, 2, 20))
    apart = noise + np.linspace(0.2, 0.8, 6)[:, None, None, None]
    drawn = [hierarchical(hits, ["lora"], list("abcdef"), Draws(300, 0)) for hits in (noise + 0.5, apart)]
    same, wide = (each.draws.std() for each in drawn)
    assert wide > 3 * same


def test_holm_by_hand_and_with_missing() -> None:
    adjusted = holm(np.array([0.03, 0.01, NAN, 0.04, 0.5]))
    assert adjusted[[0, 1, 3, 4]] == pytest.approx([0.09, 0.04, 0.09, 0.5])
    assert np.isnan(adjusted[2])


@pytest.mark.parametrize("freedom", [1, 1.3, 2, 3, 4.5, 9, 49, 2e4, np.inf])
def test_students_t_is_scipys_however_far_out(freedom: float) -> None:
    for t in (0.0, 0.1, 2.0, 8.2, 8.4, 20.0, 37.0):
        assert t_tail(t, freedom) == pytest.approx(stats.t.sf(t, freedom), rel=1e-9)
        assert t_tail(-t, freedom) == pytest.approx(1 - stats.t.sf(t, freedom), rel=1e-9)
    for share in (0.025, 0.8, 0.975):
        assert t_quantile(share, freedom) == pytest.approx(stats.t.ppf(share, freedom), rel=1e-9)
    assert normal_tail(37) == pytest.approx(stats.norm.sf(37), rel=1e-9)


def test_intervals_of_few_units_are_wider() -> None:
    sample = np.random.default_rng(0).normal(size=100_000)
    few = percentile(0.0, sample, 4)
    assert few.high == pytest.approx(stats.t.isf(0.025, 4), rel=0.03)
    assert of_draws(0.0, sample, 2).high == pytest.approx(stats.t.isf(0.025, 2), rel=0.01)
    assert of_draws(0.5, sample, 2, (0.0, 1.0))[1:] == (0.0, 1.0)
    assert percentile(0.0, sample).high == pytest.approx(1.96, rel=0.02)


def test_percentiles_are_numpys_and_pass_over_missing_draws() -> None:
    sample = np.random.default_rng(0).normal(size=1234)
    low, high = np.quantile(sample, [0.025, 0.975])
    holes = np.concatenate([sample, [NAN, NAN]])
    assert percentile(0.0, holes)[1:] == pytest.approx((low, high))


def test_difference_by_hand() -> None:
    sample = np.random.default_rng(0).normal(0.3, 0.1, size=4000)
    found = difference(0.7, 0.4, sample, 50, differing=50)
    assert found[:3] == pytest.approx((0.3, 0.3 - 1.96 * 0.1, 0.3 + 1.96 * 0.1), abs=0.01)
    assert found.p == pytest.approx(2 * stats.norm.sf(3), rel=0.2)
    assert found.detectable == pytest.approx((1.96 + 0.8416) * 0.1, rel=0.05)
    assert np.isnan(difference(NAN, 0.4, sample, 50, differing=50)).all()


def test_difference_of_draws_that_do_not_vary_is_newcombes() -> None:
    found = difference(1.0, 0.0, np.ones(100), 20, differing=20)
    low, _ = wilson(20, 20)
    assert found.low == pytest.approx(1 - np.hypot(1 - low, 1 - low)) and found.high == 1
    assert found.p == 2.0**-19
    none = difference(1.0, 1.0, np.zeros(100), 20, differing=0)
    assert none.p == 1 and none.low < 0 < none.high


def test_p_is_uniform_where_there_is_no_difference() -> None:
    rng = np.random.default_rng(4)
    p = [p_value(v, rng.normal(v, 1, 1000), 50) for v in rng.normal(size=2000)]
    assert stats.kstest(p, "uniform").pvalue > 0.01


def test_p_reaches_below_the_share_of_one_draw_but_not_below_a_sign_test() -> None:
    far = np.random.default_rng(0).normal(6, 1, 1000)
    assert p_value(6.0, far, 50) < 1e-7
    assert p_value(6.0, far, 5) == 2.0**-4
    assert p_value(6.0, far, 50, freedom=4) > 100 * p_value(6.0, far, 50)


@pytest.mark.parametrize("freedom", [1, 2, 3, 9, 49.5, np.inf])
def test_p_has_no_jump_in_z(freedom: float) -> None:
    """The normal tail must not underflow: a difference of 8.4 deviations is as one of 8.2, but for a little."""
    noise = np.random.default_rng(0).normal(size=1000)
    noise = (noise - noise.mean()) / noise.std()
    z = np.linspace(3.5, 30, 200)
    p = np.array([p_value(v, v + noise, 10_000, freedom) for v in z])

    assert p == pytest.approx(2 * stats.t.sf(z, freedom), rel=1e-6)
    assert (np.diff(np.log(p)) < 0).all()


def test_prompts_that_do_not_differ_say_nothing() -> None:
    """Four prompts to none of sixteen: the exact test of McNemar gives 0.125."""
    apart = np.array([1.0] * 4 + [0.0] * 12)
    draws = np.random.default_rng(0).multinomial(15, np.full(16, 1 / 16), size=1000) @ apart / 15
    exact = stats.binomtest(4, 4, 0.5).pvalue

    assert difference(0.25, 0.0, draws, 16, 15, differing=16).p < exact
    assert difference(0.25, 0.0, draws, 16, 15, differing=4).p == exact


def test_a_difference_of_rounding_is_none() -> None:
    tiny = np.full(1000, 1e-16)
    found = difference(0.3 + 1e-16, 0.3 - 1e-16, tiny, 16, differing=0)

    assert found.value == 0 and found.p == 1


def test_detectable_is_what_a_test_of_students_t_finds() -> None:
    """Of two concepts or three it is far more than normal quantiles say; simulated power is the 80 % it promises."""
    rng = np.random.default_rng(0)
    spread, freedom = 0.05, 2
    sample = rng.normal(0, spread, 4000)
    told = difference(0.5, 0.5, sample, 50, freedom, differing=50).detectable
    means = told + rng.normal(0, spread * np.sqrt(3), size=(20_000, 3))
    power = (stats.ttest_1samp(means, 0, axis=1).pvalue < 0.05).mean()

    assert told == pytest.approx((stats.t.ppf(0.975, 2) + stats.t.ppf(0.8, 2)) * sample.std())
    assert power == pytest.approx(0.8, abs=0.1)
