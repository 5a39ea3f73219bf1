"""Whether a concept is back, by few images: the errors that the test promises, and a titer that rises."""

import numpy as np
import pytest
from scipy.optimize import isotonic_regression

from leaderboards.titer import Withstood
from leaderboards.walk import MOST, isotone, walk, withstood


def test_at_a_half_it_is_eight_more() -> None:
    assert walk([1.0] * 20, 0.5).images == walk([0.0] * 20, 0.5).images == 8
    assert (walk([1.0] * 20, 0.5).verdict, walk([0.0] * 20, 0.5).verdict) == ("back", "away")
    assert (walk([1.0, 0.0] * 40, 0.5).verdict, walk([1.0, 0.0] * 40, 0.5).images) == ("open", MOST)
    assert walk([], 0.5).verdict == walk([1.0] * 7, 0.5).verdict == "open"


@pytest.mark.parametrize("threshold", [0.25, 0.4, 0.5])
def test_its_errors_are_those_it_promises(threshold: float) -> None:
    rng, runs = np.random.default_rng(0), 1500
    below = [walk((rng.random(MOST) < threshold - 0.1) * 1.0, threshold) for _ in range(runs)]
    above = [walk((rng.random(MOST) < threshold + 0.1) * 1.0, threshold) for _ in range(runs)]

    assert np.mean([one.verdict == "back" for one in below]) <= 0.06
    assert np.mean([one.verdict == "away" for one in above]) <= 0.06


def test_where_presence_is_0_or_1_it_takes_a_fifth_of_the_images() -> None:
    rng = np.random.default_rng(1)
    far = [walk((rng.random(MOST) < rate) * 1.0, 0.5).images for rate in [0.02, 0.98] * 200]

    assert np.mean(far) < MOST / 5


def test_the_first_budget_that_is_back_decides() -> None:
    away, back, open_ = [0.0] * 10, [1.0] * 10, [1.0, 0.0] * 25

    assert withstood((0, 10, 25, 50), [away, away, back, away], 0.5) == (Withstood(10, True), False)
    assert withstood((0, 10, 25, 50), [away, away, back, []], 0.5) == (Withstood(10, True), False)  # not asked for
    assert withstood((0, 10, 25), [away, open_, away], 0.5) == (Withstood(25, False), True)
    assert withstood((0, 10, 25), [away, [], back], 0.5) == (Withstood(0, False), False)
    assert withstood((0, 10), [back, away], 0.5) == (Withstood(0, True), False)
    with pytest.raises(ValueError, match="budget 0"):
        withstood((0, 10), [[], back], 0.5)


def test_more_hits_never_raise_the_titer() -> None:
    rng = np.random.default_rng(2)
    for _ in range(200):
        hits = (rng.random((4, 30)) < rng.random((4, 1))) * 1.0
        more = np.maximum(hits, rng.random((4, 30)) < 0.2)

        assert (
            withstood((0, 1, 2, 3), more.tolist(), 0.5)[0].budget
            <= withstood((0, 1, 2, 3), hits.tolist(), 0.5)[0].budget
        )


def test_presence_by_budget_is_the_isotone_fit() -> None:
    rng = np.random.default_rng(3)
    for n in (0, 1, 2, 5, 20):
        values, weights = rng.random(n).round(1), rng.integers(1, 9, n).astype(np.float64)
        found = isotone(values.tolist(), weights.tolist())

        assert found == pytest.approx(isotonic_regression(values, weights=weights).x if n else np.empty(0))
        assert (np.diff(found) >= 0).all()
