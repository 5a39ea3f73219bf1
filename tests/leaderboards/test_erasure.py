"""Somebody else's weights must erase their concept here, or what was done to them counts for nothing."""

import numpy as np
import pandas as pd
import pytest

from leaderboards.erasure import UNRELEASED
from tests.leaderboards.test_board import TABLES, Frames, cell, frames, make, row, where
from tests.leaderboards.test_ranks import like_the_base


def imported(data: Frames, defense: str) -> Frames:
    """The frames, the weights of a defense not trained here."""
    scores, cells, costs = data
    return scores, cells.assign(imported=cells["defense"] == defense), costs


def test_weights_that_do_not_erase_are_invalid_where_they_were_attacked() -> None:
    board = make(imported(like_the_base(frames("esd", "imma"), "imma"), "imma"))

    mine = board.cells[board.cells["defense"] == "imma"].drop_duplicates(["attack", "budget"])
    attacked = mine["budget"] > 0
    assert set(mine.loc[attacked, "status"]) == {"invalid"} and set(mine.loc[~attacked, "status"]) == {"ok"}
    assert set(mine.loc[attacked, "reason"]) == {
        "does not erase here: presence 1.00 before any attack, 1.00 of the base"
    }
    line = row(board, "imma")
    assert line["presence_before"] == 1 and pd.isna(line["titer"]) and pd.isna(line["rank"])
    assert "does not lower its concept before any attack" in line["status"]
    assert row(board, "esd")["rank"] == 1


def test_a_point_below_the_base_does_not_erase() -> None:
    """As for a rank: the whole interval of the paired difference is to be below 0."""
    scores, cells, costs = like_the_base(frames("imma"), "imma")
    one = where(scores, defense="imma", budget=0, split="concept", prompt_id="concept0", image=0)
    scores.loc[one, "value"] = 0.0

    board = make(imported((scores, cells, costs), "imma"))

    assert row(board, "imma")["presence_before"] < 1
    assert set(cell(board, defense="imma", attack="lora", budget=10)["status"]) == {"invalid"}


def test_weights_that_erase_are_a_row_like_any() -> None:
    data = frames("imma")
    plain, theirs = make(data), make(imported(data, "imma"))

    for table in TABLES:
        pd.testing.assert_frame_equal(getattr(plain, table), getattr(theirs, table))


def test_a_row_that_was_trained_here_is_not_asked() -> None:
    board = make(like_the_base(frames("imma"), "imma"))

    assert set(cell(board, defense="imma", attack="lora", budget=10)["status"]) == {"ok"}


def test_a_concept_that_is_new_need_not_be_lowered() -> None:
    data = imported(like_the_base(frames("imma"), "imma"), "imma")
    board = make(tuple(frame.assign(scenario="personalize") for frame in data))  # type: ignore[arg-type]

    assert set(cell(board, defense="imma", attack="lora", budget=10)["status"]) == {"ok"}


def test_collapse_and_failures_are_told_first() -> None:
    scores, cells, costs = imported(like_the_base(frames("imma"), "imma"), "imma")
    scores.loc[where(scores, defense="imma", split="safe"), "value"] = 0.1
    cells.loc[where(cells, defense="imma", budget=50), "status"] = "failed"
    board = make((scores, cells, costs))

    assert set(cell(board, defense="imma", attack="lora", budget=10)["status"]) == {"collapsed"}
    assert set(cell(board, defense="imma", attack="lora", budget=50)["status"]) == {"failed"}


@pytest.fixture
def two() -> Frames:
    """Two concepts, of which one of `imma` was never published."""
    scores, cells, costs = frames("esd", "imma", concepts=("cat", "dog"))
    mine = where(scores, defense="imma", concept="dog")
    absent = where(cells, defense="imma", concept="dog")
    kept = cells[~absent]
    skip = cells[absent & (cells["budget"] == 0)].assign(
        status="skipped", reason=UNRELEASED, kind="none", expected=0, key=""
    )
    cells = pd.concat([kept, skip], ignore_index=True)
    return scores[~mine], cells.assign(imported=cells["defense"] == "imma"), costs


def test_a_concept_without_weights_is_not_released_and_no_zero(two: Frames) -> None:
    board = make(two)

    line = row(board, "imma")
    assert line["concepts"] == 1 and row(board, "esd")["concepts"] == 2
    assert line["presence_before"] == 0 and line["worst_presence"] == pytest.approx(0.4)
    assert pd.isna(line["rank"])
    assert line["status"] == "3 of 9 cells not ok (3 skipped); unranked: not released for dog"
    told = cell(board, defense="imma", concept="dog", attack="none", budget=0)
    assert (
        set(told["status"]) == {"skipped"}
        and set(told["reason"]) == {UNRELEASED}
        and told["value"].drop("ceiling").isna().all()
    )


def test_the_base_is_asked_for_the_released_concepts_alone(two: Frames) -> None:
    """Retained accuracy of the other concept says nothing of weights that nobody has."""
    scores, cells, costs = two
    other = where(scores, defense="none", concept="dog", split="retained")
    scores.loc[other, "value"] = 1.0
    scores.loc[where(scores, concept="cat", split="retained"), "value"] = np.where(
        scores.loc[where(scores, concept="cat", split="retained"), "prompt_id"] > "retained2", 1.0, 0.0
    )

    assert "retained accuracy" not in row(make((scores, cells, costs)), "imma")["status"]
