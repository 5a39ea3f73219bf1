"""Tables in the terminal: the leaderboard, and what papers report beside it."""

from typing import Any

import pandas as pd
from rich.markup import escape
from rich.table import Table

SHOWN: tuple[str, ...] = (
    "rank",
    "defense",
    "titer",
    "worst_presence",
    "worst_attack",
    "presence_before",
    "retained_accuracy",
)
SHOWN += ("clip_score", "status")


def leaderboard_table(board: pd.DataFrame) -> Table:
    """The leaderboard's main columns; empty where a number is missing."""
    table = Table(title="leaderboard")
    for name in SHOWN:
        table.add_column(name.replace("_", " "), overflow="fold")
    for _, row in board.iterrows():
        table.add_row(*(cell_text(name, row) for name in SHOWN))
    return table


def reported_table(found: pd.DataFrame) -> Table:
    """What papers report beside what was measured, and in what the two differ."""
    table = Table(title="measured beside reported: not comparable, unless `differs` is empty")
    names = ("defense", "attack", "concept", "number", "measured", "reported", "differs", "source", "certainty")
    for name in names:
        table.add_column(name.replace("_", " "), overflow="fold")
    for row in found.to_dict("records"):
        differs = [f"{name} ({row[f'reported_{name}']})" for name in ("concept", "model") if name in row["differs"]]
        shown = {**row, "differs": ", ".join([*differs, *(["settings"] if "settings" in row["differs"] else [])])}
        table.add_row(*(f"{v:.3g}" if isinstance(v := shown[name], float) else escape(str(v)) for name in names))
    return table


def cell_text(name: str, row: Any) -> str:
    """One value for people; the worst presence comes with its interval."""
    value = row[name]
    if pd.isna(value):
        return ""
    if name == "worst_presence":
        return f"{value:.2f} [{row['worst_presence_low']:.2f}, {row['worst_presence_high']:.2f}]"
    if name == "rank":
        return str(int(value))
    return f"{value:.2f}" if isinstance(value, float) else escape(str(value))
