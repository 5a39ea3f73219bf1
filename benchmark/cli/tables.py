"""Tables in the terminal: the leaderboard with what weakens it, and what papers report beside it."""

from collections.abc import Iterator
from typing import Any

import pandas as pd
from rich.markup import escape
from rich.table import Table

from leaderboards import troubles

SHOWN: tuple[str, ...] = (
    "rank",
    "band",
    "defense",
    "titer",
    "worst_presence",
    "worst_attack",
    "reactivation_rate",
    "presence_before",
    "retained_accuracy",
)
SHOWN += ("clip_score", "status", "flags")
UNRANKED = "unranked: "  # how a status says why a row has no rank
MOST = 8  # kinds of cells that are not ok, in the terminal


def leaderboard_table(board: pd.DataFrame) -> Table:
    """The leaderboard's main columns; empty where a number is missing. `flags` are the numbers of `notes`."""
    table = Table(title="leaderboard")
    for name in SHOWN:
        table.add_column(name.replace("_", " "), overflow="fold")
    found = troubles.flags(board)
    for at, (_, row) in enumerate(board.iterrows()):
        marks = ", ".join(str(number) for number, flag in enumerate(found, 1) if at in flag.rows)
        table.add_row(*(cell_text(name, row) for name in SHOWN if name != "flags"), marks)
    return table


def notes(board: pd.DataFrame, cells: pd.DataFrame | None) -> Iterator[str]:
    """What weakens the numbers: each flag under its number, who judged, and why cells are not ok."""
    for number, flag in enumerate(troubles.flags(board), 1):
        yield f"flag {number}: {flag.text}: {troubles.carriers(board, flag)}"
    for judge in troubles.judges(board):
        yield f"judge: {judge}"
    for _, row in board.iterrows():
        _, is_unranked, why = str(row["status"]).partition(UNRANKED)
        if is_unranked:
            yield f"no rank: {row['defense']}: {why}"
    found = [] if cells is None else troubles.joined(troubles.troubles(cells))
    for trouble in found[:MOST]:
        where = f"{trouble.defense} under {trouble.attack}" if trouble.attack != "none" else trouble.defense
        count = f"{len(trouble.cells)} cell{'s' if len(trouble.cells) != 1 else ''}"
        yield f"{trouble.status}: {where}, {count}: {trouble.told}"
    if len(found) > MOST:
        yield f"and {len(found) - MOST} more such groups: see the report, or status and reason in cells.csv"


def reported_table(found: pd.DataFrame) -> Table:
    """What papers report beside what was measured, and in what the two differ; who says so stands in reported.csv."""
    table = Table(title="measured beside reported: not comparable, unless `differs` is empty")
    for name in ("defense", "attack", "concept", "number"):
        table.add_column(name, overflow="fold", no_wrap=True)
    for name in ("measured", "reported"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("differs in", min_width=24)
    for row in found.to_dict("records"):
        differs = [f"{name} ({row[f'reported_{name}']})" for name in ("concept", "model") if name in row["differs"]]
        shown = {**row, "differs": ", ".join([*differs, *(["settings"] if "settings" in row["differs"] else [])])}
        names = ("defense", "attack", "concept", "number", "measured", "reported", "differs")
        table.add_row(*(f"{v:.3g}" if isinstance(v := shown[name], float) else escape(str(v)) for name in names))
    return table


def sources(found: pd.DataFrame) -> Iterator[str]:
    """Who reports what stands in the table, and how certain it is."""
    for (source, certainty), part in found.groupby(["source", "certainty"], sort=False):
        yield f"{', '.join(dict.fromkeys(map(str, part['defense'])))}: {source}, {certainty}"


def cell_text(name: str, row: Any) -> str:
    """One value for people; the worst presence comes with its interval."""
    value = row[name]
    if pd.isna(value):
        return ""
    if name == "worst_presence":
        return f"{value:.2f} [{row['worst_presence_low']:.2f}, {row['worst_presence_high']:.2f}]"
    if name in ("rank", "band"):
        return str(int(value))
    if name == "status":  # the reasons stand under the table
        told, is_unranked, _ = str(value).partition(UNRANKED)
        return escape(told.removesuffix("; ") or ("unranked" if is_unranked else "ok"))
    return f"{value:.2f}" if isinstance(value, float) else escape(str(value))
