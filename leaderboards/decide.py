"""What to draw next: pure functions of the scores so far, as `board.build` takes them, and of the config."""

from collections.abc import Collection

import pandas as pd

from leaderboards.board import counted_rows
from leaderboards.bootstrap import Draws
from leaderboards.panel import Arm

Name = tuple[str, str, str]  # model, scenario, defense


def worst_arms(
    scores: pd.DataFrame, cells: pd.DataFrame, *, draws: int = 1000, yes_or_no: Collection[str] = ()
) -> dict[Name, Arm]:
    """The worst arm of each row that has one: its fresh images are what `worst_presence` will be of.

    Args:
        scores: of all splits but the fresh images'.
        cells, draws, yes_or_no: as for the board, on which they decide what counts.
    """
    rows = counted_rows(scores, cells, Draws(draws, 0), yes_or_no)
    return {tuple(row.names.values()): row.seen.arm for row in rows if row.seen.arm}
