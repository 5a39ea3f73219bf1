"""A part put back from the base is a control: it has its columns, and changes nothing else."""

import pandas as pd
import pytest
from pandas.testing import assert_frame_equal

from leaderboards.board import Board
from tests.leaderboards.test_board import Frames, frames, make, row, where

REMOVED = ["removable", "presence_removed", "presence_removed_low", "presence_removed_high"]


def put_back(data: Frames, status: str = "ok") -> Frames:
    """The run with a cell for each concept in which the decoder of `esd` is the base's again."""
    scores, cells, costs = data
    base = scores[where(scores, defense="none", attack="none", split="concept")]
    like = cells[where(cells, defense="esd", attack="none")]
    named = {"attack": "removal", "budget": 1, "seed": 0}
    more = like.assign(**named, kind="removal", status=status, reason="lost" if status != "ok" else "")
    more = more.assign(removable="vae", key=[f"removal/{c}" for c in more["concept"]])
    found = [scores, base.assign(**named, defense="esd")] if status == "ok" else [scores]
    return pd.concat(found), pd.concat([cells.assign(removable=None), more]), costs


@pytest.fixture(scope="module")
def data() -> Frames:
    return frames("esd", "imma", concepts=("cat", "dog"), seeds=(0,))


@pytest.fixture(scope="module")
def without(data: Frames) -> Board:
    return make(data)


def test_presence_with_the_part_put_back_stands_in_the_row(data: Frames, without: Board) -> None:
    board = make(put_back(data))

    esd = row(board, "esd")
    assert esd["removable"] == "vae"
    assert esd["presence_removed"] == row(board, "none")["presence_before"]
    assert esd["presence_removed_low"] <= esd["presence_removed"] <= esd["presence_removed_high"]
    assert row(board, "imma")[REMOVED].isna().all()
    own = board.cells[board.cells["attack"] == "removal"]
    assert set(own["status"]) == {"ok"} and set(own["concept"]) == {"cat", "dog"}


def test_the_control_enters_nothing_else(data: Frames, without: Board) -> None:
    board = make(put_back(data))

    assert_frame_equal(board.leaderboard.drop(columns=REMOVED), without.leaderboard.drop(columns=REMOVED))
    for table in ("matrix", "curves", "comparisons", "pareto", "variance"):
        assert_frame_equal(getattr(board, table), getattr(without, table))
    others = board.cells[board.cells["attack"] != "removal"].reset_index(drop=True)
    assert_frame_equal(others, without.cells)


def test_a_control_that_was_lost_leaves_its_number_missing(data: Frames, without: Board) -> None:
    board = make(put_back(data, status="failed"))

    assert row(board, "esd")["removable"] == "vae"
    assert pd.isna(row(board, "esd")["presence_removed"])
    assert row(board, "esd")["status"] == row(without, "esd")["status"]


def test_the_worst_concept_is_named(data: Frames, without: Board) -> None:
    scores, cells, costs = data
    is_cat = where(scores, concept="cat", defense="esd", split="concept") & (scores["budget"] > 0)
    weaker = make((scores.assign(value=scores["value"].where(~is_cat, 0.0)), cells, costs))

    assert row(weaker, "esd")["worst_concept"] == "dog"
    assert row(without, "esd")["worst_concept"] == "cat"  # of equals the first
    assert pd.isna(row(make(frames("esd")), "esd")["worst_concept"])
