"""What the terminal says beside a leaderboard's numbers."""

import pandas as pd
from rich.console import Console

from benchmark.cli.tables import SHOWN, leaderboard_table, notes
from tests.leaderboards.test_troubles import cells, collapsed


def leaderboard() -> pd.DataFrame:
    values = dict.fromkeys(SHOWN, 0.5) | {"worst_presence_low": 0.4, "worst_presence_high": 0.6, "rank": 1}
    row = values | {"model": "mini", "scenario": "relearn", "judge": "p>=0.5@mini:judge/1b88", "titer": ">=10"}
    first = row | {"defense": "esd", "flags": "one judge", "status": "1 of 6 cells not ok (1 collapsed)"}
    second = row | {"defense": "gift", "flags": "one judge; clip_score: images may have collapsed in 2 of 6 cells"}
    return pd.DataFrame([first, second | {"status": "ok"}])


def test_every_flag_the_judge_and_each_reason_stand_under_the_table() -> None:
    lines = list(notes(leaderboard(), cells(collapsed(1))))

    assert lines == [
        "flag 1: one judge: all rows",
        "flag 2: clip_score: images may have collapsed: gift (2 of 6 cells)",
        "judge: p>=0.5@mini:judge/1b88",
        "collapsed: esd under lora, 1 cell: clip_score -0.1, at most 3.1 < 0.8 x 56.04 of the base",
    ]


def test_a_row_names_its_flags_by_number() -> None:
    console = Console(width=200, record=True)
    console.print(leaderboard_table(leaderboard()))
    rows = [line for line in console.export_text().splitlines() if "esd" in line or "gift" in line]

    assert [[part.strip() for part in row.split("│")][-2] for row in rows] == ["1", "1, 2"]


def test_many_groups_are_cut_and_counted() -> None:
    rows = cells(*(collapsed(1) | {"attack": f"a{i}"} for i in range(30)))

    *told, last = [line for line in notes(leaderboard(), rows) if not line.startswith(("flag", "judge"))]

    assert len(told) == 8 and last.startswith("and 22 more")


def test_why_a_row_has_no_rank_stands_under_the_table() -> None:
    board = leaderboard()
    board["status"] = ["1 of 6 cells not ok (1 failed); unranked: no cell that counts", "unranked: the control"]
    console = Console(width=200, record=True)
    console.print(leaderboard_table(board))

    assert "1 of 6 cells not ok (1 failed) │" in (text := console.export_text()) and "│ unranked " in text
    assert list(notes(board, None))[-2:] == ["no rank: esd: no cell that counts", "no rank: gift: the control"]
