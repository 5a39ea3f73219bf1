"""Boards over several runs: what may be compared is put together once, and the rest is refused in one line."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from leaderboards.board import Board, build
from leaderboards.merge import IncomparableError, Tables, combine
from tests.leaderboards.test_board import Frames, distances, frames, row, where

SAMPLING = {"steps": 50, "guidance": 7.5}


def tables(data: Frames, source: str = "one") -> Tables:
    return Tables(*data, distances(data[1], kid=0.1), source, SAMPLING)


def board(merged: Tables) -> Board:
    return build(merged.scores, merged.cells, merged.costs, merged.distances, draws=60)


def run(source: str, *defenses: str, **setting: tuple[str | int, ...]) -> Tables:
    return tables(frames(*defenses, **setting), source)  # type: ignore[arg-type]


def test_rows_do_not_change_when_runs_are_added() -> None:
    setting = {"concepts": ("cat", "dog"), "seeds": (0, 1)}
    first, second = run("one", "esd", **setting), run("two", "imma", "gift", **setting)
    alone, both = board(first), board(combine([first, second]))
    assert both.leaderboard["defense"].tolist() == ["imma", "esd", "gift", "none"]
    for defense in ("esd", "none"):
        placed = ["rank", "band"]
        pd.testing.assert_series_equal(row(alone, defense).drop(placed), row(both, defense).drop(placed))
    at_once = board(tables(frames("esd", "imma", "gift", **setting)))  # type: ignore[arg-type]
    pd.testing.assert_frame_equal(at_once.leaderboard, both.leaderboard)
    pd.testing.assert_frame_equal(at_once.comparisons, both.comparisons)


def test_what_two_runs_share_is_taken_once() -> None:
    one = run("one", "esd")
    merged = combine([one, replace(one, source="two"), run("three", "imma")])
    for name in ("scores", "cells", "costs", "distances"):
        expected = getattr(tables(frames("esd", "imma")), name)
        columns = [c for c in expected.columns if c not in ("value", "defend_seconds")]
        found = getattr(merged, name)
        assert len(found) == len(expected)
        pd.testing.assert_frame_equal(
            found[columns].sort_values(columns, ignore_index=True),
            expected[columns].sort_values(columns, ignore_index=True),
        )
    assert merged.source == "one, two, three" and merged.sampling == SAMPLING


def test_one_run_is_left_as_it_is() -> None:
    one = run("one", "esd")
    merged = combine([one])
    for name in ("scores", "cells", "costs", "distances"):
        pd.testing.assert_frame_equal(getattr(merged, name), getattr(one, name))


def test_a_cell_that_failed_in_one_run_is_taken_from_the_other() -> None:
    one, two = run("one", "esd"), run("two", "esd")
    lost = where(one.cells, defense="esd", attack="lora", budget=50)
    cells = one.cells.copy()
    cells.loc[lost, ["status", "reason"]] = ["failed", "out of memory"]
    scores = one.scores[~where(one.scores, defense="esd", attack="lora", budget=50)]
    merged = combine([replace(one, cells=cells, scores=scores), two])
    pd.testing.assert_frame_equal(board(merged).leaderboard, board(two).leaderboard)


def test_rounding_under_one_key_is_no_difference_and_the_first_run_is_kept() -> None:
    one, two = run("one", "esd"), run("two", "imma")
    scores = two.scores.copy()
    scores.loc[where(scores, defense="none", split="safe"), "value"] += 1e-3
    merged = combine([one, replace(two, scores=scores)])
    control = merged.scores[where(merged.scores, defense="none", split="safe")]
    assert set(control["value"]) == {0.3}


def test_a_run_without_distances_may_be_merged() -> None:
    one, two = run("one", "esd"), run("two", "imma")
    merged = board(combine([replace(one, distances=None), two]))
    assert np.isnan(row(merged, "esd")["kid"]) and row(merged, "imma")["kid"] == pytest.approx(0.1)
    assert combine([replace(one, distances=None)]).distances is None


def other_judge(one: Tables) -> Tables:
    named = one.scores["identity"].where(one.scores["metric"] != "presence", "presence-v2")
    return replace(one, scores=one.scores.assign(identity=named))


def other_embedder(one: Tables) -> Tables:
    assert one.distances is not None
    return replace(one, distances=one.distances.assign(identity="kid v2"))


def other_prompts(one: Tables) -> Tables:
    renamed = one.scores["prompt_id"].where(one.scores["prompt_id"] != "concept0", "concept99")
    return replace(one, scores=one.scores.assign(prompt_id=renamed))


def fewer_images(one: Tables) -> Tables:
    return replace(one, scores=one.scores[(one.scores["split"] != "safe") | (one.scores["image"] < 3)])


def other_sampling(one: Tables) -> Tables:
    return replace(one, sampling=SAMPLING | {"steps": 12})


def other_base(one: Tables) -> Tables:
    return replace(one, cells=one.cells.assign(key=one.cells["key"] + "-of-other-weights"))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (other_judge, "identities of the metric relearn/cat/concept/presence: presence-v1 and presence-v2"),
        (other_embedder, "identities of the metric relearn/cat/kid: kid v1 and kid v2"),
        (other_prompts, "prompts for relearn/cat/concept: 1 that only the first has and 1 that only the second has"),
        (fewer_images, "numbers of images of a prompt for relearn/cat/safe: 5 and 3"),
        (other_sampling, r"sampling \(steps\): 50 and 12"),
        (other_base, "models under the name mini/relearn/cat/none"),
    ],
)
def test_what_is_not_comparable_is_refused_in_one_line(change, says: str) -> None:  # type: ignore[no-untyped-def]
    one, two = run("one", "esd"), run("two", "imma")
    with pytest.raises(IncomparableError, match=f"got one and two with different {says}") as refused:
        combine([one, change(two)])
    assert "\n" not in str(refused.value)


def test_another_concept_may_have_another_judge() -> None:
    one, two = run("one", "esd", concepts=("cat",)), other_judge(run("two", "esd", concepts=("dog",)))
    merged = board(combine([one, two]))
    assert row(merged, "esd")["concepts"] == 2 and row(merged, "esd")["judge"] == "presence-v1; presence-v2"


def test_another_attack_under_the_same_name_is_refused() -> None:
    one, two = run("one", "esd"), run("two", "esd")
    cells, scores = two.cells.copy(), two.scores.copy()
    lora = where(cells, defense="esd", attack="lora", budget=50)
    cells.loc[lora, "key"] = "generate/rank-64"
    same = combine([one, replace(two, cells=cells)])
    assert len(same.cells) == len(one.cells)  # the images are the same: only how they were asked for differs
    scores.loc[where(scores, defense="esd", attack="lora", budget=50, split="concept"), "value"] = 0.0
    with pytest.raises(IncomparableError, match=r"got others in one and in two: their keys are .*rank-64"):
        combine([one, replace(two, cells=cells, scores=scores)])


def test_wrong_input_says_what_was_expected() -> None:
    one = run("one", "esd")
    with pytest.raises(ValueError, match="expected the tables of at least one run"):
        combine([])
    with pytest.raises(ValueError, match=r"cells of one: expected the columns .* missing: expected"):
        combine([replace(one, cells=one.cells.drop(columns="expected"))])


def test_skipped_cells_and_runs_without_any_distance_are_merged() -> None:
    one, two = run("one", "esd"), run("two", "imma")
    start = {"model": "mini", "scenario": "relearn", "concept": "cat", "attack": "ti", "budget": 0, "seed": 0}
    skip = {"kind": "none", "status": "skipped", "reason": "no budgets", "expected": 0, "key": ""}
    for defense, each in (("esd", one), ("imma", two)):
        each.cells.loc[len(each.cells)] = start | skip | {"defense": defense}
        each.cells.loc[len(each.cells)] = start | skip | {"defense": "none"}
    assert one.distances is not None
    empty = one.distances.iloc[:0]
    both = board(combine([replace(one, distances=empty), replace(two, distances=empty)]))
    assert both.leaderboard["status"].tolist() == ["1 of 7 cells not ok (1 skipped)"] * 2 + [
        "1 of 7 cells not ok (1 skipped); unranked: the control"
    ]
    nothing = replace(one, scores=one.scores.iloc[:0], cells=one.cells.replace({"status": {"ok": "failed"}}))
    pd.testing.assert_frame_equal(board(combine([nothing, one])).leaderboard, board(one).leaderboard)
