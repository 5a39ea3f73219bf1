"""A board whose images are gone: its cells give the same numbers again, and nothing that they do not hold."""

import pandas as pd
import pytest

from leaderboards.board import build
from leaderboards.rebuild import rebuild
from tests.leaderboards.test_board import KINDS
from tests.leaderboards.test_comparisons import noisy


def test_the_tables_are_made_again_from_the_cells() -> None:
    scores, cells, costs = noisy("esd", "gift", "imma", gain=0.3, concepts=("cat", "dog", "car"), seeds=(0, 1))
    scores, cells = (f[f["image"] < 1] if "image" in f else f.assign(expected=6) for f in (scores, cells))
    board = build(scores, cells, costs, draws=200)
    again = rebuild(board.cells, board.leaderboard, board.variance, kinds=KINDS, draws=200)

    kept = [
        *["rank", "defense", "model", "concepts", "titer", "worst_presence", "worst_attack", "presence_before"],
        *["clip_score", "retained_accuracy", "status", "images", "attack_seeds", "judge", "fidelity", "effort_area"],
        *["titer_runs", "flags", "defend_seconds", "toy"],
    ]
    pd.testing.assert_frame_equal(board.leaderboard[kept], again.leaderboard[kept])
    assert not [name for name in (*again.leaderboard, *again.curves) if name.startswith("reactivation")]
    pd.testing.assert_frame_equal(board.matrix, again.matrix)
    for table, columns in (("comparisons", ["value", "prompts"]), ("curves", ["presence", "ceiling", "n"])):
        pd.testing.assert_frame_equal(getattr(board, table)[columns], getattr(again, table)[columns])
    old, new = (each.curves[each.curves["concept"] == "all"] for each in (board, again))
    assert new["ci_high"].tolist() == pytest.approx(old["ci_high"].tolist(), abs=0.15)


@pytest.mark.parametrize("before", [float("nan"), "", "one judge", "one judge; one attack run"])
def test_a_flag_is_added_once_and_to_nothing_else(before: float | str) -> None:
    """An empty field of a CSV is read as no number."""
    scores, cells, costs = noisy("esd")
    board = build(scores, cells, costs, draws=60)
    old = board.leaderboard.assign(flags=before)

    flags = set(rebuild(board.cells, old, board.variance, kinds=KINDS, draws=60).leaderboard["flags"])

    told = ["one judge"] if isinstance(before, str) and before else []
    assert flags == {"; ".join([*told, "one attack run"])}


def test_an_attack_without_a_kind_is_refused() -> None:
    scores, cells, costs = noisy("esd")
    board = build(scores, cells, costs, draws=60)
    kinds = {name: kind for name, kind in KINDS.items() if name != "lora"}

    with pytest.raises(ValueError, match="a kind for each attack, got none for lora"):
        rebuild(board.cells, board.leaderboard, board.variance, kinds=kinds)
