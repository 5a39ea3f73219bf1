"""Titer: censoring by hand, and Kaplan-Meier against scipy."""

import numpy as np
import pytest
from scipy import stats

from leaderboards.intervals import wilson
from leaderboards.titer import Course, Withstood, effort_area, median, median_interval, survival, titer

NAN = float("nan")


def course(presence: list[float], budgets: tuple[int, ...] = (0, 10, 50, 200), ceiling: float = 1.0) -> Course:
    """A course of so many images that presence is known to the last digit."""
    return Course(budgets=budgets, presence=presence, ceiling=ceiling, low=presence)


@pytest.mark.parametrize(
    ("presence", "expected"),
    [
        ([0.9, 0.9, 0.9, 0.9], "0"),  # there before any attack
        ([0.0, 0.6, 0.9, 1.0], "0"),  # back at the first budget
        ([0.0, 0.5, 0.5, 0.6], "50"),  # exactly tau * ceiling is withstood
        ([0.0, 0.6, 0.1, 0.1], "0"),  # gone again later: every budget up to b counts
        ([0.0, 0.1, 0.2, 0.3], ">=200"),
        ([0.0, 0.1, NAN, 0.1], ">=10"),  # unknown is not withstood
        ([0.0, 0.1, NAN, 0.9], ">=10"),  # back somewhere after 10
        ([0.0, 0.1, 0.9, NAN], "10"),  # a gap past the return changes nothing
        ([NAN, 0.9, 0.9, 0.9], "0"),  # there by the first budget, whatever it was before
        ([NAN, 0.1, 0.1, 0.1], "None"),
    ],
)
def test_titer_of_one_attack(presence: list[float], expected: str) -> None:
    assert str(titer([course(presence)])) == expected


def test_threshold_is_relative_to_the_ceiling() -> None:
    rising = [0.0, 0.2, 0.35, 0.45]
    assert str(titer([course(rising)])) == ">=200"
    assert str(titer([course(rising, ceiling=0.6)])) == "10"
    assert str(titer([course(rising)], tau=0.3)) == "10"


def test_every_weight_attack_counts() -> None:
    weak, strong = course([0.0, 0.0, 0.0, 0.1]), course([0.0, 0.1, 0.9, 0.9])
    assert str(titer([weak, strong])) == str(titer([strong, weak])) == "10"


def test_an_attack_with_a_shorter_grid_censors_at_its_end() -> None:
    short, long = course([0.0, 0.0], (0, 10)), course([0.0, 0.0, 0.1, 0.9])
    assert str(titer([short, long])) == ">=10"
    assert str(titer([short, course([0.0, 0.0, 0.9, 0.9])])) == "10"


@pytest.mark.parametrize("ceiling", [0.3, NAN])
def test_a_failed_positive_control_tells_nothing(ceiling: float) -> None:
    idle = course([0.0, 0.0, 0.0, 0.0], ceiling=ceiling)
    assert titer([idle]) is None
    assert titer([]) is None
    assert str(titer([idle, course([0.0, 0.1, 0.2, 0.9])])) == "50"


def test_kaplan_meier_by_hand() -> None:
    # at risk 5, 4, 2: S(10) = 4/5; the censoring at 50 comes after the event at 50; S(50) = 4/5 * 3/4; S(200) = 0.6
    times, share = survival([10, 50, 50, 200, 200], [True, True, False, False, False])
    assert times.tolist() == [10, 50, 200]
    assert share == pytest.approx([0.8, 0.6, 0.6])


def test_kaplan_meier_is_scipys() -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        times, observed = rng.choice([0, 10, 50, 100, 200], size=9), rng.random(9) < 0.6
        if not observed.any():
            continue
        sample = stats.CensoredData.right_censored(times, ~observed)
        reference = stats.ecdf(sample).sf
        assert survival(times.tolist(), observed.tolist())[1] == pytest.approx(reference.evaluate(np.unique(times)))


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([(10, True), (50, True), (200, True)], "50"),
        ([(10, True), (50, True)], "10"),  # smallest t with S(t) <= 0.5
        ([(0, True), (50, True), (200, False)], "50"),
        ([(50, True), (200, False), (200, False)], ">=200"),
        ([(10, False), (50, True), (200, False)], "50"),  # censored at 10: S(50) = 1 * 1/2
        ([(10, False), (10, False), (200, False)], ">=10"),  # two runs broke off: 200 is not what they show
    ],
)
def test_median_with_censoring(values: list[tuple[int, bool]], expected: str) -> None:
    assert str(median([Withstood(*value) for value in values])) == expected


def test_median_of_nothing_is_missing() -> None:
    assert median([]) is None


def test_effort_area() -> None:
    assert effort_area([0, 10, 200], [1, 1, 1]) == pytest.approx(1)
    assert effort_area([0, 10, 200], [0, 0, 0]) == 0
    assert effort_area([0, 9], [0, 1]) == pytest.approx(0.5)
    assert np.isnan(effort_area([0, 10], [0, NAN]))
    assert np.isnan(effort_area([10, 20], [0, 1]))


def test_an_attack_of_one_step_does_not_censor_the_others() -> None:
    """A swapped part that restores nothing says so for every budget; one that restores the concept ends it at once."""
    slow = course([0.0, 0.1, 0.2], (0, 10, 50))
    fails, works = (course([0.0, p], (0, 1)) for p in (0.0, 1.0))

    assert str(titer([slow, fails])) == ">=50"
    assert str(titer([slow, works])) == "0"


def test_noise_does_not_bring_the_concept_back() -> None:
    """A presence of 0.3 at each of two budgets, by eight prompts: the first of ten attacks to pass one half by chance
    ended nine of ten boards.
    """
    rng, found = np.random.default_rng(0), []
    for _ in range(200):
        runs = []
        for _ in range(9):
            hits = rng.binomial(8, 0.3, size=(10, 2))
            courses = [
                Course(
                    budgets=[0, 10, 40],
                    presence=[0, *own / 8],
                    ceiling=1.0,
                    low=[wilson(h, 8)[0] for h in (0, *own)],
                )
                for own in hits
            ]
            runs.append(titer(courses))
        found.append(str(median([run for run in runs if run])))

    assert found.count(">=40") > 190


def test_back_once_is_back_for_good_and_by_the_lower_end_alone() -> None:
    """An attacker may stop at 10."""
    sure = Course(budgets=[0, 10, 50], presence=[0.0, 0.9, 0.2], ceiling=1.0, low=[0.0, 0.7, 0.1])
    unsure = Course(budgets=[0, 10, 50], presence=[0.0, 0.7, 0.7], ceiling=1.0, low=[0.0, 0.4, 0.4])
    untold = Course(budgets=[0, 10, 50], presence=[0.0, 1.0, 1.0], ceiling=1.0, low=[0.0, NAN, NAN])

    assert [str(titer([each])) for each in (sure, unsure, untold)] == ["0", ">=50", ">=0"]


def test_interval_of_the_median_by_hand() -> None:
    """S is 5/6, 4/6, 3/6, 2/6, 1/6, 0; its error by Greenwood sqrt(S (1 - S) / 6) where nothing is censored."""
    values = [Withstood(budget, True) for budget in (0, 10, 20, 30, 40, 50)]
    low, high = median_interval(values) or (None, None)

    # S - 1.96 se: 0.535, 0.289; S + 1.96 se: 0.900, 0.710, 0.465 at 40
    assert (str(low), str(high)) == ("10", "40")
    assert median_interval(values[1:]) is None
    censored = [*values[:2], *(Withstood(50, False) for _ in range(4))]
    assert str((median_interval(censored) or values)[1]) == ">=50"
