"""The board's tables as a page shows them: which columns, in which words, sorted by what."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pandas as pd

from benchmark.results.report.columns import ALWAYS, CELLS, HIDDEN, LEADERBOARD, Title, title
from benchmark.results.report.fields import Field, clip, field, is_missing, number, text_of
from leaderboards import troubles
from leaderboards.board import CONTROL, Board

CELL = ["model", "scenario", "concept", "defense", "attack", "budget", "seed", "defense_seed"]
LEVEL = 0.05  # of the tests between two defenses, corrected for their number


def table(titles: Sequence[Title], rows: Sequence[tuple[bool, Sequence[Field]]]) -> dict[str, Any]:
    """What the template draws a table from. A row is a pair: whether it is the control's, and its fields."""
    found = [replace(title, is_number=any(line[i].is_number for _, line in rows)) for i, title in enumerate(titles)]
    return {"titles": found, "rows": rows, "filters": filters([title.name for title in titles])}


def leaderboard(board: Board, anchors: Mapping[str, str]) -> dict[str, Any]:
    """Titles and rows; columns that say nothing are left out. `anchors` are the images of each defense."""
    rows = board.leaderboard
    known = [name for name in LEADERBOARD if name in rows and (name in ALWAYS or is_told(rows, name))]
    further = [name for name in map(str, rows) if name not in LEADERBOARD and is_extra(rows, name)]
    names, alike, lines = [*known, *further], ties(board), list[tuple[bool, list[Field]]]()
    for at, row in enumerate(rows.to_dict("records")):
        line = {name: field(name, row[name], *bounds(row, name)) for name in names}
        if at in alike:
            line["rank"] = replace(line["rank"], sign="≈", hint=alike[at])
        if link := anchors.get(row["defense"], ""):
            line["defense"] = replace(line["defense"], link=link)
        lines.append((row["defense"] == CONTROL, list(line.values())))
    return table([title(name) for name in names], lines)


def ties(board: Board) -> dict[int, str]:
    """Rows, by position, that are not shown to differ in worst presence from the ranked row above, and why."""
    pairs = board.comparisons[board.comparisons["number"] == "worst_presence"].to_dict("records")
    p = {(r["model"], r["scenario"], frozenset((r["defense_a"], r["defense_b"]))): r["p_holm"] for r in pairs}
    found, rows = dict[int, str](), board.leaderboard.to_dict("records")
    for at, (above, row) in enumerate(pairwise(rows), 1):
        where = (row["model"], row["scenario"])
        if is_missing(row["rank"]) or is_missing(above["rank"]) or where != (above["model"], above["scenario"]):
            continue
        value = p.get((*where, frozenset((above["defense"], row["defense"]))))
        if value is None or is_missing(value) or value >= LEVEL:
            why = f"p = {number(value, share=False)}" if value is not None and not is_missing(value) else "not compared"
            found[at] = f"not shown to differ from {above['defense']}, the row above ({why})"
    return found


def comparisons(board: Board) -> dict[str, Any]:
    """Paired differences of the worst presence between each two defenses; neighbours on the board come first."""
    rows = board.comparisons[board.comparisons["number"] == "worst_presence"].to_dict("records")
    several = board.leaderboard[["model", "scenario"]].drop_duplicates().shape[0] > 1
    place = {name: i for i, name in enumerate(dict.fromkeys(board.leaderboard["defense"]))}
    ends = [sorted((place.get(row["defense_a"], 0), place.get(row["defense_b"], 0))) for row in rows]
    rows = [row for _, row in sorted(zip(ends, rows, strict=True), key=lambda pair: (pair[0][1] - pair[0][0], pair[0]))]
    titles = [
        Title(name="names", text="pair"),
        Title(name="value", text="difference", meaning="Worst presence of the first minus that of the second."),
        Title(name="p", text="p", meaning="Holm-corrected for the number of pairs."),
        Title(name="verdict", text=f"at {LEVEL}", meaning="Whether the pair is shown to differ."),
        Title(name="detectable", text="detectable", meaning="A smaller difference would have gone unseen."),
    ]
    return table(titles, [(False, comparison(row, several)) for row in rows])


def comparison(row: Mapping[Any, Any], several: bool) -> list[Field]:
    """One line of the comparisons."""
    names = f"{row['defense_a']} minus {row['defense_b']}" + f" ({row['model']}, {row['scenario']})" * several
    differ = not is_missing(row["p_holm"]) and row["p_holm"] < LEVEL
    verdict = "differ" if differ else "not shown to differ"
    return [
        Field(text=names, order=names),
        replace(field("worst_difference", row["value"], row["ci_low"], row["ci_high"]), span=None),
        field("p", row["p_holm"]),
        Field(text=verdict, order=verdict, badge="ok" if differ else ""),
        field("worst_detectable", row["detectable"]),
    ]


def is_extra(rows: pd.DataFrame, name: str) -> bool:
    """True for a distance that has a column of its own."""
    return name not in HIDDEN and pd.api.types.is_numeric_dtype(rows[name])


def is_told(rows: pd.DataFrame, name: str) -> bool:
    """False for a column that says nothing: all is missing, or the same name in each row."""
    if name in ("model", "scenario", "concepts"):
        return rows[name].nunique() > 1
    return bool(rows[name].notna().any())


def bounds(row: Mapping[Any, Any], name: str) -> tuple[Any, Any]:
    """The interval that stands beside a number of the leaderboard."""
    return row.get(f"{name}_low"), row.get(f"{name}_high")


def filters(names: Iterable[str]) -> list[tuple[int, str]]:
    """Columns, by position, that a page offers to choose from."""
    wanted = ("model", "scenario", "concept", "defense", "attack", "status")
    return [(i, name) for i, name in enumerate(names) if name in wanted]


def cells(board: Board) -> dict[str, Any]:
    """One line for each cell: who, what became of it, the numbers with their intervals, and the reason."""
    constant = ("model", "scenario", "defense_seed")
    names = [name for name in CELL if name not in constant or board.cells[name].nunique() > 1]
    present = set(board.cells["number"])
    numbers = [name for name in CELLS if name in present]
    lines, parts = [], dict[tuple[Any, ...], dict[str, dict[Any, Any]]]()
    for row in board.cells.to_dict("records"):  # picking rows of a frame one by one takes seconds on a large board
        parts.setdefault(tuple(row[name] for name in CELL), {})[row["number"]] = row
    for part in parts.values():
        first = next(iter(part.values()))
        line = [field(name, first[name]) for name in names] + [field("status", first["status"])]
        line += [field(n, *(part[n][name] for name in ("value", "ci_low", "ci_high"))) for n in numbers]
        lines.append([*line, field("reason", text_of(first["reason"]))])
    titles = [Title(name=name, text=name, pin=int(name == names[0])) for name in (*names, "status")]
    titles += [Title(name=name, text=CELLS[name][0], meaning=CELLS[name][1]) for name in numbers]
    titles.append(Title(name="reason", text="reason", meaning="Why the cell is not ok."))
    if not any(line[-1].order for line in lines):
        titles, lines = titles[:-1], [line[:-1] for line in lines]
    return table(titles, [(False, line) for line in lines])


def warnings(found: Sequence[troubles.Trouble]) -> dict[str, Any]:
    """Cells that are not ok or in doubt: one line for each status, defense and attack."""
    names = ("status", "defense", "attack", "cells", "reason")
    lines = []
    for trouble in found:
        line = [field("status", trouble.status), field("defense", trouble.defense), field("attack", trouble.attack)]
        count = Field(text=str(len(trouble.cells)), order=float(len(trouble.cells)), is_number=True)
        reason = Field(text=trouble.told, order=trouble.told, name="reason", parts=trouble.cells)
        lines.append((False, [*line, count, reason]))
    return table([Title(name=name, text=name) for name in names], lines)


def matrices(board: Board) -> list[dict[str, Any]]:
    """A heat map for each model and scenario, as a table: defenses down, attacks across."""
    attacks = [str(name) for name in board.matrix if name not in ("model", "scenario", "defense")]
    attacks.sort(key=lambda name: name != CONTROL)
    rank = {name: i for i, name in enumerate(dict.fromkeys(board.leaderboard["defense"]))}
    found = []
    for (model, scenario), part in board.matrix.groupby(["model", "scenario"], sort=False):
        order = part.sort_values("defense", key=lambda names: names.map(rank))
        rows = [(row["defense"], [heat(row[a]) for a in attacks]) for row in order.to_dict("records")]
        found.append({"model": model, "scenario": scenario, "attacks": attacks, "rows": rows})
    return found


def heat(value: Any) -> tuple[str, float | None]:
    """A presence and how warm its field is, in percent."""
    return (number(value, share=True), None if is_missing(value) else clip(value))
