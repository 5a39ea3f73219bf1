"""Whether two models put the same defenses in the same order, against scipy's tau."""

from itertools import combinations
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from leaderboards.orders import COLUMNS, orders
from tests.leaderboards.test_board import frames, make


def compared(model: str, presence: dict[str, float], p: float = 1.0) -> pd.DataFrame:
    """A table of comparisons of one number."""
    lines = [
        {"defense_a": a, "defense_b": b, "value": presence[a] - presence[b]}
        for a, b in combinations(sorted(presence), 2)
    ]
    named = {"model": model, "scenario": "relearn", "number": "worst_presence", "attack": None, "budget": None}
    return pd.DataFrame(lines).assign(**named, p_fixed_holm=p)


@pytest.mark.parametrize("seed", range(5))
def test_tau_is_scipys(seed: int) -> None:
    """With ties in both models, which tau-b is for."""
    names, rng = [f"d{i}" for i in range(7)], np.random.default_rng(seed)
    one, other = ({name: int(rng.integers(4)) / 8 for name in names} for _ in range(2))

    found = orders(pd.concat([compared("flow", one), compared("unet", other)])).iloc[0]

    wanted = stats.kendalltau([one[name] for name in names], [other[name] for name in names]).statistic
    assert found["tau"] == pytest.approx(wanted)
    assert found[["model_a", "model_b", "defenses", "pairs", "decided"]].tolist() == ["flow", "unet", 7, 21, 0]


def test_pairs_that_both_models_decide_are_counted_by_their_order() -> None:
    presence = {"a": 0.0, "b": 0.5, "c": 1.0}
    turned = {"a": 0.0, "b": 1.0, "c": 0.5}
    sure = orders(pd.concat([compared("m", presence, 0.01), compared("n", turned, 0.01)])).iloc[0]
    assert sure[["same", "opposed", "decided", "decided_same", "decided_opposed"]].tolist() == [2, 1, 3, 2, 1]
    unsure = orders(pd.concat([compared("m", presence, 0.01), compared("n", turned, 0.06)])).iloc[0]
    assert unsure[["same", "opposed", "decided"]].tolist() == [2, 1, 0]


def test_where_a_model_tells_nobody_apart_tau_is_missing() -> None:
    flat = compared("n", {"a": 0.5, "b": 0.5})
    assert np.isnan(orders(pd.concat([compared("m", {"a": 0.0, "b": 0.5}), flat])).iloc[0]["tau"])


def test_a_board_over_one_model_has_no_such_table(tmp_path: Path) -> None:
    board = make(frames("esd", "imma"))
    assert board.orders.empty and list(board.orders.columns) == COLUMNS
    board.write(tmp_path)
    assert not (tmp_path / "orders.csv").exists() and (tmp_path / "variance.csv").exists()


def test_a_board_over_two_models_has_it(tmp_path: Path) -> None:
    one = frames("esd", "imma")
    both = [pd.concat([part, part.assign(model="other")], ignore_index=True) for part in one]
    board = make(both)  # type: ignore[arg-type]
    board.write(tmp_path)

    found = pd.read_csv(tmp_path / "orders.csv")
    assert set(found["number"]) == {"worst_presence", "presence"} and (found["opposed"] == 0).all()
    assert found["same"].sum() > 0
