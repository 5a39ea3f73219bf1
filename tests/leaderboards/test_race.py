"""Which attacks are dropped, which pairs are decided, and how often that is wrong: simulated boards of known truth."""

from collections.abc import Sequence
from itertools import combinations, pairwise

import numpy as np
import pytest
from scipy import stats

from leaderboards.bootstrap import Draws, FloatArray, hierarchical
from leaderboards.boundary import NEVER, constant, levels, step_down
from leaderboards.intervals import Interval, holm, proportions
from leaderboards.race import LOOKS, drop, looks, standard_error, worst_gap

DOUBLING = (1 / 16, 1 / 8, 1 / 4, 1 / 2, 1.0)
# Jennison and Turnbull, "Group sequential methods with applications to clinical trials" (2000), table 2.3
PUBLISHED = {
    0.05: (1.960, 1.977, 2.004, 2.024, 2.040, 2.053, 2.063, 2.072, 2.080, 2.087),
    0.01: (2.576, 2.580, 2.595, 2.609, 2.621),
    0.10: (1.645, 1.678, 1.710, 1.733, 1.751),
}


@pytest.mark.parametrize(("alpha", "count"), [(0.05, 2), (0.05, 5), (0.05, 10), (0.01, 4), (0.10, 5)])
def test_the_boundary_is_the_published_one(alpha: float, count: int) -> None:
    equal = tuple((k + 1) / count for k in range(count))

    assert constant(equal, alpha) == pytest.approx(PUBLISHED[alpha][count - 1], abs=6e-4)


@pytest.mark.parametrize("shares", [(0.2, 0.7, 1.0), (1 / 4, 1 / 2, 1.0)])
def test_it_is_crossed_as_often_as_it_says(shares: tuple[float, ...]) -> None:
    """Against the multivariate normal distribution of scipy, which integrates in another way (Genz and Bretz)."""
    c = constant(shares, 0.05)
    cov = np.minimum.outer(shares, shares)  # of S_k
    inside = stats.multivariate_normal.cdf(
        np.full(len(shares), c), mean=np.zeros(len(shares)), cov=cov, lower_limit=np.full(len(shares), -c)
    )

    assert 1 - float(inside) == pytest.approx(0.05, abs=5e-4)


def test_one_look_is_the_plain_test_and_early_looks_ask_for_more() -> None:
    assert levels((1.0,), 0.05) == pytest.approx((0.05,), abs=1e-8)
    assert all(early < late for early, late in pairwise(levels(DOUBLING, 0.05)))
    assert all(low < high for low, high in zip(levels(DOUBLING, 0.01), levels(DOUBLING, 0.05), strict=True))
    with pytest.raises(ValueError, match="rise"):
        constant((0.5, 0.4, 1.0), 0.05)


def test_with_one_look_it_is_holms_correction() -> None:
    rng = np.random.default_rng(0)
    for _ in range(200):
        p = rng.beta(0.3, 2, size=rng.integers(1, 12))

        assert ((step_down(p[None], (1.0,), 0.05) != NEVER) == (holm(p) <= 0.05)).all()


def test_a_smaller_p_decides_no_less_and_a_decision_is_kept() -> None:
    rng = np.random.default_rng(1)
    shares = (0.25, 0.5, 1.0)
    for _ in range(200):
        p = rng.beta(0.2, 2, size=(3, 6))
        less = p * rng.random((3, 6))

        found = step_down(p, shares, 0.05)

        assert ((step_down(less, shares, 0.05) != NEVER) >= (found != NEVER)).all()
        assert (step_down(p[:2], shares, 0.05) == np.where(found == 2, NEVER, found)).all()


def test_the_family_keeps_its_level_over_all_looks() -> None:
    """Six pairs without a difference, looked at three times: one is decided in at most 5 % of families."""
    rng, shares, wrong = np.random.default_rng(2), (0.25, 0.5, 1.0), 0
    for _ in range(2000):
        steps = rng.normal(size=(3, 6)) * np.sqrt(np.diff((0.0, *shares)))[:, None]
        z = np.cumsum(steps, axis=0) / np.sqrt(shares)[:, None]
        wrong += (step_down(2 * stats.norm.sf(np.abs(z)), shares, 0.05) != NEVER).any()

    assert wrong / 2000 <= 0.065


@pytest.mark.parametrize("blocks", [1, 4, 7, 9])
@pytest.mark.parametrize("units", [1, 8, 50, 500])
def test_looks_rise_in_whole_blocks_to_all_there_is(blocks: int, units: int) -> None:
    found = looks(blocks, units)

    assert found[-1] == units and list(found) == sorted(set(found))
    assert all(n * blocks >= look for n, look in zip(found[:-1], LOOKS, strict=False))
    assert len(found) <= len(LOOKS) + 1


def test_the_leader_stays_and_more_of_the_same_drops_no_fewer() -> None:
    rng = np.random.default_rng(3)
    for _ in range(100):
        hits = (rng.random((40, 6)) < rng.random(6)).astype(np.float64)
        prompts = np.repeat(np.arange(20), 2)
        dropped = drop(hits, [prompts])
        again = drop(np.tile(hits, (4, 1)), [np.concatenate([prompts + 20 * i for i in range(4)])])

        assert not dropped[np.argmax(hits.mean(axis=0))]
        assert (again >= dropped).all()
        assert (drop(hits[:, ::-1], [prompts])[::-1] == dropped).sum() >= 5  # equal leaders may change places


def test_an_arm_without_units_stays_and_so_does_one_of_few() -> None:
    hits = np.array([[1.0, np.nan, 0.0]] * 4)
    clusters = [np.arange(4)]

    assert drop(hits, clusters).tolist() == [False, False, True]
    assert drop(hits[:2], [np.arange(2)]).tolist() == [False, False, False]
    assert drop(np.full((3, 2), np.nan), [np.arange(3)]).tolist() == [False, False]


def test_units_of_one_prompt_count_as_one() -> None:
    apart = np.repeat([1.0, 0.0, 1.0, 0.0], 10)

    assert standard_error(apart, np.repeat(np.arange(4), 10)) > 2.5 * standard_error(apart, np.arange(40))


# Simulated boards.

CONCEPTS, PROMPTS, IMAGES = ("a", "b", "c", "d"), 20, 4
UNITS = len(CONCEPTS) * PROMPTS * IMAGES
TIES = np.concatenate([np.linspace(0.4, 0.5, 8), np.linspace(0.05, 0.3, 60)])
ONE = np.concatenate([[0.5], np.linspace(0.05, 0.3, 67)])
SHARED, EASY = 0.35, 0.2  # of the latent variance: noise of the unit, and how easy its prompt is


class World:
    """Defenses whose units share prompts and noise: (concepts, arms, prompts, images) of each."""

    def __init__(self, rates: Sequence[FloatArray], seed: int) -> None:
        self.rng = rng = np.random.default_rng(seed)
        self.cuts = [stats.norm.ppf(rate)[None, :, None, None] for rate in rates]
        self.easy = np.sqrt(EASY) * rng.normal(size=(len(CONCEPTS), 1, PROMPTS, 1))
        self.hits = self.drawn(IMAGES)
        within = np.stack([rng.permutation(PROMPTS) for _ in range(IMAGES)], axis=1)
        self.rank = np.arange(IMAGES) * PROMPTS + within  # the place of a unit in its concept's stream

    def drawn(self, images: int) -> list[FloatArray]:
        noise = np.sqrt(SHARED) * self.rng.normal(size=(*self.easy.shape[:3], images))
        rest = np.sqrt(1 - SHARED - EASY)
        return [
            (self.easy + noise + rest * self.rng.normal(size=(len(CONCEPTS), cut.size, PROMPTS, images)) < cut) * 1.0
            for cut in self.cuts
        ]


class Race:
    """One race between the defenses of a world: which pairs were decided, what was drawn, which arms are named."""

    def __init__(self, world: World, draws: Draws) -> None:
        self.world, self.draws, self.images = world, draws, 0
        self.alive = [np.ones(cut.size, dtype=bool) for cut in world.cuts]
        self.pairs = list(combinations(range(len(world.cuts)), 2))
        self.p, self.named = np.empty((0, len(self.pairs))), [0] * len(world.cuts)
        self.found = np.full(len(self.pairs), NEVER)
        planned = looks(len(CONCEPTS), PROMPTS * IMAGES)
        self.shares = tuple(n / planned[-1] for n in planned)
        for before, n in pairwise((0, *planned)):
            self.look(before, n)

    def look(self, before: int, n: int) -> None:
        """Draw up to n units a concept of those defenses that have a pair to decide."""
        open_ = [pair for pair, look in zip(self.pairs, self.found, strict=True) if look == NEVER]
        means = {side: self.means(side, before, n) for side in sorted({side for pair in open_ for side in pair})}
        is_early = levels(self.shares, 0.05)[len(self.p)] < 1e-6  # nothing is decided there
        row = [self.gap(means, pair) if pair in open_ and not is_early else np.nan for pair in self.pairs]
        self.p = np.vstack([self.p, row])
        self.found = step_down(self.p, self.shares, 0.05)

    def means(self, side: int, before: int, n: int) -> tuple[FloatArray, list[str]]:
        """Prompt means of the arms that are left, and their attacks, four budgets each."""
        seen, hits, alive = self.world.rank < n, self.world.hits[side], self.alive[side]
        at = np.flatnonzero(alive)
        self.images += len(at) * (n - before) * len(CONCEPTS)
        units = hits[:, at][:, :, seen].transpose(0, 2, 1).reshape(-1, len(at))
        prompts = np.add.outer(np.arange(len(CONCEPTS)) * PROMPTS, np.nonzero(seen)[0]).reshape(-1)
        self.named[side] = int(at[np.argmax(units.mean(axis=0))])
        alive[at[drop(units, [prompts])]] = False
        kept, count = hits[:, np.flatnonzero(alive)], seen.sum(axis=1)
        found = np.where(seen, kept, 0.0).sum(axis=3) / np.where(count > 0, count, np.nan)
        return found[:, :, None, :], [str(arm // 4) for arm in np.flatnonzero(alive)]

    def gap(self, means: dict[int, tuple[FloatArray, list[str]]], pair: tuple[int, int]) -> float:
        (one, its), (other, theirs) = (means[side] for side in pair)
        return worst_gap((one, other), (its, theirs), CONCEPTS, self.draws).p


def confirmed_interval(world: World, side: int, arm: int, draws: Draws) -> tuple[float, Interval]:
    """Two fresh images a prompt of an arm."""
    new = world.drawn(2)[side][:, arm].mean(axis=2)[:, None, None, :]
    drawn = hierarchical(new, ["worst"], CONCEPTS, draws)
    value = float(drawn.means[0])
    both = proportions(value, drawn, drawn.draws[:, 0], drawn.fixed[:, 0], len(CONCEPTS) * PROMPTS)
    return value, both.fixed


def fixed(world: World, draws: Draws) -> bool:
    """Whether all images of every arm find the last pair different, at its level by Holm at worst."""
    sides = [hits.mean(axis=3)[:, :, None, :] for hits in world.hits[-2:]]
    attacks = [str(arm // 4) for arm in range(sides[0].shape[1])]
    return worst_gap((sides[0], sides[1]), (attacks, attacks), CONCEPTS, draws).p <= 0.05 / 3


@pytest.mark.slow
@pytest.mark.parametrize("profile", [TIES, ONE], ids=["eight alike", "one ahead"])
def test_race_confirm_and_holm_together(profile: FloatArray) -> None:
    """Two defenses that are equal and one that is better by a tenth, each under 68 arms.

    At most 7 % of families decide the pair without a difference; less than a third of the images finds the others as
    often as all of them; and fresh images of the arm that was named cover its presence.
    """
    draws, runs = Draws(150, 0), 90
    better = profile - np.where(profile > 0.3, 0.1, 0.0)
    wrong, power, whole, images, held, above = [], [], [], [], [], []
    for run in range(runs):
        world = World((profile, profile, better), run)
        race = Race(world, draws)
        wrong.append(race.found[0] != NEVER)
        power.append(race.found[2] != NEVER)
        whole.append(fixed(world, draws))
        images.append(race.images)
        arm = race.named[0]
        value, interval = confirmed_interval(world, 0, arm, draws)
        held.append(interval.low <= profile[arm] <= interval.high)
        above.append(value - profile[arm])

    assert np.mean(wrong) <= 0.07
    assert np.mean(images) <= 3 * len(profile) * UNITS / 3
    assert np.mean(power) >= np.mean(whole) - 0.05
    assert np.mean(held) >= 0.92 and abs(np.mean(above)) < 0.02
