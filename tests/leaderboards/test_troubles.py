"""What weakens numbers is told in few lines, and nothing of it is lost."""

import pandas as pd
import pytest

from leaderboards import troubles
from leaderboards.cells import DOUBT

START = {"model": "mini", "scenario": "relearn", "concept": "cat", "seed": 0, "defense_seed": 0}
START |= {"number": "presence_after", "flag": None}


def cells(*rows: dict[str, object]) -> pd.DataFrame:
    """Tidy cells: one number each."""
    fill = {"defense": "esd", "attack": "lora", "budget": 10, "status": "ok", "reason": None}
    return pd.DataFrame([START | fill | row for row in rows])


def collapsed(number: int) -> dict[str, object]:
    reason = f"clip_score -0.{number}, at most 3.{number} < 0.8 x 56.04 of the base"
    return {"budget": number, "status": "collapsed", "reason": reason}


def test_reasons_that_differ_in_their_numbers_are_one_group() -> None:
    (found,) = troubles.troubles(cells(*map(collapsed, range(1, 200))))

    assert (found.status, found.defense, found.attack, found.reasons) == ("collapsed", "esd", "lora", 1)
    assert len(found.cells) == 199 and found.cells[0] == "cat/esd/lora@1#0"
    assert found.told == "for example: clip_score -0.1, at most 3.1 < 0.8 x 56.04 of the base"


def test_statuses_defenses_and_attacks_are_kept_apart_and_the_commonest_comes_first() -> None:
    many = [collapsed(1) | {"budget": budget} for budget in (1, 2, 3)]
    one = {"defense": "gift", "status": "failed", "reason": "out of memory"}
    doubted = {"attack": "dreambooth", "flag": DOUBT, "number": "clip_score"}
    found = troubles.troubles(cells(one, *many, doubted, {"defense": "fine"}))

    assert [(t.status, t.defense, t.attack, len(t.cells)) for t in found] == [
        ("collapsed", "esd", "lora", 3),
        ("failed", "gift", "lora", 1),
        ("in doubt", "esd", "dreambooth", 1),
    ]
    assert found[0].told == "clip_score -0.1, at most 3.1 < 0.8 x 56.04 of the base"


def test_reasons_of_other_words_are_counted() -> None:
    other = {"budget": 7, "status": "collapsed", "reason": "nothing to see"}
    (found,) = troubles.troubles(cells(collapsed(1), collapsed(1) | {"budget": 2}, other))

    assert found.reasons == 2 and found.told.endswith("(and 1 other reason)")


def board(*flags: str | None) -> pd.DataFrame:
    rows = [{"defense": f"d{i}", "model": "mini", "scenario": "relearn", "flags": flag} for i, flag in enumerate(flags)]
    return pd.DataFrame(rows)


def test_each_flag_is_told_once_with_the_rows_that_carry_it() -> None:
    doubts = [f"clip_score: images may have collapsed in {n} of 9 cells" for n in (3, 5)]
    rows = board(f"one judge; {doubts[0]}", "one judge", f"one judge; {doubts[1]}; judge uncalibrated")
    found = {flag.text: troubles.carriers(rows, flag) for flag in troubles.flags(rows)}

    assert found == {
        "one judge": "all rows",
        "clip_score: images may have collapsed": "d0 (3 of 9 cells), d2 (5 of 9 cells)",
        "judge uncalibrated": "d2",
    }


@pytest.mark.parametrize("flags", [(), (None, float("nan"))])
def test_no_flags_are_no_lines(flags: tuple[None, ...]) -> None:
    assert troubles.flags(board(*flags) if flags else pd.DataFrame(columns=["defense", "flags"])) == []
